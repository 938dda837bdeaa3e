package hash_test

import (
	"fmt"
	"math"
	"math/bits"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/hash"
)

// TestValuesNeverChange pins the hash: with another one, the processes of two
// releases would send the same keys to different endpoints.
func TestValuesNeverChange(t *testing.T) {
	for _, known := range []struct {
		s           string
		zero, other uint64 // with seeds 0 and 1
	}{
		{"", 0xe220a8397b1dcdaf, 0x219fc13d6bc5b015},
		{"a", 0x5121e026cd2a774b, 0xca208bccf3d5c21f},
		{"b", 0xa1d9f27b60a50f2f, 0xd78bdae834582819},
		{"\x00", 0xf37f6ea6f0c9d085, 0x2bb937cd5e255928},
		{"\x00\x00", 0xe3adb25a734d81a8, 0x31c588e986ba95d3},
		{"é", 0x5004ec035ffc9197, 0x1fa46266f5c00acb},
		{"orders", 0x62df1debb979165c, 0xc4097382e23ccc87},
		{"12345678", 0x0668188217c5010e, 0x69b8919c964b96ce},
		{"123456789", 0xb9f25e7ac0a070e7, 0x47531a974ca2e641},
		{"10.0.0.1:80", 0x1b0a2c1c7676fa7c, 0xe371440c45451cb4},
		{"10.0.0.2:80", 0xe7ba098fce09362d, 0x0f9bf1d5acbeb477},
		{"orders-7d9f8b6c5d-x2x7k", 0x47b300f221f03732, 0x03957494b56d48e6},
	} {
		require.Equal(t, known.zero, hash.String(0, known.s), "%q", known.s)
		require.Equal(t, known.other, hash.String(1, known.s), "%q", known.s)
	}
	require.Equal(t, uint64(0xaf57978921422ad5), hash.Mix(1, 2))
	require.Equal(t, uint64(0xc4b627315c15849c), hash.Mix(2, 1))
}

// TestSplitMixIsTheKnownOne compares with the published first outputs of
// SplitMix64 for the seed 0, which Mix(0, n) is by its construction.
func TestSplitMixIsTheKnownOne(t *testing.T) {
	for i, want := range []uint64{0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f, 0xf88bb8a8724c81ec} {
		require.Equal(t, want, hash.Mix(0, uint64(i)))
	}
}

// names are the kinds of strings that are hashed: alike but for a few characters.
func names(n int) map[string][]string {
	sets := make(map[string][]string)
	for i := range n {
		for kind, name := range map[string]string{
			"addresses": fmt.Sprintf("10.%d.%d.%d:8080", i>>16, i>>8&0xff, i&0xff),
			"ports":     fmt.Sprintf("127.0.0.1:%d", i),
			"pods":      fmt.Sprintf("orders-%d", i),
			"numbers":   fmt.Sprint(i),
			"lengths":   strings.Repeat("x", i%2048) + fmt.Sprint(i/2048),
		} {
			sets[kind] = append(sets[kind], name)
		}
	}
	return sets
}

func TestLikeStringsSpreadEvenly(t *testing.T) {
	const n, buckets = 1 << 15, 256
	for kind, set := range names(n) {
		for _, seed := range []uint64{0, 1, 1 << 40} {
			var low, high [buckets]int
			seen := make(map[uint64]bool, n)
			for _, s := range set {
				h := hash.String(seed, s)
				low[h%buckets]++
				high[h>>56]++
				seen[h] = true
			}
			require.Len(t, seen, n, "%s: nothing collides", kind)
			for _, counts := range [][buckets]int{low, high} {
				chi, want := 0.0, float64(n)/buckets
				for _, got := range counts {
					chi += (float64(got) - want) * (float64(got) - want) / want
				}
				// 255 degrees of freedom: mean 255, deviation 22.6; five of these.
				require.InDelta(t, 255, chi, 113, "%s, seed %d", kind, seed)
			}
		}
	}
}

func TestEveryBitOfTheInputMovesHalfOfTheHash(t *testing.T) {
	for _, length := range []int{1, 7, 8, 9, 15, 16, 17, 24} {
		for bit := range 8 * length {
			moved, tries := 0, 200
			for i := range tries {
				b := []byte(fmt.Sprintf("%024d", i*7919)[24-length:])
				before := hash.String(0, string(b))
				b[bit/8] ^= 1 << (bit % 8)
				moved += bits.OnesCount64(before ^ hash.String(0, string(b)))
			}
			require.InDelta(t, 32, float64(moved)/float64(tries), 4, "bit %d of %d bytes", bit, length)
		}
	}
}

func TestSeedsGiveIndependentHashes(t *testing.T) {
	moved := 0
	for seed := range uint64(1000) {
		moved += bits.OnesCount64(hash.String(seed, "orders") ^ hash.String(seed+1, "orders"))
	}
	require.InDelta(t, 32, float64(moved)/1000, 1)
}

func TestScoresGiveSharesInProportionToWeight(t *testing.T) {
	weights := []float64{1, 2, 5, 0.5, 1.5}
	const keys, total = 100_000, 10.0
	wins := make([]int, len(weights))
	for key := range uint64(keys) {
		best, bestScore := -1, 0.0
		for node, w := range weights {
			if s := hash.Score(hash.Mix(key, uint64(node)), w); s > bestScore {
				best, bestScore = node, s
			}
		}
		wins[best]++
	}
	for node, w := range weights {
		p := w / total
		deviation := math.Sqrt(keys * p * (1 - p))
		require.InDelta(t, keys*p, wins[node], 5*deviation, "node of weight %v", w)
	}
}

func TestScoresAreInTheOrderOfTheHashes(t *testing.T) {
	for _, h := range []uint64{0, 1 << 12, 1 << 20, 1 << 60, 1 << 63, math.MaxUint64 - 1<<12} {
		require.Greater(t, hash.Score(h, 1), 0.0)
		require.Less(t, hash.Score(h, 1), hash.Score(h+1<<12, 1))
	}
	require.False(t, math.IsInf(hash.Score(math.MaxUint64, 1), 0))
}

func TestHashingDoesNotAllocate(t *testing.T) {
	s, sum := strings.Repeat("orders", 10), 0.0
	require.Zero(t, testing.AllocsPerRun(100, func() { sum += hash.Score(hash.String(1, s), 2) }))
	require.NotZero(t, sum)
}
