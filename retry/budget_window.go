package retry

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/internal/clock"
)

const (
	parts = 10         // in a window
	ring  = parts + 1  // and the one that is ending
	unit  = int64(1e6) // an extra attempt; a call is worth unit·Ratio
)

// window is a WindowBudget's account, Finagle's RetryBudget in integers.
//
// An extra attempt is paid for before it waits, so that those waiting count,
// and what is paid is not given back.
type window struct {
	worth   int64 // of a call, in units
	reserve int64 // in units
	slice   time.Duration
	start   time.Time

	turn    atomic.Int64 // when the current slice ends, as the time since start
	current atomic.Int64 // its place in the ring

	_ [64]byte // calls is written with every call, what is above is read

	// calls counts those of each slice. Those of the last ten slices, the
	// current one included, count: 9 to 10 tenths of the window.
	calls [ring]atomic.Int64

	mu    sync.Mutex
	tick  int64 // the number of the current slice
	extra [ring]int64
	// spent is the sum of extra: 10 to 11 tenths of the window. That calls count
	// for less than the window and extra attempts for more keeps the promise
	// wherever the slices fall.
	spent int64
}

func (w *window) init(c *BudgetConfig) {
	w.worth = int64(math.Round(c.Ratio * float64(unit)))
	w.reserve = int64(float64(c.PerSecond) * c.Window.Seconds() * float64(unit))
	w.slice = c.Window / parts
	w.start = clock.Now()
	w.turn.Store(int64(w.slice))
}

func (w *window) deposit(now time.Time) {
	since := clock.Or(now).Sub(w.start)
	if int64(since) >= w.turn.Load() { // advance would look again, but under the lock
		w.mu.Lock()
		w.advance(since)
		w.mu.Unlock()
	}
	// Another goroutine may turn the slice just now: then the call counts in the
	// next one, or in the one before. Neither matters.
	w.calls[w.current.Load()].Add(1)
}

func (w *window) withdraw(now time.Time) bool {
	since := clock.Or(now).Sub(w.start)
	w.mu.Lock()
	w.advance(since)
	enough := w.left() >= unit
	if enough {
		w.extra[w.tick%ring]++
		w.spent++
	}
	w.mu.Unlock()
	return enough
}

func (w *window) balance(now time.Time) int {
	since := clock.Or(now).Sub(w.start)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.advance(since)
	return int(max(w.left(), 0) / unit)
}

// left returns the units left, which may be below zero: the calls that paid for
// an extra attempt are forgotten before it is. The caller holds the lock.
func (w *window) left() int64 {
	calls := -w.calls[(w.tick+1)%ring].Load() // the oldest: only its extra attempts count
	for i := range w.calls {
		calls += w.calls[i].Load()
	}
	return calls*w.worth + w.reserve - w.spent*unit
}

// advance clears the slices that have come round again. Time that steps back
// changes nothing. The caller holds the lock.
func (w *window) advance(since time.Duration) {
	if int64(since) < w.turn.Load() {
		return
	}
	tick := int64(since / w.slice)
	for i := max(w.tick+1, tick-ring+1); i <= tick; i++ {
		w.calls[i%ring].Store(0)
		w.spent -= w.extra[i%ring]
		w.extra[i%ring] = 0
	}
	w.tick = tick
	w.current.Store(tick % ring)
	w.turn.Store((tick + 1) * int64(w.slice))
}
