package breaker

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/outcome"
)

// buckets is the number of steps in which the window rolls.
const buckets = 10

// window counts calls of the last while. Times are nanoseconds on the breaker's
// clock. Counting is one atomic addition to the bucket of the moment; whoever
// meets a later bucket first clears it (and those that were skipped) before it
// makes it the current one, so the cost of any idle time is that of ten buckets.
// A call counted while that happens may go to the bucket before: sums are never
// negative, and never too high.
type window struct {
	width int64
	last  atomic.Int64 // index of the current bucket; never goes back
	run   atomic.Int64 // failures in a row; kept up where it matters only
	mu    sync.Mutex   // one clears at a time
	// The counters change with every call: not in one cache line with what every
	// call only reads.
	_     [64]byte
	slots [buckets]bucket
	_     [64]byte
}

type bucket struct{ calls, failures, slow atomic.Int64 }

func newWindow(length time.Duration) *window {
	w := &window{width: (int64(length) + buckets - 1) / buckets}
	// The first event finds a bucket of long ago, whatever its time.
	w.last.Store(-(1 << 62) / w.width)
	return w
}

// slot returns the bucket with the given index, which may be negative.
func (w *window) slot(index int64) *bucket {
	const bias = buckets << 59
	return &w.slots[(uint64(index)+bias)%buckets]
}

// at returns the bucket for t. What is earlier than the current bucket belongs
// to it as well: time does not go back.
func (w *window) at(t int64) *bucket {
	last := w.last.Load()
	if t-last*w.width >= w.width {
		last = w.advance(t)
	}
	return w.slot(last)
}

// count counts an outcome as that many calls; what is neither a success nor a
// failure as none.
func (w *window) count(t, calls int64, o outcome.Outcome, slow bool) {
	bad := o.Class == outcome.Failure
	if !bad && o.Class != outcome.Success {
		return
	}
	b := w.at(t)
	b.calls.Add(calls)
	if slow {
		b.slow.Add(1)
	}
	if bad {
		b.failures.Add(1)
		w.run.Add(1)
	}
}

// succeeded counts successes of t in that time's own bucket, if the window still
// has it: they may be told late, and must not seem younger than they are.
func (w *window) succeeded(t, calls int64) {
	i := t / w.width
	if i >= w.last.Load() {
		w.at(t).calls.Add(calls)
		return
	}
	w.mu.Lock() // so that nobody makes a later bucket of it meanwhile
	defer w.mu.Unlock()
	if i > w.last.Load()-buckets {
		w.slot(i).calls.Add(calls)
	}
}

func (w *window) advance(t int64) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	last, now := w.last.Load(), t/w.width
	if now <= last {
		return last
	}
	for i := max(last, now-buckets) + 1; i <= now; i++ {
		b := w.slot(i)
		b.calls.Store(0)
		b.failures.Store(0)
		b.slow.Store(0)
	}
	w.last.Store(now)
	return now
}

type counts struct{ calls, failures, slow int64 }

// sum returns what the window holds at t. It changes nothing: what is counted
// later may still be of before t.
func (w *window) sum(t int64) (c counts) {
	last := w.last.Load()
	for i := max(last, t/w.width) - buckets + 1; i <= last; i++ {
		b := w.slot(i)
		c.calls += b.calls.Load()
		c.failures += b.failures.Load()
		c.slow += b.slow.Load()
	}
	// A body that breaks is counted when it does, its call when it was answered:
	// that may have left the window by now.
	c.calls = max(c.calls, c.failures, c.slow)
	return c
}

// reaches compares a share exactly: the quotient of two integers and the literal
// for the same decimal are the same float64, which their products need not be.
func reaches(part, whole int64, rate float64) bool {
	return rate > 0 && float64(part)/float64(whole) >= rate
}

func share(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}
