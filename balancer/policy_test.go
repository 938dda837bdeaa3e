package balancer_test

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// costFunc is a function that is a Cost.
type costFunc func(n *balancer.Node, now time.Time) float64

func (f costFunc) Cost(n *balancer.Node, now time.Time) float64 { return f(n, now) }

// policies are all there are, with a source of the test's own.
func policies(seed uint64) map[string]balancer.Policy {
	source := func() rand.Source { return rand.NewPCG(seed, 7) }
	return map[string]balancer.Policy{
		"P2C peak EWMA":        balancer.P2C{Rand: source()},
		"P2C in flight":        balancer.P2C{Cost: balancer.InFlight{}, Rand: source()},
		"P2C own cost":         balancer.P2C{Cost: costFunc(func(*balancer.Node, time.Time) float64 { return 1 }), Rand: source()},
		"round robin":          balancer.RoundRobin{Rand: source()},
		"weighted round robin": balancer.WeightedRoundRobin{Rand: source()},
		"reported weights":     balancer.WeightedRoundRobin{Reported: true, Rand: source()},
		"P2C load report":      balancer.P2C{Cost: balancer.LoadReport{}, Rand: source()},
		"least request":        balancer.LeastRequest{Rand: source()},
		"random":               balancer.Random{Rand: source()},
		"rendezvous":           balancer.Rendezvous{Rand: source()},
		"maglev":               balancer.Maglev{Rand: source()},
		"first of all": balancer.PolicyFunc(func(nodes []*balancer.Node) balancer.Picker {
			return balancer.PickerFunc(func(balancer.Call) *balancer.Node { return nodes[0] })
		}),
	}
}

// picks asks a picker n times and counts.
func picks(p balancer.Picker, n int) map[string]int {
	counts := make(map[string]int)
	now := time.Now()
	for range n {
		counts[p.Pick(balancer.Call{Now: now}).Key()]++
	}
	return counts
}

func TestP2CComparesTwoDistinctNodesAndEveryPairAlike(t *testing.T) {
	const n, draws = 5, 40_000
	var seen []*balancer.Node
	p := balancer.P2C{Rand: rand.NewPCG(1, 2), Cost: costFunc(func(n *balancer.Node, _ time.Time) float64 {
		seen = append(seen, n)
		return 1
	})}.NewPicker(newStatic(t, n, nil).Nodes())
	pairs := make(map[string]int)
	for range draws {
		seen = seen[:0]
		p.Pick(balancer.Call{Now: time.Now()})
		require.Len(t, seen, 2)
		require.NotSame(t, seen[0], seen[1])
		pairs[seen[0].Key()+" "+seen[1].Key()]++
	}
	require.Len(t, pairs, n*(n-1))
	for pair, got := range pairs {
		require.InDelta(t, draws/(n*(n-1)), got, 200, pair) // more than 4 standard deviations
	}
}

func TestP2COfTwoNodesAlwaysTakesTheCheaper(t *testing.T) {
	nodes := newStatic(t, 2, nil).Nodes()
	for i, cheap := range nodes {
		cost := costFunc(func(n *balancer.Node, _ time.Time) float64 {
			if n == cheap {
				return 1
			}
			return 1.000001
		})
		require.Equal(t, map[string]int{addr(i): 1000}, picks(balancer.P2C{Cost: cost}.NewPicker(nodes), 1000))
	}
}

func TestP2CTakesEqualsAlike(t *testing.T) {
	const n, draws = 100, 100_000
	nodes := newStatic(t, n, nil).Nodes()
	for name, p := range policies(3) {
		if name == "first of all" || name == "P2C peak EWMA" { // whose costs decay while it is asked
			continue
		}
		counts := picks(p.NewPicker(nodes), draws)
		require.Len(t, counts, n, name)
		for key, got := range counts {
			require.InDelta(t, draws/n, got, 160, "%s: %s", name, key) // 5 standard deviations
		}
	}
}

