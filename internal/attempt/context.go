package attempt

import (
	"context"
	"math"
	"time"
)

// Context returns the attempt's context: the caller's own if there are no
// limits, or else one that also ends with the attempt.
//
// It costs nothing until somebody asks for its Done channel. Only then is there
// anyone to wake, and the timer set.
func (a *Attempt) Context() context.Context {
	switch {
	case !a.bounded || a.kind == abortable:
		return a.parent
	case a.kind == direct:
		return (*directContext)(a)
	}
	return (*lazyContext)(a)
}

// lazyContext is the attempt as a context. When somebody waits for its end, it is a
// real one of package context's, which whatever hangs on it finds as its own.
type lazyContext Attempt

type attemptKey struct{}

// Left returns how much time the attempt that ctx belongs to has left by bounds of
// ours, and the longest time there is if there are none.
func Left(ctx context.Context) time.Duration {
	a, _ := ctx.Value(attemptKey{}).(*Attempt)
	if a == nil {
		return math.MaxInt64
	}
	passed := a.passed()
	a.mu.Lock()
	defer a.mu.Unlock()
	left, kind := a.left(passed)
	if kind == nil {
		return math.MaxInt64
	}
	return left
}

// Deadline returns the caller's deadline. Ours are not told: layers and servers
// that derive their own time from it would take an attempt's for the call's.
func (c *lazyContext) Deadline() (time.Time, bool) { return c.parent.Deadline() }

// Value passes the key to the real context once there is one, so that package
// context finds its own type there and children need no goroutine.
func (c *lazyContext) Value(key any) any { return (*Attempt)(c).value(key) }

func (c *lazyContext) Done() <-chan struct{} { return (*Attempt)(c).real().Done() }

func (c *lazyContext) Err() error {
	if a := (*Attempt)(c); a.is(told) || c.parent.Err() != nil || a.over() {
		return a.real().Err()
	}
	return nil
}

// value looks key up in the attempt and in what is around it.
func (a *Attempt) value(key any) any {
	if key == (attemptKey{}) {
		return a
	}
	if a.is(told) {
		return a.rare.real.Value(key)
	}
	return a.parent.Value(key)
}

// real returns the real context behind a lazyContext, made on first use.
func (a *Attempt) real() context.Context {
	if a.is(told) {
		return a.rare.real
	}
	inner, cancel := context.WithCancelCause(a.parent)
	a.mu.Lock()
	if a.is(told) {
		a.mu.Unlock()
		cancel(nil) // another goroutine was faster
		return a.rare.real
	}
	rare := a.more()
	rare.real, rare.cancel = inner, cancel
	over, cause := a.state.Or(made|told)&released != 0, rare.cause
	a.mu.Unlock()
	if over || cause != nil {
		a.end(cause)
	} else {
		a.check()
	}
	return inner
}

// over reports whether the attempt was released or has passed a bound, for as
// long as there is no timer to say so.
func (a *Attempt) over() bool {
	passed := a.passed()
	a.mu.Lock()
	defer a.mu.Unlock()
	left, kind := a.left(passed)
	return a.is(released) || a.rare != nil && a.rare.cause != nil || kind != nil && left <= 0
}

// end ends the attempt's context, once. A nil cause means that the attempt is over,
// or else that the parent has ended.
func (a *Attempt) end(cause error) {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return
	}
	a.close()
	if a.kind == abortable { // and by a bound of ours it is not here that it ends
		a.mu.Unlock()
		return
	}
	rare := a.rare
	if a.kind == direct {
		a.endDirect(cause)
		return
	}
	a.mu.Unlock()
	rare.cancel(cause)
}

// close marks the context as ended and stops the timer. The caller holds the lock.
func (a *Attempt) close() {
	a.closed = true
	switch a.place {
	case 0:
	case seated:
		a.aborter().Seat().leave(a)
	default:
		a.watch.leave(a.place)
	}
	if a.kind == abortable && a.done != nil {
		close(a.done)
	}
	if a.rare != nil && a.rare.timer != nil {
		a.rare.timer.Stop()
	}
}
