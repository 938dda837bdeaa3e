package balancer

import (
	"maps"
	"slices"
	"time"
)

// retire lets a node that has left the set finish what it has. Its breaker and
// its estimates go with it: a node that comes back is a new one. b.mu is held.
func (b *Balancer) retire(n *Node) {
	n.unwell.Or(leaving)
	var deadline *time.Timer
	if b.cfg.DrainTimeout > 0 {
		deadline = time.AfterFunc(b.cfg.DrainTimeout, n.leave)
	}
	b.leaving[n] = deadline
	if n.reported != Removed {
		b.events.Add(b.ctx, b.cfg.Observer, NodeChanged{Service: b.service, Node: n.key, From: n.reported, To: Removed})
		n.reported = Removed
	}
	if n.InFlight() == 0 {
		b.work.Go(n.leave) // closing connections calls out; b.mu is held
	}
}

// leave closes the connections of a node that has left the set: it has nothing
// more to do, or its time is over.
func (n *Node) leave() {
	b := n.owner
	b.mu.Lock()
	deadline, ok := b.leaving[n]
	delete(b.leaving, n)
	layers := b.layers
	leavers := slices.Collect(maps.Values(b.leavers))
	b.mu.Unlock()
	if !ok {
		return
	}
	if deadline != nil {
		deadline.Stop()
	}
	for _, l := range layers {
		l.drop(n)
	}
	for _, left := range leavers {
		left(n)
	}
	n.links.close()
}
