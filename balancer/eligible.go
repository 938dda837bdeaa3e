package balancer

import (
	"fmt"
	"math"
	"time"

	"github.com/backstay/backstay/internal/clock"
)

// reconsider decides anew who is eligible, after something has changed.
func (b *Balancer) reconsider() {
	b.mu.Lock()
	if !b.closed && !b.lastSet.IsZero() {
		b.rebuild(false)
	}
	b.mu.Unlock()
	b.notify()
}

// notify delivers what has happened under the lock. b.mu is not held.
func (b *Balancer) notify() {
	b.events.Flush()
	b.mu.Lock()
	watchers := make([]func(), 0, len(b.watchers))
	for _, w := range b.watchers {
		watchers = append(watchers, w)
	}
	b.mu.Unlock()
	for _, w := range watchers {
		w()
	}
}

// state says whether the node gets calls, and if not, until when at the latest;
// zero where that is not a matter of time.
func (n *Node) state(now int64) (NodeState, int64) {
	if n.hasLeft() {
		return Removed, 0
	}
	switch n.gate.Load() & gateState {
	case gateOpen:
		if until := n.openUntil.Load(); until > now {
			return Open, until
		}
		return HalfOpen, 0
	case gateHalfOpen:
		return HalfOpen, 0
	}
	if until := n.ejected.Load(); until > now {
		return Ejected, until
	}
	if n.unhealthy.Load() {
		return Unhealthy, 0
	}
	if n.endpoint.Load().Draining {
		return Draining, 0
	}
	return Eligible, 0
}

// rebuild makes a new snapshot, with new pickers where who is eligible has changed
// or fresh is set, and sets the timer for the next change that time alone will
// bring. b.mu is held.
func (b *Balancer) rebuild(fresh bool) {
	now := b.since(clock.Now())
	next := int64(math.MaxInt64)
	b.makeRoom(now)
	if b.cfg.Outliers.judges() {
		if now >= b.sweepAt {
			b.sweep(now)
		}
		next = b.sweepAt
	}
	nodes := make([]judged, len(b.order))
	for i, n := range b.order {
		state, until := n.state(now)
		found := state
		if b.cfg.ObserveOnly && state != Draining {
			state = Eligible
			if found != Ejected && found != Unhealthy { // breakers tell for themselves
				found = state
			}
		}
		if until != 0 {
			next = min(next, until)
		}
		nodes[i] = judged{n, state, found, until}
	}
	old := b.current.Load()
	s := b.arrange(nodes, old, fresh)
	b.arrangeSubsets(s, old, nodes, fresh)
	if b.cfg.OnDemand {
		s.expires = b.since(b.resolveAt)
	}
	b.current.Store(s)

	b.report(old, s, nodes)
	b.schedule(now, next)
}

// newPicker asks the policy for a picker. One that gives none, or panics, leaves
// the choice to chance: b.mu may be held, and calls go on.
func (b *Balancer) newPicker(nodes []*Node) (p Picker) {
	defer func() {
		if v := recover(); v != nil {
			b.events.Add(b.ctx, b.cfg.Observer, PolicyFailed{Service: b.service, Err: fmt.Errorf("balancer: the policy panicked: %v", v)})
		}
		if p == nil {
			p = Random{}.NewPicker(nodes)
		}
	}()
	return b.cfg.Policy.NewPicker(nodes)
}

// report adds the events of what is different now. b.mu is held.
func (b *Balancer) report(old, s *snapshot, nodes []judged) {
	if b.cfg.Observer == nil {
		return
	}
	inUse := make(map[*Node]bool, len(s.eligible))
	for _, n := range s.eligible {
		inUse[n] = true
	}
	for _, n := range nodes {
		state := n.found
		if state == Eligible && !inUse[n.Node] {
			state = Standby
		}
		if was := n.reported; was != state {
			n.reported = state
			e := NodeChanged{Service: b.service, Node: n.key, From: was, To: state, Reason: n.reason(state).String()}
			if n.until > 0 && n.until < math.MaxInt64 {
				e.Until = b.at(n.until)
			}
			b.events.Add(b.ctx, b.cfg.Observer, e)
		}
	}
	if was := old != nil && old.panicking; was != s.panicking {
		b.events.Add(b.ctx, b.cfg.Observer, PanicChanged{
			Service: b.service, On: s.panicking, Eligible: len(s.eligible), Total: len(b.order),
		})
	}
}

// schedule sets the one timer. b.mu is held.
func (b *Balancer) schedule(now, next int64) {
	if b.timer != nil {
		b.timer.Stop()
	}
	if next == math.MaxInt64 {
		return
	}
	wait := time.Duration(max(next-now, 0))
	if b.timer == nil {
		b.timer = time.AfterFunc(wait, b.reconsider)
		return
	}
	b.timer.Reset(wait)
}
