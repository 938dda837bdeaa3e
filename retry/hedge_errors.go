package retry

import (
	"context"
	"errors"
	"strings"

	"github.com/backstay/backstay/outcome"
)

// supersededError ends the context of an attempt whose call has got its answer from
// another one. It counts as a cancel of the caller's: it says nothing of the node.
type supersededError struct{}

func (supersededError) Error() string        { return "superseded by another attempt" }
func (supersededError) Is(target error) bool { return target == context.Canceled }

// errGone is the error of an attempt whose goroutine runtime.Goexit has ended, if it
// was not the caller's.
var errGone = errors.New("retry: the attempt's goroutine was ended by runtime.Goexit")

// HedgedError is the error of an attempt that failed, as all of its hedges did.
// errors.Is and errors.As find all of them, the attempt's own first.
type HedgedError struct {
	// Err is the attempt's error, or a hedge's if the attempt was refused.
	Err error
	// Others are the errors of the others, in the order of their beginnings.
	Others []error
}

// Error is Err's text and, behind it, those of the others.
func (e *HedgedError) Error() string {
	var text strings.Builder
	text.WriteString(e.Err.Error())
	for _, other := range e.Others {
		text.WriteString(" (hedged: " + other.Error() + ")")
	}
	return text.String()
}

// Unwrap returns all the errors.
func (e *HedgedError) Unwrap() []error { return append([]error{e.Err}, e.Others...) }

// Refused reports whether Err is a refusal of ours.
func (e *HedgedError) Refused() bool { return outcome.Refused(e.Err) }

// NotSent reports whether nothing reached the peers with any of the attempts.
func (e *HedgedError) NotSent() bool {
	for _, err := range e.Others {
		if !outcome.NotSent(err) {
			return false
		}
	}
	return outcome.NotSent(e.Err)
}

// Timeout is Err's, where it is a net.Error.
func (e *HedgedError) Timeout() bool { return (&StoppedError{Err: e.Err}).Timeout() }

// Temporary is Err's, where it is a net.Error.
func (e *HedgedError) Temporary() bool { return (&StoppedError{Err: e.Err}).Temporary() }
