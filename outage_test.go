package backstay_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

// times are the moments at which something happened.
type times struct {
	mu sync.Mutex
	at []time.Time
}

func (t *times) add() {
	t.mu.Lock()
	t.at = append(t.at, time.Now())
	t.mu.Unlock()
}

// within counts those in the window that begins at from.
func (t *times) within(from time.Time, window time.Duration) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, at := range t.at {
		if d := at.Sub(from); d >= 0 && d < window {
			n++
		}
	}
	return n
}

// A dead service gets no more than its share of extra load, over any ten
// seconds, and its callers hear at once what is the matter.
func TestDeadServiceIsLeftInPeace(t *testing.T) {
	breakersOff := func(s *backstay.Service) { s.Breaker.FailureRate = -1 }
	for _, test := range []struct {
		name   string
		nodes  int
		change func(*backstay.Service)
		fault  func(*backstaytest.Network, *backstaytest.Server)
		want   error
		within time.Duration // an error at the latest
	}{
		{"killed", 4, nil, kill, syscall.ECONNREFUSED, 500 * time.Millisecond},
		{"killed, one node", 1, nil, kill, syscall.ECONNREFUSED, 500 * time.Millisecond},
		{"killed, without breakers", 4, breakersOff, kill, syscall.ECONNREFUSED, 500 * time.Millisecond},
		{"in a black hole", 4, nil, blackhole, os.ErrDeadlineExceeded, 3500 * time.Millisecond},
		{"in a black hole, without breakers", 4, breakersOff, blackhole, os.ErrDeadlineExceeded, 3500 * time.Millisecond},
		{"resetting", 4, nil, reset, nil, 500 * time.Millisecond},
		{"resetting, without breakers", 4, breakersOff, reset, nil, 500 * time.Millisecond},
		{"overloaded", 4, nil, overload, outcome.StatusError(503), 5 * time.Second},
		{"overloaded, without breakers", 4, breakersOff, overload, outcome.StatusError(503), 5 * time.Second},
		{"stalled", 4, func(s *backstay.Service) { s.Timeout = 2 * time.Second }, stall, outcome.ErrCallTimeout, 2 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const (
					perSecond = 100
					length    = 25 * time.Second
					window    = 10 * time.Second
				)
				network := backstaytest.NewNetwork()
				fleet := backstaytest.NewFleet(t, test.nodes, &backstaytest.FleetConfig{Network: network})
				var calls, dials, requests times
				base := fleet.Transport()
				base.DialContext = func(ctx context.Context, network_, addr string) (net.Conn, error) {
					dials.add()
					return network.DialContext(ctx, network_, addr)
				}
				c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
					cfg.Base = base
					if test.change != nil {
						test.change(s)
					}
					s.PerAttempt = append(s.PerAttempt, plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) {
						resp, err := next.RoundTrip(req)
						if err == nil || !backstay.Refused(err) {
							requests.add()
						}
						return resp, err
					}))
				})
				for range 20 { // it has known better days
					get(t, c, fleet.URL())
				}
				for _, s := range fleet.Servers() {
					test.fault(network, s)
				}
				time.Sleep(window + time.Second) // and has no budget left from then
				dials.at, requests.at = nil, nil

				begin := time.Now()
				var all sync.WaitGroup
				var mu sync.Mutex
				var wrong []error
				for time.Since(begin) < length {
					calls.add()
					all.Go(func() {
						start := time.Now()
						err := try(t.Context(), c, fleet.URL())
						took := time.Since(start)
						if err == nil || test.want != nil && !errors.Is(err, test.want) || took > test.within {
							mu.Lock()
							wrong = append(wrong, fmt.Errorf("after %v: %w", took, err))
							mu.Unlock()
						}
					})
					time.Sleep(time.Second / perSecond)
				}
				all.Wait()
				require.Empty(t, wrong[:min(len(wrong), 3)], "%d calls", len(wrong))

				attempts := &dials
				if len(requests.at) > len(dials.at) {
					attempts = &requests
				}
				for from := begin; !from.After(begin.Add(length - window)); from = from.Add(time.Second) {
					most := 1.2*float64(calls.within(from, window)) + 100
					require.LessOrEqual(t, float64(attempts.within(from, window)), most, "from %v on", from.Sub(begin))
				}
				t.Logf("%d calls, %d dials, %d attempts", len(calls.at), len(dials.at), len(requests.at))
			})
		})
	}
}

