package balancer

import (
	"math"
	"math/rand/v2"
)

// LeastRequest takes the node with the fewest calls awaiting an answer, by weight
// and slow start, of all nodes; of several such nodes, any with equal chance.
//
// Use it where calls are long and of very different lengths, so that their number is
// what counts, and where this client makes a good part of all calls: with many
// clients, each with few calls at a time, nearly all nodes have none of its calls,
// and the choice is as good as [Random]. With many nodes take [P2C] with [InFlight]:
// a pick of this one looks at all of them.
//
// Envoy's LEAST_REQUEST with weights is another formula: a weighted round robin in
// which a node's weight is divided by its active requests plus one. It sends bursts
// to nodes that have just become idle; this one does not.
type LeastRequest struct {
	// Rand is the source of the draws among equals; it must be safe for concurrent
	// use if the balancer is used concurrently. Default: the runtime's.
	Rand rand.Source
}

// NewPicker returns the picker for nodes.
func (l LeastRequest) NewPicker(nodes []*Node) Picker {
	return &leastRequest{nodes: nodes, draw: draw{l.Rand}, owner: nodes[0].owner}
}

type leastRequest struct {
	nodes []*Node
	draw  draw
	owner *Balancer
}

func (p *leastRequest) Pick(call Call) *Node {
	now := p.owner.since(call.Now)
	var best *Node
	least, equals := math.Inf(1), 0
	for _, n := range p.nodes {
		if len(call.Avoid) > 0 && call.avoids(n) {
			continue
		}
		switch cost := n.inFlightCost(p.owner, now); {
		case cost < least:
			best, least, equals = n, cost, 1
		case cost == least:
			equals++
		}
	}
	if equals == 1 {
		return best
	}
	// Going through them again costs less than a draw for each of them.
	skip := p.draw.below(max(equals, 1))
	for _, n := range p.nodes {
		if n.inFlightCost(p.owner, now) > least || len(call.Avoid) > 0 && call.avoids(n) {
			continue
		}
		if skip == 0 {
			return n
		}
		skip--
	}
	return best // they have changed meanwhile, or all are to be avoided
}