func TestEveryPolicyWorksWithOneNode(t *testing.T) {
	nodes := newStatic(t, 1, nil).Nodes()
	for name, p := range policies(1) {
		require.Equal(t, map[string]int{addr(0): 100}, picks(p.NewPicker(nodes), 100), name)
	}
}

func TestSameSourceMakesTheSamePicks(t *testing.T) {
	nodes := newStatic(t, 7, nil).Nodes()
	sequence := func(p balancer.Policy) (keys []string) {
		picker := p.NewPicker(nodes)
		now := time.Now()
		for range 50 {
			keys = append(keys, picker.Pick(balancer.Call{Now: now}).Key())
		}
		return keys
	}
	first, again, other := policies(1), policies(1), policies(2)
	for name := range first {
		want := sequence(first[name])
		require.Equal(t, want, sequence(again[name]), name)
		if name == "random" || name == "P2C in flight" { // the others only begin elsewhere, perhaps
			require.NotEqual(t, want, sequence(other[name]), name)
		}
	}
}

func TestRoundRobinSharesExactly(t *testing.T) {
	nodes := newStatic(t, 7, nil).Nodes()
	p := balancer.RoundRobin{}.NewPicker(nodes)
	var wg sync.WaitGroup
	var mu sync.Mutex
	counts := make(map[string]int)
	for range 10 {
		wg.Go(func() {
			got := picks(p, 700)
			mu.Lock()
			defer mu.Unlock()
			for key, n := range got {
				counts[key] += n
			}
		})
	}
	wg.Wait()
	for _, n := range nodes {
		require.Equal(t, 1000, counts[n.Key()], n)
	}
}

func TestRoundRobinBeginsAnywhere(t *testing.T) {
	nodes := newStatic(t, 10, nil).Nodes()
	first := make(map[*balancer.Node]bool)
	for seed := range uint64(200) {
		first[balancer.RoundRobin{Rand: rand.NewPCG(seed, seed)}.NewPicker(nodes).Pick(balancer.Call{})] = true
	}
	require.Len(t, first, 10, "clients that start together must not all go to the same node")
}

func TestWeightedRoundRobinSharesByWeight(t *testing.T) {
	for name, weights := range map[string][]float64{
		"mixed":        {0, 1, 2.5, 10, 0.25, 3},
		"none":         {0, 0, 0},
		"large":        {1e9, 3e9, 2e9},
		"small":        {1e-9, 3e-9},
		"one and many": {100, 1, 1, 1, 1, 1, 1, 1, 1, 1},
		"single":       {42},
	} {
		t.Run(name, func(t *testing.T) {
			list, sum := endpoints(len(weights)), 0.0
			for i, w := range weights {
				list[i].Weight = w
				if w == 0 {
					weights[i] = 1 // what zero stands for
				}
				sum += weights[i]
			}
			b, err := balancer.New("orders", discovery.Static(list...), nil)
			require.NoError(t, err)
			defer b.Close()
			require.NoError(t, b.Ready(t.Context()))
			const n = 1_000_000
			counts := picks(balancer.WeightedRoundRobin{}.NewPicker(b.Nodes()), n)
			for i, w := range weights {
				require.InEpsilon(t, n*w/sum, counts[addr(i)], 0.01, addr(i))
			}
		})
	}
}

func TestWeightedRoundRobinSpreadsTurnsEvenly(t *testing.T) {
	list := endpoints(5)
	list[0].Weight = 4 // as much as the others together
	b, err := balancer.New("orders", discovery.Static(list...), nil)
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, b.Ready(t.Context()))
	p := balancer.WeightedRoundRobin{}.NewPicker(b.Nodes())
	var window []string
	for range 10_000 {
		window = append(window, p.Pick(balancer.Call{}).Key())
		if len(window) < 16 {
			continue
		}
		heavy := 0
		for _, key := range window {
			if key == addr(0) {
				heavy++
			}
		}
		require.InDelta(t, 8, heavy, 2, "in any 16 calls the heavy node has about half: %v", window)
		window = window[1:]
	}
}

