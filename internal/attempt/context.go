package attempt

import (
	"context"
	"math"
	"time"

	"github.com/backstay/backstay/internal/clock"
)

// Context returns the attempt's context: the caller's own if there are no
// limits, or else one that also ends with the attempt.
//
// It costs nothing until somebody asks for its Done channel. Only then is there
// anyone to wake, and a real context is derived and the timer set.
func (a *Attempt) Context() context.Context {
	if a.bounded {
		return (*lazyContext)(a)
	}
	return a.parent
}

// lazyContext is the attempt as a context.
type lazyContext Attempt

type attemptKey struct{}

// Left returns how much time the attempt that ctx belongs to has left by bounds of
// ours, and the longest time there is if there are none.
func Left(ctx context.Context) time.Duration {
	a, _ := ctx.Value(attemptKey{}).(*Attempt)
	if a == nil {
		return math.MaxInt64
	}
	now := clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	left, kind := a.left(now)
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
func (c *lazyContext) Value(key any) any {
	if key == (attemptKey{}) {
		return (*Attempt)(c)
	}
	if c.made.Load() {
		return c.inner.Value(key)
	}
	return c.parent.Value(key)
}

func (c *lazyContext) Done() <-chan struct{} { return c.derive().Done() }

func (c *lazyContext) Err() error {
	if !c.made.Load() && c.parent.Err() == nil && !(*Attempt)(c).over() {
		return nil
	}
	return c.derive().Err()
}

// derive returns the real context behind c, made on first use.
func (c *lazyContext) derive() context.Context {
	if c.made.Load() {
		return c.inner
	}
	a := (*Attempt)(c)
	inner, cancel := context.WithCancelCause(a.parent)
	a.mu.Lock()
	if a.made.Load() {
		a.mu.Unlock()
		cancel(nil) // another goroutine was faster
		return a.inner
	}
	a.inner, a.cancel = inner, cancel
	a.made.Store(true)
	over, cause := a.ended.Load()&released != 0, a.cause
	a.mu.Unlock()
	if over || cause != nil {
		cancel(cause)
	} else {
		a.check()
	}
	return inner
}

// over reports whether the attempt was released or has passed a bound, for as
// long as there is no timer to say so.
func (a *Attempt) over() bool {
	now := clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	left, kind := a.left(now)
	return a.ended.Load()&released != 0 || a.cause != nil || kind != nil && left <= 0
}
