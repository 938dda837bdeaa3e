package backstay_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// The call's timeout holds wherever the call is just then.
func TestCallTimeoutBoundsWhateverACallWaitsFor(t *testing.T) {
	const timeout = 3 * time.Second
	for _, test := range []struct {
		name  string
		setup func(*backstaytest.Fleet, *backstay.Service)
	}{
		{"the first endpoints", func(_ *backstaytest.Fleet, s *backstay.Service) { s.Resolver = silent }},
		{"a connection", func(f *backstaytest.Fleet, s *backstay.Service) {
			f.Server(0).Freeze()
			s.ConnectTimeout = -1
		}},
		{"an answer", func(f *backstaytest.Fleet, _ *backstay.Service) { f.Server(0).Stall() }},
		{"another answer", func(f *backstaytest.Fleet, s *backstay.Service) {
			f.Server(0).Stall()
			s.AttemptTimeout = time.Second
		}},
		{"its turn by the rate", func(_ *backstaytest.Fleet, s *backstay.Service) {
			s.Rate.Limit, s.Rate.Burst, s.Rate.MaxWait = 1./30, 1, -1
		}},
		{"a layer of the user's", func(_ *backstaytest.Fleet, s *backstay.Service) {
			s.PerAttempt = []func(http.RoundTripper) http.RoundTripper{plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) {
				if req.URL.Query().Has("hold") {
					return next.RoundTrip(req)
				}
				<-req.Context().Done() // a token that never comes
				return nil, context.Cause(req.Context())
			})}
		}},
		{"its turn in the queue", func(f *backstaytest.Fleet, s *backstay.Service) {
			s.Concurrency.Max, s.Concurrency.Queue, s.Concurrency.MaxWait = 1, 1, -1
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, _ := streaming()
				fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{
					Network: backstaytest.NewNetwork(),
					Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.URL.Query().Has("hold") {
							h.ServeHTTP(w, r)
						}
					}),
				})
				c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
					cfg.Routes = map[string]backstay.Route{"/bounded": {Timeout: timeout}}
					test.setup(fleet, s)
				})
				// One that has taken what there is, and holds it.
				first, stop := context.WithTimeout(t.Context(), time.Minute)
				defer stop()
				holder := make(chan struct{})
				go func() {
					defer close(holder)
					_ = try(first, c, fleet.URL()+"/?hold")
				}()
				synctest.Wait()

				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				begin := time.Now()
				err := try(ctx, c, fleet.URL()+"/bounded")
				require.LessOrEqual(t, time.Since(begin), timeout)
				require.Error(t, err)
				stop()
				<-holder
			})
		})
	}
}

func TestCallersDeadlineBoundsWhateverACallWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, &backstay.Config{Base: always(200), Services: map[string]backstay.Service{"orders": {Resolver: silent}}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		err := try(ctx, c, "http://orders")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.True(t, backstay.NotSent(err))
		require.Equal(t, time.Second, time.Since(begin))
	})
}

// Where the wait before the next attempt would outlast the call, the caller gets
// what there is at once.
func TestCallIsOverWhenTheNextAttemptWouldComeTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		fleet.Server(0).Inject(backstaytest.Fault{Status: 503, Header: http.Header{"Retry-After": {"20"}}})
		c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) { s.Timeout = 5 * time.Second })
		begin := time.Now()
		resp, err := c.Get(fleet.URL())
		require.NoError(t, err)
		require.Zero(t, time.Since(begin))
		require.Equal(t, "20", resp.Header.Get("Retry-After"))
		status, _ := read(t, resp)
		require.Equal(t, 503, status)
	})
}

func TestCancelledCallComesBackAtOnceWhereverItIs(t *testing.T) {
	for name, setup := range map[string]func(*backstaytest.Fleet, *backstay.Service){
		"awaiting endpoints": func(_ *backstaytest.Fleet, s *backstay.Service) { s.Resolver = silent },
		"awaiting an answer": func(f *backstaytest.Fleet, _ *backstay.Service) { f.Server(0).Stall() },
		"between attempts": func(f *backstaytest.Fleet, s *backstay.Service) {
			f.Server(0).Inject(backstaytest.Fault{Status: 503, Header: http.Header{"Retry-After": {"20"}}})
		},
		"connecting": func(f *backstaytest.Fleet, _ *backstay.Service) { f.Server(0).Freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
				c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) { setup(fleet, s) })
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(500*time.Millisecond, cancel)
				begin := time.Now()
				require.ErrorIs(t, try(ctx, c, fleet.URL()), context.Canceled)
				require.Equal(t, 500*time.Millisecond, time.Since(begin))
			})
		})
	}
}

// The attempt's timeout is the balancer's to keep, which lets go at the headers.
func TestBufferedBodyThatStallsIsAnAttemptTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, end := streaming()
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork(), Handler: h})
		c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
			s.AttemptTimeout = 2 * time.Second
			s.Retry = retry.Config{MaxAttempts: -1, BufferBody: retry.On}
		})
		begin := time.Now()
		err := try(t.Context(), c, fleet.URL())
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.Equal(t, 2*time.Second, time.Since(begin))
		end()
	})
}
