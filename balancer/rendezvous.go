package balancer

import (
	"math/rand/v2"

	"github.com/backstay/backstay/internal/hash"
)

// Rendezvous sends calls with the same [Call.Key] to the same node, by rendezvous
// hashing: each node has a score for the key, and the highest wins. With HTTP,
// [Config.HashKey] or [WithKey] says what the key is.
//
// Use it where a node serves a key better that it has served before: from its
// cache, or from a connection or session that it keeps. A key's node is the same in
// every process, in whatever order its resolver lists the nodes, for it depends on
// nothing but the nodes' identities and weights ([Node.Key]: with addresses for
// identities, a node that moves is another one). When one of n nodes leaves, only
// its own keys move, evenly to all others, and they come back with it; each node
// has keys in proportion to its weight. A slow start moves no keys.
//
// A pick looks at every node. With more than two hundred, see [Maglev]. The few calls
// by which the balancer tries a half-open node are any, whatever their key.
//
// Calls to one key must not bury one node: see Bound. A call that may not have the
// key's first node, because of the bound or of [Call.Avoid], goes to the node with
// the next score, which again is the same in every process. Calls without a key are
// spread by [P2C] with [InFlight].
type Rendezvous struct {
	// Seed gives another placement. It must be the same in all processes that
	// should agree. Default: 0, which is as good as any.
	Seed uint64
	// Bound is how much more than its part of the picker's calls in flight, by
	// weight, a node may have. A call with a key takes the next node if the first
	// has ⌈Bound · (A+1) · weight/Σweight⌉ of them, where A is what all nodes
	// have in flight from this process; if all have, it takes the first after
	// all. Calls that are picked at the same moment may exceed it by their
	// number. With more than 128 nodes what all have in flight may be a
	// millisecond old. At least 1. Negative: no bound. Default: 1.25.
	Bound float64
	// Rand is the source of the draws for calls without a key; it must be safe for
	// concurrent use if the balancer is used concurrently. Default: the runtime's.
	Rand rand.Source
}

// ReadsKeys is true.
func (Rendezvous) ReadsKeys() bool { return true }

// Validate returns what is wrong with r; [New] does so too.
func (r Rendezvous) Validate() error { return validateBound("Rendezvous", r.Bound) }

// NewPicker returns the picker for nodes.
func (r Rendezvous) NewPicker(nodes []*Node) Picker {
	p := new(rendezvous)
	p.init(nodes, r.Seed, r.Bound, r.Rand)
	for i := range p.members {
		p.weighted = p.weighted || p.members[i].weight != p.members[0].weight
	}
	return p
}

type rendezvous struct {
	bounded
	weighted bool
}

func (p *rendezvous) Pick(call Call) *Node {
	if call.Key == "" {
		return p.keyless.Pick(call)
	}
	h := hash.String(p.seed, call.Key)
	first := p.best(h, &call, anyLoad)
	if first == nil {
		call.Avoid = nil // all of them
		first = p.best(h, &call, anyLoad)
	}
	if p.roomy(first, &call) {
		return first.Node
	}
	if next := p.best(h, &call, p.count(&call)); next != nil {
		return next.Node
	}
	return first.Node
}

// anyLoad is for best: it does not matter what nodes have in flight.
const anyLoad = -1

// best returns the node with the highest score of those that need not be avoided
// and may take another call while all nodes have total in flight; nil if there is
// none.
func (p *rendezvous) best(h uint64, call *Call, total int64) (best *member) {
	top := -1.0
	for i := range p.members {
		m := &p.members[i]
		x := hash.Mix(h, m.hash)
		score := float64(x >> 11)
		if p.weighted {
			if top*float64(^x>>12) >= m.weight*(1<<52) {
				continue // -ln u is more than 1-u, and that spares most the logarithm
			}
			score = hash.Score(x, m.weight)
		}
		if score <= top || call.avoids(m.Node) || total != anyLoad && !p.fits(m, total) {
			continue
		}
		best, top = m, score
	}
	return best
}
