package limit_test

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/limit"
)

func TestRateLayerIsATransport(t *testing.T) {
	// used is a rate whose burst is gone.
	used := func(t *testing.T, cfg *limit.RateConfig) *limit.Rate {
		r, err := limit.NewRate(cfg)
		require.NoError(t, err)
		require.NoError(t, r.Allow(time.Time{}))
		return r
	}
	refuse := func(next http.RoundTripper) http.RoundTripper {
		return used(t, &limit.RateConfig{Limit: 0.001, Burst: 1}).Layer(next)
	}
	t.Run("admitting", func(t *testing.T) {
		backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
			r, err := limit.NewRate(&limit.RateConfig{Limit: 1e6})
			require.NoError(t, err)
			return r.Layer(next)
		}, &backstaytest.TransportOptions{Refuse: refuse})
	})
	t.Run("without limit", func(t *testing.T) {
		backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
			r, err := limit.NewRate(&limit.RateConfig{Limit: -1})
			require.NoError(t, err)
			return r.Layer(next)
		}, nil)
	})
	t.Run("queueing", func(t *testing.T) { // every request waits for its turn
		backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
			return used(t, &limit.RateConfig{Limit: 500, Burst: 1, MaxWait: -1}).Layer(next)
		}, &backstaytest.TransportOptions{
			// Its turn would come after MaxWait.
			Refuse: func(next http.RoundTripper) http.RoundTripper {
				return used(t, &limit.RateConfig{Limit: 0.001, Burst: 1, MaxWait: time.Minute}).Layer(next)
			},
		})
	})
}

func TestRateGroupLayerIsATransport(t *testing.T) {
	layer := func(cfg limit.RateConfig, used bool) func(http.RoundTripper) http.RoundTripper {
		return func(next http.RoundTripper) http.RoundTripper {
			g, err := limit.NewRateGroup(&limit.RateGroupConfig{RateConfig: cfg})
			require.NoError(t, err)
			if used {
				require.NoError(t, g.Get("all").Allow(time.Time{}))
				return g.LayerBy(func(*http.Request) string { return "all" })(next)
			}
			return g.Layer(next)
		}
	}
	backstaytest.TestTransport(t, layer(limit.RateConfig{Limit: 1e6}, false), &backstaytest.TransportOptions{
		Refuse: layer(limit.RateConfig{Limit: 0.001, Burst: 1}, true),
	})
}

// bulkhead is a concurrency's layer that says at its end what was not given back.
type bulkhead struct {
	http.RoundTripper
	t    testing.TB
	c    *limit.Concurrency
	left int // what is under way by the test's own will
	// before, if there is one, runs ahead of each request.
	before func()
}

func newBulkhead(t testing.TB, cfg *limit.ConcurrencyConfig, next http.RoundTripper) *bulkhead {
	c, err := limit.NewConcurrency(cfg)
	require.NoError(t, err)
	return &bulkhead{RoundTripper: c.Layer(next), t: t, c: c}
}

// take leaves one less for the requests.
func (b *bulkhead) take() {
	_, err := b.c.TryAcquire()
	require.NoError(b.t, err)
	b.left++
}

func (b *bulkhead) RoundTrip(req *http.Request) (*http.Response, error) {
	if b.before != nil {
		b.before()
	}
	return b.RoundTripper.RoundTrip(req)
}

func (b *bulkhead) CloseIdleConnections() {
	b.RoundTripper.(interface{ CloseIdleConnections() }).CloseIdleConnections()
}

func (b *bulkhead) Close() error {
	if b.c.InFlight() != b.left || b.c.Waiting() != 0 {
		return fmt.Errorf("%d under way, want %d; %d waiting", b.c.InFlight(), b.left, b.c.Waiting())
	}
	return nil
}

func TestConcurrencyLayerIsATransport(t *testing.T) {
	full := func(cfg limit.ConcurrencyConfig) func(http.RoundTripper) http.RoundTripper {
		return func(next http.RoundTripper) http.RoundTripper {
			b := newBulkhead(t, &cfg, next)
			b.take()
			return b
		}
	}
	for name, cfg := range map[string]limit.ConcurrencyConfig{
		"admitting":     {},
		"without limit": {Max: -1},
		"until headers": {UntilHeaders: limit.On},
	} {
		t.Run(name, func(t *testing.T) {
			backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
				return newBulkhead(t, &cfg, next)
			}, &backstaytest.TransportOptions{Refuse: full(limit.ConcurrencyConfig{Max: 1})})
		})
	}
	t.Run("queueing", func(t *testing.T) {
		// Each request finds the limit reached, and room a moment later.
		var waited atomic.Int64
		reached := limit.ConcurrencyConfig{Max: 1, Queue: 100, MaxWait: -1}
		backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
			b := newBulkhead(t, &reached, next)
			b.take()
			b.before = func() {
				assert.NoError(t, b.c.Update(&reached))
				time.AfterFunc(time.Millisecond, func() {
					waited.Add(int64(b.c.Waiting()))
					assert.NoError(t, b.c.Update(&limit.ConcurrencyConfig{Queue: 100, MaxWait: -1}))
				})
			}
			return b
		}, &backstaytest.TransportOptions{Refuse: full(limit.ConcurrencyConfig{Max: 1, Queue: 1, MaxWait: time.Millisecond})})
		require.Greater(t, waited.Load(), int64(100), "requests must have waited")
	})
}
