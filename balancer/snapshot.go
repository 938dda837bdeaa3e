package balancer

import (
	"cmp"
	"math"
	"time"

	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/jsonconf"
)

// Snapshot is what a balancer knows at one moment, for people and pages to look at.
// It is a copy, which nobody changes later. As JSON it has durations such as
// "250ms"; there is no way back from JSON.
type Snapshot struct {
	// Service is the service's name.
	Service string `json:"service"`
	// At is the moment.
	At time.Time `json:"at"`
	// Known says whether there has been a set of endpoints.
	Known bool `json:"known"`
	// Age is how long ago the resolver yielded the set in use. If Error is not
	// empty, the set is stale: the resolver has failed since then.
	Age   time.Duration `json:"age"`
	Error string        `json:"error,omitempty"`
	// Panicking says whether ejections and health checks are ignored because so few
	// nodes are left; Closed, that calls are refused instead.
	Panicking bool `json:"panicking,omitempty"`
	Closed    bool `json:"closed,omitempty"`
	// Total counts the nodes of the set, Eligible those that calls may go to, and
	// Leaving those that have left it and finish what they have.
	Total    int `json:"total"`
	Eligible int `json:"eligible"`
	Leaving  int `json:"leaving,omitempty"`
	// Latency is the median of the nodes' estimates, FailureRate the rate at which
	// the nodes fail taken together.
	Latency     time.Duration `json:"latency"`
	FailureRate float64       `json:"failureRate"`
	// Subsets are Config.Subsets, by name.
	Subsets []SubsetSnapshot `json:"subsets,omitempty"`
	// Nodes are those of the set, in the resolver's order.
	Nodes []NodeSnapshot `json:"nodes"`
}

// SubsetSnapshot is what is known of one of Config.Subsets. While nobody of it is
// Eligible, or it is Panicking, its calls go to the subset that stands in for it.
type SubsetSnapshot struct {
	// Subset is its name.
	Subset string `json:"subset"`
	// Total counts the nodes that belong to it, Eligible those of them that its calls
	// may go to.
	Total    int `json:"total"`
	Eligible int `json:"eligible"`
	// Panicking and Closed are as those of the [Snapshot].
	Panicking bool `json:"panicking,omitempty"`
	Closed    bool `json:"closed,omitempty"`
}

// NodeSnapshot is what is known of one node.
type NodeSnapshot struct {
	// Node is its identity; Addr, Region, Zone, Priority and Weight are the
	// endpoint's.
	Node     string  `json:"node"`
	Addr     string  `json:"addr"`
	Region   string  `json:"region,omitempty"`
	Zone     string  `json:"zone,omitempty"`
	Priority int     `json:"priority,omitempty"`
	Weight   float64 `json:"weight"`
	// Subsets are the names of those of Config.Subsets that it belongs to.
	Subsets []string `json:"subsets,omitempty"`
	// State is what keeps calls from it, if anything, Reason says why where that is
	// known, and Until is when it will be over at the latest; zero where that is not
	// a matter of time.
	State  NodeState `json:"state"`
	Reason string    `json:"reason,omitempty"`
	Until  time.Time `json:"until,omitzero"`
	// Used says whether calls go to it: in panic mode also to nodes that are ejected
	// or unhealthy, and with ObserveOnly to all.
	Used bool `json:"used"`
	// Share is the share of the calls that goes to the nodes of its priority and
	// zone, it among them; 0 for a node that gets none but probes.
	Share float64 `json:"share"`
	// Cost is what [PeakEWMA] makes of it now, in nanoseconds, whatever the policy.
	Cost float64 `json:"cost"`
	// Latency is the estimate of the time to an answer's headers; 0 if nothing has
	// been measured.
	Latency time.Duration `json:"latency"`
	// FailureRate is the share of recent calls that failed.
	FailureRate float64 `json:"failureRate"`
	// Answered and Failed count calls since the node joined.
	Answered int64 `json:"answered"`
	Failed   int64 `json:"failed"`
	// InFlight counts its leases, Awaiting those without an answer yet.
	InFlight int `json:"inFlight"`
	Awaiting int `json:"awaiting"`
	// Conns counts its open connections.
	Conns int `json:"conns"`
	// Ejections is how often it has been ejected as an outlier, as far as that is
	// not forgotten: see OutlierConfig.
	Ejections int `json:"ejections,omitempty"`
	// Unhealthy says whether its health check has failed.
	Unhealthy bool `json:"unhealthy,omitempty"`
	// Warming says whether it is in its slow start.
	Warming bool `json:"warming,omitempty"`
	// Regaining is how many calls may await its answers at once, while it comes back
	// from an open breaker: more with each good answer. Beyond that calls are refused
	// where there is no other node. 0 is no limit.
	Regaining int `json:"regaining,omitempty"`
	// Breaker is its breaker's state and counts.
	Breaker BreakerSnapshot `json:"breaker"`
}

