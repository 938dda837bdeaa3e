package backstay_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// Four real servers that take very long for every thirtieth request: no choice of
// nodes would help. A hedge does.
func TestHedgingCutsTheTailOfRealCallsAndLosesNone(t *testing.T) {
	backstaytest.CheckLeaks(t)
	const (
		calls = 800
		slow  = time.Second // far beyond what a busy machine adds
	)
	var gets atomic.Int64
	fleet := backstaytest.NewFleet(t, 4, &backstaytest.FleetConfig{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost && gets.Add(1)%30 == 0 {
			select {
			case <-time.After(slow):
			case <-r.Context().Done():
			}
		}
		_, _ = w.Write([]byte("ok"))
	})})
	tail := func(hedge retry.HedgeConfig) (late, hedges int64) {
		var lateCalls, hedgedCalls atomic.Int64
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			s.Retry.Hedge = hedge
			cfg.Observer = event.ObserverFunc(func(_ context.Context, e event.Event) {
				if _, ok := e.(retry.Hedged); ok {
					hedgedCalls.Add(1)
				}
			})
		})
		var all sync.WaitGroup
		for caller := range 8 {
			all.Go(func() {
				for i := range calls / 8 {
					method, key := http.MethodGet, ""
					if i%10 == 0 {
						method, key = http.MethodPost, fmt.Sprintf("%v-%d-%d", hedge.Delay, caller, i)
					}
					req, err := http.NewRequestWithContext(t.Context(), method, fleet.URL(), strings.NewReader(""))
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("X-Request-Id", key)
					begin := time.Now()
					resp, err := c.Do(req)
					if err != nil || resp.StatusCode != 200 {
						t.Errorf("lost: %v, %v", resp, err)
						return
					}
					_ = resp.Body.Close()
					if time.Since(begin) >= slow {
						lateCalls.Add(1)
					}
				}
			})
		}
		all.Wait()
		eventually(t, func() bool { return c.Balancer(fleet.Service).InFlight() == 0 }, "all is over")
		return lateCalls.Load(), hedgedCalls.Load()
	}
	without, none := tail(retry.HedgeConfig{})
	// A busy machine needs hedges for itself.
	with, some := tail(retry.HedgeConfig{Delay: 100 * time.Millisecond, MaxExtra: 0.2})
	t.Logf("%d calls late, with %d hedges %d", without, some, with)
	require.Zero(t, none)
	require.GreaterOrEqual(t, without, int64(calls*9/10/30))
	require.Less(t, with, without/2)
	require.LessOrEqual(t, some, int64(calls/5+1))
	require.Empty(t, fleet.Repeated(), "a POST without a key is sent once")
}

// slowFirst is a fleet, in memory and for bubbles, whose first request hangs until it
// is canceled, wherever it goes, and counts those that were.
func slowFirst(t *testing.T, servers int) (fleet *backstaytest.Fleet, canceled *atomic.Int64) {
	t.Helper()
	var requests atomic.Int64
	canceled = new(atomic.Int64)
	return backstaytest.NewFleet(t, servers, &backstaytest.FleetConfig{
		Network: backstaytest.NewNetwork(),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if requests.Add(1) == 1 {
				select {
				case <-r.Context().Done():
					canceled.Add(1)
				case <-time.After(500 * time.Millisecond):
				}
			}
			_, _ = w.Write([]byte("ok"))
		}),
	}), canceled
}