func kill(_ *backstaytest.Network, s *backstaytest.Server) { s.Kill() }

func blackhole(n *backstaytest.Network, s *backstaytest.Server) {
	n.Blackhole(s.Addr, true)
	s.Kill() // with the connections that stand
}

func reset(_ *backstaytest.Network, s *backstaytest.Server) { s.ResetBeforeHeaders() }

func overload(_ *backstaytest.Network, s *backstaytest.Server) { s.Fail(http.StatusServiceUnavailable) }

func stall(_ *backstaytest.Network, s *backstaytest.Server) { s.Stall() }

// Where everything is down, callers without patience get their error from the
// breaker, around the one that opened it.
func TestOpenBreakersAnswerInNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 3, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		c := fleetClient(t, fleet, nil)
		require.NoError(t, c.Ready(t.Context()))
		for _, s := range fleet.Servers() {
			s.Kill()
		}
		for range 100 {
			_ = try(t.Context(), c, fleet.URL())
		}
		begin := time.Now()
		err := try(t.Context(), c, fleet.URL())
		require.Zero(t, time.Since(begin))
		require.ErrorIs(t, err, breaker.ErrOpen)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		after, ok := backstay.RetryAfter(err)
		require.True(t, ok)
		require.LessOrEqual(t, after, 6*time.Second)
	})
}

func TestServiceComesBackSoonAfterItsNodesDo(t *testing.T) {
	for _, nodes := range []int{1, 4} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fleet := backstaytest.NewFleet(t, nodes, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
				c := fleetClient(t, fleet, nil)
				require.NoError(t, c.Ready(t.Context()))
				for _, s := range fleet.Servers() {
					s.Kill()
				}
				for range 3 * 60 { // open, with a probe now and then: a minute
					_ = try(t.Context(), c, fleet.URL())
					time.Sleep(time.Second / 3)
				}
				for _, s := range fleet.Servers() {
					s.Restart()
				}
				// The open time has doubled meanwhile: 5, 10, 20, 40 s.
				begin := time.Now()
				for try(t.Context(), c, fleet.URL()) != nil {
					require.Less(t, time.Since(begin), 50*time.Second)
					time.Sleep(100 * time.Millisecond)
				}
				time.Sleep(5 * time.Second)
				fleet.ResetStats()
				for range 400 {
					require.NoError(t, try(t.Context(), c, fleet.URL()))
					time.Sleep(100 * time.Millisecond)
				}
				var served []int
				for _, s := range fleet.Servers() {
					served = append(served, s.Stats().Requests)
				}
				require.Greater(t, slices.Min(served), 400/nodes/4, "every node works again")
			})
		})
	}
}

// Budgets are each service's own.
func TestDeadServiceDoesNotUseUpTheBudgetOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := &recording{next: roundTripper(func(req *http.Request) (*http.Response, error) {
			return answer(req, http.StatusServiceUnavailable, ""), nil
		})}
		c := newClient(t, &backstay.Config{Base: base, Default: backstay.Service{
			Resolver: itself, Retry: atOnce, Breaker: breaker.Config{FailureRate: -1},
		}})
		attempts := func(host string) int {
			before := len(base.hosts())
			get(t, c, "http://"+host)
			return len(base.hosts()) - before
		}
		require.Equal(t, 3, attempts("dead"))
		for attempts("dead") > 1 {
		}
		require.Equal(t, 3, attempts("other"))
		require.Equal(t, 1, attempts("dead"))
		time.Sleep(11 * time.Second)
		require.Equal(t, 3, attempts("dead"), "the budget refills")
	})
}

func TestServerThatForbidsRepetitionIsObeyed(t *testing.T) {
	for _, header := range []string{"X-Envoy-Overloaded", "X-Envoy-Ratelimited"} {
		fleet := backstaytest.NewFleet(t, 3, nil)
		for _, s := range fleet.Servers() {
			s.Inject(backstaytest.Fault{Status: 503, Header: http.Header{header: {"true"}}})
		}
		c := fleetClient(t, fleet, nil)
		status, _ := get(t, c, fleet.URL())
		require.Equal(t, 503, status)
		require.Equal(t, 1, fleet.Stats().Requests)
	}
}
