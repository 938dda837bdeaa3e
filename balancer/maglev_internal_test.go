package balancer

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/discovery"
)

func TestNextPrime(t *testing.T) {
	for n, want := range map[int]int{-5: 2, 0: 2, 1: 2, 2: 2, 3: 3, 4: 5, 9: 11, 24: 29, 65536: 65537, 65537: 65537, 5_000_000: 5_000_011} {
		require.Equal(t, want, nextPrime(n), "%d", n)
	}
}

func TestMaglevTablesAreSharedByEqualSets(t *testing.T) {
	list := discovery.Addrs("a:80", "b:80", "c:80")
	b, err := New("orders", discovery.Static(list...), nil)
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, b.Ready(t.Context()))
	nodes := b.Nodes()
	table := func(m Maglev, nodes []*Node) *uint32 { return &m.NewPicker(nodes).(*maglev).table[0] }
	first := table(Maglev{}, nodes)
	require.Same(t, first, table(Maglev{}, nodes))
	reversed := slices.Clone(nodes)
	slices.Reverse(reversed)
	require.Same(t, first, table(Maglev{}, reversed))

	require.NotSame(t, first, table(Maglev{}, nodes[:2]))
	require.NotSame(t, first, table(Maglev{TableSize: 101}, nodes))
	require.NotSame(t, first, table(Maglev{Seed: 1}, nodes))
	require.Same(t, first, table(Maglev{}, nodes), "the last few are kept")
	e := nodes[0].Endpoint()
	e.Weight = 2
	nodes[0].set(e)
	require.NotSame(t, first, table(Maglev{}, nodes))
	e.Weight = 1
	nodes[0].set(e)
	require.NotSame(t, first, table(Maglev{}, nodes), "and no more than that")
}

// In Maglev's table the numbers of entries differ by one, or go by weight to within
// one or two.
func TestMaglevTableHasExactShares(t *testing.T) {
	for _, weights := range [][]float64{{1, 1, 1}, {1, 2, 3, 4}, {0.1, 0.7, 30}, {5}, {1000, 1, 1, 1, 1, 1, 1, 1}} {
		members := make([]member, len(weights))
		sum := 0.0
		for i, w := range weights {
			members[i] = member{hash: uint64(i+1) * 0x9e3779b97f4a7c15, weight: w}
			sum += w
		}
		counts := make([]int, len(weights))
		for _, i := range makeTable(members, sum, 10_007) {
			counts[i]++
		}
		for i, w := range weights {
			require.InDelta(t, 10_007*w/sum, counts[i], 2+w/sum*float64(len(weights)), "%v: %v", weights, counts)
		}
	}
}
