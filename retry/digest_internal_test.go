package retry

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDigestBucketsFollowOneAnother(t *testing.T) {
	last := time.Duration(0)
	for i := range buckets {
		from, to := edges(i)
		require.Equal(t, last, from, i)
		require.Greater(t, to, from)
		require.Equal(t, i, bucketOf(from))
		require.Equal(t, i, bucketOf(to-1))
		if i >= 16 {
			require.LessOrEqual(t, to-from, from/16)
		}
		last = to
	}
	require.Greater(t, last, 2*time.Minute)
	require.Equal(t, buckets-1, bucketOf(time.Hour))
	require.Zero(t, bucketOf(-1))
}

func TestDigestFindsPercentilesOfAnyLatencies(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		p := 0.01 + 0.98*r.Float64()
		g := &digest{percentile: p, least: 1}
		latencies := make([]time.Duration, 5000)
		scale := time.Duration(1) << (13 + r.IntN(20))
		for i := range latencies {
			latencies[i] = scale + time.Duration(r.ExpFloat64()*float64(scale))
			g.add(0, latencies[i])
		}
		g.turn(0)
		slices.Sort(latencies)
		want := latencies[int(p*float64(len(latencies)))]
		require.InEpsilon(t, want, g.value.Load(), 0.05, "%v of %v", p, scale)
	}
}

func TestDigestForgetsWhatIsOldIfItHasEnoughThatIsNew(t *testing.T) {
	g := &digest{percentile: 0.5, least: 100}
	now := int64(0)
	fill := func(n int, latency time.Duration, step int64) time.Duration {
		for range n {
			now += step
			g.add(now, latency)
		}
		return time.Duration(g.value.Load())
	}
	require.Zero(t, fill(99, time.Second, digestPace))
	require.InEpsilon(t, time.Second, fill(1, time.Second, digestPace), 0.05)
	require.InEpsilon(t, time.Second, fill(10, 10*time.Millisecond, digestPace), 0.05)
	require.InEpsilon(t, 10*time.Millisecond, fill(400, 10*time.Millisecond, digestPace), 0.05)
	require.Zero(t, fill(120, 10*time.Millisecond, 2*digestMemory), "far too few")
}

func TestDigestDoesNotTellAPercentileBeyondItsEnd(t *testing.T) {
	g := &digest{percentile: 0.9, least: 1}
	for range 100 {
		g.add(0, time.Hour)
	}
	g.turn(0)
	require.Zero(t, g.value.Load())
}

func TestDigestCountsWhatGoroutinesAdd(t *testing.T) {
	g := &digest{percentile: 0.5, least: 1}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 1000 {
				g.add(int64(i)*digestPace/100, time.Millisecond)
			}
		})
	}
	all.Wait()
	g.turn(digestPace)
	require.InEpsilon(t, time.Millisecond, g.value.Load(), 0.07)
}

func TestDigestAllocatesNothing(t *testing.T) {
	g := &digest{percentile: 0.5, least: 1}
	now := int64(0)
	require.Zero(t, testing.AllocsPerRun(1000, func() { now += digestPace / 2; g.add(now, time.Millisecond) }))
}
