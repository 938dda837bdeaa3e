// Package attempt bounds one attempt of a call in time and tells when it is over.
//
// An [Attempt] is one allocation that serves as the attempt's context and as the
// response's body, whose end releases the context. A request's body that is not
// small is watched, because its progress re-arms the timeout. An Attempt is
// embedded in what a layer keeps of an attempt anyway:
//
//	type flight struct {
//		attempt.Attempt
//		lease lease
//		out   http.Request
//	}
//
//	func (f *flight) Ended(err error) { f.lease.done(err) } // an attempt.Ender
//
//	f := new(flight)
//	f.Start(req.Context(), now, &attempt.Limits{Attempt: 10 * time.Second})
//	handedOn := false
//	defer func() {
//		if !handedOn { // an error, a panic or runtime.Goexit
//			f.End()
//		}
//	}()
//	resp, err := next.RoundTrip(f.Request(&f.out, req))
//	if err != nil {
//		return nil, f.Error(err)
//	}
//	if err := f.Headers(); err != nil {
//		closeBody(resp)
//		return nil, err
//	}
//	resp.Body = f.Wrap(resp.Body, f)
//	handedOn = true
//	return resp, nil
//
// Four bounds may end an attempt. The caller's context is passed on as it is,
// and the derived context reports the caller's deadline, never ours. The attempt
// timeout runs from the request's being written to the response's headers, so
// that neither a long upload nor a long download is cut. The call's deadline
// runs to the end of the body, and the body's idle timeout while somebody waits for
// more of it. Ours cancel the context with a
// *outcome.TimeoutError as the cause, and Error and the body's Read return that
// error in place of whatever the transport makes of it.
package attempt

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/outcome"
)

// Limits are the bounds of an attempt that are not the caller's own.
type Limits struct {
	// Attempt is how long the attempt may take from the request's being written
	// to the response's headers; 0 or less is no limit.
	Attempt time.Duration
	// Deadline is when the call with all its attempts and the body must be
	// over; zero is no limit.
	Deadline time.Time
	// Call is the length of the call's timeout, for the error to name; 0 means
	// what was left of it when the attempt started.
	Call time.Duration
	// Watch is whose timer looks after the attempt's bounds; nil means that the
	// attempt has one of its own.
	Watch *Watch
	// BodyIdle is how long a Read of the response's body may wait; 0 or less is
	// no limit.
	BodyIdle time.Duration
}

// Attempt is one attempt. The zero value is ready for Start, once: an attempt is
// never started again, reused or pooled, for a transport may hold its context
// after RoundTrip has returned. It must not be copied.
//
// The context and the bodies may be used concurrently; the other methods belong
// to the goroutine that makes the attempt.
type Attempt struct {
	parent context.Context //nolint:containedctx // it becomes a context
	start  time.Time
	// from is when the attempt's timeout began to run, as the time since start:
	// Start, Restart or the last progress of the upload.
	from atomic.Int64
	// reading counts the Reads of the request's body under way: then it is the
	// caller that keeps us waiting.
	reading  atomic.Int32
	made     atomic.Bool // inner and cancel are set and will not change
	answered atomic.Bool // the headers are here: the attempt's timeout counts no more
	// awaiting is when the Read of the response's body that is under way began, as
	// the time since start; 0 if there is none.
	awaiting atomic.Int64
	ended    atomic.Uint32 // finished and released
	bounded  bool          // the attempt was started with limits

	mu      sync.Mutex
	limits  limits
	timer   *time.Timer
	timeout *outcome.TimeoutError // our bound that ended the attempt
	bodyErr error                 // what the caller's body failed with
	cause   error                 // what Cancel was given

	inner  context.Context //nolint:containedctx // it is what the attempt's context stands for
	cancel context.CancelCauseFunc

	watch          *Watch   // instead of timer; may be nil
	next, previous *Attempt // guarded by watch.mu, as is watched
	watched        bool     // is in watch's list

	body  io.ReadCloser // the response's
	ender Ender
}

// The bits of Attempt.ended. A body that comes to its end sets both at once.
const (
	finished uint32 = 1 << iota // the body has come to its end, or Close has begun
	released                    // the attempt is over
)

// limits are Limits since the attempt's start; 0 is none.
type limits struct{ attempt, call, deadline, idle time.Duration }

func (l limits) none() bool { return l.attempt == 0 && l.deadline == 0 && l.idle == 0 }

// Start begins the attempt under the caller's context. A zero now is the
// present. Nothing is armed until somebody waits for the context's end.
func (a *Attempt) Start(parent context.Context, now time.Time, l *Limits) {
	a.parent, a.start, a.watch = parent, clock.Or(now), l.Watch
	a.limits.attempt, a.limits.call, a.limits.idle = max(l.Attempt, 0), l.Call, max(l.BodyIdle, 0)
	if !l.Deadline.IsZero() {
		a.limits.deadline = max(l.Deadline.Sub(a.start), 1)
	}
	a.bounded = !a.limits.none()
}

