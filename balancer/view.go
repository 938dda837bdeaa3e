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
	s := b.current.Load()
	if s == nil {
		return &View{b: b}
	}
	if ready == nil {
		return &View{b: b, s: s}
	}
	kept := &snapshot{
		eligible: keep(s.eligible, ready), probing: keep(s.probing, ready), refusing: keep(s.refusing, ready),
	}
	if len(kept.eligible) > 0 {
		kept.picker = b.newPicker(kept.eligible)
		kept.peak, _ = kept.picker.(*p2cPeakEWMA)
	}
	return &View{b: b, s: kept}
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
	err = v.b.choose(v.s, &call, nil, &l)
	return l, err
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