func TestHedgeGoesToAnotherNodeAndTheSupersededAttemptIsNeutral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet, canceled := slowFirst(t, 2)
		finished := make(chan call.Record, 1)
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			s.Retry.Hedge.Delay = 20 * time.Millisecond
			cfg.Observer = event.ObserverFunc(func(_ context.Context, e event.Event) {
				if f, ok := e.(call.Finished); ok {
					finished <- f.Record
				}
			})
		})
		ctx, log := call.WithLog(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fleet.URL(), nil)
		require.NoError(t, err)
		resp, err := c.Do(req)
		require.NoError(t, err)
		read(t, resp)

		attempts := (<-finished).Attempts
		require.Len(t, attempts, 2, log)
		require.NotEqual(t, attempts[0].Node, attempts[1].Node)
		require.False(t, attempts[0].Hedge)
		require.True(t, attempts[1].Hedge)
		require.Equal(t, outcome.Neutral, attempts[0].Outcome.Class)
		require.ErrorIs(t, attempts[0].Outcome.Err, context.Canceled)
		require.Equal(t, 200, attempts[1].Status)
		require.Contains(t, log.String(), "superseded by another attempt")
		synctest.Wait()
		require.EqualValues(t, 1, canceled.Load(), "the server sees that it is not wanted any more")
		require.Zero(t, c.Balancer(fleet.Service).InFlight(), "all leases are given back")
	})
}

func TestOneNodeIsHedgedOnlyWhereThatIsAskedFor(t *testing.T) {
	for same, want := range map[backstay.Switch]int{backstay.Off: 1, backstay.On: 2} {
		t.Run(same.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fleet, _ := slowFirst(t, 1)
				c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
					s.Retry.Hedge = retry.HedgeConfig{Delay: 20 * time.Millisecond, SameNode: same}
				})
				begin := time.Now()
				get(t, c, fleet.URL())
				took := 500 * time.Millisecond
				if same == backstay.On {
					took = 20 * time.Millisecond
				}
				require.Equal(t, took, time.Since(begin))
				require.Equal(t, want, fleet.Stats().Requests)
				synctest.Wait()
				require.Zero(t, c.Balancer(fleet.Service).InFlight(), "the refused lease is given back")
			})
		})
	}
}

// A layer of the user's own between retry and the balancer, and a log: the frames
// of both attempts go by way of contexts, and are looked at all the time.
func TestHedgesPassAUsersLayerAndAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 3, &backstaytest.FleetConfig{
			Network: backstaytest.NewNetwork(),
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				<-time.After(1 + rand.N(6*time.Millisecond))
				if rand.N(4) == 0 {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			}),
		})
		stranger := func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) { return next.RoundTrip(req) })
		}
		c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
			s.PerAttempt = append(s.PerAttempt, stranger)
			s.Outliers.Consecutive, s.Breaker.FailureRate, s.Budget.Ratio = -1, -1, -1
			s.Retry.MaxAttempts, s.Retry.Backoff.Base = 5, -1
			s.Retry.Hedge = retry.HedgeConfig{Delay: 2 * time.Millisecond, MaxHedges: 2, MaxExtra: -1}
		})
		ctx, log := call.WithLog(t.Context())
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 40 {
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, fleet.URL(), nil)
					if err != nil {
						t.Error(err)
						return
					}
					resp, err := c.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					_ = resp.Body.Close()
					_ = log.String()
				}
			})
		}
		all.Wait()
		synctest.Wait()
		require.Zero(t, c.Balancer(fleet.Service).InFlight(), "all is over")
		hedged := 0
		for _, r := range log.Calls() {
			for i, a := range r.Attempts {
				if a.Hedge {
					hedged++
					require.NotEqual(t, r.Attempts[i-1].Node, a.Node, r)
				}
			}
		}
		require.NotZero(t, hedged)
	})
}

func TestObservedServiceIsNotHedged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet, _ := slowFirst(t, 2)
		c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
			s.Observe, s.Retry.Hedge.Delay = backstay.On, 20*time.Millisecond
		})
		get(t, c, fleet.URL())
		require.Equal(t, 1, fleet.Stats().Requests)
	})
}

func TestHedgesMustComeBeforeTheServicesTimeout(t *testing.T) {
	_, err := backstay.New(&backstay.Config{Default: backstay.Service{
		Timeout: time.Second, Retry: retry.Config{Hedge: retry.HedgeConfig{Delay: time.Second}},
	}})
	require.EqualError(t, err,
		"backstay: Default.Retry: retry: Hedge.Delay is 1s, want less than Timeout (1s) with all 1 hedges together")
}
