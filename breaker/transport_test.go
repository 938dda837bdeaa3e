package breaker_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/breaker"
)

// never opens by itself, however often the suite's servers fail.
var never = breaker.Config{FailureRate: -1, SlowTime: time.Minute, SlowRate: -1}

func TestLayerIsATransport(t *testing.T) {
	layer := func(open func(*breaker.Breaker)) func(http.RoundTripper) http.RoundTripper {
		return func(next http.RoundTripper) http.RoundTripper {
			b, err := breaker.New("orders", &never)
			require.NoError(t, err)
			open(b)
			return b.Layer(next)
		}
	}
	forced := layer((*breaker.Breaker).ForceOpen)
	for name, change := range map[string]func(*breaker.Breaker){
		"closed":        func(*breaker.Breaker) {},
		"forced closed": (*breaker.Breaker).ForceClosed,
		"disabled":      (*breaker.Breaker).Disable,
	} {
		t.Run(name, func(t *testing.T) {
			backstaytest.TestTransport(t, layer(change), &backstaytest.TransportOptions{Refuse: forced})
		})
	}
}

// A probe's lease is let go of by other ways than an ordinary one.
func TestLayerOfAHalfOpenBreakerIsATransport(t *testing.T) {
	backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
		b, err := breaker.New("orders", &breaker.Config{
			OpenTime: time.Nanosecond, MaxOpenTime: time.Nanosecond, Jitter: -1,
			Consecutive: 1, FailureRate: -1, Probes: 10_000,
		})
		require.NoError(t, err)
		lease, err := b.Acquire(time.Time{})
		require.NoError(t, err)
		lease.Done(time.Time{}, failure)
		require.NotEqual(t, breaker.Closed, b.State())
		return b.Layer(next)
	}, nil)
}

func TestGroupLayerIsATransport(t *testing.T) {
	group := func() *breaker.Group {
		g, err := breaker.NewGroup(&breaker.GroupConfig{Config: never})
		require.NoError(t, err)
		return g
	}
	backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
		return group().Layer(next)
	}, &backstaytest.TransportOptions{
		Refuse: func(next http.RoundTripper) http.RoundTripper {
			g := group()
			g.Get("all").ForceOpen()
			return g.LayerBy(func(*http.Request) string { return "all" })(next)
		},
	})
}
