package balancer

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/internal/inherit"
)

// WeightedRoundRobin takes the nodes in turn, each as often as its weight says, by
// gRPC's static stride scheduler: no lock, no memory beside the weights, and the
// turns of each node evenly spread.
//
// The weights are the endpoints': use it for nodes of known, different sizes. Or,
// with Reported, they are made of what the servers say of themselves (gRFC A58): use
// that for nodes of unknown sizes whose calls are all alike and many, so that a
// second's figures mean something. It balances utilization; it does not see a node
// that is slow or stalled at the moment, as [P2C] does.
type WeightedRoundRobin struct {
	// Reported has a node's weight be what it can serve by its own reports
	// (package loadreport), not what its endpoint says:
	// RPS / (utilization + EPS/RPS · ErrorPenalty). Nodes without a weight have
	// the others' mean; with fewer than two known, the endpoints' weights hold.
	// Default: false.
	Reported bool
	// Blackout is how long a node must have reported before its weight is used:
	// at first it says little. Negative: none. Default: 10s.
	Blackout time.Duration
	// Expiration is how long the last report holds. Negative: for ever.
	// Default: 3m.
	Expiration time.Duration
	// Update is how often the weights are made anew. Default: 1s.
	Update time.Duration
	// ErrorPenalty is the utilization that a node's failing all its requests is
	// worth. Negative: none. Default: 1.
	ErrorPenalty float64
	// Rand chooses where to start; it must be safe for concurrent use if the
	// balancer is. Default: the runtime's.
	Rand rand.Source
}

// ReadsReports returns Reported.
func (w WeightedRoundRobin) ReadsReports() bool { return w.Reported }

const leastUpdate = 100 * time.Millisecond

// Validate returns all that is wrong with w, joined; [New] does so too.
func (w WeightedRoundRobin) Validate() error {
	var errs []error
	if w.Update != 0 && w.Update < leastUpdate {
		errs = append(errs, fmt.Errorf("balancer: WeightedRoundRobin.Update is %v, want >= %v", w.Update, leastUpdate))
	}
	if !(math.Abs(w.ErrorPenalty) <= math.MaxFloat64) { // NaN as well
		errs = append(errs, fmt.Errorf("balancer: WeightedRoundRobin.ErrorPenalty is %v, want a finite number", w.ErrorPenalty))
	}
	return errors.Join(errs...)
}

// NewPicker returns the picker for nodes.
func (w WeightedRoundRobin) NewPicker(nodes []*Node) Picker {
	if w.Expiration == 0 {
		w.Expiration = 3 * time.Minute
	}
	w.Blackout = inherit.Or(w.Blackout, 10*time.Second)
	w.Update = max(inherit.Or(w.Update, time.Second), leastUpdate)
	w.ErrorPenalty = inherit.Or(w.ErrorPenalty, 1)
	p := &weighted{nodes: nodes, weights: make([]atomic.Uint32, len(nodes)), cfg: w, owner: nodes[0].owner}
	p.renew(p.owner.since(time.Time{}))
	p.next.Store(draw{w.Rand}.uint64() >> 33)
	return p
}

const strideMax = math.MaxUint16

type weighted struct {
	nodes   []*Node
	weights []atomic.Uint32 // scaled so that the heaviest has strideMax
	cfg     WeightedRoundRobin
	owner   *Balancer
	renewAt atomic.Int64
	_       [64]byte
	next    atomic.Uint64
	_       [64]byte
}

func (p *weighted) Pick(call Call) *Node {
	if due := p.renewAt.Load(); due != math.MaxInt64 {
		if now := p.owner.since(call.Now); now >= due && p.renewAt.CompareAndSwap(due, now+int64(p.cfg.Update)) {
			p.renew(now)
		}
	}
	var node *Node
	for range 1 + len(call.Avoid) {
		if node = p.turn(); !call.avoids(node) {
			break
		}
	}
	return node
}

// renew makes the weights anew. Those who pick meanwhile find some of the old and
// some of the new, which does no harm.
func (p *weighted) renew(now int64) {
	known, sum := 0, 0.0
	if p.cfg.Reported {
		for _, n := range p.nodes {
			if w := n.reportedWeight(&p.cfg, now); w > 0 {
				known, sum = known+1, sum+w
			}
		}
	}
	warm := true
	weight := func(n *Node) float64 {
		inverse := n.inverseWeight(p.owner, now)
		warm = warm && n.unwell.Load()&warming == 0
		if known < 2 {
			return 1 / inverse
		}
		w := n.reportedWeight(&p.cfg, now)
		if w == 0 {
			w = sum / float64(known)
		}
		return w / (inverse * n.weight()) // the slow start alone
	}
	top := 0.0
	for _, n := range p.nodes {
		top = max(top, weight(n))
	}
	for i, n := range p.nodes {
		p.weights[i].Store(uint32(min(max(1, math.Round(weight(n)/top*strideMax)), strideMax)))
	}
	if !p.cfg.Reported && warm {
		p.renewAt.Store(math.MaxInt64) // nothing will change them any more
	} else {
		p.renewAt.Store(now + int64(p.cfg.Update))
	}
}

// reportedWeight is gRFC A58's; 0 if there is none at the moment.
func (n *Node) reportedWeight(cfg *WeightedRoundRobin, now int64) float64 {
	word := n.server.rps.Load()
	rps, tick := unpackEstimate(word)
	if rps == 0 {
		return 0
	}
	age := time.Duration(ticksSince(now>>tickShift, tick)) << tickShift
	if cfg.Expiration > 0 && age >= cfg.Expiration {
		n.server.rps.CompareAndSwap(word, 0) // the next report begins a new series
		return 0
	}
	if time.Duration(now-n.server.since.Load()) < cfg.Blackout {
		return 0
	}
	utilization, errors := unpackRate(n.server.usage.Load())
	return float64(rps) / (float64(utilization) + float64(errors)*cfg.ErrorPenalty)
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
		weight := uint64(p.weights[i].Load())
		mod := (weight*round + i*(strideMax/2)) % strideMax
		if mod >= strideMax-weight {
			return p.nodes[i]
		}
	}
}
