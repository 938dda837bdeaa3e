package balancer_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// What is known of a node, and what becomes of it. Whatever takes time here is
// in a bubble: see inBubble.

// decayed is d after the time has passed.
func decayed(d, passed time.Duration) time.Duration {
	return time.Duration(float64(d) * math.Exp(-passed.Seconds()/balancer.Decay.Seconds()))
}

func (r *rig) latency(key string) time.Duration {
	r.t.Helper()
	d, known := r.node(key).Latency(time.Now())
	require.True(r.t, known)
	return d
}

func (r *rig) cost(key string) time.Duration {
	return time.Duration(balancer.PeakEWMA{}.Cost(r.node(key), time.Now()))
}

const slack = 0.001 // ticks are a quarter of a millisecond, estimates have seven digits

func TestEstimateJumpsToAPeakAndDecays(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		node := r.node(addr(0))
		_, known := node.Latency(time.Now())
		require.False(t, known)
		r.call(addr(0), 10*time.Millisecond, success)
		require.InEpsilon(t, 10*time.Millisecond, r.latency(addr(0)), slack)
		r.call(addr(0), time.Second, success)
		require.InEpsilon(t, time.Second, r.latency(addr(0)), slack, "a peak counts at once")
		time.Sleep(balancer.Decay - 100*time.Millisecond)
		r.call(addr(0), 100*time.Millisecond, success)
		want := decayed(time.Second, balancer.Decay) + 100*time.Millisecond - decayed(100*time.Millisecond, balancer.Decay)
		require.InEpsilon(t, want, r.latency(addr(0)), slack, "less comes in by its weight")
		time.Sleep(3 * balancer.Decay)
		require.InEpsilon(t, decayed(want, 3*balancer.Decay), r.latency(addr(0)), slack, "and the past decays without calls")
	})
}

func TestFirstAnswerTakesTheGuessesPlace(t *testing.T) {
	inBubble(t, nil, endpoints(2), func(t *testing.T, r *rig) {
		r.call(addr(0), time.Second, success) // from here on the other has a guess
		r.call(addr(1), time.Millisecond, success)
		require.InEpsilon(t, time.Millisecond, r.latency(addr(1)), 0.3) // four ticks
	})
}

// What is not a success may raise the estimate and never lowers it: else a node
// that fails fast would be the most wanted.
func TestOnlySuccessLowersTheEstimate(t *testing.T) {
	for name, o := range map[string]outcome.Outcome{
		"a failure":         failure,
		"a throttle":        throttled(0),
		"a cancel":          cancelled,
		"a deadline":        deadline,
		"a plain neutral":   {Class: outcome.Neutral},
		"our own refusal":   {Class: outcome.Neutral, Err: &balancer.URLError{}},
		"a malformed one":   {Class: outcome.Neutral, Err: errDown},
		"a short Retry-For": throttled(50 * time.Millisecond),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
				r.call(addr(0), 100*time.Millisecond, success)
				before := time.Now()
				for range 10 {
					r.call(addr(0), time.Millisecond, o)
				}
				require.InEpsilon(t, decayed(100*time.Millisecond, time.Since(before)), r.latency(addr(0)), slack)
				r.call(addr(0), 700*time.Millisecond, o)
				require.InEpsilon(t, 700*time.Millisecond, r.latency(addr(0)), slack, "it took so long at least")
			})
		})
	}
}

func TestRetryAfterIsAnObservationOfItsLength(t *testing.T) {
	inBubble(t, nil, endpoints(2), func(t *testing.T, r *rig) {
		for _, key := range []string{addr(0), addr(1)} {
			r.call(key, 10*time.Millisecond, success)
		}
		r.call(addr(0), time.Millisecond, throttled(30*time.Second))
		require.InEpsilon(t, 30*time.Second, r.latency(addr(0)), slack)
		require.Equal(t, map[string]int{addr(1): 100}, r.counts(100))

		r.call(addr(1), time.Millisecond, throttled(24*time.Hour))
		require.InEpsilon(t, 300*time.Second, r.latency(addr(1)), slack, "more is taken for a mistake")
	})
}

func TestThrottlingIsNoFailure(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		for range 100 {
			r.call(addr(0), time.Millisecond, throttled(time.Second))
		}
		require.Zero(t, r.node(addr(0)).FailureRate(time.Now()))
		s := r.node(addr(0)).Breaker().Snapshot(time.Now())
		require.Zero(t, s.Calls)
		require.Zero(t, s.Failures)
	})
}

