package balancer

import (
	"math/rand/v2"
	"sync/atomic"
)

// RoundRobin takes the nodes in turn, starting at a random one. It looks at
// nothing else: use it where calls and nodes are all alike, or to compare. It
// ignores weights; see [WeightedRoundRobin].
type RoundRobin struct {
	// Rand chooses where to start; it must be safe for concurrent use if the
	// balancer is. Default: the runtime's.
	Rand rand.Source
}

// NewPicker returns the picker for nodes.
func (r RoundRobin) NewPicker(nodes []*Node) Picker {
	p := &roundRobin{nodes: nodes}
	p.next.Store(draw{r.Rand}.uint64() >> 1)
	return p
}

type roundRobin struct {
	nodes []*Node
	_     [64]byte // the counter is written by every pick, the slice read by all
	next  atomic.Uint64
	_     [64]byte
}

func (p *roundRobin) Pick(call Call) *Node {
	n := uint64(len(p.nodes))
	node := p.nodes[p.next.Add(1)%n]
	for range call.Avoid {
		if !call.avoids(node) {
			break
		}
		node = p.nodes[p.next.Add(1)%n]
	}
	return node
}

// Random takes any node with equal chance. It needs no shared state at all, and
// spreads worse than [RoundRobin] for it. It ignores weights.
type Random struct {
	// Rand is the source of the draws; it must be safe for concurrent use if
	// the balancer is. Default: the runtime's.
	Rand rand.Source
}

// NewPicker returns the picker for nodes.
func (r Random) NewPicker(nodes []*Node) Picker {
	return &random{nodes: nodes, draw: draw{r.Rand}}
}

type random struct {
	nodes []*Node
	draw  draw
}

func (p *random) Pick(call Call) *Node {
	node := p.nodes[p.draw.below(len(p.nodes))]
	for range 2 * len(call.Avoid) {
		if !call.avoids(node) {
			break
		}
		node = p.nodes[p.draw.below(len(p.nodes))]
	}
	return node
}
