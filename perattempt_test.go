package backstay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// plain is a layer as users write them: a function, which does not say what it
// wraps.
func plain(do func(http.RoundTripper, *http.Request) (*http.Response, error)) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) { return do(next, req) })
	}
}

// signing adds a header to a copy of the request.
func signing(sign func(*http.Request) string) func(http.RoundTripper) http.RoundTripper {
	return plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) {
		req = req.Clone(req.Context())
		req.Header.Set("X-Signature", sign(req))
		return next.RoundTrip(req)
	})
}

func TestPerAttemptLayersSeeEachAttempt(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 3, nil)
	for _, s := range fleet.Servers()[:2] {
		s.Fail(http.StatusServiceUnavailable)
	}
	var outer, inner atomic.Int64
	count := func(n *atomic.Int64) func(http.RoundTripper) http.RoundTripper {
		return plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) {
			n.Add(1)
			return next.RoundTrip(req)
		})
	}
	var order []string
	tell := func(name string) func(http.RoundTripper) http.RoundTripper {
		return plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) {
			order = append(order, name)
			return next.RoundTrip(req)
		})
	}
	c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
		s.PerAttempt = []func(http.RoundTripper) http.RoundTripper{count(&outer), tell("outer"), tell("inner"), count(&inner)}
	})
	r := logged(t, c, fleet.URL())
	require.Equal(t, 200, r.Status)
	require.EqualValues(t, len(r.Attempts), outer.Load())
	require.EqualValues(t, len(r.Attempts), inner.Load())
	require.Equal(t, []string{"outer", "inner"}, order[:2])
}

// A layer that has no Unwrap must not cut the retry's knowledge of the nodes
// that have been tried, nor the timeouts that the frame carries.
func TestPerAttemptLayerThatHidesWhatItWrapsKeepsTheCallTogether(t *testing.T) {
	pass := plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) { return next.RoundTrip(req) })
	layers := func(_ *backstay.Config, s *backstay.Service) {
		s.PerAttempt = []func(http.RoundTripper) http.RoundTripper{pass, pass}
	}
	t.Run("nodes that were tried", func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 2, nil)
		fleet.Server(0).Fail(http.StatusServiceUnavailable)
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			layers(cfg, s)
			s.Policy = first{}
		})
		r := logged(t, c, fleet.URL())
		require.Equal(t, 200, r.Status)
		require.Equal(t, []string{"s0", "s1"}, nodesOf(r))
	})
	t.Run("attempt timeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
			fleet.Server(0).Stall()
			c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
				layers(cfg, s)
				s.Policy, s.AttemptTimeout = first{}, time.Second
			})
			r := logged(t, c, fleet.URL())
			require.Equal(t, []string{"s0", "s1"}, nodesOf(r))
			require.ErrorIs(t, r.Attempts[0].Outcome.Err, outcome.ErrAttemptTimeout)
		})
	})
	t.Run("call timeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
			fleet.Server(0).Stall()
			c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
				layers(cfg, s)
				s.Timeout = time.Second
			})
			begin := time.Now()
			require.ErrorIs(t, try(t.Context(), c, fleet.URL()), outcome.ErrCallTimeout)
			require.Equal(t, time.Second, time.Since(begin))
		})
	})
}

func nodesOf(r call.Record) []string {
	var nodes []string
	for _, a := range r.Attempts {
		nodes = append(nodes, a.Node)
	}
	return nodes
}

// The token's call is one of its own: it has its own attempts, and takes part
// neither in what the outer call has tried nor in its timeouts.
func TestPerAttemptLayerFetchesATokenThroughTheSameClient(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, nil)
	fleet.Server(0).Fail(http.StatusServiceUnavailable)
	auth := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Service: "auth.test"})
	auth.Server(0).Fail(http.StatusServiceUnavailable)
	var c *backstay.Client
	rec := new(backstaytest.Recorder)
	c = fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
		s.Policy = first{}
		s.PerAttempt = []func(http.RoundTripper) http.RoundTripper{
			plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) {
				token, err := http.NewRequestWithContext(req.Context(), http.MethodGet, auth.URL()+"/token", nil)
				if err != nil {
					return nil, err
				}
				resp, err := c.Do(token)
				if err != nil {
					return nil, err
				}
				_ = resp.Body.Close()
				return next.RoundTrip(req)
			}),
		}
		cfg.Observer = rec
		cfg.Services = map[string]backstay.Service{"auth.test": {Resolver: auth.Resolver(), Policy: first{}}}
	})
	ctx, log := call.WithLog(t.Context())
	resp, err := send(t, ctx, c, http.MethodGet, fleet.URL()+"/items", "")
	require.NoError(t, err)
	status, _ := read(t, resp)
	require.Equal(t, 200, status)

	calls := log.Calls()
	require.Len(t, calls, 3)
	require.Equal(t, "orders.test", calls[0].Service)
	require.Equal(t, []string{"s0", "s1"}, nodesOf(calls[0]))
	for _, token := range calls[1:] { // one for each attempt
		require.Equal(t, "auth.test", token.Service)
		require.Equal(t, []string{"s0", "s1"}, nodesOf(token))
		require.Equal(t, 200, token.Status)
	}
	require.Len(t, finished(rec), 3)
}