func TestLongPollsLeaveTheLatencyAlone(t *testing.T) {
	inBubble(t, nil, endpoints(2), func(t *testing.T, r *rig) {
		r.call(addr(0), 10*time.Millisecond, success)
		for _, o := range []outcome.Outcome{success, failure, throttled(time.Minute), cancelled} {
			before := time.Now()
			was := r.latency(addr(0))
			poll := r.onCall(addr(0), balancer.Call{LatencyNeutral: true})
			require.Equal(t, 1, r.node(addr(0)).InFlight())
			require.Zero(t, r.node(addr(0)).Awaiting())
			time.Sleep(30 * time.Second)
			require.InEpsilon(t, decayed(was, time.Since(before)), r.cost(addr(0)), slack, "it waits, and that is no stall")
			poll.Done(time.Time{}, o)
			require.InEpsilon(t, decayed(was, time.Since(before)), r.latency(addr(0)), slack)
		}
		poll := r.onCall(addr(1), balancer.Call{LatencyNeutral: true})
		time.Sleep(time.Second)
		poll.Answered(time.Time{}, success)
		poll.Done(time.Time{}, success)
		_, known := r.node(addr(1)).Latency(time.Now())
		require.False(t, known)
		idle(t, r.Nodes())
	})
}

func TestSilenceCountsWhileCallsWait(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		r.call(addr(0), 10*time.Millisecond, success)
		time.Sleep(time.Minute)
		first := r.on(addr(0))
		require.Less(t, r.cost(addr(0)), time.Millisecond, "nothing has waited until now")
		time.Sleep(5 * time.Second)
		second := r.on(addr(0))
		require.InEpsilon(t, 3*5*time.Second, r.cost(addr(0)), slack, "the silence, times those who wait and this one")
		time.Sleep(time.Second)
		second.Done(time.Time{}, success)
		require.InEpsilon(t, 2*time.Second, r.cost(addr(0)), slack, "an answer is a sign of life: now the estimate counts")
		first.Done(time.Time{}, success)
		require.InEpsilon(t, 6*time.Second, r.cost(addr(0)), slack)
		time.Sleep(3 * balancer.Decay)
		require.InEpsilon(t, decayed(6*time.Second, 3*balancer.Decay), r.cost(addr(0)), slack, "nobody waits")
	})
}

// The cost of a node that hangs must not fall because a caller gave up.
func TestCancelDoesNotEndAStall(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		r.call(addr(0), 10*time.Millisecond, success)
		patient := r.on(addr(0))
		time.Sleep(9 * time.Second)
		hasty := r.on(addr(0))
		time.Sleep(time.Second)
		perWaiter := r.cost(addr(0)) / 3
		require.InEpsilon(t, 10*time.Second, perWaiter, slack)
		hasty.Done(time.Time{}, cancelled)
		require.InEpsilon(t, 10*time.Second, r.cost(addr(0))/2, slack)
		patient.Done(time.Time{}, cancelled)
	})
}

// The tick of the last answer is kept in 32 bits, which wrap around.
func TestBusyNodeIsNotTakenForStalledAfterWeeks(t *testing.T) {
	for _, uptime := range []time.Duration{7 * 24 * time.Hour, 14 * 24 * time.Hour, 40 * 24 * time.Hour} {
		inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
			const latency = 100 * time.Millisecond
			previous := r.on(addr(0))
			for range 24 { // there is always somebody waiting
				time.Sleep(uptime / 24)
				next := r.on(addr(0))
				time.Sleep(latency)
				previous.Done(time.Time{}, success)
				previous = next
			}
			for range 3000 { // until those hours are forgotten
				next := r.on(addr(0))
				time.Sleep(latency)
				previous.Done(time.Time{}, success)
				previous = next
			}
			require.Less(t, r.cost(addr(0)), time.Second, "after %v", uptime)
			previous.Done(time.Time{}, success)
		})
	}
}

