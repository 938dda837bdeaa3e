package limit

import (
	"context"
	"errors"
	"strconv"
	"time"
)

// What every refusal is one of, for errors.Is.
var (
	// ErrLimited means there were too many calls of late.
	ErrLimited = errors.New("limit: rate exceeded")
	// ErrFull means there are too many calls under way.
	ErrFull = errors.New("limit: full")
)

// RateError says that a [Rate] refused a call: nothing was sent and no token was
// taken.
type RateError struct {
	// Key is the limit's.
	Key string
	// RetryAfter is when there will be a token, if nobody else comes first.
	RetryAfter time.Duration

	deadline bool
}

// Error names the key and the time.
func (e *RateError) Error() string {
	return ErrLimited.Error() + forKey(e.Key) + ", next in " + e.RetryAfter.Round(time.Microsecond).String()
}

// Is matches ErrLimited, and context.DeadlineExceeded if the context would have
// ended before the wait and RateConfig.AsDeadline is On.
func (e *RateError) Is(target error) bool {
	return target == ErrLimited || e.deadline && target == context.DeadlineExceeded
}

// Refused is true: see outcome.Refused.
func (e *RateError) Refused() bool { return true }

// NotSent is true: see outcome.NotSent.
func (e *RateError) NotSent() bool { return true }

// RetryAfterHint returns RetryAfter: see outcome.RetryAfter.
func (e *RateError) RetryAfterHint() time.Duration { return e.RetryAfter }

// FullError says that a [Concurrency] refused a call: nothing was sent.
type FullError struct {
	// Key is the limit's.
	Key string
	// Max is how many calls may be under way.
	Max int
	// Waited is how long the call was in the queue; 0 if it did not get there.
	Waited time.Duration
}

// Error names the key, the limit and the wait.
func (e *FullError) Error() string {
	s := ErrFull.Error() + forKey(e.Key) + ", " + strconv.Itoa(e.Max) + " calls under way"
	if e.Waited > 0 {
		s += " after " + e.Waited.Round(time.Microsecond).String() + " in the queue"
	}
	return s
}

// Is matches ErrFull.
func (e *FullError) Is(target error) bool { return target == ErrFull }

// Refused is true: see outcome.Refused.
func (e *FullError) Refused() bool { return true }

// NotSent is true: see outcome.NotSent.
func (e *FullError) NotSent() bool { return true }

func forKey(key string) string {
	if key == "" {
		return ""
	}
	return " for " + key
}
