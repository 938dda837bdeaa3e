package propagate

import (
	"context"
	"sync"
	"time"

	"github.com/backstay/backstay/internal/clock"
)

// DeadlineError is the cause of a request's context that has ended because its
// caller does not wait any longer. It matches context.DeadlineExceeded, which is
// also the context's Err, and satisfies net.Error.
type DeadlineError struct {
	// After is how long the caller was going to wait.
	After time.Duration
}

// Error says how long the caller was going to wait.
func (e *DeadlineError) Error() string {
	return "propagate: the caller waits no longer than " + e.After.String()
}

// Is matches context.DeadlineExceeded.
func (e *DeadlineError) Is(target error) bool { return target == context.DeadlineExceeded }

// Timeout is true.
func (e *DeadlineError) Timeout() bool { return true }

// Temporary is true, as it is for context.DeadlineExceeded.
func (e *DeadlineError) Temporary() bool { return true }

// deadline is a context whose deadline becomes later when the response's headers
// are written: package context has none such. Its nil methods do nothing but for
// those of the context.
type deadline struct {
	context.Context                         //nolint:containedctx // its values, and its end without us
	cancel          context.CancelCauseFunc // of the embedded context
	done            chan struct{}
	start           time.Time
	detach          func() bool // from the embedded context's end

	mu             sync.Mutex
	whole, headers time.Duration // since start; 0 is none
	timer          *time.Timer
}

// newDeadline returns a context under parent that ends after whole, and before
// answered is called also after headers; 0 is not at all. The caller calls end.
func newDeadline(parent context.Context, whole, headers time.Duration) *deadline {
	d := &deadline{done: make(chan struct{}), start: clock.Now(), whole: whole, headers: headers}
	d.Context, d.cancel = context.WithCancelCause(parent)
	d.detach = context.AfterFunc(d.Context, func() { close(d.done) })
	d.mu.Lock()
	d.timer = time.AfterFunc(d.left(), d.expire)
	d.mu.Unlock()
	return d
}

// left returns the nearer of the times that count. The caller holds the lock.
func (d *deadline) left() time.Duration {
	if d.headers > 0 && (d.whole == 0 || d.headers < d.whole) {
		return d.headers
	}
	return d.whole
}

func (d *deadline) expire() {
	d.mu.Lock()
	left := d.left()
	d.mu.Unlock()
	if left > 0 && clock.Now().Sub(d.start) >= left { // else it was put off just now
		d.cancel(&DeadlineError{After: left})
	}
}

// answered tells that the response's headers are written.
func (d *deadline) answered() {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.headers = 0
	if !d.timer.Stop() && d.Context.Err() != nil {
		return
	}
	if d.whole > 0 {
		d.timer.Reset(d.whole - clock.Now().Sub(d.start))
	}
}

// lift takes the deadline away.
func (d *deadline) lift() {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.whole, d.headers = 0, 0
	d.timer.Stop()
}

// end releases the context, which ends if it has not yet.
func (d *deadline) end() {
	d.timer.Stop()
	detached := d.detach()
	d.cancel(nil)
	if detached {
		close(d.done) // without a goroutine
	}
}

// Deadline returns the nearer of the deadline that counts now and the parent's.
func (d *deadline) Deadline() (time.Time, bool) {
	theirs, ok := d.Context.Deadline()
	d.mu.Lock()
	left := d.left()
	d.mu.Unlock()
	if left == 0 {
		return theirs, ok
	}
	if ours := d.start.Add(left); !ok || ours.Before(theirs) {
		return ours, true
	}
	return theirs, true
}

// Done is not the embedded context's channel: contexts derived from that would
// say that they were cancelled.
func (d *deadline) Done() <-chan struct{} { return d.done }

// Err is context.DeadlineExceeded once our deadline has ended the context.
func (d *deadline) Err() error {
	if _, ours := context.Cause(d.Context).(*DeadlineError); ours { //nolint:errorlint // identity: it is our own
		return context.DeadlineExceeded
	}
	return d.Context.Err()
}

// AfterFunc saves contexts derived from d a goroutine each: see context.AfterFunc.
func (d *deadline) AfterFunc(f func()) (stop func() bool) {
	return context.AfterFunc(d.Context, f)
}