func TestPerAttemptLayersErrorIsThatOfTheAttempt(t *testing.T) {
	noToken := errors.New("no token")
	fleet := backstaytest.NewFleet(t, 2, nil)
	tries := 0
	c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
		s.PerAttempt = []func(http.RoundTripper) http.RoundTripper{
			plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) {
				tries++
				return nil, outcome.Permanent(noToken)
			}),
		}
	})
	require.ErrorIs(t, try(t.Context(), c, fleet.URL()), noToken)
	require.Equal(t, 1, tries, "permanent")
	require.Zero(t, fleet.Stats().Requests)
}

func TestPerAttemptLayerSignsEachAttemptsBody(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, nil)
	fleet.Server(0).FailNext(1, http.StatusServiceUnavailable)
	fleet.Server(1).FailNext(1, http.StatusServiceUnavailable)
	n := 0
	c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
		s.Retry = retry.Config{Backoff: retry.Backoff{Base: -1}}
		s.PerAttempt = []func(http.RoundTripper) http.RoundTripper{signing(func(*http.Request) string { n++; return "v" })}
	})
	resp, err := send(t, t.Context(), c, http.MethodPut, fleet.URL(), "content")
	require.NoError(t, err)
	require.Empty(t, resp.Request.Header, "the caller's request has no signature")
	status, _ := read(t, resp)
	require.Equal(t, 200, status)
	require.Equal(t, 3, fleet.SeenBody([]byte("content")))
	require.Equal(t, 3, n)
}

func TestIdleConnectionsAreClosedAlsoBelowALayerThatDoesNotPassItOn(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
		s.PerAttempt = []func(http.RoundTripper) http.RoundTripper{signing(func(*http.Request) string { return "" })}
	})
	get(t, c, fleet.URL())
	require.Equal(t, 1, fleet.Stats().OpenConnections)
	c.CloseIdleConnections()
	eventually(t, func() bool { return fleet.Stats().OpenConnections == 0 }, "closed")
	get(t, c, fleet.URL())
}

func TestPanicInAPerAttemptLayerHarmsOneCallOnly(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	armed := true
	c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
		s.NodeConcurrency, s.Concurrency.Max = 1, 1
		s.PerAttempt = []func(http.RoundTripper) http.RoundTripper{
			plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) {
				if armed {
					armed = false
					panic("boom")
				}
				return next.RoundTrip(req)
			}),
		}
	})
	require.PanicsWithValue(t, "boom", func() { _, _ = send(t, t.Context(), c, http.MethodGet, fleet.URL(), "") })
	status, _ := get(t, c, fleet.URL())
	require.Equal(t, 200, status)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.NoError(t, c.Shutdown(ctx), "nothing is thought to be under way")
}

// both hands a request down twice at once and gives back what comes first, as a
// hedge of the user's own does.
func both(next http.RoundTripper, req *http.Request) (*http.Response, error) {
	answers := make(chan func() (*http.Response, error), 2)
	for range 2 {
		go func() {
			resp, err := next.RoundTrip(req.Clone(req.Context()))
			answers <- func() (*http.Response, error) { return resp, err }
		}()
	}
	first := <-answers
	go func() {
		if late, err := (<-answers)(); err == nil {
			_ = late.Body.Close()
		}
	}()
	return first()
}

// impatient gives up after a while and leaves what is below alone.
func impatient(next http.RoundTripper, req *http.Request) (*http.Response, error) {
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if resp, err := next.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
		}
	}()
	select {
	case <-answered:
	case <-time.After(5 * time.Millisecond):
	}
	return nil, io.ErrUnexpectedEOF
}

// The race detector would find it.
func TestPerAttemptLayerMayCallDownTwiceAtOnceOrGiveUpEarly(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, nil)
	for i := range 2 {
		fleet.Server(i).Slow(10 * time.Millisecond)
	}
	for name, layer := range map[string]func(http.RoundTripper, *http.Request) (*http.Response, error){"twice": both, "early": impatient} {
		for _, log := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, logged %v", name, log), func(t *testing.T) {
				c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
					s.PerAttempt = []func(http.RoundTripper) http.RoundTripper{plain(layer)}
				})
				var all sync.WaitGroup
				for range 20 {
					all.Go(func() {
						ctx := t.Context()
						if log {
							ctx, _ = call.WithLog(ctx)
						}
						_ = try(ctx, c, fleet.URL())
					})
				}
				all.Wait()
				require.NoError(t, c.Shutdown(t.Context()))
			})
		}
	}
}
