package breaker

import (
	"log/slog"
	"time"
)

// State is what a breaker does with calls.
type State uint8

const (
	// Closed admits calls and counts how they end.
	Closed State = iota
	// Open refuses them.
	Open
	// HalfOpen admits a few, to find out.
	HalfOpen
)

// String returns "closed", "open" or "half-open".
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case Open:
		return "open"
	default:
		return "half-open"
	}
}

// Mode says whether a breaker follows what it sees.
type Mode uint8

const (
	// Auto is the usual: calls change the state, and the state decides.
	Auto Mode = iota
	// ForcedOpen refuses every call, probes too.
	ForcedOpen
	// ForcedClosed admits every call and never opens; it goes on counting.
	ForcedClosed
	// Disabled admits every call too, while the state changes, and is told to
	// observers, as if it were heeded.
	Disabled
)

// String returns "auto", "forced open", "forced closed" or "disabled".
func (m Mode) String() string {
	switch m {
	case Auto:
		return "auto"
	case ForcedOpen:
		return "forced open"
	case ForcedClosed:
		return "forced closed"
	default:
		return "disabled"
	}
}

// Reason is why a state changed or a call was refused.
type Reason string

// Why a state changed.
const (
	ReasonFailureRate     Reason = "failure rate"
	ReasonSlowRate        Reason = "slow rate"
	ReasonConsecutive     Reason = "consecutive failures"
	ReasonOpenTimeOver    Reason = "open time over"
	ReasonProbeFailed     Reason = "probe failed"
	ReasonProbeSlow       Reason = "probe slow"
	ReasonProbesSucceeded Reason = "probes succeeded"
	ReasonForcedOpen      Reason = "forced open"
	ReasonForcedClosed    Reason = "forced closed"
	ReasonReleased        Reason = "released"
	ReasonReset           Reason = "reset"
	ReasonRemoved         Reason = "removed" // from its group
)

// Why a call was refused, besides ReasonForcedOpen.
const (
	ReasonOpen      Reason = "open"
	ReasonProbing   Reason = "probing"    // half-open, and all probes are out
	ReasonRampingUp Reason = "ramping up" // closed, but not long ago
)

// Snapshot is a breaker at one moment.
type Snapshot struct {
	// Key is the breaker's.
	Key string
	// State is what the breaker does with calls; under Disabled, what it would.
	State State
	// Mode says whether it was told to.
	Mode Mode
	// Until is when a call may come through again as a probe; zero if the
	// breaker is closed or forced open. An open breaker stays open past it until
	// there is a call.
	Until time.Time
	// Calls, Failures and Slow are what the window holds of the present state:
	// a failed call that was slow is in both. The rates are their shares of
	// Calls.
	Calls, Failures, Slow int64
	FailureRate, SlowRate float64
	// Opens is how often the breaker has opened without being closed for a whole
	// window in between.
	Opens int
}

// StateChanged is emitted for each change of a breaker's state, in order and
// once: each one's From is the To of the one before, the first one's is Closed.
// Under a Mode other than Auto it tells the state that calls meet, or would meet
// under Disabled.
type StateChanged struct {
	// Key is the breaker's.
	Key string
	// From and To are different.
	From, To State
	// Reason is why.
	Reason Reason
	// Until is when an open breaker may probe; zero otherwise.
	Until time.Time
	// Calls, Failures and Slow are what the window held.
	Calls, Failures, Slow int64
	// Err is the failure that opened the breaker, if there was one.
	Err error
}

// EventName is "breaker.state_changed".
func (StateChanged) EventName() string { return "breaker.state_changed" }

// Level is Warn for a breaker that opens, else Info.
func (e StateChanged) Level() slog.Level {
	if e.To == Open {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// LogValue holds the key, the states, the reason and the counts, and, where they
// are set, until and the error.
func (e StateChanged) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("key", e.Key),
		slog.String("from", e.From.String()),
		slog.String("to", e.To.String()),
		slog.String("reason", string(e.Reason)),
		slog.Int64("calls", e.Calls),
		slog.Int64("failures", e.Failures),
		slog.Int64("slow", e.Slow),
	}
	if !e.Until.IsZero() {
		attrs = append(attrs, slog.Time("until", e.Until))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("error", e.Err))
	}
	return slog.GroupValue(attrs...)
}