func TestWeightsChangeWhileRunning(t *testing.T) {
	inBubble(t, &balancer.Config{Policy: balancer.WeightedRoundRobin{}}, endpoints(2), func(t *testing.T, r *rig) {
		require.Equal(t, map[string]int{addr(0): 500, addr(1): 500}, r.counts(1000))
		list := endpoints(2)
		list[1].Weight = 3
		r.update(list...)
		got := r.counts(1000)
		require.InDelta(t, 250, got[addr(0)], 2)
	})
}

func TestPeakEWMAHonoursWeights(t *testing.T) {
	inBubble(t, exact(balancer.Config{}), endpoints(2), func(t *testing.T, r *rig) {
		for range 2 {
			r.call(addr(0), 10*time.Millisecond, success)
			r.call(addr(1), 10*time.Millisecond, success)
		}
		list := endpoints(2)
		list[1].Weight = 4
		r.update(list...)
		held := make(map[string]int)
		for range 100 {
			held[r.acquire(balancer.Call{Now: time.Now()}).Node().Key()]++
		}
		require.InDelta(t, 20, held[addr(0)], 2, "of calls that stay, by weight")
	})
}

// Whatever a policy picks, what the call avoids gets it only when there is
// nobody else.
func TestAvoidedNodesAreLeftUntilAllAreAvoided(t *testing.T) {
	const n = 5
	for name, p := range policies(1) {
		t.Run(name, func(t *testing.T) {
			b := newStatic(t, n, &balancer.Config{Policy: p})
			nodes := b.Nodes()
			for set := range 1 << n {
				var avoid []*balancer.Node
				for i, node := range nodes {
					if set&(1<<i) != 0 {
						avoid = append(avoid, node)
					}
				}
				for range 20 {
					before := slices.Clone(avoid)
					l, err := b.Acquire(t.Context(), balancer.Call{Avoid: avoid})
					require.NoError(t, err)
					if len(avoid) < n {
						require.NotContains(t, avoid, l.Node())
					}
					require.Equal(t, before, avoid, "the slice is the caller's")
					l.Done(time.Time{}, success)
				}
			}
			idle(t, nodes)
		})
	}
}

// The pickers of the house look after Avoid by themselves, mostly: otherwise the
// balancer's choice, which knows nothing of costs, would take their place.
func TestPickersAvoidByThemselves(t *testing.T) {
	nodes := newStatic(t, 5, nil).Nodes()
	for name, p := range policies(1) {
		if name == "first of all" {
			continue
		}
		picker, minded := p.NewPicker(nodes), 0
		for range 1000 {
			if picker.Pick(balancer.Call{Now: time.Now(), Avoid: nodes[:1]}) != nodes[0] {
				minded++
			}
		}
		require.GreaterOrEqual(t, minded, 900, name)
	}
}

func TestRetryPrefersTheCheaperOfTheOthers(t *testing.T) {
	cost := costFunc(func(n *balancer.Node, _ time.Time) float64 {
		if n.Key() == addr(2) {
			return 100
		}
		return 1
	})
	b := newStatic(t, 3, &balancer.Config{Policy: balancer.P2C{Cost: cost}})
	got := make(map[string]int)
	for range 1000 {
		l, err := b.Acquire(t.Context(), balancer.Call{Avoid: b.Nodes()[:1]})
		require.NoError(t, err)
		got[l.Node().Key()]++
		l.Done(time.Time{}, success)
	}
	require.Greater(t, got[addr(1)], 950, "the others are compared, not drawn: %v", got)
}

func TestOwnCostDecides(t *testing.T) {
	b := newStatic(t, 2, &balancer.Config{Policy: balancer.P2C{Cost: costFunc(func(n *balancer.Node, now time.Time) float64 {
		if now.IsZero() {
			t.Error("the time is zero")
		}
		return float64(n.InFlight())
	})}})
	for i := range 20 {
		_, err := b.Acquire(t.Context(), balancer.Call{})
		require.NoError(t, err)
		a, z := b.Nodes()[0].InFlight(), b.Nodes()[1].InFlight()
		require.LessOrEqual(t, max(a-z, z-a), 1, "after %d calls", i+1)
	}
}

