package balancer_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/outcome"
)

// What the default policy makes of latencies, in simulations; see also the bars.

func constant(d time.Duration) func(time.Duration) (time.Duration, outcome.Outcome) {
	return func(time.Duration) (time.Duration, outcome.Outcome) { return d, success }
}

// simulated runs the test with a simulation in a bubble.
func simulated(t *testing.T, test func(s *sim)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(newSim(t, 1)) })
}

// every sends a call through b at a fixed pace.
func (s *sim) every(pace, from, to time.Duration, b *balancer.Balancer) {
	for at := from; at < to; at += pace {
		s.at(at, func() { s.call(b, 0) })
	}
}

func on(server int) func(simCall) bool { return func(c simCall) bool { return c.server == server } }

func TestFasterNodeIsPreferred(t *testing.T) {
	simulated(t, func(s *sim) {
		s.addServer(0, constant(10*time.Millisecond))
		s.addServer(0, constant(50*time.Millisecond))
		b, _ := s.client(2, byDefault, balancer.Config{})
		s.every(20*time.Millisecond, 0, 10*time.Second, b)
		s.run()
		require.Greater(t, share(s.calls, on(0)), 0.95)
	})
}

// Finagle's test: a node that is much slower is asked again once in a while,
// because the past decays, and no more often than that.
func TestSlowNodeIsProbedAtMostOncePerDecay(t *testing.T) {
	simulated(t, func(s *sim) {
		s.addServer(0, constant(10*time.Millisecond))
		s.addServer(0, constant(2*time.Second))
		b, _ := s.client(2, byDefault, balancer.Config{})
		const span = 30 * balancer.Decay
		s.every(50*time.Millisecond, 0, span, b)
		s.run()
		probes := 0
		var last time.Duration
		for _, c := range s.calls[2:] { // before, nothing is known
			if c.server == 1 {
				require.GreaterOrEqual(t, c.at-last, balancer.Decay)
				last = c.at
				probes++
			}
		}
		require.GreaterOrEqual(t, probes, 3, "it is not forgotten either")
	})
}

// With little to do no node has calls waiting, and the cost is the estimate
// alone. A guess that stays while what was measured decays is never tried.
func TestEveryNodeIsTriedWhenThereIsLittleToDo(t *testing.T) {
	for _, latency := range []time.Duration{100 * time.Microsecond, 20 * time.Millisecond} {
		for _, n := range []int{2, 3, 10, 200, 300} {
			t.Run(fmt.Sprintf("%d nodes/%v", n, latency), func(t *testing.T) {
				simulated(t, func(s *sim) {
					for range n {
						s.addServer(0, constant(latency))
					}
					b, _ := s.client(n, byDefault, balancer.Config{})
					calls := 20 * n
					pace := time.Minute / time.Duration(calls)
					s.every(pace, 0, time.Minute, b)
					s.run()
					for i := range n {
						require.Positive(t, share(s.calls, on(i)), "node %d", i)
					}
				})
			})
		}
	}
}

func TestSlowNodeThatHasHealedIsFoundAgain(t *testing.T) {
	simulated(t, func(s *sim) {
		s.addServer(0, constant(100*time.Millisecond))
		s.addServer(0, func(now time.Duration) (time.Duration, outcome.Outcome) {
			if now < 10*time.Second {
				return 2 * time.Second, success
			}
			return 100 * time.Millisecond, success
		})
		b, _ := s.client(2, byDefault, balancer.Config{})
		s.every(20*time.Millisecond, 0, 120*time.Second, b)
		s.run()
		require.InDelta(t, 0.5, share(s.between(60*time.Second, 120*time.Second), on(1)), 0.1)
	})
}

// Finagle's test: of the calls under way a node that takes twice as long has
// about half as many.
func TestNodeOfTwiceTheLatencyHasHalfTheCallsUnderWay(t *testing.T) {
	simulated(t, func(s *sim) {
		s.addServer(0, constant(100*time.Millisecond))
		s.addServer(0, constant(200*time.Millisecond))
		b, _ := s.client(2, byDefault, balancer.Config{})
		var under [2]float64
		s.poisson(1000, 30*time.Second, func() {
			s.call(b, 0)
			for i, n := range b.Nodes() {
				under[i] += float64(n.Awaiting())
			}
		})
		s.run()
		require.InDelta(t, 0.5, under[1]/under[0], 0.1)
	})
}

