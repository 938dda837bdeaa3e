package balancer

import (
	"context"

	"github.com/backstay/backstay/internal/clock"
)

// View is a balancer as one sees it who may not wait and who may use only some
// of its nodes: gRPC's own balancers, whose pickers must answer at once and only
// with connections that are ready. A View is immutable; make a new one when the
// balancer's nodes change ([Balancer.Subscribe]) or others are ready.
type View struct {
	b   *Balancer
	s   *snapshot // nil if nothing is known yet, or no longer
	err error     // and why
}

// View returns a view of the nodes for which ready answers true, with a picker
// of its own. A nil ready means all.
func (b *Balancer) View(ready func(*Node) bool) *View {
	if b.cfg.OnDemand {
		b.demand(clock.Now())
	}
	s := b.current.Load()
	if s == nil {
		return &View{b: b, err: b.unknown()}
	}
	if ready == nil {
		return &View{b: b, s: s}
	}
	return &View{b: b, s: b.keep(s, ready)}
}

// unknown returns why there are no nodes to pick from.
func (b *Balancer) unknown() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return &Error{Service: b.service, Err: ErrClosed}
	case b.lastErr != nil && !b.resolving:
		return &Error{Service: b.service, Err: b.lastErr}
	}
	return &Error{Service: b.service, Err: ErrNoNodes}
}

// keep returns s with only the nodes that are ready, and new pickers for them. If
// those that are well are not ready, the ejected ones that are take the calls, as in
// panic mode: the judgment did not know that they would be all there is.
func (b *Balancer) keep(s *snapshot, ready func(*Node) bool) *snapshot {
	kept := &snapshot{
		eligible: keep(s.eligible, ready), standby: keep(s.standby, ready),
		probing: keep(s.probing, ready), refusing: keep(s.refusing, ready), ejected: keep(s.ejected, ready),
		closed: s.closed, panicking: s.panicking, earliest: s.earliest, nextTry: s.nextTry,
	}
	if s.earliest != nil && !ready(s.earliest) {
		kept.earliest, kept.nextTry = nil, 0
	}
	all := s.groups
	if all == nil && s.picker != nil {
		all = []group{s.group}
	}
	var groups []group
	for _, g := range all {
		if g.nodes = keep(g.nodes, ready); len(g.nodes) > 0 {
			g.picker = b.newPicker(g.nodes)
			g.peak, _ = g.picker.(*p2cPeakEWMA)
			groups = append(groups, g)
		}
	}
	if len(groups) == 0 {
		groups = b.standIn(s, kept, ready)
	}
	if len(groups) > 0 {
		kept.group = groups[0]
	}
	if len(groups) > 1 {
		kept.groups = cumulate(groups)
	}
	if len(s.subsets) > 0 {
		kept.subsets = make(map[string]*snapshot, len(s.subsets))
		for name, sub := range s.subsets {
			kept.subsets[name] = b.keep(sub, ready)
		}
	}
	return kept
}

// standIn returns the group of those that take the calls of a view in which nobody is
// eligible.
func (b *Balancer) standIn(s, kept *snapshot, ready func(*Node) bool) []group {
	switch {
	case len(kept.standby) > 0:
		kept.eligible, kept.standby = kept.standby, nil
	case len(kept.probing)+len(kept.refusing) > 0 || b.cfg.FailClosed || b.cfg.PanicThreshold == 0:
		return nil
	default:
		if kept.eligible = keep(s.bad, ready); len(kept.eligible) == 0 {
			return nil
		}
		kept.ejected, kept.panicking = nil, true
	}
	p := b.newPicker(kept.eligible)
	peak, _ := p.(*p2cPeakEWMA)
	return []group{{nodes: kept.eligible, picker: p, peak: peak, share: 1}}
}

func keep(nodes []*Node, ready func(*Node) bool) []*Node {
	var kept []*Node
	for _, n := range nodes {
		if ready(n) {
			kept = append(kept, n)
		}
	}
	return kept
}

// TryAcquire takes a lease on a node of the view for c, as [Balancer.Acquire] does, and
// never waits. The lease is put into *l, where it will stay, in the place of none or of
// one that is done; after an error that is the zero Lease. With no node in the view the
// error is an [*Error] around [ErrNoNodes]; it is around the resolver's error if that has
// found none yet, and around [ErrClosed] if the balancer had been closed.
func (v *View) TryAcquire(c *Call, l *Lease) error {
	err := v.err
	if v.s != nil {
		err = v.acquire(c, l)
	}
	if err != nil {
		*l = Lease{}
	}
	return err
}

func (v *View) acquire(c *Call, l *Lease) error {
	b, at := v.b, v.b.since(c.Now)
	if b.cfg.OnDemand {
		b.renewSet(at)
	}
	switch {
	case c.Node != "":
		return b.only(v.s.find(c.Node), c, at, nil, l)
	case c.Subset != "":
		return b.chooseSubset(v.s, c, at, nil, l)
	}
	return b.choose(v.s, c, at, nil, l)
}

// renewSet has the resolver asked if what is known has expired. The view that is made
// of the answer is somebody else's matter.
func (b *Balancer) renewSet(at int64) {
	if s := b.current.Load(); s == nil || at >= s.expires {
		b.demand(b.at(at))
	}
}

// Ready reports whether the view has a node that a call could go to.
func (v *View) Ready() bool {
	return v.s != nil && len(v.s.eligible)+len(v.s.probing)+len(v.s.refusing)+len(v.s.ejected) > 0
}

// find returns the node of the snapshot with that identity, or nil.
func (s *snapshot) find(key string) *Node {
	for _, nodes := range [...][]*Node{s.eligible, s.standby, s.probing, s.refusing, s.ejected} {
		for _, n := range nodes {
			if n.key == key {
				return n
			}
		}
	}
	return nil
}

// Subscribe has changed called after every change of the balancer's nodes or of
// who is eligible, when the resolver fails to find the first, and when the balancer
// has been closed, until ctx ends. Calls may come at the same time from several
// goroutines and must not block; they say that something has changed, and
// [Balancer.Nodes] and [Balancer.View] say what.
func (b *Balancer) Subscribe(ctx context.Context, changed func()) {
	b.mu.Lock()
	b.watcherID++
	id := b.watcherID
	b.watchers[id] = changed
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		delete(b.watchers, id)
		b.mu.Unlock()
	})
}
