package balancer_test

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

// All of these run in a bubble.

// recovered opens the node's breaker and has its probes close it again.
func (r *rig) recovered() {
	r.t.Helper()
	r.open(addr(0))
	time.Sleep(6 * time.Second)
	for range 3 {
		r.acquire(balancer.Call{}).Done(time.Time{}, success)
	}
	require.Equal(r.t, breaker.Closed, r.node(addr(0)).Breaker().State())
}

// admitted takes leases until it is refused, but no more than most.
func (r *rig) admitted(most int) (leases []*balancer.Lease) {
	r.t.Helper()
	for range most {
		l, err := r.Acquire(r.t.Context(), balancer.Call{})
		if err != nil {
			require.ErrorIs(r.t, err, limit.ErrFull)
			break
		}
		leases = append(leases, &l)
	}
	return leases
}

// round has as many calls as are admitted, but no more than most, end alike after a time.
func (r *rig) round(most int, took time.Duration, o outcome.Outcome) int {
	r.t.Helper()
	leases := r.admitted(most)
	time.Sleep(took)
	for _, l := range leases {
		l.Done(time.Time{}, o)
	}
	return len(leases)
}

func TestNodeThatHasRecoveredGetsTwiceAsManyCallsWithEachRoundOfAnswers(t *testing.T) {
	inBubble(t, exact(balancer.Config{}), endpoints(1), func(t *testing.T, r *rig) {
		r.recovered()
		for _, want := range []int{3, 6, 12, 24} {
			leases := r.admitted(100)
			require.Len(t, leases, want)
			require.Equal(t, want, r.Snapshot().Nodes[0].Regaining)
			time.Sleep(10 * time.Millisecond)
			for _, l := range leases {
				l.Done(time.Time{}, success)
			}
		}
	})
}

func TestNodeThatHasRecoveredGetsHardlyMoreCallsWhenTheyWaitThere(t *testing.T) {
	inBubble(t, exact(balancer.Config{}), endpoints(1), func(t *testing.T, r *rig) {
		r.recovered()
		round := func(took time.Duration) int { return r.round(100, took, success) }
		require.Equal(t, 3, round(10*time.Millisecond))
		require.Equal(t, 6, round(10*time.Millisecond))
		require.Equal(t, 12, round(10*time.Millisecond))
		require.Equal(t, 24, round(30*time.Millisecond))
		before := round(30 * time.Millisecond)
		require.Less(t, before, 45)
		require.LessOrEqual(t, round(30*time.Millisecond), before+1)
		require.LessOrEqual(t, round(30*time.Millisecond), before+2)
	})
}

func TestFailureTakesACallFromANodeThatHasRecovered(t *testing.T) {
	inBubble(t, exact(balancer.Config{}), endpoints(1), func(t *testing.T, r *rig) {
		r.recovered()
		for range 3 {
			r.round(100, 0, success)
		}
		leases := r.admitted(100)
		require.Len(t, leases, 24)
		for i, l := range leases {
			if i < 5 {
				l.Done(time.Time{}, failure)
			} else {
				l.Done(time.Time{}, cancelled) // says nothing
			}
		}
		require.Len(t, r.admitted(100), 19)
	})
}

// Whoever reads the clock before the breaker closes may take his lease after it.
func TestCallThatBeganBeforeTheNodeHasRecoveredFails(t *testing.T) {
	inBubble(t, exact(balancer.Config{}), endpoints(1), func(t *testing.T, r *rig) {
		r.recovered()
		r.acquire(balancer.Call{Now: time.Now().Add(-time.Second)}).Done(time.Time{}, failure)
		require.Len(t, r.admitted(100), 3)
	})
}

// An overload is many failures at once, of calls that were all sent before the first
// of them was known.
func TestCallsThatFailTogetherLeaveHalfAndANodeComesNearThatSlowly(t *testing.T) {
	inBubble(t, exact(balancer.Config{Breaker: breaker.Config{FailureRate: 0.9}}), endpoints(1), func(t *testing.T, r *rig) {
		r.recovered()
		round := func(o outcome.Outcome) int { return r.round(200, 10*time.Millisecond, o) }
		for _, want := range []int{3, 6, 12, 24, 48} {
			require.Equal(t, want, round(success))
		}
		require.Equal(t, 96, round(failure))
		for _, want := range []int{48, 49, 50, 51} {
			require.InDelta(t, want, round(success), 1)
		}
		for range 6 {
			time.Sleep(9 * time.Second)
			require.Less(t, round(success), 60)
		}
		time.Sleep(9 * time.Second)
		round(success) // it was a minute ago
		require.Greater(t, round(success), 90)
	})
}