// BreakerSnapshot is a [breaker.Snapshot] as far as it is not told otherwise.
type BreakerSnapshot struct {
	State    string    `json:"state"`
	Mode     string    `json:"mode"`
	Until    time.Time `json:"until,omitzero"`
	Calls    int64     `json:"calls"`
	Failures int64     `json:"failures"`
	Slow     int64     `json:"slow,omitempty"`
	Opens    int       `json:"opens,omitempty"`
}

// MarshalJSON writes the snapshot as JSON.
func (s Snapshot) MarshalJSON() ([]byte, error) { return jsonconf.Marshal(s) }

// Snapshot returns what the balancer knows now. Who is used and why is of one
// moment; counts and estimates go on changing while they are read. It may be called
// at any time, costs about a microsecond for each node, and holds nobody up for
// longer than a fraction of that.
func (b *Balancer) Snapshot() Snapshot {
	at := clock.Now()
	now := b.since(at)
	b.mu.Lock()
	s := Snapshot{
		Service: b.service, At: at, Known: !b.lastSet.IsZero(), Total: len(b.order), Leaving: len(b.leaving),
		Latency: time.Duration(b.typicalLatency()), FailureRate: b.failureRate(),
		Nodes: make([]NodeSnapshot, len(b.order)),
	}
	if s.Known {
		s.Age = at.Sub(b.lastSet)
	}
	if err := cmp.Or(b.staleErr, b.lastErr); err != nil {
		s.Error = err.Error()
	}
	order, current := b.order, b.current.Load() // neither is changed, only replaced
	why := make([]reason, len(order))
	for i, n := range order {
		state, until := n.state(now)
		e := &s.Nodes[i]
		e.State, e.Ejections = state, n.remembered(now)
		why[i] = n.reason(state)
		if until > 0 && until < math.MaxInt64 {
			e.Until = b.at(until)
		}
	}
	b.mu.Unlock()

	shares := make(map[*Node]float64, len(order))
	if current != nil {
		s.Panicking, s.Closed, s.Eligible = current.panicking, current.closed, len(current.eligible)
		current.shares(shares)
	}
	for _, name := range sortedNames(b.cfg.Subsets) {
		sub := SubsetSnapshot{Subset: name}
		if is := current.subset(name); is != nil {
			sub.Eligible, sub.Panicking, sub.Closed = len(is.eligible), is.panicking, is.closed
		}
		def := b.cfg.Subsets[name]
		for i, n := range order {
			if def.has(n) {
				sub.Total++
				s.Nodes[i].Subsets = append(s.Nodes[i].Subsets, name)
			}
		}
		s.Subsets = append(s.Subsets, sub)
	}
	for i, n := range order {
		e := &s.Nodes[i]
		var used bool
		if e.Share, used = shares[n]; !used && e.State == Eligible {
			e.State = Standby
		}
		e.Used = used
		e.Reason = why[i].String()
		n.describe(b, e, at, now)
	}
	return s
}

// subset returns the snapshot of a subset; nil if there is none.
func (s *snapshot) subset(name string) *snapshot {
	if s == nil {
		return nil
	}
	return s.subsets[name]
}

// shares notes for each node that is used what share of the calls its group has.
func (s *snapshot) shares(of map[*Node]float64) {
	groups := s.groups
	if groups == nil {
		groups = []group{{nodes: s.eligible, share: 1}}
	}
	total := 0.0
	for _, g := range groups {
		total += g.share
	}
	for _, g := range groups {
		for _, n := range g.nodes {
			of[n] = g.share / total
		}
	}
}

// describe fills in what needs no lock of the balancer's.
func (n *Node) describe(b *Balancer, e *NodeSnapshot, at time.Time, now int64) {
	p := n.endpoint.Load()
	e.Node, e.Addr, e.Region, e.Zone, e.Priority = n.key, p.Addr, p.Region, p.Zone, p.Priority
	e.Weight = 1
	if p.Weight > 0 {
		e.Weight = p.Weight
	}
	e.Cost, e.FailureRate = n.peakEWMA(b, now), n.failureRate(b, now)
	e.Latency, _ = n.Latency(at)
	c := n.counts()
	e.Answered, e.Failed = c.answered, c.failed
	e.InFlight, e.Awaiting, e.Conns = n.InFlight(), n.Awaiting(), n.connections()
	e.Unhealthy = n.unhealthy.Load()
	e.Warming = n.unwell.Load()&warming != 0 && n.rampEnd.Load() > now
	e.Regaining = n.regain.limit(n.gate.Load(), now)
	br := n.breaker.Snapshot(at)
	e.Breaker = BreakerSnapshot{
		State: br.State.String(), Mode: br.Mode.String(), Until: br.Until,
		Calls: br.Calls, Failures: br.Failures, Slow: br.Slow, Opens: br.Opens,
	}
	if e.State == Open && e.Reason == "" {
		e.Reason = "breaker"
	}
}
