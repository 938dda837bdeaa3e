package retry

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// digest finds a percentile of the latencies of the last quarter of a minute to
// half a minute; with few calls, of up to ten minutes. It is a histogram with 16
// buckets to an octave, from 1 µs to 2 min, so that what it finds is off by 3 % or
// so: bounded memory, one atomic addition for each latency, one atomic read for
// the percentile.
type digest struct {
	percentile float64
	least      int64 // samples that it takes

	value atomic.Int64 // the percentile; 0 while it is not known
	due   atomic.Int64 // when it is to be found anew
	place atomic.Int32 // which of counts the present is counted in

	mu     sync.Mutex // held to find the percentile
	began  int64      // when the present counts began
	counts [2][buckets]atomic.Uint32
}

const (
	octaves = 27 // of microseconds, about
	buckets = (octaves - 4 + 1) * 16

	digestPace   = int64(250 * time.Millisecond)
	digestWindow = int64(15 * time.Second)
	digestMemory = 20 * digestWindow // for those who have few samples
)

// bucketOf returns the bucket of a latency.
func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0)) >> 10
	e := max(bits.Len64(v)-5, 0)
	return min(e*16+int(v>>e), buckets-1) //nolint:gosec // below 32
}

// edges returns where a bucket begins and ends.
func edges(bucket int) (from, to time.Duration) {
	e := max(bucket/16-1, 0)
	from = time.Duration(bucket-e*16) << (e + 10)
	return from, from + 1<<(e+10)
}

// add counts a latency. Now is the time since whatever the caller counts from.
func (g *digest) add(now int64, latency time.Duration) {
	g.counts[g.place.Load()][bucketOf(latency)].Add(1)
	if now >= g.due.Load() && g.mu.TryLock() {
		g.turn(now)
		g.mu.Unlock()
	}
}

// turn finds the percentile, and forgets what is old. The caller holds the lock.
func (g *digest) turn(now int64) {
	g.due.Store(now + digestPace)
	place := g.place.Load()
	var (
		sums             [buckets]int64
		total, ofPresent int64
	)
	for i := range sums {
		present := int64(g.counts[place][i].Load())
		sums[i] = present + int64(g.counts[1-place][i].Load())
		total += sums[i]
		ofPresent += present
	}
	g.value.Store(int64(g.find(&sums, total)))
	if age := now - g.began; age >= digestMemory || age >= digestWindow && ofPresent >= g.least {
		g.began = now
		for i := range g.counts[1-place] {
			g.counts[1-place][i].Store(0)
		}
		g.place.Store(1 - place)
	}
}

// find returns the percentile; 0 if there are too few samples, or if it is beyond
// what can be told.
func (g *digest) find(sums *[buckets]int64, total int64) time.Duration {
	if total < g.least {
		return 0
	}
	rank := g.percentile * float64(total)
	for i, n := range sums[:buckets-1] {
		if rank -= float64(n); rank <= 0 && n > 0 {
			from, to := edges(i)
			return to - time.Duration(math.Round(-rank/float64(n)*float64(to-from)))
		}
	}
	return 0
}