func TestCostsGivenByPointerAreTheSame(t *testing.T) {
	nodes := newStatic(t, 7, nil).Nodes()
	for _, pair := range [][2]balancer.Cost{{balancer.PeakEWMA{}, &balancer.PeakEWMA{}}, {balancer.InFlight{}, &balancer.InFlight{}}} {
		a := balancer.P2C{Cost: pair[0], Rand: rand.NewPCG(1, 1)}.NewPicker(nodes)
		b := balancer.P2C{Cost: pair[1], Rand: rand.NewPCG(1, 1)}.NewPicker(nodes)
		require.IsType(t, a, b)
		now := time.Now()
		for range 100 {
			require.Same(t, a.Pick(balancer.Call{Now: now}), b.Pick(balancer.Call{Now: now}))
		}
	}
}

func TestPickersThatMisbehaveLoseNoCall(t *testing.T) {
	silent := balancer.PickerFunc(func(balancer.Call) *balancer.Node { return nil })
	for name, policy := range map[string]balancer.PolicyFunc{
		"no node":   func([]*balancer.Node) balancer.Picker { return silent },
		"no picker": func([]*balancer.Node) balancer.Picker { return nil },
		"what is to be avoided": func(nodes []*balancer.Node) balancer.Picker {
			return balancer.PickerFunc(func(c balancer.Call) *balancer.Node {
				if len(c.Avoid) > 0 {
					return c.Avoid[0]
				}
				return nodes[0]
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newStatic(t, 3, &balancer.Config{Policy: policy, MaxConcurrency: 10})
			for i := range 30 {
				l, err := b.Acquire(t.Context(), balancer.Call{Avoid: b.Nodes()[:1]})
				require.NoError(t, err, "call %d: there is room", i)
				if i < 20 {
					require.NotSame(t, b.Nodes()[0], l.Node(), "call %d", i)
				}
			}
			_, err := b.Acquire(t.Context(), balancer.Call{})
			require.Error(t, err)
		})
	}
}

func TestPickerThatInsistsOnAFullNodeIsPassedOver(t *testing.T) {
	b := newStatic(t, 3, &balancer.Config{MaxConcurrency: 2, Policy: policies(1)["first of all"]})
	got := make(map[string]int)
	for range 6 {
		l, err := b.Acquire(t.Context(), balancer.Call{})
		require.NoError(t, err)
		got[l.Node().Key()]++
	}
	require.Equal(t, map[string]int{addr(0): 2, addr(1): 2, addr(2): 2}, got)
}

func TestPolicyGetsEachEligibleNodeOnceAndOnlyWhenTheyChange(t *testing.T) {
	var made [][]string
	policy := balancer.PolicyFunc(func(nodes []*balancer.Node) balancer.Picker {
		var keys []string
		for _, n := range nodes {
			keys = append(keys, n.Key())
		}
		made = append(made, keys)
		return balancer.RoundRobin{}.NewPicker(nodes)
	})
	inBubble(t, &balancer.Config{Policy: policy}, endpoints(3), func(t *testing.T, r *rig) {
		require.Equal(t, [][]string{{addr(0), addr(1), addr(2)}}, made)
		r.counts(100)
		r.update(endpoints(3)...)
		require.Len(t, made, 1, "an equal set changes nothing")
		require.NoError(t, r.Eject(addr(1), time.Minute))
		require.Equal(t, []string{addr(0), addr(2)}, made[1])
		require.NoError(t, r.Eject(addr(1), 2*time.Minute))
		require.Len(t, made, 2, "who is eligible has not changed")
		require.NoError(t, r.Restore(addr(1)))
		require.Len(t, made, 3)
		list := endpoints(3)
		list[0].Weight = 2
		r.update(list...)
		require.Len(t, made, 4, "a policy may have looked at weights")
	})
}
