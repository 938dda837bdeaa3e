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
	watch  *Watch          // whose timer it is; nil: rare.timer
	limits limits          // there are none any more for a connection that is taken over: then mu guards them

	start int64 // by clock.Nanos; all other times are those since start
	// from is when the attempt's timeout began to run: Start, Restart or the last
	// progress of the upload.
	from atomic.Int64
	// awaiting is when the Read of the response's body that is under way began; 0 if
	// there is none.
	awaiting atomic.Int64
	// reading counts the Reads of the request's body under way: then it is the
	// caller that keeps us waiting.
	reading atomic.Int32
	state   atomic.Uint32 // finished and what follows it
	place   place         // in watch; guarded by mu, as are the next two

	closed   bool // the context has ended
	disowned bool // child has been taken back
	bounded  bool // the attempt was started with limits
	kind     kind

	mu    sync.Mutex
	done  chan struct{} // of a direct attempt, or of one that somebody waits with
	child func()        // what package context wants called at the end of a direct one
	rare  *rare

	body  io.ReadCloser // the response's
	ender Ender         // an Aborter if the attempt is abortable
}

// kind is how the end of an attempt comes to whoever waits for it.
type kind uint8

const (
	lazy      kind = iota // by a context that is made when it is asked for
	direct                // see Direct
	abortable             // see Abortable
)

// rare is what attempts over an *http.Transport mostly do not need.
type rare struct {
	timeout *outcome.TimeoutError // our bound that ended the attempt
	timer   *time.Timer
	bodyErr error           // what the caller's body failed with
	cause   error           // what Cancel was given
	real    context.Context //nolint:containedctx // it is what the attempt's context stands for
	cancel  context.CancelCauseFunc

	leave    func() bool          // ends the wait for the end of a direct attempt's parent
	children map[*func()]struct{} // besides Attempt.child
}

// more returns what the attempt has of the rare things. The caller holds the lock.
func (a *Attempt) more() *rare {
	if a.rare == nil {
		a.rare = new(rare)
	}
	return a.rare
}

// The bits of Attempt.state. A body that comes to its end sets the first two at once.
const (
	finished uint32 = 1 << iota // the body has come to its end, or Close has begun
	released                    // the attempt is over
	made                        // there is a context, and so somebody may be waiting
	told                        // rare.real is there and will not change
	aborted                     // a bound of ours has passed, and it is abortable

	// Whoever sets one of these and sees that the other one was not set is first.
	answered // the headers are here
	timedOut // the attempt's timeout has passed
)

// is reports whether the attempt is in that state, or in one of those.
func (a *Attempt) is(state uint32) bool { return a.state.Load()&state != 0 }

// limits are Limits since the attempt's start; 0 is none.
type limits struct{ attempt, call, deadline, idle time.Duration }

func (l *limits) none() bool { return l.attempt == 0 && l.deadline == 0 && l.idle == 0 }

// Start begins the attempt under the caller's context. A zero now is the
// present. Nothing is armed until somebody waits for the context's end.
func (a *Attempt) Start(parent context.Context, now time.Time, l *Limits) {
	now = clock.Or(now)
	a.parent, a.start, a.watch = parent, clock.Nanos(now), l.Watch
	a.limits.attempt, a.limits.call, a.limits.idle = max(l.Attempt, 0), l.Call, max(l.BodyIdle, 0)
	if !l.Deadline.IsZero() {
		a.limits.deadline = max(l.Deadline.Sub(now), 1)
	}
	a.bounded = !a.limits.none()
}

// passed returns how long ago the attempt started.
func (a *Attempt) passed() time.Duration { return time.Duration(clock.Present() - a.start) }

// Aborter is an [Ender] that also ends an attempt that is under way.
type Aborter interface {
	Ender
	// Abort is called at most once, when a bound of ours has passed, and before the
	// attempt is over. It must not wait for anything, for it is called on behalf of all
	// that the watch looks after, nor call the attempt, but for [Attempt.Aborted].
	Abort()
	// Seat is where the attempt is watched, if it has what the seat belongs to for
	// itself; nil is any place. It does not change.
	Seat() *Seat
}

// Abortable says that by ends the attempt when one of its bounds has passed. Its
// context is then the caller's own, so that a request need not be copied. It is called
// after Start and before anything else, and not for attempts that are
// [Attempt.Cancelable].
func (a *Attempt) Abortable(by Aborter) {
	if !a.bounded {
		return
	}
	a.mu.Lock()
	a.kind, a.ender = abortable, by
	if seat := by.Seat(); seat != nil && a.watch != nil {
		a.place = seated
		seat.taken.Store(a) // and never again: the next one may be there before this one is over
	}
	a.state.Or(made)
	if due, kind := a.left(0); kind != nil {
		a.arm(due)
	}
	a.mu.Unlock()
}

// Stand has an abortable attempt go on without its seat, because it is another's from
// now on, or because it will not be looked at any more.
func (a *Attempt) Stand() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.place != seated {
		return
	}
	a.place = 0
	if due, kind := a.left(a.passed()); kind != nil && !a.closed {
		a.arm(a.passed() + due)
	}
	a.aborter().Seat().leave(a)
}