func TestFailureRateDecaysAndHasDoubts(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		rate := func() float64 { return r.node(addr(0)).FailureRate(time.Now()) }
		require.Zero(t, rate())
		r.on(addr(0)).Done(time.Time{}, failure)
		require.InDelta(t, 1.0/6, rate(), 0.001, "five calls' worth of doubt")
		for range 4 {
			r.on(addr(0)).Done(time.Time{}, success)
		}
		require.InDelta(t, 1.0/10, rate(), 0.001)
		for range 9 {
			r.on(addr(0)).Done(time.Time{}, failure)
		}
		require.InDelta(t, 10.0/19, rate(), 0.001)
		last := rate()
		for range 20 {
			time.Sleep(time.Second)
			require.Less(t, rate(), last)
			last = rate()
		}
		require.Less(t, last, 0.05)
		for range 1000 {
			r.on(addr(0)).Done(time.Time{}, success)
		}
		require.Less(t, rate(), 0.001)
	})
}

func TestCostFollowsTheFormula(t *testing.T) {
	inBubble(t, &balancer.Config{SlowStart: 8 * time.Second}, endpoints(2), func(t *testing.T, r *rig) {
		r.call(addr(0), 40*time.Millisecond, success)
		r.call(addr(1), 40*time.Millisecond, success)
		require.InEpsilon(t, 40*time.Millisecond, r.cost(addr(1)), slack)
		waiting := r.on(addr(1))
		require.InEpsilon(t, 2*40*time.Millisecond, r.cost(addr(1)), slack)
		waiting.Answered(time.Time{}, success)
		require.InEpsilon(t, 40*time.Millisecond, r.cost(addr(1)), slack, "a body being read does not wait")
		waiting.Done(time.Time{}, success)

		for range 5 {
			r.on(addr(1)).Done(time.Time{}, failure)
			r.on(addr(1)).Done(time.Time{}, success)
		}
		f := r.node(addr(1)).FailureRate(time.Now())
		require.InDelta(t, 5.0/17, f, 0.01)
		for range 50 {
			r.on(addr(0)).Done(time.Time{}, success)
		}
		r.on(addr(0)).Done(time.Time{}, cancelled) // is no call as far as rates go
		time.Sleep(refresh)
		r.on(addr(0)).Done(time.Time{}, success) // makes the common figures
		f = r.node(addr(1)).FailureRate(time.Now())
		all := 5.0 / (5 + 12 + 52)
		want := float64(r.latency(addr(1))) + 5e9*(f-all-0.1)
		require.InEpsilon(t, want, r.cost(addr(1)), 0.02, "failing more than the others costs")

		list := endpoints(3)
		list[1].Weight, list[2].Weight = 4, 2
		before, joins := r.cost(addr(1)), time.Now()
		r.update(list...)
		require.InEpsilon(t, before/4, r.cost(addr(1)), 0.05, "by weight")
		time.Sleep(2 * time.Second)
		r.call(addr(2), 40*time.Millisecond, success)
		warmth := time.Since(joins).Seconds() / 8
		require.InEpsilon(t, 40e6/2/warmth, r.cost(addr(2)), slack, "slow start, and weight 2")
	})
}

// The rate alone would need its time with a node that has served well for long.
func TestNodeThatOnlyFailsIsSuspectAtOnce(t *testing.T) {
	inBubble(t, nil, endpoints(2), func(t *testing.T, r *rig) {
		r.call(addr(0), 10*time.Millisecond, success)
		for range 1000 {
			r.on(addr(0)).Done(time.Time{}, success)
		}
		time.Sleep(time.Second)
		for range 4 {
			r.on(addr(0)).Done(time.Time{}, failure)
		}
		require.Less(t, r.cost(addr(0)), 20*time.Millisecond, "that may be chance")
		r.on(addr(0)).Done(time.Time{}, failure)
		suspect := r.cost(addr(0))
		require.Greater(t, suspect, 4*time.Second)
		time.Sleep(2 * time.Second)
		require.Less(t, r.cost(addr(0)), suspect/2, "it is not left alone for long")
		time.Sleep(3 * time.Second)
		require.Less(t, r.cost(addr(0)), 20*time.Millisecond)

		l := r.on(addr(0))
		require.Greater(t, r.cost(addr(0)), 4*time.Second, "whoever tries it is alone")
		l.Done(time.Time{}, cancelled)
		require.Less(t, r.cost(addr(0)), 20*time.Millisecond)
		r.on(addr(0)).Done(time.Time{}, failure)
		require.Greater(t, r.cost(addr(0)), 4*time.Second)
		r.on(addr(0)).Done(time.Time{}, success)
		require.Less(t, r.cost(addr(0)), 20*time.Millisecond, "a good answer clears it")
	})
}

