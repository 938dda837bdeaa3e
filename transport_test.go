package backstay_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/retry"
)

// atOnce repeats without waiting, as backstaytest.TestTransport asks.
var atOnce = retry.Config{Backoff: retry.Backoff{Base: -1, ThrottledBase: -1}}

// readdressed is what does not hold over a transport that is not net/http's: the
// node's address takes the service's place in the URL.
var readdressed = []string{"request reaches the transport as it was"}

func TestClientIsATransport(t *testing.T) {
	clientOver := func(change func(*backstay.Config)) func(http.RoundTripper) http.RoundTripper {
		return func(next http.RoundTripper) http.RoundTripper {
			cfg := &backstay.Config{Base: next, Default: backstay.Service{Resolver: itself, Retry: atOnce}}
			change(cfg)
			c, err := backstay.New(cfg)
			if err != nil {
				t.Error(err)
				return nil
			}
			return c
		}
	}
	closed := func(next http.RoundTripper) http.RoundTripper {
		c := clientOver(func(*backstay.Config) {})(next).(*backstay.Client)
		_ = c.Close()
		return c
	}
	t.Run("by default", func(t *testing.T) {
		backstaytest.TestTransport(t, clientOver(func(*backstay.Config) {}), &backstaytest.TransportOptions{Attempts: 3, Refuse: closed, Skip: readdressed})
	})
	t.Run("with everything on", func(t *testing.T) {
		backstaytest.TestTransport(t, clientOver(func(cfg *backstay.Config) {
			cfg.Observer = new(backstaytest.Recorder)
			s := &cfg.Default
			s.Timeout, s.CacheTTL, s.NodeConcurrency = time.Minute, time.Minute, 100
			s.Rate = limit.RateConfig{Limit: 1e6}
			s.Concurrency = limit.ConcurrencyConfig{Max: 100, Queue: 100}
			s.PerAttempt = []func(http.RoundTripper) http.RoundTripper{
				plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) { return next.RoundTrip(req) }),
			}
			cfg.Routes = map[string]backstay.Route{"/": {LatencyNeutral: backstay.On}}
		}), &backstaytest.TransportOptions{Attempts: 3, Skip: readdressed})
	})
	t.Run("under observation", func(t *testing.T) {
		backstaytest.TestTransport(t, clientOver(func(cfg *backstay.Config) {
			cfg.Default.Observe = backstay.On
			cfg.Default.Rate.Limit, cfg.Default.Concurrency.Max = 1, 1
		}), &backstaytest.TransportOptions{Skip: readdressed})
	})
}

func TestChainIsATransport(t *testing.T) {
	backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
		r, err := retry.New(&atOnce)
		require.NoError(t, err)
		br, err := breaker.New("orders", &breaker.Config{MinCalls: 1000})
		require.NoError(t, err)
		rate, err := limit.NewRate(&limit.RateConfig{Limit: 1e6})
		require.NoError(t, err)
		return backstay.Chain(next, rate.Layer, nil, r.Layer, br.Layer)
	}, &backstaytest.TransportOptions{Attempts: 3, Refuse: func(next http.RoundTripper) http.RoundTripper {
		br, err := breaker.New("orders", nil)
		require.NoError(t, err)
		br.ForceOpen()
		return backstay.Chain(next, br.Layer)
	}})
}

func TestChainOfNothingIsATransport(t *testing.T) {
	backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper { return backstay.Chain(next) }, nil)
}
