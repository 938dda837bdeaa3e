package balancer_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// FuzzWeightedRoundRobin checks that shares follow the weights, whatever they
// are. The stride scheduler knows weights to one part in 65,535 of the heaviest.
func FuzzWeightedRoundRobin(f *testing.F) {
	f.Add([]byte{1})
	f.Add([]byte{0, 0, 0})
	f.Add([]byte{1, 2, 3, 100})
	f.Add([]byte{255, 1, 1, 1, 1, 1, 1, 1})
	f.Add([]byte{0, 16, 32, 48, 64, 80, 96, 112})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 || len(data) > 50 {
			t.Skip()
		}
		list, sum := endpoints(len(data)), 0.0
		for i, d := range data {
			if d > 0 {
				list[i].Weight = math.Pow(1.1, float64(d%128)) // up to 180,000 to 1
			}
			sum += max(list[i].Weight, 1)
		}
		b, err := balancer.New("orders", discovery.Static(list...), nil)
		require.NoError(t, err)
		defer b.Close()
		require.NoError(t, b.Ready(t.Context()))
		const n = 20_000
		counts := picks(balancer.WeightedRoundRobin{}.NewPicker(b.Nodes()), n)
		for i := range data {
			want := n * max(list[i].Weight, 1) / sum
			require.InDelta(t, want, counts[addr(i)], 3+0.02*want, "node %d of %v", i, list[i].Weight)
		}
	})
}
