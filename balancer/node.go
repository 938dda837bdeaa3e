package balancer

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/outcome"
)

// Node is an endpoint with its live state in one balancer. It lives as long as
// the endpoint's identity is in the set, through all updates of its other
// fields. All methods may be called concurrently.
type Node struct {
	// What every pick and every answer touches is one cache line, and nothing
	// lies between those of two nodes: of ten thousand few are in the processor's
	// nearest cache, and each further line would cost as much as the rest of a
	// pick.
	load        atomic.Uint64 // calls awaiting an answer, good answers of the moment, calls in flight; see oneAwaiting
	estimate    atomic.Uint64 // latency and the time of the last answer; see packEstimate
	rate        atomic.Uint64 // decayed answers and failures before the tally
	firstWaiter atomic.Int64  // when the first of those that await an answer began
	gate        atomic.Uint64 // what the breaker lets through; see gateFree
	inverse     atomic.Uint32 // 1/weight, as the bits of a float32
	unwell      atomic.Uint32 // what is not as it mostly is; see leaving
	tally       atomic.Uint32 // the stretch of time that the good answers are of
	_           [4]byte

	*nodeRest
}

// nodeRest is what is not needed for every pick.
type nodeRest struct {
	owner     *Balancer
	key       string
	endpoint  atomic.Pointer[discovery.Endpoint]
	breaker   *breaker.Breaker
	watch     attempt.Watch // the bounds of the attempts on the node
	conn      atomic.Pointer[conn]
	links     links        // connections of DialContext
	ejected   atomic.Int64 // until when the node is ejected; 0: it is not
	openUntil atomic.Int64 // while gateOpen
	unhealthy atomic.Bool  // by its health check
	rampEnd   atomic.Int64 // when slow start ends
	regain    regain       // how it comes back after its breaker was open
	server    reports      // what it says of its own load
	record                 // of its failures
	reported  NodeState    // guarded by owner.mu: what observers know
}

// Node.load counts three things at once, so that the end of a call is one addition:
// in the low 20 bits the calls in flight, in the next 24 the good answers of the
// tally, in the high 20 the calls awaiting an answer.
const (
	oneInFlight uint64 = 1
	oneAnswer   uint64 = 1 << 20
	oneAwaiting uint64 = 1 << 44
)

func inFlightOf(load uint64) int64  { return int64(load % oneAnswer) } //nolint:gosec // 20 bits
func answersOf(load uint64) uint64  { return load / oneAnswer % (oneAwaiting / oneAnswer) }
func awaitingOf(load uint64) uint64 { return load / oneAwaiting }

// The bits of Node.unwell, which is 0 for a node that is well: flags for one that
// has left the set, for one in its slow start and for one that is ejected until a
// call succeeds, and two counts that stop at their
// top.
const (
	probation      uint32 = 1 << 18
	warming        uint32 = 1 << 17
	leaving        uint32 = 1 << 16
	failure        uint32 = 1 << 8 // one in a row; up to 255
	unanswered     uint32 = 1      // one of the callers' deadlines in a row, with no answer between; up to 255
	failureMask    uint32 = 0xff00
	unansweredMask uint32 = 0x00ff
)

// hasLeft reports whether the node has left the set.
func (n *Node) hasLeft() bool { return n.unwell.Load()&leaving != 0 }

// oneMore adds one to a count of unwell, whose bits mask has, and returns how many
// there are now.
func (n *Node) oneMore(one, mask uint32) uint32 {
	for {
		word := n.unwell.Load()
		if word&mask == mask {
			return mask / one
		}
		if n.unwell.CompareAndSwap(word, word+one) {
			return (word + one) & mask / one
		}
	}
}

// Key returns the node's identity: the endpoint's.
func (n *Node) Key() string { return n.key }

// Endpoint returns the endpoint as it was last yielded. It must not be changed.
func (n *Node) Endpoint() discovery.Endpoint { return *n.endpoint.Load() }

// Breaker returns the node's breaker.
func (n *Node) Breaker() *breaker.Breaker { return n.breaker }

// InFlight returns the number of leases that are not done: answers awaited and
// bodies being read.
func (n *Node) InFlight() int { return int(inFlightOf(n.load.Load())) }

// Awaiting returns the number of leases that have not been answered yet.
// [Call.LatencyNeutral] ones do not count.
func (n *Node) Awaiting() int { return int(awaitingOf(n.load.Load())) } //nolint:gosec // 20 bits

