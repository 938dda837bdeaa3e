package balancer

import (
	"fmt"
	"math"
	"slices"
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
	if n.endpoint.Load().Draining {
		return Draining, 0
	}
	return Eligible, 0
}

// rebuild makes a new snapshot, with a new picker if who is eligible has changed
// or fresh is set, and sets the timer for the next change that time alone will
// bring. b.mu is held.
func (b *Balancer) rebuild(fresh bool) {
	now := b.since(clock.Now())
	next := int64(math.MaxInt64)
	s := new(snapshot)
	var ejected, draining []*Node
	states := make([]NodeState, len(b.order))
	for i, n := range b.order {
		state, until := n.state(now)
		if b.cfg.ObserveOnly && state != Draining {
			state = Eligible
		}
		states[i] = state
		if until != 0 {
			next = min(next, until)
		}
		switch state {
		case Open:
			if s.earliest == nil || until < s.nextTry {
				s.earliest, s.nextTry = n, until
			}
			s.refusing = append(s.refusing, n)
		case HalfOpen:
			s.probing = append(s.probing, n)
		case Ejected:
			ejected = append(ejected, n)
		case Draining:
			draining = append(draining, n)
		default:
			s.eligible = append(s.eligible, n)
		}
	}
	well := len(s.eligible) + len(s.probing) + len(draining)
	if len(ejected) > 0 && float64(well) < b.cfg.PanicThreshold*float64(len(b.order)) {
		s.panicking = true
		s.eligible = append(s.eligible, ejected...)
	}
	if len(s.eligible) == 0 {
		s.eligible = draining // better those than nobody
	}
	s.eligible = firstPriority(s.eligible)

	old := b.current.Load()
	switch {
	case len(s.eligible) == 0:
	case old != nil && !fresh && slices.Equal(old.eligible, s.eligible):
		s.eligible, s.picker, s.peak = old.eligible, old.picker, old.peak
	default:
		s.picker = b.newPicker(s.eligible)
		s.peak, _ = s.picker.(*p2cPeakEWMA)
	}
	if b.cfg.OnDemand {
		s.expires = b.since(b.resolveAt)
	}
	b.current.Store(s)

	b.report(old, s, states)
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

// firstPriority keeps the nodes of the most preferred priority.
func firstPriority(nodes []*Node) []*Node {
	if len(nodes) == 0 {
		return nodes
	}
	least, same := nodes[0].endpoint.Load().Priority, true
	for _, n := range nodes[1:] {
		p := n.endpoint.Load().Priority
		same = same && p == least
		least = min(least, p)
	}
	if same {
		return nodes
	}
	return slices.DeleteFunc(nodes, func(n *Node) bool { return n.endpoint.Load().Priority != least })
}

// report adds the events of what is different now. b.mu is held.
func (b *Balancer) report(old, s *snapshot, states []NodeState) {
	if b.cfg.Observer == nil {
		return
	}
	inUse := make(map[*Node]bool, len(s.eligible))
	for _, n := range s.eligible {
		inUse[n] = true
	}
	for i, n := range b.order {
		state := states[i]
		if state == Eligible && !inUse[n] {
			state = Standby
		}
		if was := n.reported; was != state {
			n.reported = state
			e := NodeChanged{Service: b.service, Node: n.key, From: was, To: state}
			if _, until := n.state(b.since(clock.Now())); until > 0 && until < math.MaxInt64 {
				e.Until = b.at(until)
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
