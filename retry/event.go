package retry

import (
	"log/slog"
	"time"

	"github.com/backstay/backstay/outcome"
)

// Retried is emitted when a call is going to be tried again, before it waits.
type Retried struct {
	// Service and Route are the call's; Service is the URL's host, or
	// Config.Name, where the call has no frame.
	Service, Route string
	// Attempt is the number of the attempt that has ended, from 1.
	Attempt int
	// Outcome is how it ended.
	Outcome outcome.Outcome
	// Sleep is how long the call waits for the next attempt.
	Sleep time.Duration
}

// EventName is "retry.retried".
func (Retried) EventName() string { return "retry.retried" }

// LogValue holds all fields.
func (e Retried) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("service", e.Service),
		slog.String("route", e.Route),
		slog.Int("attempt", e.Attempt),
		slog.String("outcome", e.Outcome.Class.String()),
		slog.Any("error", e.Outcome.Err),
		slog.Duration("sleep", e.Sleep),
	)
}

// Reason is why a call was not tried again although its outcome allows it for
// some calls.
type Reason string

// The reasons of [GaveUp].
const (
	// ReasonAttempts: all attempts are used up.
	ReasonAttempts Reason = "attempts"
	// ReasonBudget: the budget is exhausted.
	ReasonBudget Reason = "budget"
	// ReasonDeadline: the wait would not end before the deadline.
	ReasonDeadline Reason = "deadline"
	// ReasonRetryAfter: the server asks for a longer wait than
	// Config.MaxRetryAfter.
	ReasonRetryAfter Reason = "retry after"
	// ReasonBackoff: the generator of waits said that it is enough.
	ReasonBackoff Reason = "backoff"
	// ReasonNotIdempotent: the request may have been acted on, and must not be
	// repeated.
	ReasonNotIdempotent Reason = "not idempotent"
	// ReasonBody: the request's body cannot be sent again.
	ReasonBody Reason = "body"
	// ReasonElsewhere: only another node could do better, and there is none to
	// ask, or one has been asked.
	ReasonElsewhere Reason = "no other node"
	// ReasonRefused: the next attempt was refused by a layer of ours.
	ReasonRefused Reason = "refused"
	// ReasonInbound: the call was made on behalf of a request that is itself being
	// tried again, or whose caller wants nothing repeated: see call.Inbound.
	ReasonInbound Reason = "inbound request is final"
	// ReasonCanceled: the caller went away during the wait.
	ReasonCanceled Reason = "canceled"
)

// GaveUp is emitted when a call that has failed is not tried again. It is not
// emitted for outcomes that no call is tried again after, and not where
// Config.MaxAttempts is one.
type GaveUp struct {
	// Service and Route are the call's, as in Retried.
	Service, Route string
	// Attempts is how many were made.
	Attempts int
	// Outcome is how the last one ended.
	Outcome outcome.Outcome
	// Reason is why there is no other.
	Reason Reason
}

// EventName is "retry.gave_up".
func (GaveUp) EventName() string { return "retry.gave_up" }

// Level is Warn.
func (GaveUp) Level() slog.Level { return slog.LevelWarn }

// LogValue holds all fields.
func (e GaveUp) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("service", e.Service),
		slog.String("route", e.Route),
		slog.Int("attempts", e.Attempts),
		slog.String("outcome", e.Outcome.Class.String()),
		slog.Any("error", e.Outcome.Err),
		slog.String("reason", string(e.Reason)),
	)
}
