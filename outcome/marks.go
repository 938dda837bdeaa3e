package outcome

import (
	"context"
	"errors"
	"time"
)

// Refused reports whether err, or an error it wraps, says that this library
// refused the call and the peer did not: an open breaker, a full limit, an
// exhausted rate. It looks for a method Refused() bool.
func Refused(err error) bool {
	if err == nil {
		return false
	}
	var mark interface{ Refused() bool }
	return errors.As(err, &mark) && mark.Refused()
}

// NotSent reports whether err, or an error it wraps, guarantees that nothing of
// the request reached the peer, so that even a call that must not be repeated
// may be tried again. It looks for a method NotSent() bool, and knows the
// errors of failed dials and name look-ups.
func NotSent(err error) bool {
	if err == nil {
		return false
	}
	var mark interface{ NotSent() bool }
	if errors.As(err, &mark) {
		return mark.NotSent() // it knows more than what it wraps
	}
	return dialFailed(err)
}

// RetryAfter returns how long to wait before err may have gone away, if err or
// an error it wraps knows. It looks for a method RetryAfterHint() time.Duration
// whose result is positive.
func RetryAfter(err error) (time.Duration, bool) {
	if err == nil {
		return 0, false
	}
	var mark interface{ RetryAfterHint() time.Duration }
	if !errors.As(err, &mark) {
		return 0, false
	}
	d := mark.RetryAfterHint()
	return d, d > 0
}

// Timeouts of ours, for errors.Is. All also match context.DeadlineExceeded.
var (
	// ErrAttemptTimeout means one attempt took longer than it may.
	ErrAttemptTimeout = errors.New("attempt timeout")
	// ErrCallTimeout means the call with all its attempts took longer than it may.
	ErrCallTimeout = errors.New("call timeout")
	// ErrBodyIdle means that a response's body was waited for, and nothing of it
	// came for longer than it may.
	ErrBodyIdle = errors.New("body idle timeout")
)

// TimeoutError is the cause of a context that one of our timeouts ended, and
// the error that the attempt or the call then returns. It satisfies net.Error.
type TimeoutError struct {
	// Kind is ErrAttemptTimeout, ErrCallTimeout or ErrBodyIdle.
	Kind error
	// After is the bound that was passed.
	After time.Duration
	// Err is what had gone wrong before, if anything: for a call timeout, the
	// last attempt's error. May be nil.
	Err error
}

// Error names the kind, the bound and what came before.
func (e *TimeoutError) Error() string {
	s := "backstay: " + e.Kind.Error() + " after " + e.After.String()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the error that came before, or nil.
func (e *TimeoutError) Unwrap() error { return e.Err }

// Is matches Kind and context.DeadlineExceeded.
func (e *TimeoutError) Is(target error) bool {
	return target == e.Kind || target == context.DeadlineExceeded
}

// Timeout is true.
func (e *TimeoutError) Timeout() bool { return true }

// Temporary is true, as it is for net's own timeouts.
func (e *TimeoutError) Temporary() bool { return true }

// BodyError says that reading the caller's own request body failed: the peer
// had no part in it, and no other attempt would do better.
type BodyError struct {
	// Err is what the body's Read returned.
	Err error
}

// Error names the request's body as the culprit.
func (e *BodyError) Error() string { return "backstay: reading the request's body: " + e.Err.Error() }

// Unwrap returns what the body's Read returned.
func (e *BodyError) Unwrap() error { return e.Err }

// permanent marks an error as one that must not be retried.
type permanent struct{ err error }

// Permanent wraps err so that it is never retried, however it would otherwise
// be classified. It may itself be wrapped, with %w or errors.Join. A nil error
// stays nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanent{err}
}

func (p *permanent) Error() string { return p.err.Error() }
func (p *permanent) Unwrap() error { return p.err }
