package balancer

import (
	"math"
	"time"
)

// Cost says what a node is like at the moment, for the policies that compare:
// the lower the better. Cost must be safe for concurrent use, must not block
// and must not allocate.
type Cost interface {
	Cost(n *Node, now time.Time) float64
}

// PeakEWMA is the default [Cost]: the latency that the next call may expect,
// times the calls that are already waiting for an answer.
//
//	(max(latency, stall) + 5 s · max(0, f − f̄ − 0.1)) · (awaiting + 1) / (weight · slow start)
//
// The latency is an exponentially weighted average of the time to the answer's
// headers, which jumps up at once to any longer time and decays with [Decay]
// (Finagle's PeakEwma). The stall is how long the node has been silent while
// calls await an answer, so that a hang shows before the first call has timed
// out. f is the rate at which the node fails and f̄ the rate of all nodes: what
// counts is failing more than the others, for a penalty on every failure would
// triple the tail as soon as each node fails a call in a hundred.
type PeakEWMA struct{}

// Decay is the time in which the past loses its weight, by a factor of e, in
// each node's estimates.
const Decay = 10 * time.Second

const (
	// penalty is what a node that always fails costs more than one that never
	// does; tolerance is how much more than the others a node may fail.
	penalty   = float64(5 * time.Second)
	tolerance = 0.1
)

// Cost returns the node's cost in nanoseconds.
func (PeakEWMA) Cost(n *Node, now time.Time) float64 { return n.peakEWMA(n.owner, n.owner.since(now)) }

// InFlight is a [Cost] that only counts: the calls awaiting an answer, divided
// by the weight. It knows nothing of other clients' calls and nothing of
// latency; use it where all nodes are alike and latencies say nothing, such as
// for jobs of very different sizes.
type InFlight struct{}

// Cost returns the number of calls awaiting an answer plus one, by weight.
func (InFlight) Cost(n *Node, now time.Time) float64 {
	return n.inFlightCost(n.owner, n.owner.since(now))
}

func (n *Node) inFlightCost(b *Balancer, now int64) float64 {
	return (float64(awaitingOf(n.load.Load())) + 1) * n.inverseWeight(b, now)
}

func (n *Node) peakEWMA(b *Balancer, now int64) float64 {
	awaiting := awaitingOf(n.load.Load())
	estimate, tick := unpackEstimate(n.estimate.Load())
	latency := float64(estimate)
	switch {
	case estimate == 0: // nothing was known when it joined, and refresh has not seen it since
		if latency = b.typicalLatency(); latency == 0 {
			latency = float64(time.Millisecond)
		}
	case estimate < 0: // a seed
		latency = -latency
		fallthrough
	default:
		latency *= decay(now>>tickShift, tick)
	}
	if awaiting > 0 {
		latency = max(latency, float64(n.silence(now, tick)))
	}
	if n.failed() {
		excess := max(n.failureRate(b, now)-b.failureRate(), n.suspicion(now, tick, awaiting))
		latency += penalty * max(0, excess-tolerance)
	}
	return latency * (float64(awaiting) + 1) * n.inverseWeight(b, now)
}

// suspicionDecay is the time in which the suspicion against a node that did
// nothing but fail goes down by a factor of e: after 4.6 s such a node is tried
// again.
const suspicionDecay = 2 * time.Second

// suspicion is 1 for a node whose last answers were all failures, and decays from
// the last of them. The rate alone would need its time: a node that has served a
// thousand calls well must fail a hundred to be one that fails more than a tenth.
// And it would not let go of a node that gets no calls to prove itself with. The
// call that tries such a node is alone until it is answered.
func (n *Node) suspicion(now int64, tick uint32, awaiting uint64) float64 {
	if n.unwell.Load()&failureMask < suspicious*failure {
		return 0
	}
	if awaiting > 0 {
		return 1
	}
	return math.Exp(-float64(int64(ticksSince(now>>tickShift, tick))<<tickShift) / float64(suspicionDecay))
}

// suspicious is how many failures in a row are no chance any more.
const suspicious = 5

// Estimates are stored as one word, so that one compare-and-swap updates value
// and time together: a float32, and the time in ticks of 2^18 ns (262 µs). The
// ticks wrap around after 13 days; a node idle for that long has nothing to
// forget.
const tickShift = 18

func packEstimate(value float32, tick uint32) uint64 {
	return uint64(math.Float32bits(value))<<32 | uint64(tick)
}

func unpackEstimate(word uint64) (value float32, tick uint32) {
	return math.Float32frombits(uint32(word >> 32)), uint32(word) //nolint:gosec // two halves of a word
}

// ticksSince returns how many ticks have passed since tick: none if that was by the
// clock of another processor, a little ahead, and very many if it was so long ago
// that the ticks have wrapped around.
func ticksSince(nowTick int64, tick uint32) int32 {
	switch passed := int32(uint32(nowTick) - tick); { //nolint:gosec // modular on purpose
	case passed >= 0:
		return passed
	case passed > -4096: // a second
		return 0
	}
	return math.MaxInt32
}

const perTick = float64(int64(1)<<tickShift) / float64(Decay)

// decay returns e^(−Δ/Decay) for the ticks that have passed since tick: on a busy node
// mostly none.
func decay(nowTick int64, tick uint32) float64 {
	if uint32(nowTick) == tick { //nolint:gosec // modular on purpose
		return 1
	}
	return decayed(nowTick, tick)
}

// decayed is decay where time has passed, by itself for the other's sake.
func decayed(nowTick int64, tick uint32) float64 {
	passed := ticksSince(nowTick, tick)
	if passed < 512 { // an eighth of a second: a short series is exact enough, and cheap
		x := float64(passed) * perTick
		return 1 - x*(1-x/2)
	}
	return exp2(float64(passed) * (math.Log2E * perTick))
}

// exp2 returns 2^−x for x >= 0, to four digits: a cost need not be more exact, and
// a pick would spend a quarter of its time in math.Exp. The whole part of x goes
// into the exponent; for the rest it is a polynomial that is exact at 0 and 1, so
// that it is continuous.
func exp2(x float64) float64 {
	if x > 1000 {
		return 0
	}
	whole := int64(x)
	f := x - float64(whole)
	p := 1 - f*(0.69314718-f*(0.24003-f*(0.0535-f*0.00661718)))
	return p * math.Float64frombits(uint64(1023-whole)<<52) //nolint:gosec // between 23 and 1023
}