// Service times differ, and calls fail for reasons of their own: with the least time for
// a measure, and half of the calls lost by a failure, the node had three at a time for
// the whole minute; and with three of them lost, one that fails two calls of five, which
// opens no breaker, had as few for ever.
func TestNodeThatHasRecoveredRegainsItsCallsWhateverSingleAnswersAreLike(t *testing.T) {
	for _, c := range []struct {
		mean    time.Duration
		failing float64
	}{{50 * time.Millisecond, 0.05}, {time.Second, 0.05}, {50 * time.Millisecond, 0.4}} {
		config := balancer.Config{Breaker: breaker.Config{FailureRate: 0.9}}
		inBubble(t, exact(config), endpoints(1), func(t *testing.T, r *rig) {
			r.recovered()
			start := time.Now()
			var (
				callers      sync.WaitGroup
				all, refused atomic.Int32
			)
			for range 100 {
				callers.Go(func() {
					for time.Since(start) < 50*time.Second {
						l, err := r.Acquire(t.Context(), balancer.Call{})
						if time.Since(start) > 20*time.Second {
							all.Add(1)
							if err != nil {
								refused.Add(1)
							}
						}
						time.Sleep(time.Duration(rand.ExpFloat64() * float64(c.mean)))
						if rand.Float64() < c.failing {
							l.Done(time.Time{}, failure)
						} else {
							l.Done(time.Time{}, success)
						}
					}
				})
			}
			callers.Wait()
			require.Less(t, refused.Load(), all.Load()/4, "%+v", c)
		})
	}
}

func TestNodeThatHasRecoveredMayHaveNoMoreThanTwiceAsManyCallsAsWereNeeded(t *testing.T) {
	inBubble(t, exact(balancer.Config{}), endpoints(1), func(t *testing.T, r *rig) {
		r.recovered()
		for range 50 {
			r.round(10, 0, success)
		}
		require.Len(t, r.admitted(100), 20)
	})
}

func TestNodeHasRegainedItsCallsWhenNobodyWasRefusedForTenSeconds(t *testing.T) {
	for name, refuse := range map[string]bool{"nobody": false, "somebody": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, exact(balancer.Config{}), endpoints(1), func(t *testing.T, r *rig) {
				r.recovered()
				time.Sleep(6 * time.Second)
				if refuse {
					for _, l := range r.admitted(100) {
						l.Done(time.Time{}, cancelled)
					}
				}
				time.Sleep(5 * time.Second)
				require.Equal(t, refuse, r.Snapshot().Nodes[0].Regaining > 0)
				leases := r.admitted(100)
				if refuse {
					require.Len(t, leases, 3)
				} else {
					require.Len(t, leases, 100)
				}
			})
		})
	}
}

func TestNodeThatHasAnsweredHardlyAnybodyInAMinuteIsGivenAllCalls(t *testing.T) {
	for name, answered := range map[string]int{"hardly anybody": 2, "some": 20} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, exact(balancer.Config{}), endpoints(1), func(t *testing.T, r *rig) {
				r.recovered()
				for n := answered; n > 0; {
					n -= r.round(min(n, 10), 0, success)
				}
				for range 12 {
					time.Sleep(5 * time.Second)
					r.round(100, 0, cancelled)
				}
				time.Sleep(time.Second)
				if answered < 16 {
					require.Len(t, r.admitted(100), 100)
				} else {
					require.Len(t, r.admitted(100), 20, "what is still refused now would be too much at once")
				}
			})
		})
	}
}

func TestCallsThatDoNotCountAreNotRefusedToANodeThatHasRecovered(t *testing.T) {
	inBubble(t, exact(balancer.Config{}), endpoints(1), func(t *testing.T, r *rig) {
		old := r.admitted(50) // from before it was open
		r.recovered()
		for range 50 {
			r.acquire(balancer.Call{LatencyNeutral: true})
		}
		reading := r.admitted(3)
		for _, l := range reading {
			l.Answered(time.Time{}, success) // their bodies may take for ever
		}
		require.Len(t, r.admitted(100), 6)
		for _, l := range old {
			l.Done(time.Time{}, failure)
		}
		require.Empty(t, r.admitted(1))
	})
}

func TestNodesUnderObservationAreGivenAllCalls(t *testing.T) {
	inBubble(t, exact(balancer.Config{ObserveOnly: true}), endpoints(1), func(t *testing.T, r *rig) {
		r.recovered()
		require.Len(t, r.admitted(100), 100)
	})
}
