package balancer

import (
	"math"
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

// WeightedRoundRobin takes the nodes in turn, each as often as its endpoint's
// weight says, by gRPC's static stride scheduler: no lock, no memory beside the
// weights, and the turns of each node evenly spread.
type WeightedRoundRobin struct {
	// Rand chooses where to start; it must be safe for concurrent use if the
	// balancer is. Default: the runtime's.
	Rand rand.Source
}

// NewPicker returns the picker for nodes.
func (w WeightedRoundRobin) NewPicker(nodes []*Node) Picker {
	p := &weighted{nodes: nodes, weights: make([]uint16, len(nodes))}
	top := 0.0
	for _, n := range nodes {
		top = max(top, n.weight())
	}
	for i, n := range nodes {
		p.weights[i] = max(1, uint16(math.Round(n.weight()/top*strideMax)))
	}
	p.next.Store(draw{w.Rand}.uint64() >> 33)
	return p
}

const strideMax = math.MaxUint16

type weighted struct {
	nodes   []*Node
	weights []uint16 // scaled so that the heaviest has strideMax
	_       [64]byte
	next    atomic.Uint64
	_       [64]byte
}

func (p *weighted) Pick(call Call) *Node {
	var node *Node
	for range 1 + len(call.Avoid) {
		if node = p.turn(); !call.avoids(node) {
			break
		}
	}
	return node
}

// turn walks round and round the nodes. In each round a node either has its
// turn or is passed over, so that over strideMax rounds it has as many turns as
// its weight says; an offset per node keeps their turns apart. The heaviest
// node is never passed over, so the walk ends within one round.
func (p *weighted) turn() *Node {
	n := uint64(len(p.nodes))
	for {
		turn := p.next.Add(1)
		i, round := turn%n, turn/n
		weight := uint64(p.weights[i])
		mod := (weight*round + i*(strideMax/2)) % strideMax
		if mod >= strideMax-weight {
			return p.nodes[i]
		}
	}
}
