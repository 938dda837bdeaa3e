package retry

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/backstay/backstay/outcome"
)

// ErrBudget is why a call was not tried again when the budget had nothing left.
var ErrBudget = errors.New("retry: the budget is exhausted")

// errRequestCanceled is what the deprecated Request.Cancel amounts to.
var errRequestCanceled = fmt.Errorf("retry: Request.Cancel was closed: %w", context.Canceled)

// StoppedError is the last real error of a call that should have been tried
// again, together with what kept us from it: [ErrBudget], the refusal of a
// breaker or a limit, a GetBody that failed. errors.Is and errors.As find both,
// the real one first. A call that has used up its attempts or its time, or is asked
// to wait too long, ends with the real error alone.
//
// The marks that [outcome] reads are those of the real error: what was tried
// once has been sent, whatever was refused later.
type StoppedError struct {
	// Err is the last attempt's error.
	Err error
	// Reason is why there was no other attempt.
	Reason error
}

// Error is Err's text and, behind it, the reason's.
func (e *StoppedError) Error() string {
	return e.Err.Error() + " (not tried again: " + e.Reason.Error() + ")"
}

// Unwrap returns Err and Reason.
func (e *StoppedError) Unwrap() []error { return []error{e.Err, e.Reason} }

// Refused reports whether Err itself is a refusal of ours.
func (e *StoppedError) Refused() bool { return outcome.Refused(e.Err) }

// NotSent reports whether nothing reached the peer with the last attempt.
func (e *StoppedError) NotSent() bool { return outcome.NotSent(e.Err) }

// Timeout is Err's, where it is a net.Error.
func (e *StoppedError) Timeout() bool {
	var n net.Error
	return errors.As(e.Err, &n) && n.Timeout()
}

// Temporary is Err's, where it is a net.Error.
func (e *StoppedError) Temporary() bool {
	var n net.Error
	return errors.As(e.Err, &n) && n.Temporary() //nolint:staticcheck // passed on, not relied on
}

// reachedError is the error of a last attempt that was not sent, after one that
// may have been: of the call as a whole nobody can say that.
type reachedError struct{ error }

func (e *reachedError) Unwrap() error { return e.error }
func (e *reachedError) NotSent() bool { return false }

// canceled is the error of a call whose caller went away while it waited for
// its next attempt: the context's cause, and what the last attempt ended with.
func canceled(cause, last error) error {
	return fmt.Errorf("%w, while waiting to try again after: %w", cause, last)
}

// afterLast makes the last attempt's error that of our call timeout, if err is
// one that bears none.
func afterLast(err, last error) error {
	timeout, ok := err.(*outcome.TimeoutError)                                              //nolint:errorlint // only our own, not one within
	if !ok || last == nil || timeout.Err != nil || timeout.Kind != outcome.ErrCallTimeout { //nolint:errorlint // identity
		return err
	}
	return &outcome.TimeoutError{Kind: timeout.Kind, After: timeout.After, Err: last}
}