// Latency returns the present estimate of the time to an answer's headers, and
// false if nothing has been measured on this node yet.
func (n *Node) Latency(now time.Time) (time.Duration, bool) {
	estimate, tick := unpackEstimate(n.estimate.Load())
	if estimate <= 0 {
		return 0, false
	}
	return time.Duration(float64(estimate) * decay(n.owner.since(now)>>tickShift, tick)), true
}

// FailureRate returns the share of recent calls that failed, between 0 and 1.
// The past decays; five calls' worth of doubt keep a single failure from
// counting for much.
func (n *Node) FailureRate(now time.Time) float64 { return n.failureRate(n.owner, n.owner.since(now)) }

// String returns the node's identity.
func (n *Node) String() string { return n.key }

// observe takes an answer into the node's estimates. The latency is elapsed, or
// what the peer asked for if that is longer. Only a success may lower the
// estimate: a failure's haste is no virtue.
func (n *Node) observe(now, elapsed int64, o *outcome.Outcome, latencyNeutral bool) {
	if o.Class == outcome.Throttled {
		elapsed = max(elapsed, int64(min(o.After, maxThrottle)))
	}
	value := float32(max(elapsed, 1)) // 0 means nothing is known
	for {
		word := n.estimate.Load()
		old, tick := unpackEstimate(word)
		d := float32(decay(now>>tickShift, tick))
		updated := old * d
		switch {
		case latencyNeutral:
		case o.Class == outcome.Success && old <= 0: // the first takes a seed's place
			updated = value
		case value > abs(updated):
			updated = value
		case o.Class == outcome.Success:
			updated += value * (1 - d)
		}
		next := packEstimate(updated, tickOf(now))
		if next == word || n.estimate.CompareAndSwap(word, next) {
			return
		}
	}
}

// seed gives a node of which nothing is known a guess.
func (n *Node) seed(now int64, median float64) {
	word := n.estimate.Load()
	if estimate, _ := unpackEstimate(word); estimate == 0 {
		n.estimate.CompareAndSwap(word, packEstimate(-float32(median), tickOf(now)))
	}
}

// silence returns how long there has been no sign of life, given the tick of the
// last answer, while calls wait: since that answer, or since the first of those
// that wait began.
func (n *Node) silence(now int64, tick uint32) int64 {
	return min(int64(ticksSince(now>>tickShift, tick))<<tickShift, now-n.firstWaiter.Load())
}

// raise takes an attempt that got no answer into the estimate: it took at least
// so long. It says nothing else, and is no sign of life: if others wait, the
// silence so far must not be forgotten with the last answer's tick.
func (n *Node) raise(now, elapsed int64) {
	for {
		word := n.estimate.Load()
		old, tick := unpackEstimate(word)
		if awaitingOf(n.load.Load()) > 0 {
			elapsed = max(elapsed, n.silence(now, tick))
		}
		if float32(elapsed) <= abs(old)*float32(decay(now>>tickShift, tick)) {
			return
		}
		if n.estimate.CompareAndSwap(word, packEstimate(float32(elapsed), tickOf(now))) {
			return
		}
	}
}

func abs(f float32) float32 { return math.Float32frombits(math.Float32bits(f) &^ (1 << 31)) }

func tickOf(now int64) uint32 { return uint32(now >> tickShift) } //nolint:gosec // modular on purpose

// maxThrottle caps what a Retry-After does to the estimate: gRPC and Envoy, too,
// take anything longer for a mistake.
const maxThrottle = 300 * time.Second

// weight returns the endpoint's weight.
func (n *Node) weight() float64 { return float64(1 / math.Float32frombits(n.inverse.Load())) }

// inverseWeight returns 1/weight, more during slow start: a node that has just
// joined is compared as if it could do as little as a tenth.
func (n *Node) inverseWeight(b *Balancer, now int64) float64 {
	inverse := float64(math.Float32frombits(n.inverse.Load()))
	if n.unwell.Load()&warming == 0 {
		return inverse
	}
	left := n.rampEnd.Load() - now
	if left <= 0 {
		n.unwell.And(^warming)
		return inverse
	}
	return inverse / max(slowStartFloor, 1-float64(left)/float64(b.cfg.SlowStart))
}

// warmUp begins the node's slow start.
func (n *Node) warmUp(now int64) {
	n.rampEnd.Store(now + int64(n.owner.cfg.SlowStart))
	n.unwell.Or(warming)
}

const slowStartFloor = 0.1
