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
	b *Balancer
	s *snapshot
}

// View returns a view of the nodes for which ready answers true, with a picker
// of its own. A nil ready means all.
func (b *Balancer) View(ready func(*Node) bool) *View {
	if b.cfg.OnDemand {
		b.demand(clock.Now())
	}
	s := b.current.Load()
	if s == nil {
		return &View{b: b}
	}
	if ready == nil {
		return &View{b: b, s: s}
	}
	return &View{b: b, s: b.keep(s, ready)}
}

// keep returns s with only the nodes that are ready, and new pickers for them.
func (b *Balancer) keep(s *snapshot, ready func(*Node) bool) *snapshot {
	kept := &snapshot{
		eligible: keep(s.eligible, ready), standby: keep(s.standby, ready),
		probing: keep(s.probing, ready), refusing: keep(s.refusing, ready), ejected: keep(s.ejected, ready),
		closed: s.closed,
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
	if len(groups) == 0 && len(kept.standby) > 0 {
		kept.eligible, kept.standby = kept.standby, nil
		p := b.newPicker(kept.eligible)
		peak, _ := p.(*p2cPeakEWMA)
		groups = []group{{nodes: kept.eligible, picker: p, peak: peak, share: 1}}
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

func keep(nodes []*Node, ready func(*Node) bool) []*Node {
	var kept []*Node
	for _, n := range nodes {
		if ready(n) {
			kept = append(kept, n)
		}
	}
	return kept
}

// TryAcquire takes a lease on a node of the view, as [Balancer.Acquire] does,
// and never waits. With no node in the view the error is an [*Error] around
// [ErrNoNodes].
func (v *View) TryAcquire(call Call) (l Lease, err error) {
	if v.s == nil {
		return Lease{}, &Error{Service: v.b.service, Err: ErrNoNodes}
	}
	call.Now = clock.Or(call.Now)
	switch {
	case call.Node != "":
		err = v.b.only(v.s.find(call.Node), &call, nil, &l)
	case call.Subset != "":
		err = v.b.chooseSubset(v.s, &call, nil, &l)
	default:
		err = v.b.choose(v.s, &call, nil, &l)
	}
	return l, err
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
// who is eligible, until ctx ends. Calls may come at the same time from several
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
