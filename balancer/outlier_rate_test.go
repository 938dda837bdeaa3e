package balancer_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
)

// interval is the default's, and what the tests let pass so that it is over.
const interval = 10 * time.Second

func byRates(s balancer.SuccessRate, f balancer.FailurePercentage) *balancer.Config {
	return ejecting(balancer.OutlierConfig{Consecutive: -1, MaxPercent: 100, SuccessRate: s, FailurePercentage: f})
}

// serve makes n calls to the node, of which so many fail, the failures spread out.
func (r *rig) serve(key string, n, failures int) {
	r.t.Helper()
	for i := range n {
		o := success
		if i*failures/n != (i+1)*failures/n {
			o = failure
		}
		r.answer(1, key, o)
	}
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestSuccessRateEjectsWhoIsFarBelowTheMean(t *testing.T) {
	cfg := byRates(balancer.SuccessRate{Enforcement: 100}, balancer.FailurePercentage{})
	inBubble(t, cfg, endpoints(10), func(t *testing.T, r *rig) {
		r.rec.Clear()
		for i := range 10 {
			r.serve(addr(i), 200, map[bool]int{true: 100, false: 2}[i == 3])
		}
		require.Empty(t, r.ejected(), "not before the interval is over")
		pass(interval)
		// The rates are 0.99 nine times and 0.5: their mean is 0.941, their deviation 0.147.
		require.Equal(t, []string{addr(3)}, r.ejected())
		got := backstaytest.EventsOf[balancer.NodeChanged](r.rec)
		require.Len(t, got, 1)
		require.Equal(t, "success rate 0.5 below 0.662", got[0].Reason)

		r.answer(1, addr(3), success)
		require.Len(t, r.ejected(), 1, "of a node that fails now and then, one success says nothing")
		pass(5 * time.Second)
		require.Zero(t, r.counts(100)[addr(3)], "and it gets no probe")
		pass(26 * time.Second)
		require.Empty(t, r.ejected())
	})
}

func TestSuccessRateLeavesAFleetAloneThatFailsTogether(t *testing.T) {
	cfg := byRates(balancer.SuccessRate{Enforcement: 100}, balancer.FailurePercentage{})
	inBubble(t, cfg, endpoints(10), func(t *testing.T, r *rig) {
		for i := range 10 {
			r.serve(addr(i), 200, 150)
		}
		pass(interval)
		require.Empty(t, r.ejected())
	})
}

func TestFailurePercentageEjectsAboveTheThreshold(t *testing.T) {
	cfg := byRates(balancer.SuccessRate{}, balancer.FailurePercentage{Enforcement: 100})
	inBubble(t, cfg, endpoints(6), func(t *testing.T, r *rig) {
		for i := range 6 {
			r.serve(addr(i), 100, 83+i) // 83 to 88
		}
		pass(interval)
		require.Equal(t, []string{addr(3), addr(4), addr(5)}, r.ejected(), "85 is not above 85")
		require.Equal(t, "86 % failures, more than 85 %", r.look(addr(3)).Reason)
	})
}

// ServiceTalk let the first detector zero the counters before the second had looked.
func TestTwoDetectorsOfOneIntervalSeeTheSameCounts(t *testing.T) {
	cfg := byRates(balancer.SuccessRate{Enforcement: 100, StdevFactor: 2}, balancer.FailurePercentage{Enforcement: 100})
	inBubble(t, cfg, endpoints(10), func(t *testing.T, r *rig) {
		for i := range 10 {
			r.serve(addr(i), 100, map[int]int{0: 90, 1: 87}[i])
		}
		pass(interval)
		// Rates 1 eight times, 0.10 and 0.13: 0.823 − 2 · 0.354 is 0.115.
		require.Equal(t, []string{addr(0), addr(1)}, r.ejected())
		require.Equal(t, "success rate 0.1 below 0.115", r.look(addr(0)).Reason)
		require.Equal(t, "87 % failures, more than 85 %", r.look(addr(1)).Reason)
		require.Equal(t, 1, r.look(addr(0)).Ejections, "both rules meant it, and it is one ejection")
	})
}

// ServiceTalk had hosts without traffic in the mean.
func TestNodesWithFewCallsAreNeitherCountedNorEjected(t *testing.T) {
	s := balancer.SuccessRate{Enforcement: 100}
	f := balancer.FailurePercentage{Enforcement: 100}
	inBubble(t, byRates(s, f), endpoints(10), func(t *testing.T, r *rig) {
		for i := range 7 {
			r.serve(addr(i), 100, map[bool]int{true: 40}[i == 0])
		}
		for i := 7; i < 10; i++ {
			r.serve(addr(i), 49, 49)
		}
		pass(interval)
		// Counted, the three would pull mean and bound down to 0.69 − 1.9 · 0.44 < 0.
		require.Equal(t, []string{addr(0)}, r.ejected())
	})
	inBubble(t, byRates(s, f), endpoints(10), func(t *testing.T, r *rig) {
		for i := range 4 { // four nodes with enough calls are too few
			r.serve(addr(i), 100, map[bool]int{true: 100}[i == 0])
		}
		r.serve(addr(4), 49, 0)
		pass(interval)
		require.Empty(t, r.ejected())
		// What is old does not add up with what is new.
		r.serve(addr(4), 49, 0)
		for i := range 4 {
			r.serve(addr(i), 100, 0)
		}
		pass(interval)
		require.Empty(t, r.ejected())
	})
}

func TestRatesAreOfOneIntervalOnly(t *testing.T) {
	cfg := byRates(balancer.SuccessRate{}, balancer.FailurePercentage{Enforcement: 100})
	inBubble(t, cfg, endpoints(6), func(t *testing.T, r *rig) {
		for i := range 6 {
			r.serve(addr(i), 1000, 0)
		}
		pass(interval)
		for i := range 6 {
			r.serve(addr(i), 50, map[bool]int{true: 50}[i == 0])
		}
		pass(interval)
		require.Equal(t, []string{addr(0)}, r.ejected(), "a thousand successes are past")
		pass(40 * time.Second)
		require.Empty(t, r.ejected())
		pass(time.Minute)
		require.Empty(t, r.ejected(), "and so are the failures")
	})
}

func TestTheWorstAreEjectedFirst(t *testing.T) {
	cfg := byRates(balancer.SuccessRate{}, balancer.FailurePercentage{Enforcement: 100, Threshold: 50})
	cfg.Outliers.MaxPercent = 20
	inBubble(t, cfg, endpoints(10), func(t *testing.T, r *rig) {
		for i := range 10 {
			r.serve(addr(i), 100, 60+i)
		}
		pass(interval)
		require.Equal(t, []string{addr(8), addr(9)}, r.ejected())
	})
}

// Whatever the breaker does with them, all calls count, once.
func TestCountsAreExactWhateverTheBreakerDoes(t *testing.T) {
	cfg := exact(balancer.Config{SlowStart: -1, PanicThreshold: -1})
	inBubble(t, cfg, endpoints(2), func(t *testing.T, r *rig) {
		var answered, failed int64
		for i := range 500 {
			l, err := r.Acquire(t.Context(), balancer.Call{Node: addr(0)})
			if err != nil {
				pass(time.Second)
				continue
			}
			answered++
			switch {
			case i%50 < 30:
				failed++
				l.Done(time.Time{}, failure)
			case i%7 == 0: // the body breaks, in the same tally
				failed++
				l.Answered(time.Time{}, success)
				l.Done(time.Time{}, failure)
			default:
				l.Done(time.Time{}, success)
			}
			pass(17 * time.Millisecond)
			n := r.look(addr(0))
			require.Equal(t, answered, n.Answered, i)
			require.Equal(t, failed, n.Failed, i)
		}
		require.Greater(t, r.look(addr(0)).Breaker.Opens, 0)
	})
}

// Whatever happens, never are more nodes ejected than may be, each for as long as
// its ejections say.
func TestEjectionsKeepToTheirBoundsInAnyHistory(t *testing.T) {
	for _, nodes := range []int{1, 2, 5, 25} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			cfg := ejecting(balancer.OutlierConfig{
				Consecutive: 3, FailurePercentage: balancer.FailurePercentage{Enforcement: 50, RequestVolume: 3, MinHosts: 1},
			})
			inBubble(t, cfg, endpoints(nodes), func(t *testing.T, r *rig) {
				random := rand.New(rand.NewPCG(uint64(nodes), 5))
				most := min(max(nodes/10, 1), nodes-1)
				seen := make(map[string]time.Time)
				ejections := 0
				for range 3000 {
					key := addr(random.IntN(nodes))
					o := success
					if random.IntN(4) > 0 {
						o = failure
					}
					r.answer(1, key, o)
					pass(time.Duration(random.IntN(400)) * time.Millisecond)
					require.LessOrEqual(t, len(r.ejected()), most)
					for _, n := range r.Snapshot().Nodes {
						if n.State != balancer.Ejected || seen[n.Node].Equal(n.Until) {
							continue
						}
						seen[n.Node] = n.Until
						ejections++
						length := min(30*time.Second*time.Duration(n.Ejections), 300*time.Second)
						require.LessOrEqual(t, time.Until(n.Until), length)
						require.Greater(t, time.Until(n.Until), length-time.Second)
					}
				}
				require.Equal(t, nodes > 1, ejections > 5, ejections)
			})
		})
	}
}
