package balancer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
)

// placement is where a picker sends keys while nothing is in flight.
func placement(p balancer.Picker, keys []string) map[string]string {
	now := time.Now()
	at := make(map[string]string, len(keys))
	for _, key := range keys {
		at[key] = p.Pick(balancer.Call{Now: now, Key: key}).Key()
	}
	return at
}

// place is placement over nodes of those endpoints.
func place(t *testing.T, policy balancer.Policy, list []discovery.Endpoint, keys []string) map[string]string {
	t.Helper()
	return placement(policy.NewPicker(newOver(t, list, nil).Nodes()), keys)
}

// picksOfKeys counts the keys that each node has.
func picksOfKeys(p balancer.Picker, keys []string) map[string]int {
	now := time.Now()
	counts := make(map[string]int)
	for _, key := range keys {
		counts[p.Pick(balancer.Call{Now: now, Key: key}).Key()]++
	}
	return counts
}

func without(list []discovery.Endpoint, i int) []discovery.Endpoint {
	return slices.Delete(slices.Clone(list), i, i+1)
}

func TestProcessesAgreeOnKeysWhateverTheOrderOfNodes(t *testing.T) {
	keys := keys(100_000)
	for _, weighted := range []bool{false, true} {
		list := endpoints(20)
		if weighted {
			for i := range list {
				list[i].Weight = 1 + float64(i%7)/3
			}
		}
		shuffled := slices.Clone(list)
		rand.New(rand.NewPCG(1, 2)).Shuffle(len(list), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		for name, policy := range hashing(0) {
			require.Equal(t, place(t, policy, list, keys), place(t, policy, shuffled, keys), name)
		}
	}
}

// With another placement, the processes of two releases would disagree.
func TestPlacementIsTheSameInEveryRelease(t *testing.T) {
	keys := []string{"a", "b", "c", "user-17", "/v1/items?id=4711", "ü"}
	list := endpoints(10)
	list[3].Weight = 3
	for name, want := range map[string][]int{
		"rendezvous": {8, 0, 0, 4, 5, 8},
		"maglev":     {3, 3, 4, 5, 9, 9},
	} {
		var got []int
		at := place(t, hashing(0)[name], list, keys)
		for _, key := range keys {
			got = append(got, slices.IndexFunc(list, func(e discovery.Endpoint) bool { return e.Key() == at[key] }))
		}
		require.Equal(t, want, got, name)
	}
}

func TestSeedGivesAnotherPlacement(t *testing.T) {
	keys := keys(10_000)
	for name := range hashing(0) {
		one, other := place(t, hashing(1)[name], endpoints(10), keys), place(t, hashing(2)[name], endpoints(10), keys)
		require.InDelta(t, 9000, moved(one, other), 200, name)
	}
}

// moved returns how many keys are elsewhere.
func moved(before, after map[string]string) (n int) {
	for key, at := range before {
		if after[key] != at {
			n++
		}
	}
	return n
}

func TestKeysMoveMinimallyWhenANodeLeavesAndComesBack(t *testing.T) {
	keys := keys(100_000)
	for name, limit := range map[string]float64{"rendezvous": 1.1, "maglev": 2} {
		policy := hashing(0)[name]
		for _, n := range []int{3, 10, 100} {
			list := endpoints(n)
			before := place(t, policy, list, keys)
			for _, i := range []int{0, n / 2, n - 1} {
				after := place(t, policy, without(list, i), keys)
				all, others := moved(before, after), 0
				for key, at := range before {
					if at != addr(i) && after[key] != at {
						others++
					}
				}
				require.LessOrEqual(t, float64(all), limit*float64(len(keys)/n), "%s: %d nodes without the %d.", name, n, i)
				if name == "rendezvous" {
					require.Zero(t, others, "nobody else's keys move")
				}
				require.LessOrEqual(t, others, len(keys)/100, "%s: %d nodes without the %d.", name, n, i)
			}
			// The other way round it is the joining of a node, and restores all.
			require.Equal(t, before, place(t, policy, list, keys))
		}
	}
}

func TestAnEjectedNodesKeysComeBackWithIt(t *testing.T) {
	keys := keys(1000)
	for name, policy := range hashing(0) {
		b := newStatic(t, 5, &balancer.Config{Policy: policy})
		at := func() map[string]string {
			got := make(map[string]string)
			for _, key := range keys {
				l, err := b.Acquire(t.Context(), balancer.Call{Key: key})
				require.NoError(t, err)
				got[key] = l.Node().Key()
				l.Done(time.Time{}, success)
			}
			return got
		}
		before := at()
		require.NoError(t, b.Eject(addr(2), time.Minute))
		during := at()
		require.NotContains(t, during, addr(2))
		require.InDelta(t, 200, moved(before, during), 60, name)
		require.NoError(t, b.Restore(addr(2)))
		require.Equal(t, before, at(), name)
	}
}

func TestKeysSpreadByWeight(t *testing.T) {
	keys := keys(400_000)
	for setup, weights := range map[string][]float64{
		"even":         make([]float64, 10),
		"mixed":        {1, 2, 3, 0.5, 1.5, 2, 1, 4},
		"one is heavy": {20, 1, 1, 1, 1},
		"large":        {1e9, 3e9},
	} {
		list, sum := endpoints(len(weights)), 0.0
		for i, w := range weights {
			list[i].Weight = w
			if w == 0 {
				weights[i] = 1
			}
			sum += weights[i]
		}
		for name, policy := range hashing(0) {
			counts := picksOfKeys(policy.NewPicker(newOver(t, list, nil).Nodes()), keys)
			for i, w := range weights {
				require.InEpsilon(t, float64(len(keys))*w/sum, counts[addr(i)], 0.02, "%s, %s: %v", name, setup, counts)
			}
		}
	}
}

// It waits in a bubble.
func TestSlowStartMovesNoKeys(t *testing.T) {
	keys := keys(1000)
	for name, policy := range hashing(0) {
		t.Run(name, func(t *testing.T) {
			inBubble(t, exact(balancer.Config{Policy: policy}), endpoints(3), func(t *testing.T, r *rig) {
				r.update(endpoints(4)...) // the last is new, the others are not
				fresh := placement(policy.NewPicker(r.Nodes()), keys)
				time.Sleep(time.Minute)
				require.Equal(t, fresh, placement(policy.NewPicker(r.Nodes()), keys))
				require.Equal(t, fresh, place(t, policy, endpoints(4), keys))
			})
		})
	}
}

// A key that may not have its node goes to the same second node in every process.
func TestAvoidedKeysGoToTheSameNextNodeEverywhere(t *testing.T) {
	list := endpoints(6)
	reversed := slices.Clone(list)
	slices.Reverse(reversed)
	for name, policy := range hashing(0) {
		here, there := newOver(t, list, nil), newOver(t, reversed, nil)
		seconds := make(map[string]map[string]int)
		for _, key := range keys(2000) {
			// chain is the order in which the key's calls go through all nodes.
			chain := func(b *balancer.Balancer) (order []string) {
				p := policy.NewPicker(b.Nodes())
				var avoid []*balancer.Node
				for range list {
					n := p.Pick(balancer.Call{Key: key, Avoid: avoid})
					avoid = append(avoid, n)
					order = append(order, n.Key())
				}
				require.Equal(t, order[0], p.Pick(balancer.Call{Key: key, Avoid: avoid}).Key(), "all are to be avoided")
				return order
			}
			order := chain(here)
			require.Equal(t, order, chain(there), name)
			require.Len(t, slices.Compact(slices.Sorted(slices.Values(order))), len(list), "%s: each node once", name)
			if seconds[order[0]] == nil {
				seconds[order[0]] = make(map[string]int)
			}
			seconds[order[0]][order[1]]++
		}
		for first, counts := range seconds {
			require.Len(t, counts, len(list)-1, "%s: the keys of %s go to all others", name, first)
		}
	}
}

func TestCallsWithoutKeyGoToTheLessBusy(t *testing.T) {
	for name, policy := range hashing(0) {
		b := newStatic(t, 2, &balancer.Config{Policy: policy})
		hold(t, b, b.Nodes()[0])
		for range 50 {
			l, err := b.Acquire(t.Context(), balancer.Call{})
			require.NoError(t, err)
			require.Equal(t, addr(1), l.Node().Key(), name)
			l.Done(time.Time{}, success)
		}
	}
}

func TestKeysKeepToTheirGroupAndSpreadEvenlyThere(t *testing.T) {
	list := endpoints(8)
	for i := range list {
		list[i].Priority = i / 4
	}
	keys := keys(50_000)
	for name, policy := range hashing(0) {
		b := newOver(t, list, &balancer.Config{Policy: policy, PanicThreshold: -1})
		require.NoError(t, b.Eject(addr(0), time.Minute))
		require.NoError(t, b.Eject(addr(1), time.Minute)) // half of the first four: they get 70 %
		counts := make(map[string]int)
		for _, key := range keys {
			node := ""
			for range 2 {
				l, err := b.Acquire(t.Context(), balancer.Call{Key: key})
				require.NoError(t, err)
				l.Done(time.Time{}, success)
				if node != "" {
					require.Equal(t, node, l.Node().Key(), name)
				}
				node = l.Node().Key()
			}
			counts[node]++
		}
		for i, share := range []float64{0, 0, 0.35, 0.35, 0.075, 0.075, 0.075, 0.075} {
			require.InDelta(t, share*float64(len(keys)), counts[addr(i)], 0.01*float64(len(keys)), "%s: %v", name, counts)
		}
	}
}

// The group that a key falls to and the node there must not depend on each other:
// else its keys would all come from one part of the table.
func TestGroupHasTheUseOfTheWholeTable(t *testing.T) {
	list := endpoints(10)
	for i := range list {
		list[i].Priority = min(i/2, 1)
	}
	b := newOver(t, list, &balancer.Config{Policy: balancer.Maglev{TableSize: 11}, PanicThreshold: -1})
	require.NoError(t, b.Eject(addr(0), time.Minute)) // the other one keeps 70 %
	used := make(map[string]int)
	for _, key := range keys(10_000) {
		l, err := b.Acquire(t.Context(), balancer.Call{Key: key})
		require.NoError(t, err)
		used[l.Node().Key()]++
		l.Done(time.Time{}, success)
	}
	require.Len(t, used, 9, "%v", used)
}

func TestHashingPolicyMayBeAPointer(t *testing.T) {
	keys := keys(100)
	for name, pair := range map[string][2]balancer.Policy{
		"rendezvous": {balancer.Rendezvous{}, &balancer.Rendezvous{}},
		"maglev":     {balancer.Maglev{}, &balancer.Maglev{}},
	} {
		require.Equal(t, place(t, pair[0], endpoints(5), keys), place(t, pair[1], endpoints(5), keys), name)
	}
}

func TestHashingPickAllocatesNothing(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	for name, policy := range hashing(0) {
		for _, n := range []int{1, 3, 1000} {
			b := newStatic(t, n, &balancer.Config{Policy: policy})
			hold(t, b, b.Nodes()[0])
			avoid := b.Nodes()[:1]
			ctx := context.Background()
			for _, key := range []string{"a", "b", "c", "d"} {
				require.Zero(t, testing.AllocsPerRun(100, func() {
					for _, c := range [...]balancer.Call{{Key: key}, {Key: key, Avoid: avoid}} {
						l, err := b.Acquire(ctx, c)
						if err != nil {
							t.Fatal(err)
						}
						l.Done(time.Time{}, success)
					}
				}), "%s, %d nodes", name, n)
			}
		}
	}
}

// bounds are policies with that bound.
func bounds(bound float64) map[string]balancer.Policy {
	return map[string]balancer.Policy{
		"rendezvous": balancer.Rendezvous{Bound: bound},
		"maglev":     balancer.Maglev{Bound: bound},
	}
}

// Calls come and go one after the other, most of them with a few keys.
func TestNoNodeEverExceedsItsBound(t *testing.T) {
	for setup, c := range map[string]struct {
		weights []float64
		most    int // in flight
	}{
		"few":                              {make([]float64, 5), 40},
		"two":                              {make([]float64, 2), 9},
		"weighted":                         {[]float64{1, 2, 4, 0.5, 8, 1, 1}, 60},
		"many":                             {make([]float64, 100), 500},
		"too many to be counted each time": {make([]float64, 300), 900},
	} {
		list := endpoints(len(c.weights))
		sum := 0.0
		for i, w := range c.weights {
			if w == 0 {
				c.weights[i] = 1
			}
			list[i].Weight = w
			sum += c.weights[i]
		}
		for name, policy := range bounds(0) {
			b := newOver(t, list, &balancer.Config{Policy: policy})
			nodes := b.Nodes()
			random := rand.New(rand.NewPCG(7, 7))
			zipf := rand.NewZipf(random, 1.3, 1, 1000)
			keys := keys(1001)
			now := time.Now()
			first := placement(policy.NewPicker(newOver(t, list, nil).Nodes()), keys)
			var leases []*balancer.Lease
			overflowed := 0
			for step := range 5000 {
				// Waves: it must hold while the load falls, too.
				if len(leases) > 0 && (step/c.most)%2 == 1 && random.IntN(4) > 0 || len(leases) >= c.most {
					i := random.IntN(len(leases))
					leases[i].Done(now, success)
					leases = slices.Delete(leases, i, i+1)
					continue
				}
				if len(list) > 128 {
					now = now.Add(time.Millisecond) // then the last count is too old
				}
				key := keys[zipf.Uint64()]
				l, err := b.Acquire(t.Context(), balancer.Call{Now: now, Key: key})
				require.NoError(t, err)
				leases = append(leases, &l)
				if l.Node().Key() != first[key] {
					overflowed++
				}
				i := slices.Index(nodes, l.Node())
				require.LessOrEqual(t, float64(l.Node().InFlight()), math.Ceil(1.25*float64(len(leases))*c.weights[i]/sum),
					"%s, %s: %d in flight, step %d", name, setup, len(leases), step)
			}
			require.Positive(t, overflowed, "%s, %s: the bound was never felt", name, setup)
		}
	}
}

func TestHotKeySpreadsOverFewNodes(t *testing.T) {
	for name, policy := range bounds(0) {
		b := newStatic(t, 20, &balancer.Config{Policy: policy})
		for _, n := range b.Nodes() { // what goes on besides
			for range 10 {
				hold(t, b, n)
			}
		}
		used := make(map[string]int)
		for range 10 {
			l, err := b.Acquire(t.Context(), balancer.Call{Key: "hot"})
			require.NoError(t, err)
			used[l.Node().Key()]++
		}
		// A node has room for three or four more.
		require.LessOrEqual(t, len(used), 4, "%s: %v", name, used)
		require.GreaterOrEqual(t, len(used), 3, "%s: %v", name, used)
	}
}

func TestFullNodesKeysSpreadOverAllOthers(t *testing.T) {
	for name, policy := range bounds(0) {
		b := newStatic(t, 10, &balancer.Config{Policy: policy})
		keys := keys(5000)
		p := policy.NewPicker(b.Nodes())
		first := placement(p, keys)
		for _, n := range b.Nodes() {
			for range 4 {
				hold(t, b, n)
			}
		}
		for range 10 {
			hold(t, b, b.Nodes()[0]) // which is full now
		}
		counts, others := make(map[string]int), 0
		for key, at := range placement(p, keys) {
			if first[key] == addr(0) {
				counts[at]++
				others++
			} else {
				require.Equal(t, first[key], at, "%s: who has room keeps the keys", name)
			}
		}
		require.Len(t, counts, 9, name)
		for at, n := range counts {
			require.InDelta(t, float64(others)/9, n, float64(others)/18, "%s: %s takes too much or too little: no cascade", name, at)
		}
	}
}

func TestBoundOfOneIsEvenAndBelowZeroIsNone(t *testing.T) {
	// spread is how many of 40 calls with one key each of four nodes has, in order.
	spread := func(policy balancer.Policy) (counts []int) {
		b := newStatic(t, 4, &balancer.Config{Policy: policy})
		for range 40 {
			_, err := b.Acquire(t.Context(), balancer.Call{Key: "hot"})
			require.NoError(t, err)
		}
		for _, n := range b.Nodes() {
			counts = append(counts, n.InFlight())
		}
		slices.Sort(counts)
		return counts
	}
	for name := range bounds(0) {
		require.Equal(t, []int{10, 10, 10, 10}, spread(bounds(1)[name]), name)
		require.Equal(t, []int{0, 0, 0, 40}, spread(bounds(-1)[name]), name)
		require.Equal(t, spread(bounds(balancer.DefaultBound)[name]), spread(bounds(0)[name]), name)
		require.Equal(t, []int{0, 0, 13, 27}, spread(bounds(2.7)[name]), name)
	}
}

func TestSettingsOfHashingPoliciesThatMakeNoSenseAreRefused(t *testing.T) {
	for _, bound := range []float64{0.5, math.NaN(), math.Inf(1)} {
		for name, policy := range bounds(bound) {
			_, err := balancer.New("orders", discovery.Static(endpoints(1)...), &balancer.Config{Policy: policy})
			require.ErrorContains(t, err, fmt.Sprintf(".Bound is %v, want a finite number >= 1, or below 0 for no bound", bound), name)
		}
	}
	for _, size := range []int{math.MinInt, -1, 5_000_012, math.MaxInt} {
		err := balancer.Config{Policy: balancer.Maglev{TableSize: size, Bound: 0.9}}.Validate()
		require.EqualError(t, err, fmt.Sprintf(`balancer: Maglev.TableSize is %d, want between 1 and 5000011
balancer: Maglev.Bound is 0.9, want a finite number >= 1, or below 0 for no bound`, size))
	}
	for _, policy := range []balancer.Policy{
		balancer.Maglev{TableSize: 5_000_011, Bound: 1}, &balancer.Maglev{Bound: -1}, balancer.Rendezvous{}, &balancer.Rendezvous{Bound: 7},
	} {
		require.NoError(t, balancer.Config{Policy: policy}.Validate())
	}
	require.Error(t, balancer.Config{Policy: &balancer.Rendezvous{Bound: 0.1}}.Validate())
}

func TestHashKeyWithAPolicyThatDoesNotHashIsRefused(t *testing.T) {
	key := balancer.HashKey{Header: "X-User"}
	require.EqualError(t, balancer.Config{HashKey: key}.Validate(),
		"balancer: HashKey is {Header:X-User Cookie: Query:}, want a Policy that goes by keys, such as Rendezvous; have the default one")
	require.ErrorContains(t, balancer.Config{HashKey: key, Policy: balancer.RoundRobin{}}.Validate(), "have balancer.RoundRobin")
	for _, policy := range bounds(0) {
		require.NoError(t, balancer.Config{HashKey: key, Policy: policy}.Validate())
	}
	var read balancer.Config
	require.NoError(t, json.Unmarshal([]byte(`{"hashKey":{"header":"X-User"}}`), &read))
	require.Error(t, read.Validate())
}

// A node that is full by MaxConcurrency passes its keys on in their order, not to
// anybody; if all are, the key's own node says so.
func TestNodesThatMayTakeNoMorePassKeysOnInOrder(t *testing.T) {
	for name, policy := range bounds(-1) {
		b := newStatic(t, 4, &balancer.Config{Policy: policy, MaxConcurrency: 2})
		p := policy.NewPicker(b.Nodes())
		first := p.Pick(balancer.Call{Key: "hot"})
		second := p.Pick(balancer.Call{Key: "hot", Avoid: []*balancer.Node{first}})
		for range 2 {
			hold(t, b, first)
		}
		for range 2 {
			l, err := b.Acquire(t.Context(), balancer.Call{Key: "hot"})
			require.NoError(t, err)
			require.Same(t, second, l.Node(), name)
		}
		for range 4 {
			_, err := b.Acquire(t.Context(), balancer.Call{Key: "hot"})
			require.NoError(t, err)
		}
		require.Same(t, first, p.Pick(balancer.Call{Key: "hot"}), name)
		_, err := b.Acquire(t.Context(), balancer.Call{Key: "hot"})
		var full *limit.FullError
		require.True(t, errors.As(err, &full), "%v", err)
	}
}

// Avoid comes before the bound: a node that is full may soon have room, one that has
// failed the call will fail it again.
func TestFullNodesAreBetterThanThoseToBeAvoided(t *testing.T) {
	for name, policy := range bounds(0) {
		b := newStatic(t, 4, &balancer.Config{Policy: policy})
		p := policy.NewPicker(b.Nodes())
		first := p.Pick(balancer.Call{Key: "hot"})
		second := p.Pick(balancer.Call{Key: "hot", Avoid: []*balancer.Node{first}})
		for _, n := range b.Nodes() {
			for range 6 { // ⌈1.25·(18+1)/4⌉
				if n != first {
					hold(t, b, n)
				}
			}
		}
		require.Same(t, first, p.Pick(balancer.Call{Key: "hot"}), name)
		require.Same(t, second, p.Pick(balancer.Call{Key: "hot", Avoid: []*balancer.Node{first}}), name)
	}
}

func TestBoundIsExact(t *testing.T) {
	for name, policy := range bounds(2) {
		b := newStatic(t, 4, &balancer.Config{Policy: policy})
		p := policy.NewPicker(b.Nodes())
		first := p.Pick(balancer.Call{Key: "hot"})
		second := p.Pick(balancer.Call{Key: "hot", Avoid: []*balancer.Node{first}})
		hold(t, b, first)
		require.Same(t, second, p.Pick(balancer.Call{Key: "hot"}), "%s: ⌈2·(1+1)/4⌉ is 1, and it has that", name)
		l := hold(t, b, second)
		require.Same(t, first, p.Pick(balancer.Call{Key: "hot"}), "%s: ⌈2·(2+1)/4⌉ is 2", name)
		l.Done(time.Time{}, success)
		require.Same(t, second, p.Pick(balancer.Call{Key: "hot"}), name)
	}
}

// Picks of the same moment may each believe that there is room.
func TestBoundHoldsUnderManyCallersToWithinTheirNumber(t *testing.T) {
	const callers = 16
	for name, policy := range bounds(0) {
		for _, n := range []int{10, 200} {
			b := newStatic(t, n, &balancer.Config{Policy: policy})
			for _, node := range b.Nodes() {
				for range 10 {
					hold(t, b, node)
				}
			}
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for range 300 {
						l, err := b.Acquire(context.Background(), balancer.Call{Key: "hot"})
						if err != nil {
							t.Error(err)
							return
						}
						if got := l.Node().InFlight(); float64(got) > math.Ceil(1.25*float64(10*n+callers)/float64(n))+callers {
							t.Errorf("%s: %d in flight on %s", name, got, l.Node())
						}
						l.Done(time.Time{}, success)
					}
				})
			}
			wg.Wait()
			for _, node := range b.Nodes() {
				require.Equal(t, 10, node.InFlight())
			}
		}
	}
}
