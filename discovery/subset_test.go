package discovery

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// instances are n endpoints of a service.
func instances(n int) []Endpoint {
	endpoints := make([]Endpoint, n)
	for i := range endpoints {
		endpoints[i] = Endpoint{ID: fmt.Sprintf("orders-%d", i), Addr: fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1)}
	}
	return endpoints
}

// subsetOf is what a client makes of a set, by way of a watch.
func subsetOf(t *testing.T, cfg *SubsetConfig, endpoints []Endpoint) []Endpoint {
	t.Helper()
	for set, err := range Subset(Static(endpoints...), cfg).Watch(t.Context(), "orders") {
		require.NoError(t, err)
		require.True(t, set.Authoritative)
		return set.Endpoints
	}
	t.Fatal("no set")
	return nil
}

func keysOf(endpoints []Endpoint) []string {
	keys := make([]string, len(endpoints))
	for i, e := range endpoints {
		keys[i] = e.Key()
	}
	return keys
}

// without returns the keys of a that b has not.
func without(a, b []Endpoint) []string {
	return slices.DeleteFunc(keysOf(a), func(key string) bool { return slices.Contains(keysOf(b), key) })
}

// TestSubsetIsTheSameInEveryProcess pins a choice: a new release must not move
// everybody's connections.
func TestSubsetIsTheSameInEveryProcess(t *testing.T) {
	got := subsetOf(t, &SubsetConfig{Client: "checkout-1", Size: 5}, instances(100))
	require.Equal(t, []string{"orders-25", "orders-35", "orders-41", "orders-45", "orders-95"}, keysOf(got))
	shuffled := instances(100)
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	require.ElementsMatch(t, got, subsetOf(t, &SubsetConfig{Client: "checkout-1", Size: 5}, shuffled))
}

func TestSubsetKeepsOrderAndEveryProperty(t *testing.T) {
	all := instances(10)
	for i := range all {
		all[i].Weight, all[i].Zone, all[i].Metadata = float64(i+1), "a", map[string]string{"v": "2"}
	}
	got := subsetOf(t, &SubsetConfig{Client: "c", Size: 4}, all)
	require.Len(t, got, 4)
	last := -1
	for _, e := range got {
		i := slices.IndexFunc(all, e.Equal)
		require.Greater(t, i, last)
		last = i
	}
}

func TestSubsetDefaults(t *testing.T) {
	require.Len(t, subsetOf(t, nil, instances(100)), 20)
	require.Equal(t, subsetOf(t, nil, instances(100)), subsetOf(t, nil, instances(100)))
	require.Len(t, subsetOf(t, &SubsetConfig{Size: -1}, instances(100)), 100)
	require.Len(t, subsetOf(t, nil, instances(19)), 19)
	require.Empty(t, subsetOf(t, nil, nil))
}

func TestSubsetsOfDifferentClientsAndServicesDiffer(t *testing.T) {
	a := subsetOf(t, &SubsetConfig{Client: "a"}, instances(100))
	require.NotEqual(t, a, subsetOf(t, &SubsetConfig{Client: "b"}, instances(100)))
	for set := range Subset(Static(instances(100)...), &SubsetConfig{Client: "a"}).Watch(t.Context(), "items") {
		require.NotEqual(t, a, set.Endpoints)
		break
	}
}

func TestSubsetChangesByAtMostOneMemberWhenOneEndpointDoes(t *testing.T) {
	cfg := &SubsetConfig{Client: "c", Size: 10}
	all := instances(100)
	before := subsetOf(t, cfg, all)
	lost := 0
	for i := range all {
		gone := slices.Delete(slices.Clone(all), i, i+1)
		after := subsetOf(t, cfg, gone)
		require.Len(t, after, 10)
		require.LessOrEqual(t, len(without(before, after)), 1)
		lost += len(without(before, after))

		replaced := slices.Clone(all)
		replaced[i] = Endpoint{ID: fmt.Sprintf("new-%d", i), Addr: "10.9.9.9:80"}
		after = subsetOf(t, cfg, replaced)
		require.Len(t, after, 10)
		require.LessOrEqual(t, len(without(before, after)), 1)

		moved := slices.Clone(all)
		moved[i].Addr, moved[i].Weight, moved[i].Metadata = "10.9.9.9:80", 7, map[string]string{"v": "2"}
		require.Equal(t, keysOf(before), keysOf(subsetOf(t, cfg, moved)), "its Key is its identity")
	}
	require.Equal(t, 10, lost, "only members' leaving is felt")
}

