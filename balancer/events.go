package balancer

import (
	"log/slog"
	"time"
)

// NodesChanged is emitted when a service's set of endpoints has changed: nodes
// came, went, or have other properties. Equal sets emit nothing.
type NodesChanged struct {
	// Service is the service's name.
	Service string
	// Added and Removed are the identities of nodes that came and went.
	Added, Removed []string
	// Changed counts those that stay with other properties; Total counts all.
	Changed, Total int
}

// EventName is "balancer.nodes_changed".
func (NodesChanged) EventName() string { return "balancer.nodes_changed" }

// LogValue holds the event's fields.
func (e NodesChanged) LogValue() slog.Value {
	return slog.GroupValue(slog.String("service", e.Service), slog.Any("added", e.Added),
		slog.Any("removed", e.Removed), slog.Int("changed", e.Changed), slog.Int("total", e.Total))
}

// NodeState is what keeps a node from getting calls, if anything.
type NodeState uint8

const (
	// Eligible nodes get calls.
	Eligible NodeState = iota
	// HalfOpen nodes get a few, to see whether they are well again.
	HalfOpen
	// Open nodes have an open breaker.
	Open
	// Ejected nodes are left alone for a time.
	Ejected
	// Unhealthy nodes have failed their health check.
	Unhealthy
	// Draining nodes finish what they have.
	Draining
	// Standby nodes are well and get no calls, because those of a higher priority
	// or of a nearer zone can take them all.
	Standby
	// Removed nodes have left the set and finish what they have.
	Removed
)

// String returns the state's name in lower case.
func (s NodeState) String() string {
	return [...]string{"eligible", "half-open", "open", "ejected", "unhealthy", "draining", "standby", "removed"}[s]
}

// MarshalText returns the state's name.
func (s NodeState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// NodeChanged is emitted when a node's state changes.
type NodeChanged struct {
	// Service and Node are the service's name and the node's identity.
	Service, Node string
	// From and To are the states before and after.
	From, To NodeState
	// Until is when the node will be tried again; zero where that is not a
	// matter of time.
	Until time.Time
	// Reason says why, in a few words, such as "5 failures in a row", where To
	// alone does not.
	Reason string
}

// EventName is "balancer.node_changed".
func (NodeChanged) EventName() string { return "balancer.node_changed" }

// Level is Warn for a node that opens, is ejected or fails its health check, else
// Info.
func (e NodeChanged) Level() slog.Level {
	if e.To == Open || e.To == Ejected || e.To == Unhealthy {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// LogValue holds the event's fields.
func (e NodeChanged) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("service", e.Service), slog.String("node", e.Node),
		slog.String("from", e.From.String()), slog.String("to", e.To.String()),
	}
	if !e.Until.IsZero() {
		attrs = append(attrs, slog.Time("until", e.Until))
	}
	if e.Reason != "" {
		attrs = append(attrs, slog.String("reason", e.Reason))
	}
	return slog.GroupValue(attrs...)
}

// PanicChanged is emitted when so few nodes are eligible that ejections are
// ignored (On), and when there are enough again.
type PanicChanged struct {
	// Service is the service's name.
	Service string
	// On says whether panic mode began or ended.
	On bool
	// Eligible and Total count the nodes.
	Eligible, Total int
}

// EventName is "balancer.panic_changed".
func (PanicChanged) EventName() string { return "balancer.panic_changed" }

// Level is Warn when panic mode begins, else Info.
func (e PanicChanged) Level() slog.Level {
	if e.On {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// LogValue holds the event's fields.
func (e PanicChanged) LogValue() slog.Value {
	return slog.GroupValue(slog.String("service", e.Service), slog.Bool("on", e.On),
		slog.Int("eligible", e.Eligible), slog.Int("total", e.Total))
}

// SubsetChanged is emitted when nobody belongs to a subset any more, and when
// somebody does again.
type SubsetChanged struct {
	// Service and Subset are the service's and the subset's names.
	Service, Subset string
	// Nodes counts the subset's nodes.
	Nodes int
}

// EventName is "balancer.subset_changed".
func (SubsetChanged) EventName() string { return "balancer.subset_changed" }

// Level is Warn for a subset without nodes, else Info.
func (e SubsetChanged) Level() slog.Level {
	if e.Nodes == 0 {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// LogValue holds the event's fields.
func (e SubsetChanged) LogValue() slog.Value {
	return slog.GroupValue(slog.String("service", e.Service), slog.String("subset", e.Subset), slog.Int("nodes", e.Nodes))
}

// ResolveFailed is emitted when a service's resolver reports an error, or warns of
// something that it left out (a discovery.Warning). The nodes known before stay
// in use.
type ResolveFailed struct {
	// Service is the service's name.
	Service string
	// Err is the resolver's error.
	Err error
	// Stale is the age of the set in use; 0 if there is none yet, and for a
	// warning.
	Stale time.Duration
}

// EventName is "balancer.resolve_failed".
func (ResolveFailed) EventName() string { return "balancer.resolve_failed" }

// Level is Warn.
func (ResolveFailed) Level() slog.Level { return slog.LevelWarn }

// LogValue holds the event's fields.
func (e ResolveFailed) LogValue() slog.Value {
	return slog.GroupValue(slog.String("service", e.Service), slog.Any("error", e.Err), slog.Duration("stale", e.Stale))
}

// PolicyFailed is emitted when the policy panics instead of making a picker. Nodes
// are then chosen by chance.
type PolicyFailed struct {
	// Service is the service's name.
	Service string
	// Err says what the policy panicked with.
	Err error
}

// EventName is "balancer.policy_failed".
func (PolicyFailed) EventName() string { return "balancer.policy_failed" }

// Level is Error.
func (PolicyFailed) Level() slog.Level { return slog.LevelError }

// LogValue holds the event's fields.
func (e PolicyFailed) LogValue() slog.Value {
	return slog.GroupValue(slog.String("service", e.Service), slog.Any("error", e.Err))
}
