package balancer_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
)

func TestMaglevSpreadsEvenlyIfTheTableIsAHundredTimesTheNodes(t *testing.T) {
	keys := keys(1_000_000)
	counts := picksOfKeys(balancer.Maglev{TableSize: 10_007}.NewPicker(newStatic(t, 100, nil).Nodes()), keys)
	require.Len(t, counts, 100)
	for at, n := range counts {
		require.InEpsilon(t, len(keys)/100, n, 0.045, at) // 1 % of the table's, the rest is chance
	}
}

func TestMaglevWorksWithAnyTableSize(t *testing.T) {
	nodes := newStatic(t, 5, nil).Nodes()
	for _, size := range []int{math.MinInt, -1, 0, 1, 2, 4, 5, 6, 100, 1009, math.MaxInt} {
		counts := picksOfKeys(balancer.Maglev{TableSize: size}.NewPicker(nodes), keys(10_000))
		require.Len(t, counts, 5, "every node has an entry")
	}
}

func TestMaglevTakesWeightsThatAreFarApart(t *testing.T) {
	list := endpoints(3)
	list[0].Weight, list[1].Weight, list[2].Weight = 1e30, 1e-30, 1e30
	counts := picksOfKeys(balancer.Maglev{}.NewPicker(newOver(t, list, nil).Nodes()), keys(10_000))
	require.Zero(t, counts[addr(1)])
	require.InDelta(t, 5000, counts[addr(0)], 250)
}