func TestSubsetCountsEndpointsThatGetCallsAndKeepsMembersThatDrain(t *testing.T) {
	cfg := &SubsetConfig{Client: "c", Size: 10}
	all := instances(50)
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		before := subsetOf(t, cfg, all)
		draining := func(e Endpoint) bool { return e.Draining }
		active := slices.DeleteFunc(slices.Clone(before), draining)
		require.Len(t, active, 10)
		require.LessOrEqual(t, len(before)-len(active), 10)
		// One member begins to drain, or somebody who did is well again.
		member := before[random.IntN(len(before))].Key()
		i := slices.IndexFunc(all, func(e Endpoint) bool { return e.Key() == member })
		all[i].Draining = !all[i].Draining
		after := subsetOf(t, cfg, all)
		if all[i].Draining {
			require.Contains(t, keysOf(after), member)
			require.Empty(t, without(before, after), "nobody leaves for it")
		}
		for j := range all { // no more than a few at a time
			if all[j].Draining && random.IntN(4) == 0 {
				all[j].Draining = false
			}
		}
	}
}

func TestSubsetIsBoundedWhenAllDrain(t *testing.T) {
	all := instances(100)
	for i := range all {
		all[i].Draining = true
	}
	require.Len(t, subsetOf(t, nil, all), 20)
}

func TestSubsetIsOfEachPriority(t *testing.T) {
	all := instances(100)
	for i := range all {
		all[i].Priority = i % 3
	}
	count := make(map[int]int)
	for _, e := range subsetOf(t, &SubsetConfig{Client: "c", Size: 7}, all) {
		count[e.Priority]++
	}
	require.Equal(t, map[int]int{0: 7, 1: 7, 2: 7}, count)
}

func TestSubsetLeavesWhatIsNotValidToTheSupervisor(t *testing.T) {
	all := append(instances(5), Endpoint{ID: "bad", Addr: "http://x"}, Endpoint{ID: "orders-1", Addr: "10.7.7.7:80"},
		Endpoint{ID: "nan", Addr: "10.0.0.1:80", Weight: math.NaN()})
	got := keysOf(subsetOf(t, &SubsetConfig{Client: "c", Size: 5}, all))
	require.Equal(t, []string{"orders-0", "orders-1", "orders-2", "orders-3", "orders-4", "bad", "orders-1", "nan"}, got)
}

// TestSubsetsOfManyClientsLoadServersAlike holds the figure of the documentation.
func TestSubsetsOfManyClientsLoadServersAlike(t *testing.T) {
	for _, c := range []struct {
		clients int
		most    float64
	}{{100, 1.75}, {1000, 1.25}} {
		load := make(map[string]int)
		for i := range c.clients {
			for _, e := range subsetOf(t, &SubsetConfig{Client: fmt.Sprintf("checkout-%d", i)}, instances(100)) {
				load[e.Key()]++
			}
		}
		busiest := 0
		for _, n := range load {
			busiest = max(busiest, n)
		}
		mean := float64(c.clients) * 20 / 100
		t.Logf("%d clients: busiest %.2f of the mean", c.clients, float64(busiest)/mean)
		require.LessOrEqual(t, float64(busiest)/mean, c.most)
		require.Len(t, load, 100)
	}
}

func TestSubsetPassesErrorsOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSource()
		rec := record(t.Context(), t, Subset(s, &SubsetConfig{Client: "c", Size: 1}), "orders")
		s.push(of("a:1", "b:1"))
		s.fail(errDown)
		got := rec.take()
		require.Len(t, got, 2)
		require.Len(t, got[0].set.Endpoints, 1)
		require.Equal(t, errDown, got[1].err)
	})
}