// refresh is how often the figures common to all nodes are made.
const refresh = 100 * time.Millisecond

// One failing in a hundred everywhere is nobody's fault in particular.
func TestFailingLikeTheOthersCostsNothing(t *testing.T) {
	inBubble(t, exact(balancer.Config{}), endpoints(4), func(t *testing.T, r *rig) {
		for range 50 {
			for i := range 4 {
				r.call(addr(i), 10*time.Millisecond, success)
				r.call(addr(i), 10*time.Millisecond, success)
				r.call(addr(i), 10*time.Millisecond, failure)
			}
		}
		for i := range 4 {
			require.Greater(t, r.node(addr(i)).FailureRate(time.Now()), 0.25)
			require.Less(t, r.cost(addr(i)), 11*time.Millisecond)
		}
	})
}

func TestNodeSurvivesUpdates(t *testing.T) {
	inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
		node := r.node(addr(1))
		r.call(addr(1), 100*time.Millisecond, success)
		r.call(addr(1), 100*time.Millisecond, failure)
		held := r.on(addr(1))
		require.NoError(t, r.Eject(addr(1), time.Hour))
		for name, list := range map[string][]discovery.Endpoint{
			"others leave":    {{Addr: addr(1)}},
			"others join":     {{Addr: addr(7)}, {Addr: addr(1)}, {Addr: addr(8)}},
			"another order":   {{Addr: addr(8)}, {Addr: addr(1)}, {Addr: addr(7)}},
			"its own fields":  {{Addr: addr(8)}, {Addr: addr(1), Weight: 3, Zone: "b", Metadata: map[string]string{"a": "b"}}, {Addr: addr(7)}},
			"another address": {{ID: addr(1), Addr: "10.9.9.9:80"}},
		} {
			was := time.Now()
			latency, rate, failures := r.latency(addr(1)), node.FailureRate(was), node.Breaker().Snapshot(was).Failures
			r.update(list...)
			now := r.node(addr(1))
			require.Same(t, node, now, name)
			require.Same(t, node.Breaker(), now.Breaker(), name)
			require.InEpsilon(t, decayed(latency, time.Since(was)), r.latency(addr(1)), slack, name)
			require.InEpsilon(t, rate, now.FailureRate(time.Now()), 0.1, name)
			require.Equal(t, failures, now.Breaker().Snapshot(time.Now()).Failures, name)
			require.Equal(t, 1, now.InFlight(), name)
			e := list[0]
			for _, e = range list {
				if e.Key() == addr(1) {
					break
				}
			}
			require.True(t, e.Equal(now.Endpoint()), name)
			if len(list) > 1 {
				require.NotContains(t, r.counts(100), addr(1), "%s: the ejection holds", name)
			}
		}
		held.Done(time.Time{}, success)
		idle(t, r.Nodes())
	})
}

func TestNodeThatComesBackIsANewOne(t *testing.T) {
	inBubble(t, nil, endpoints(2), func(t *testing.T, r *rig) {
		gone := r.node(addr(1))
		r.call(addr(1), time.Second, success)
		held := r.on(addr(1))
		r.open(addr(1))
		r.update(endpoints(1)...)
		require.Len(t, r.Nodes(), 1)
		r.update(endpoints(2)...)
		fresh := r.node(addr(1))
		require.NotSame(t, gone, fresh)
		_, known := fresh.Latency(time.Now())
		require.False(t, known)
		require.Zero(t, fresh.InFlight())
		require.Zero(t, fresh.FailureRate(time.Now()))
		require.True(t, fresh.Breaker().Ready(time.Now()), "its breaker has gone with it")
		held.Done(time.Time{}, failure)
		require.Zero(t, fresh.FailureRate(time.Now()), "the old one's calls concern it no more")
		require.Zero(t, gone.InFlight())
	})
}

func TestEndpointsOfOneKeyAreOneNode(t *testing.T) {
	inBubble(t, nil, []discovery.Endpoint{{ID: "a", Addr: addr(1)}, {ID: "a", Addr: addr(2)}, {ID: "b", Addr: addr(1)}}, func(t *testing.T, r *rig) {
		require.Len(t, r.Nodes(), 2)
		require.Equal(t, addr(1), r.node("a").Endpoint().Addr, "the first counts")
		require.Equal(t, "a", r.node("a").String())
	})
}
