package balancer

import (
	"slices"
	"time"
)

// Call is what a policy may know of the call that it picks a node for. It is in
// neutral terms, so that HTTP and gRPC share the policies.
type Call struct {
	// Now is the present time. Default: the clock is read.
	Now time.Time
	// Avoid are the nodes that this call has tried, or that refused it: they
	// are picked only if there is nobody else. The slice is not kept.
	Avoid []*Node
	// LatencyNeutral keeps the call out of the latency estimate and of the
	// count of those awaiting an answer: for long polls, whose latency says
	// nothing about the node. Default: false.
	LatencyNeutral bool
	// Key is what policies that hash go by, [Rendezvous] and [Maglev]: calls with
	// the same key go to the same node. Default: none, and they choose by load.
	Key string
	// Subset is the one of Config.Subsets that the call goes to. Default: all
	// nodes.
	Subset string
	// Node is the identity of the only node that will do, to look into what is
	// wrong with it: nothing but an open breaker, a full node or its having left
	// keeps the call from it. Default: any.
	Node string
}

func (c *Call) avoids(n *Node) bool { return slices.Contains(c.Avoid, n) }

// Policy decides how nodes are chosen. The balancer asks it for a new [Picker]
// whenever the eligible nodes change; what a node is like (its latency, what it
// has in flight) lives in the [Node] and survives.
//
// NewPicker is called with at least one node, each of them once, possibly by
// several goroutines at once ([Balancer.View]). It may keep the slice and must
// not change it. It must be fast and must not call the balancer. A policy that
// returns nil, or panics ([PolicyFailed]), leaves the choice to chance. One that has
// a method Validate() error is asked by [New] whether its settings make sense.
type Policy interface {
	NewPicker(nodes []*Node) Picker
}

// Picker chooses among the nodes that it was made for. Pick is called by many
// goroutines at once, must not block and should not allocate. It should not
// choose a node that call.Avoid lists if there is another; the balancer
// looks after those that do. Returning nil leaves the choice to chance.
type Picker interface {
	Pick(call Call) *Node
}

// KeyReader is a [Policy] that goes by Call.Key: only for those are contexts
// ([WithKey]) and requests ([HashKey]) looked at for one.
type KeyReader interface {
	ReadsKeys() bool
}

func readsKeys(p Policy) bool {
	k, ok := p.(KeyReader)
	return ok && k.ReadsKeys()
}

// PolicyFunc is a function that is a [Policy].
type PolicyFunc func(nodes []*Node) Picker

// NewPicker calls f.
func (f PolicyFunc) NewPicker(nodes []*Node) Picker { return f(nodes) }

// PickerFunc is a function that is a [Picker].
type PickerFunc func(call Call) *Node

// Pick calls f.
func (f PickerFunc) Pick(call Call) *Node { return f(call) }