// A stall shows while the calls still wait, long before anything times out.
func TestStalledNodeIsLeftBeforeAnyAnswer(t *testing.T) {
	simulated(t, func(s *sim) {
		stalled := func(now time.Duration) (time.Duration, outcome.Outcome) {
			if now >= 5*time.Second {
				return time.Hour, success
			}
			return 20 * time.Millisecond, success
		}
		for i := range 4 {
			if i == 0 {
				s.addServer(0, stalled)
			} else {
				s.addServer(0, constant(20*time.Millisecond))
			}
		}
		b, _ := s.client(4, byDefault, balancer.Config{})
		s.every(2*time.Millisecond, 0, 15*time.Second, b)
		s.run()
		require.InDelta(t, 0.25, share(s.between(0, 5*time.Second), on(0)), 0.05)
		stuck := 0
		for _, c := range s.between(5*time.Second, 15*time.Second) {
			if c.server == 0 {
				stuck++
			}
		}
		require.LessOrEqual(t, stuck, 10, "of 5000")
	})
}

// A policy that takes a new node for infinitely fast floods it; one that takes
// it for slow never gets to know it.
func TestNewNodeIsPickedSoonAndNotFlooded(t *testing.T) {
	for _, slowStart := range []time.Duration{-1, 0} {
		t.Run(fmt.Sprintf("slow start %d", slowStart), func(t *testing.T) {
			simulated(t, func(s *sim) {
				for range 11 {
					s.addServer(0, func(time.Duration) (time.Duration, outcome.Outcome) {
						return s.normal(50*time.Millisecond, 10*time.Millisecond, 20*time.Millisecond, 100*time.Millisecond), success
					})
				}
				b, f := s.client(10, byDefault, balancer.Config{SlowStart: slowStart})
				s.poisson(1000, 40*time.Second, func() { s.call(b, 0) })
				const joins = 20 * time.Second
				s.at(joins, func() { f.yield(s.last(11)...) })
				s.run()
				isNew := on(0) // the last ten were there before
				first := s.between(joins, joins+10*time.Second)
				require.LessOrEqual(t, share(first, isNew), 1.2/11)
				require.LessOrEqual(t, share(s.between(joins, joins+time.Second), isNew), 1.2/11)
				require.Positive(t, share(s.between(joins, joins+3*time.Second), isNew))
				require.InDelta(t, 1.0/11, share(s.between(joins+10*time.Second, joins+20*time.Second), isNew), 0.2/11)
				if slowStart < 0 {
					require.Greater(t, share(first, isNew), 0.8/11)
				} else {
					require.Less(t, share(s.between(joins, joins+2*time.Second), isNew), 0.5/11, "it is still cold")
				}
			})
		})
	}
}

func TestSlowStartIsOffWhileAllNodesAreNew(t *testing.T) {
	inBubble(t, nil, endpoints(2), func(t *testing.T, r *rig) {
		for _, n := range r.Nodes() {
			require.InDelta(t, 1.0, balancer.InFlight{}.Cost(n, time.Now()), 1e-9)
		}
		r.update(endpoints(3)...)
		cost := func() float64 { return balancer.InFlight{}.Cost(r.node(addr(2)), time.Now()) }
		require.InDelta(t, 10.0, cost(), 1e-9, "it begins with a tenth")
		time.Sleep(5 * time.Second)
		require.InDelta(t, 2.0, cost(), 1e-9, "which grows evenly")
		time.Sleep(5 * time.Second)
		require.InDelta(t, 1.0, cost(), 1e-9)
		require.InDelta(t, 1.0, balancer.InFlight{}.Cost(r.node(addr(0)), time.Now()), 1e-9)
	})
}

func TestNewNodesAreTakenForAsFastAsTheMedian(t *testing.T) {
	inBubble(t, &balancer.Config{SlowStart: -1}, endpoints(3), func(t *testing.T, r *rig) {
		cost := func(i int) time.Duration {
			return time.Duration(balancer.PeakEWMA{}.Cost(r.node(addr(i)), time.Now()))
		}
		require.Equal(t, time.Millisecond, cost(0), "nobody knows anything yet")
		for i, took := range []time.Duration{20 * time.Millisecond, 70 * time.Millisecond, 500 * time.Millisecond} {
			r.call(addr(i), took, success)
		}
		time.Sleep(time.Second)
		r.call(addr(0), 20*time.Millisecond, success) // the common figures are made anew by calls
		r.update(endpoints(4)...)
		latency, known := r.node(addr(3)).Latency(time.Now())
		require.False(t, known)
		require.Zero(t, latency)
		median, _ := r.node(addr(1)).Latency(time.Now())
		require.InEpsilon(t, median, cost(3), 0.1)
		r.call(addr(3), 5*time.Millisecond, success)
		require.InEpsilon(t, 5*time.Millisecond, cost(3), 0.01, "what is measured takes the guess's place at once")
	})
}