// aborter is what an abortable attempt is ended by.
func (a *Attempt) aborter() Aborter { return a.ender.(Aborter) } //nolint:errcheck,forcetypeassert // Abortable has set it

// Aborted reports whether the attempt has been aborted, or is about to be.
func (a *Attempt) Aborted() bool { return a.is(aborted) }

// Aborting returns a channel that is closed when the attempt has been aborted, for
// those who wait on the way to what Abort ends.
func (a *Attempt) Aborting() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done == nil {
		a.done = make(chan struct{})
		if a.closed {
			close(a.done)
		}
	}
	return a.done
}

// Cancelable has the attempt's context end by [Attempt.Cancel] too. It is called
// after Start and before anything else.
func (a *Attempt) Cancelable() { a.bounded = true }

// Cancel ends the attempt's context with the given cause, unless it has ended. It
// may be called by any goroutine, at any time.
func (a *Attempt) Cancel(cause error) {
	a.mu.Lock()
	if rare := a.more(); rare.cause == nil && !a.is(released) {
		rare.cause = cause
	}
	a.mu.Unlock()
	if a.is(made) { // else whoever makes a context sees the cause
		a.end(cause)
	}
}

// Restart starts the attempt's timeout again, for when the request is really
// sent some time after Start.
func (a *Attempt) Restart(now time.Time) {
	a.from.Store(clock.Nanos(clock.Or(now)) - a.start)
}

// Headers tells that the response's headers are here: from now on only the
// call's deadline and the body's idle timeout count. It returns the timeout's error
// if the attempt's time was up first: then the context has ended, the response is of
// no use, and the caller closes it.
func (a *Attempt) Headers() error {
	first := a.state.Or(answered)&timedOut == 0
	if !a.is(made) || first && a.limits.deadline == 0 && a.limits.idle == 0 {
		return nil // whatever timer there is finds that out by itself
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if timeout := a.ours(); timeout != nil {
		return timeout
	}
	return nil
}

// ours returns our bound that ended the attempt. The caller holds the lock.
func (a *Attempt) ours() *outcome.TimeoutError {
	if a.rare == nil {
		return nil
	}
	return a.rare.timeout
}

// Error returns what the attempt's error means: the *outcome.TimeoutError if one
// of our bounds ended the attempt, an *outcome.BodyError if the caller's request
// body failed, or else err itself. A nil err stays nil.
func (a *Attempt) Error(err error) error {
	if err == nil {
		return nil
	}
	a.mu.Lock()
	timeout, bodyErr := a.ours(), error(nil)
	if a.rare != nil {
		bodyErr = a.rare.bodyErr
	}
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
	a.state.Or(released)
	a.release()
}

func (a *Attempt) release() {
	if a.is(made) { // else whoever makes a context sees that it is over
		a.end(nil)
	}
}

// left returns how far away the nearer bound is and which one it is: nil for
// none. The caller holds the lock.
func (a *Attempt) left(passed time.Duration) (time.Duration, error) {
	var (
		left time.Duration
		kind error
	)
	waiting := !a.is(answered | timedOut)
	if a.limits.attempt > 0 && waiting {
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
	if a.limits.idle > 0 && !waiting {
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
// next one. There is a context.
func (a *Attempt) check() {
	passed := a.passed()
	if deadline, ok := a.parent.Deadline(); a.parent.Err() != nil || ok && a.start+int64(passed) >= clock.Nanos(deadline) {
		return // the caller was first, if only by a hair: its own timer ends this
	}
	a.mu.Lock()
	left, kind := a.left(passed)
	if a.closed || a.is(released) || kind == nil || a.ours() != nil {
		a.mu.Unlock()
		return
	}
	if left > 0 {
		// The bound has moved since the timer was set: a part of the upload
		// went out, or the headers arrived.
		a.arm(passed + left)
		a.mu.Unlock()
		return
	}
	if errors.Is(kind, outcome.ErrAttemptTimeout) && a.state.Or(timedOut)&answered != 0 {
		a.mu.Unlock()
		a.check() // the headers were first, if only by a hair
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
	a.more().timeout = timeout
	if a.kind == abortable {
		// Under the lock: when the owner is told of the timeout, Abort has been called.
		a.state.Or(aborted)
		a.close()
		a.aborter().Abort()
		a.mu.Unlock()
		return
	}
	a.mu.Unlock()
	a.end(timeout)
}

// arm has the attempt looked at again at a time since its start. The caller holds the
// lock.
func (a *Attempt) arm(at time.Duration) {
	if w := a.watch; w != nil {
		if a.place == 0 {
			a.place = w.add(a)
		}
		w.by(a.start + int64(at))
		return
	}
	left := at - a.passed()
	if rare := a.more(); rare.timer == nil {
		rare.timer = time.AfterFunc(left, a.check)
	} else {
		rare.timer.Reset(left)
	}
}
