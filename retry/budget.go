package retry

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/inherit"
)

// BudgetConfig says how many extra attempts calls may cause. The zero value is
// the default in every field.
type BudgetConfig struct {
	// Ratio is how many extra attempts each call of the window allows, up to
	// 10. Negative turns the budget off: there is no limit.
	// Default: 0.2.
	Ratio float64 `json:"ratio,omitempty"`
	// PerSecond is how many extra attempts each second of the window allows
	// besides, so that a service with few calls can be tried again too.
	// Negative is none.
	// Default: 10.
	PerSecond int `json:"perSecond,omitempty"`
	// Window is how far back calls and extra attempts count.
	// Default: 10s.
	Window time.Duration `json:"window,omitempty"`
}

const (
	parts   = 10         // in a window
	ring    = parts + 1  // and the one that is ending
	unit    = int64(1e6) // an extra attempt; a call is worth unit·Ratio
	forever = 1000 * time.Hour
)

// Budget bounds the extra attempts of retries to a share of the calls, so that
// a service that fails is not asked for several times the load that it cannot
// bear. It is Finagle's RetryBudget in integers: over any Window that ends with
// an extra attempt, these are at most Ratio times the calls plus PerSecond times
// the window's seconds.
//
// An extra attempt is paid for before it waits, so that those waiting count,
// and what is paid is not given back. All methods may be called concurrently;
// none allocates.
type Budget struct {
	worth     int64 // of a call, in units
	reserve   int64 // in units
	slice     time.Duration
	unlimited bool
	start     time.Time

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

// NewBudget returns a budget, full at first. Its errors join all that is wrong
// with cfg, which may be nil.
func NewBudget(cfg *BudgetConfig) (*Budget, error) {
	var c BudgetConfig
	if cfg != nil {
		c = *cfg
	}
	c = c.filled()
	var errs []error
	if !(c.Ratio <= 10) { // nor is what is not a number
		errs = append(errs, fmt.Errorf("retry: BudgetConfig.Ratio is %v, want <= 10", c.Ratio))
	}
	if c.PerSecond > 1e6 {
		errs = append(errs, fmt.Errorf("retry: BudgetConfig.PerSecond is %d, want <= 1000000", c.PerSecond))
	}
	if c.Window < parts || c.Window > forever {
		errs = append(errs, fmt.Errorf("retry: BudgetConfig.Window is %v, want from %dns to %v", c.Window, parts, forever))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return newBudget(c), nil
}

// filled returns c with its defaults. A budget that is off keeps its negative
// ratio.
func (c BudgetConfig) filled() BudgetConfig {
	c.Ratio = cmp.Or(c.Ratio, 0.2)
	c.PerSecond = inherit.Or(c.PerSecond, 10)
	c.Window = cmp.Or(c.Window, 10*time.Second)
	return c
}

func newBudget(c BudgetConfig) *Budget {
	b := &Budget{
		worth:     int64(math.Round(c.Ratio * float64(unit))),
		reserve:   int64(float64(c.PerSecond) * c.Window.Seconds() * float64(unit)),
		slice:     c.Window / parts,
		unlimited: c.Ratio < 0,
		start:     clock.Now(),
	}
	b.turn.Store(int64(b.slice))
	return b
}

// Deposit counts a call. It is made once per call, with its first attempt. A
// zero now is the present.
func (b *Budget) Deposit(now time.Time) {
	if b.unlimited {
		return
	}
	since := clock.Or(now).Sub(b.start)
	if int64(since) >= b.turn.Load() { // advance would look again, but under the lock
		b.mu.Lock()
		b.advance(since)
		b.mu.Unlock()
	}
	// Another goroutine may turn the slice just now: then the call counts in the
	// next one, or in the one before. Neither matters.
	b.calls[b.current.Load()].Add(1)
}

// Withdraw takes one extra attempt, and reports whether there was one left. A
// zero now is the present.
func (b *Budget) Withdraw(now time.Time) bool {
	if b.unlimited {
		return true
	}
	since := clock.Or(now).Sub(b.start)
	b.mu.Lock()
	b.advance(since)
	enough := b.left() >= unit
	if enough {
		b.extra[b.tick%ring]++
		b.spent++
	}
	b.mu.Unlock()
	return enough
}

// Balance returns how many extra attempts are left; of a budget that is off,
// math.MaxInt. A zero now is the present.
func (b *Budget) Balance(now time.Time) int {
	if b.unlimited {
		return math.MaxInt
	}
	since := clock.Or(now).Sub(b.start)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(since)
	return int(max(b.left(), 0) / unit)
}

// left returns the units left, which may be below zero: the calls that paid for
// an extra attempt are forgotten before it is. The caller holds the lock.
func (b *Budget) left() int64 {
	calls := -b.calls[(b.tick+1)%ring].Load() // the oldest: only its extra attempts count
	for i := range b.calls {
		calls += b.calls[i].Load()
	}
	return calls*b.worth + b.reserve - b.spent*unit
}

// advance clears the slices that have come round again. Time that steps back
// changes nothing. The caller holds the lock.
func (b *Budget) advance(since time.Duration) {
	if int64(since) < b.turn.Load() {
		return
	}
	tick := int64(since / b.slice)
	for i := max(b.tick+1, tick-ring+1); i <= tick; i++ {
		b.calls[i%ring].Store(0)
		b.spent -= b.extra[i%ring]
		b.extra[i%ring] = 0
	}
	b.tick = tick
	b.current.Store(tick % ring)
	b.turn.Store((tick + 1) * int64(b.slice))
}
