package balancer

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/internal/hash"
)

// DefaultBound is the bound of policies that hash: a node takes a quarter more than
// its part of what is in flight, and no more.
const DefaultBound = 1.25

// member is a node as policies that hash see it.
type member struct {
	*Node
	hash   uint64  // of its identity
	weight float64 // the endpoint's: slow start must not move keys
	part   float64 // bound · weight
}

// bounded is what the pickers that hash have in common: the nodes, in an order that
// depends on nothing but their identities, and how much each of them may have in
// flight.
//
// The rule is that of consistent hashing with bounded loads (Mirrokni, Thorup and
// Zadimoghaddam, 2016): with A calls in flight on all nodes, a node takes another
// only if it has fewer than ⌈bound · (A+1) · weight/Σweight⌉.
type bounded struct {
	keyless p2cInFlight
	seed    uint64
	members []member
	weights float64 // the sum
	most    int64   // Config.MaxConcurrency, which nobody may exceed either

	_     [64]byte // what follows changes, what lies before is read by every pick
	total atomic.Int64
	until atomic.Int64 // how long total holds
}

// Up to countNodes nodes, what is in flight is counted by every pick that must know
// it. Of more it is counted anew after countEvery, or if a node seems to be full by
// the last count.
const (
	countNodes = 128
	countEvery = int64(time.Millisecond)
)

// validateBound returns what is wrong with the bound of a policy.
func validateBound(policy string, bound float64) error {
	if bound <= 0 || bound >= 1 && finite(bound) {
		return nil
	}
	return fmt.Errorf("balancer: %s.Bound is %v, want a finite number >= 1, or below 0 for no bound", policy, bound)
}

func (b *bounded) init(nodes []*Node, seed uint64, bound float64, source rand.Source) {
	switch {
	case bound < 0:
		bound = math.Inf(1)
	case !(bound > 0): // 0, or not a number
		bound = DefaultBound
	}
	bound = max(bound, 1) // with less, all could be full at once
	owner := nodes[0].owner
	b.keyless = p2cInFlight{p2c{nodes: nodes, draw: draw{source}, owner: owner}}
	b.seed = seed
	b.most = math.MaxInt64
	if owner.cfg.MaxConcurrency > 0 {
		b.most = int64(owner.cfg.MaxConcurrency)
	}
	b.members = make([]member, len(nodes))
	for i, n := range nodes {
		w := n.weight()
		b.members[i] = member{Node: n, hash: hash.String(seed, n.key), weight: w, part: bound * w}
	}
	slices.SortFunc(b.members, func(x, y member) int {
		return cmp.Or(cmp.Compare(x.hash, y.hash), strings.Compare(x.key, y.key))
	})
	for i := range b.members { // in this order, so that the sum is the same to the last bit
		b.weights += b.members[i].weight
	}
}

// fits reports whether m may take another call while all nodes have total in
// flight.
func (b *bounded) fits(m *member, total int64) bool {
	own := inFlightOf(m.load.Load())
	return own < b.most && float64(own)*b.weights < m.part*float64(total+1)
}

// roomy is fits for what is known without counting. If it is false, one has to
// count.
func (b *bounded) roomy(m *member, call *Call) bool {
	if b.fits(m, inFlightOf(m.load.Load())) { // all have at least what this one has
		return true
	}
	return len(b.members) > countNodes && b.keyless.owner.since(call.Now) < b.until.Load() && b.fits(m, b.total.Load())
}

// count returns what all nodes have in flight.
func (b *bounded) count(call *Call) int64 {
	total := int64(0)
	for i := range b.members {
		total += inFlightOf(b.members[i].load.Load())
	}
	if len(b.members) > countNodes {
		b.total.Store(total)
		b.until.Store(b.keyless.owner.since(call.Now) + countEvery)
	}
	return total
}
