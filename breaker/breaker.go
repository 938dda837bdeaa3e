package breaker

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/event"
)

// Breaker is a circuit breaker for one peer. All methods may be called
// concurrently. Those that take the time take zero for the present; callers that
// bring a clock of their own, such as a simulation's, bring it to all of them. A
// breaker has no timer and no goroutine: there is nothing to close.
type Breaker struct {
	key   string
	epoch time.Time              // the breaker's clock counts nanoseconds from here
	cur   atomic.Pointer[period] // replaced under mu
	mu    sync.Mutex             // guards what follows
	set   *Config                // resolved, never changed
	mode  Mode
	state State // what calls have led to, whatever the mode
	// openedAt, openFor and cause are of the last time it opened; closedAt of the
	// last time that probes closed it.
	openedAt, closedAt int64
	openFor            int64
	cause              error
	opens              int  // in a row
	silent             bool // left its group: another may bear its key now

	events event.Queue
}

// New returns a closed breaker. The key names what it guards, in errors and
// events. A nil config is the default.
func New(key string, cfg *Config) (*Breaker, error) {
	set, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	return newBreaker(key, set), nil
}

func newBreaker(key string, set *Config) *Breaker {
	b := &Breaker{key: key, epoch: time.Now(), set: set, closedAt: longAgo}
	b.begin(0, "", nil)
	return b
}

// Key returns the key given to New.
func (b *Breaker) Key() string { return b.key }

// Acquire asks for one call. The caller makes it and returns the lease, by
// [Lease.Done], with what came of it; or gets an [*OpenError] and makes none.
// It does not block, and while the breaker is closed and knows no slow calls it
// does not look at the clock either.
func (b *Breaker) Acquire(now time.Time) (Lease, error) {
	p := b.cur.Load()
	if p.next.Load() == always {
		l := Lease{period: p}
		if p.timed {
			l.start = b.nanos(now)
		}
		return l, nil
	}
	return b.consider(now)
}

// Ready reports whether Acquire would admit a call, as far as can be said
// without asking: another caller may come first, and a breaker that ramps up
// admits a share. It changes nothing and takes no lock, so that a balancer may
// ask it of every node.
func (b *Breaker) Ready(now time.Time) bool {
	p := b.cur.Load()
	next := p.next.Load()
	return next == always || p.mode == Disabled || b.nanos(now) >= next
}

// State returns what the breaker does with calls. An open breaker whose time is
// over stays open until the next call: see [Breaker.Snapshot] for that time.
func (b *Breaker) State() State { return b.cur.Load().state }

// Snapshot returns the state and the counts at the given time.
func (b *Breaker) Snapshot(now time.Time) Snapshot {
	t := b.nanos(now)
	b.mu.Lock()
	p, opens := b.cur.Load(), b.opens
	b.mu.Unlock()
	c := p.win.sum(t)
	s := Snapshot{
		Key: b.key, State: p.state, Mode: p.mode, Opens: opens,
		Calls: c.calls, Failures: c.failures, Slow: c.slow,
		FailureRate: share(c.failures, c.calls), SlowRate: share(c.slow, c.calls),
	}
	if next := p.next.Load(); next > sometimes && next < never {
		s.Until = b.epoch.Add(time.Duration(next))
	}
	return s
}

// ForceOpen makes the breaker refuse every call, probes too, until another of
// the Force methods, Disable or Release is called. Reset does not end it.
func (b *Breaker) ForceOpen() { b.setMode(ForcedOpen, ReasonForcedOpen) }

// ForceClosed makes the breaker admit every call, and count, but never open.
func (b *Breaker) ForceClosed() { b.setMode(ForcedClosed, ReasonForcedClosed) }

// Disable makes the breaker admit every call, while it changes its state and
// emits events as it would otherwise: to see what it would do.
func (b *Breaker) Disable() { b.setMode(Disabled, ReasonReleased) }

// Release ends ForceOpen, ForceClosed and Disable. The breaker goes on in the
// state that it was in before: an open one is open for what is left of its time,
// a half-open one begins its probes anew.
func (b *Breaker) Release() { b.setMode(Auto, ReasonReleased) }

func (b *Breaker) setMode(m Mode, why Reason) {
	b.locked(func(t int64) {
		if b.mode != m {
			b.mode = m
			b.begin(t, why, nil)
		}
	})
}

// Reset closes the breaker and forgets what it has counted. A mode other than
// Auto stays.
func (b *Breaker) Reset() {
	b.locked(func(t int64) {
		b.state, b.opens, b.closedAt, b.cause = Closed, 0, longAgo, nil
		b.begin(t, ReasonReset, newWindow(b.set.Window))
	})
}

// Update replaces the configuration and returns what New would about it; then
// nothing has changed. The state stays as it is. An open breaker is open as long
// after it opened as the new configuration has it, a half-open one begins its
// probes anew, and a closed one keeps its counts if the Window is the same.
// Calls under way no longer change the state.
func (b *Breaker) Update(cfg *Config) error {
	set, err := cfg.resolve()
	if err != nil {
		return err
	}
	b.update(set)
	return nil
}

func (b *Breaker) update(set *Config) {
	random := set.Rand()
	b.locked(func(t int64) {
		b.set = set
		if b.state == Open {
			b.openFor = int64(set.openTime(b.opens, random))
		}
		b.begin(t, "", nil)
	})
}

// locked calls change under the lock, with the present time.
func (b *Breaker) locked(change func(t int64)) {
	t := b.nanos(time.Time{})
	b.mu.Lock()
	change(t)
	b.mu.Unlock()
	b.events.Flush()
}

// retire makes the breaker silent for good: its key is about to be another's.
// To observers, a breaker that goes while it is not closed has closed. The
// caller flushes.
func (b *Breaker) retire() {
	t := b.nanos(time.Time{})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.emit(t, b.cur.Load(), Closed, ReasonRemoved)
	b.silent = true
}

// nanos is the time on the breaker's clock.
func (b *Breaker) nanos(now time.Time) int64 {
	if now.IsZero() {
		return int64(time.Since(b.epoch)) // one reading, of the monotonic clock
	}
	return int64(now.Sub(b.epoch))
}

// longAgo is before every time and far from overflow.
const longAgo = math.MinInt64 / 2

// emit tells that what has been p is now in the state to, if that is a change.
// The caller holds mu.
func (b *Breaker) emit(t int64, p *period, to State, why Reason) {
	if b.set.Observer == nil || b.silent || p.state == to {
		return
	}
	c := p.win.sum(t)
	e := StateChanged{
		Key: b.key, From: p.state, To: to, Reason: why,
		Calls: c.calls, Failures: c.failures, Slow: c.slow,
	}
	if to == Open && b.mode != ForcedOpen {
		e.Until, e.Err = b.epoch.Add(time.Duration(b.openedAt+b.openFor)), b.cause
	}
	b.events.Add(context.Background(), b.set.Observer, e)
}
