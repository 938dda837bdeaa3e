package retry

import (
	"log/slog"
	"time"
)

// Hedged is emitted when a hedge begins, on its goroutine.
type Hedged struct {
	// Service and Route are the call's, as in Retried.
	Service, Route string
	// Hedge is the number of the call's hedge, from 1.
	Hedge int
	// Delay is how long the attempt before it has been waited for.
	Delay time.Duration
	// Percentile is HedgeConfig.Percentile if Delay comes from there, or 0.
	Percentile float64
}

// EventName is "retry.hedged".
func (Hedged) EventName() string { return "retry.hedged" }

// LogValue holds all fields.
func (e Hedged) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("service", e.Service),
		slog.String("route", e.Route),
		slog.Int("hedge", e.Hedge),
		slog.Duration("delay", e.Delay),
		slog.Float64("percentile", e.Percentile),
	)
}
