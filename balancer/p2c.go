package balancer

import (
	"math/rand/v2"
)

// P2C is the power of two choices: it draws two distinct nodes at random and
// takes the one that costs less. It is the default policy, with [PeakEWMA].
//
// Use it with PeakEWMA unless you know better: it finds the fast nodes, leaves
// slow, stalled and failing ones alone, and never sends everybody to the same
// node at once, as taking the best of all would. A pick costs the same for
// three nodes and for ten thousand.
type P2C struct {
	// Cost compares the two. Default: PeakEWMA{}.
	Cost Cost
	// Rand is the source of the draws; it must be safe for concurrent use if
	// the balancer is used concurrently. Default: the runtime's.
	Rand rand.Source
}

// NewPicker returns the picker for nodes.
func (p P2C) NewPicker(nodes []*Node) Picker {
	base := p2c{nodes: nodes, draw: draw{p.Rand}, owner: nodes[0].owner}
	switch p.Cost.(type) {
	case nil, PeakEWMA, *PeakEWMA:
		return &p2cPeakEWMA{base}
	case InFlight, *InFlight:
		return &p2cInFlight{base}
	case LoadReport, *LoadReport:
		return &p2cLoadReport{base}
	}
	return &p2cCost{p2c: base, cost: p.Cost}
}

// ReadsReports reports whether Cost does.
func (p P2C) ReadsReports() bool { return readsReports(p.Cost) }

type p2c struct {
	nodes []*Node
	draw  draw
	owner *Balancer
}

// two draws two distinct nodes, or the same one twice if there is only one. Where some
// are to be avoided, it draws on until it has two of the others, so that these are
// compared: a pair of which one is to be avoided leaves no choice, and among a few nodes
// most pairs are such. It draws a few times and no more, for there may be no others.
func (p *p2c) two(call *Call) (*Node, *Node) {
	n := uint64(len(p.nodes))
	if n == 1 {
		return p.nodes[0], p.nodes[0]
	}
	var a, b, fresh *Node
	for range 1 + 3*len(call.Avoid) { // once, where nothing is to be avoided
		r := p.draw.uint64()
		i := (r >> 32) * n >> 32
		j := (r & (1<<32 - 1)) * (n - 1) >> 32
		j += 1 - (j-i)>>63 // one more if j >= i, without a branch that nobody can predict
		a, b = p.nodes[i], p.nodes[j]
		if len(call.Avoid) == 0 {
			return a, b
		}
		one := a
		if call.avoids(a) {
			one = b
		}
		switch {
		case call.avoids(one):
		case one == a && !call.avoids(b):
			return a, b
		case fresh != nil && fresh != one:
			return fresh, one
		default:
			fresh = one
		}
	}
	if fresh != nil {
		return fresh, fresh
	}
	return a, b
}

// The three below differ only in how they compare. They are three because a
// call through an interface for each of two costs is a third of the price of a
// pick.

type p2cPeakEWMA struct{ p2c }

func (p *p2cPeakEWMA) Pick(call Call) *Node { return p.pick(&call, p.owner.since(call.Now)) }

func (p *p2cPeakEWMA) pick(call *Call, now int64) *Node {
	a, b := p.two(call)
	if a == b {
		return a
	}
	costA, costB := a.peakEWMA(p.owner, now), b.peakEWMA(p.owner, now)
	if costB < costA { // a conditional move: no processor can predict it
		a = b
	}
	return a
}

type p2cInFlight struct{ p2c }

func (p *p2cInFlight) Pick(call Call) *Node {
	a, b := p.two(&call)
	now := p.owner.since(call.Now)
	if a != b && b.inFlightCost(p.owner, now) < a.inFlightCost(p.owner, now) {
		return b
	}
	return a
}

type p2cCost struct {
	p2c
	cost Cost
}

func (p *p2cCost) Pick(call Call) *Node {
	a, b := p.two(&call)
	if a != b && p.cost.Cost(b, call.Now) < p.cost.Cost(a, call.Now) {
		return b
	}
	return a
}

// draw is a random source that is the runtime's unless one is given.
type draw struct{ source rand.Source }

func (d draw) uint64() uint64 {
	if d.source == nil {
		return rand.Uint64()
	}
	return d.source.Uint64()
}

// below returns a number in [0, n). The bias of the multiplication is below
// n/2^64 and does not matter here.
func (d draw) below(n int) int {
	return int((d.uint64() >> 32) * uint64(n) >> 32) //nolint:gosec // n is a length
}