// Cancelable has the attempt's context end by [Attempt.Cancel] too. It is called
// after Start and before anything else.
func (a *Attempt) Cancelable() { a.bounded = true }

// Cancel ends the attempt's context with the given cause, unless it has ended. It
// may be called by any goroutine, at any time.
func (a *Attempt) Cancel(cause error) {
	a.mu.Lock()
	if a.cause == nil {
		a.cause = cause
	}
	made := a.made.Load()
	a.mu.Unlock()
	if made { // else whoever makes a context sees the cause
		a.cancel(cause)
	}
}

// Restart starts the attempt's timeout again, for when the request is really
// sent some time after Start.
func (a *Attempt) Restart(now time.Time) {
	a.from.Store(int64(clock.Or(now).Sub(a.start)))
}

// Headers tells that the response's headers are here: from now on only the
// call's deadline and the body's idle timeout count. It returns the timeout's error if the attempt's time
// was up first: then the context has ended, the response is of no use, and the
// caller closes it.
func (a *Attempt) Headers() error {
	a.answered.Store(true)
	if !a.made.Load() {
		return nil // no timer, and whoever makes one sees that there is an answer
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.limits.attempt = 0
	if a.timer != nil && a.limits.none() {
		a.timer.Stop() // else it finds out by itself when it fires
	}
	if a.timeout != nil {
		return a.timeout
	}
	return nil
}

// Error returns what the attempt's error means: the *outcome.TimeoutError if one
// of our bounds ended the attempt, an *outcome.BodyError if the caller's request
// body failed, or else err itself. A nil err stays nil.
func (a *Attempt) Error(err error) error {
	if err == nil {
		return nil
	}
	a.mu.Lock()
	timeout, bodyErr := a.timeout, a.bodyErr
	a.mu.Unlock()
	switch {
	case timeout != nil:
		return timeout
	case bodyErr != nil:
		if _, known := errors.AsType[*outcome.BodyError](err); known {
			return err
		}
		return &outcome.BodyError{Err: bodyErr}
	}
	return err
}

// End releases the context and the timer. It is for attempts without a response
// to hand on; a wrapped body does it by itself. It may be called at any time and
// more than once.
func (a *Attempt) End() {
	a.ended.Or(released)
	a.release()
}

func (a *Attempt) release() {
	if !a.made.Load() {
		return // whoever makes a context sees that it is over
	}
	a.mu.Lock()
	switch {
	case a.watch != nil:
		a.watch.remove(a)
	case a.timer != nil:
		a.timer.Stop()
	}
	a.mu.Unlock()
	a.cancel(nil)
}

// left returns how far away the nearer bound is and which one it is: nil for
// none. The caller holds the lock.
func (a *Attempt) left(now time.Time) (time.Duration, error) {
	var (
		left time.Duration
		kind error
	)
	passed := now.Sub(a.start)
	if a.limits.attempt > 0 && !a.answered.Load() {
		left, kind = a.limits.attempt, outcome.ErrAttemptTimeout
		if a.reading.Load() == 0 {
			left -= passed - time.Duration(a.from.Load())
		}
	}
	if a.limits.deadline > 0 {
		if d := a.limits.deadline - passed; kind == nil || d <= left {
			left, kind = d, outcome.ErrCallTimeout
		}
	}
	if a.limits.idle > 0 && a.answered.Load() {
		d := a.limits.idle // from now on, if nobody reads: then the timer only looks again
		if since := a.awaiting.Load(); since > 0 {
			d -= passed - time.Duration(since)
		}
		if kind == nil || d < left {
			left, kind = d, outcome.ErrBodyIdle
		}
	}
	return left, kind
}

// check ends the attempt if a bound has passed, and else sets the timer to the
// next one. The inner context has been made.
func (a *Attempt) check() {
	now := clock.Now()
	if deadline, ok := a.parent.Deadline(); a.parent.Err() != nil || ok && !now.Before(deadline) {
		return // the caller was first, if only by a hair: its own timer ends this
	}
	a.mu.Lock()
	left, kind := a.left(now)
	if a.ended.Load()&released != 0 || kind == nil || a.timeout != nil {
		a.mu.Unlock()
		return
	}
	if left > 0 {
		// The bound has moved since the timer was set: a part of the upload
		// went out, or the headers arrived.
		switch {
		case a.watch != nil:
			a.watch.add(a, now, left)
		case a.timer == nil:
			a.timer = time.AfterFunc(left, a.check)
		default:
			a.timer.Reset(left)
		}
		a.mu.Unlock()
		return
	}
	timeout := &outcome.TimeoutError{Kind: kind, After: a.limits.attempt}
	switch {
	case errors.Is(kind, outcome.ErrBodyIdle):
		timeout.After = a.limits.idle
	case errors.Is(kind, outcome.ErrCallTimeout):
		if timeout.After = a.limits.call; timeout.After <= 0 {
			timeout.After = a.limits.deadline
		}
	}
	a.timeout = timeout
	a.mu.Unlock()
	a.cancel(timeout)
}
