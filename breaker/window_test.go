package breaker

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/outcome"
)

func TestAWindowRollsByTenths(t *testing.T) {
	w := newWindow(10)
	for t := range int64(100) {
		w.at(t).calls.Add(1)
	}
	require.EqualValues(t, 10, w.sum(99).calls)
	require.EqualValues(t, 7, w.sum(102).calls)
	require.EqualValues(t, 1, w.sum(108).calls)
	require.Zero(t, w.sum(109).calls)
}

func TestAWindowThatIsNoMultipleOfTenIsALittleLonger(t *testing.T) {
	require.EqualValues(t, 11, newWindow(101).width)
	require.EqualValues(t, 1, newWindow(10).width)
}

func TestAnyIdleTimeCostsTenBucketsAndLeavesCorrectSums(t *testing.T) {
	const length = 10 * time.Microsecond
	w := newWindow(length)
	w.at(0).calls.Add(5)
	require.EqualValues(t, 5, w.sum(0).calls)
	// A step for each bucket that has passed would take minutes, or ages.
	for _, later := range []int64{1e9 * int64(length), math.MaxInt64 / 2} {
		w.at(later).calls.Add(1)
		require.EqualValues(t, 1, w.sum(later).calls)
	}
}

func TestTheBucketsIndexIsMonotonicBeyond32Bits(t *testing.T) {
	w := newWindow(10)
	start := int64(math.MaxUint32) - 15
	for i := range int64(30) {
		w.at(start + i).calls.Add(1)
		require.EqualValues(t, min(i+1, buckets), w.sum(start+i).calls)
		require.Equal(t, start+i, w.last.Load())
	}
	w.at(5).calls.Add(1)
	require.Equal(t, start+29, w.last.Load(), "an older time does not turn it back")
	require.EqualValues(t, buckets+1, w.sum(start+29).calls)

	months := newWindow(10 * time.Second)
	for day := range int64(400) {
		now := day * int64(24*time.Hour)
		months.at(now).failures.Add(1)
		require.EqualValues(t, 1, months.sum(now).failures)
	}
}

func TestTheBucketsOfNegativeTimesDoNotOverlap(t *testing.T) {
	w := newWindow(10)
	for i := int64(-25); i <= 25; i++ {
		if i != 0 { // the buckets of -1 < t < 1 are one
			w.at(i).calls.Add(1)
		}
	}
	require.EqualValues(t, buckets, w.sum(25).calls)
}

func TestConcurrentRotationLosesNoCountWithinAWindow(t *testing.T) {
	const workers, each = 8, 20000
	w := newWindow(10 * 1000)
	var now atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range each {
				t := now.Load()
				if i%100 == 0 {
					// All of the test is shorter than the window.
					t = now.Add(9 * 1000 / (workers * each / 100))
				}
				w.at(t).calls.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, workers*each, w.sum(now.Load()).calls)
}

func TestConcurrentRotationKeepsSumsWithinBounds(t *testing.T) {
	const workers, each = 8, 20000
	w := newWindow(10)
	var now atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				w.at(now.Add(1)).failures.Add(1) // a new bucket with every call
				c := w.sum(now.Load())
				if c.failures < 0 || c.failures > workers*each {
					t.Errorf("sum is %d", c.failures)
				}
			}
		})
	}
	wg.Wait()
	// One event per time unit: a window's worth, and what stragglers put late.
	require.LessOrEqual(t, w.sum(now.Load()).failures, int64(buckets+workers))
	require.Zero(t, w.sum(now.Load()+buckets).failures)
}

func TestFailuresThatAgreeToOpenDoItOnce(t *testing.T) {
	const callers = 8
	b, err := New("orders", &Config{MinCalls: 1, FailureRate: 1})
	require.NoError(t, err)
	var wg sync.WaitGroup
	b.mu.Lock()    // they come as far as this
	b.closedAt = 0 // not long ago: each opening counts
	p := b.cur.Load()
	for range callers {
		l, err := b.Acquire(time.Time{})
		require.NoError(t, err)
		wg.Go(func() { l.Done(time.Time{}, outcome.Outcome{Class: outcome.Failure}) })
	}
	for p.win.sum(0).failures < callers {
		runtime.Gosched()
	}
	for range 1000 {
		runtime.Gosched()
	}
	b.mu.Unlock()
	wg.Wait()
	require.Equal(t, 1, b.Snapshot(time.Time{}).Opens)
}

func TestCallsOfAClosedOrOpenBreakerTakeNoLock(t *testing.T) {
	b, err := New("orders", &Config{Jitter: -1})
	require.NoError(t, err)
	now := time.Now()
	b.mu.Lock()
	for range 100 {
		l, err := b.Acquire(now)
		require.NoError(t, err)
		l.Answered(now, outcome.Outcome{})
		l.Done(now, outcome.Outcome{})
		require.True(t, b.Ready(now))
	}
	b.mu.Unlock()
	for range 100 {
		l, _ := b.Acquire(now)
		l.Done(now, outcome.Outcome{Class: outcome.Failure})
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Equal(t, Open, b.State())
	_, err = b.Acquire(now)
	require.ErrorIs(t, err, ErrOpen)
	require.False(t, b.Ready(now))
}
