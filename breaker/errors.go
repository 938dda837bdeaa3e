package breaker

import (
	"errors"
	"time"
)

// ErrOpen is what every refusal of a breaker is, for errors.Is.
var ErrOpen = errors.New("breaker: open")

// OpenError says that a breaker refused a call: nothing was sent.
type OpenError struct {
	// Key is the breaker's.
	Key string
	// Reason is ReasonOpen, ReasonForcedOpen, ReasonProbing or ReasonRampingUp.
	Reason Reason
	// RetryAfter is how long until a call may come through; 0 if that is not
	// known.
	RetryAfter time.Duration
	// Err is the failure that opened the breaker; nil if there was none.
	Err error
}

// Error names the key, the reason, the time and the failure.
func (e *OpenError) Error() string {
	s := "breaker: " + e.Key + " is " + string(e.Reason)
	if e.RetryAfter > 0 {
		s += " for " + e.RetryAfter.Round(time.Millisecond).String()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is matches ErrOpen.
func (e *OpenError) Is(target error) bool { return target == ErrOpen }

// Unwrap returns the failure that opened the breaker, or nil.
func (e *OpenError) Unwrap() error { return e.Err }

// Refused is true: see outcome.Refused.
func (e *OpenError) Refused() bool { return true }

// NotSent is true: see outcome.NotSent.
func (e *OpenError) NotSent() bool { return true }

// RetryAfterHint returns RetryAfter: see outcome.RetryAfter.
func (e *OpenError) RetryAfterHint() time.Duration { return e.RetryAfter }
