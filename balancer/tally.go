package balancer

import (
	"math"
	"math/bits"
	"time"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

// A node counts its good answers in a tally of its own, one addition each, and
// hands the sum on when the tally's time is over: to the rate, which forgets by
// and by, and to the breaker's window. Everything else is handed on at once, the
// tally first. So a good answer touches neither.

// rateDecay is the time in which answers lose their weight in the failure rate,
// by a factor of e: half of [Decay], for a node that has healed should not wait
// long for its calls.
const rateDecay = Decay / 2

// doubt is how many good answers a node is taken to have given besides those
// that were seen, so that a single failure does not count for much.
const doubt = 5

// tallyShift returns how long a tally lasts, as a power of two of nanoseconds:
// about a second, and no longer than a step of the breaker's window.
func tallyShift(window time.Duration) uint8 {
	step := uint64(min(window/10, time.Second<<1)) //nolint:gosec // positive
	return uint8(min(bits.Len64(step)-1, 30))      //nolint:gosec // small
}

// The rate is a word of two float32: answers and failures, as they weighed at
// the beginning of the tally.
func packRate(answers, failures float32) uint64 {
	return uint64(math.Float32bits(answers))<<32 | uint64(math.Float32bits(failures))
}

func unpackRate(word uint64) (answers, failures float32) {
	return math.Float32frombits(uint32(word >> 32)), math.Float32frombits(uint32(word)) //nolint:gosec // two halves
}

// count takes an answer into the rate, and tells the breaker if the node's gate
// still is the lease's: an answer to a call of another time says nothing now. What
// it returns is to be added to the node's load: a good answer.
func (n *Node) count(l *Lease, at int64, o *outcome.Outcome) uint64 {
	b := l.owner
	free := l.gate&gateState == gateFree && l.gate == n.gate.Load()
	if free && o.Class == outcome.Success {
		if uint32(at>>b.tallyShift) != n.tally.Load() { //nolint:gosec // modular
			n.handOn(b, at)
		}
		return oneAnswer // of whichever tally it is by then
	}
	n.handOn(b, at)
	failures := float32(0)
	if o.Class == outcome.Failure {
		failures = 1
	}
	n.addRate(1, 1, failures)
	switch {
	case l.gate&gateState != gateFree:
		l.breaker.Answered(b.at(at), *o)
	case free && failures > 0:
		now := b.at(at)
		if verdict, err := n.breaker.Acquire(now); err == nil {
			verdict.Done(now, *o)
		}
	}
	return 0
}

// countBroken makes a failure of an answer that had been counted as good.
func (n *Node) countBroken(l *Lease, at int64, o *outcome.Outcome) {
	if l.gate&gateState != gateFree {
		n.handOn(l.owner, at) // the gate may be free by now
		n.addRate(1, 0, 1)
		return // and the breaker's lease does the same for the breaker
	}
	for l.gate == n.gate.Load() { // else the tally holds the answers of another time
		load := n.load.Load()
		if answersOf(load) == 0 {
			break // handed on already: it counts as another answer
		}
		if n.load.CompareAndSwap(load, load-oneAnswer) {
			break
		}
	}
	n.count(l, at, o)
}

// handOn begins a new tally, if it is time for one, and takes what the last one
// held into the rate and, if the breaker is closed, into its window.
func (n *Node) handOn(b *Balancer, at int64) {
	last := n.tally.Load()
	number := uint32(at >> b.tallyShift)        //nolint:gosec // modular
	passed := max(int64(int32(number-last)), 0) //nolint:gosec // modular; another processor may be ahead by one
	if passed > 0 && !n.tally.CompareAndSwap(last, number) {
		return // somebody else does it
	}
	answers := n.takeAnswers()
	if answers == 0 && passed == 0 {
		return
	}
	n.addRate(rateWeight(passed<<b.tallyShift), float32(answers), 0)
	if answers > 0 && n.gate.Load()&gateState == gateFree {
		if passed > 0 { // they are no younger than their tally's end
			at = (at>>b.tallyShift - passed + 1) << b.tallyShift
		}
		n.breaker.Succeeded(b.at(at), int(answers)) //nolint:gosec // 24 bits
	}
}

// takeAnswers returns the good answers of the tally, which has none then.
func (n *Node) takeAnswers() uint64 {
	for {
		load := n.load.Load()
		answers := answersOf(load)
		if answers == 0 || n.load.CompareAndSwap(load, load-answers*oneAnswer) {
			return answers
		}
	}
}

// addRate adds to the rate and ages it by weight.
func (n *Node) addRate(weight, answers, failures float32) {
	if answers > 0 {
		n.answered.Add(int64(answers))
	}
	if failures > 0 {
		n.failedCalls.Add(int64(failures))
	}
	for {
		word := n.rate.Load()
		a, f := unpackRate(word)
		if n.rate.CompareAndSwap(word, packRate((a+answers)*weight, (f+failures)*weight)) {
			return
		}
	}
}

func rateWeight(age int64) float32 {
	if age <= 0 {
		return 1
	}
	return float32(math.Exp(-float64(age) / float64(rateDecay)))
}

// rates returns the decayed answers and failures.
func (n *Node) rates(b *Balancer, at int64) (answers, failures float64) {
	a, f := unpackRate(n.rate.Load())
	recent := answersOf(n.load.Load())
	passed := int32(uint32(at>>b.tallyShift) - n.tally.Load())                 //nolint:gosec // modular
	age := int64(max(passed, 0))<<b.tallyShift + at&(int64(1)<<b.tallyShift-1) // since the tally's beginning
	weight := rateWeight(age)
	return float64((a + float32(recent)) * weight), float64(f * weight)
}

// failed reports whether any answer failed in the time that the rate remembers.
func (n *Node) failed() bool { return uint32(n.rate.Load()) != 0 } //nolint:gosec // the failures

// failureRate is the share of recent answers that failed.
func (n *Node) failureRate(b *Balancer, at int64) float64 {
	if !n.failed() {
		return 0
	}
	answers, failures := n.rates(b, at)
	return failures / (answers + doubt)
}

// What a node's gate says of its breaker: the low bits its state, the others how
// often that has changed. It is kept by the breaker's events, so that nobody
// asks the breaker anything while holding the balancer's lock, and nobody needs
// a lease of a breaker that lets everything through.
const (
	gateFree     = iota // closed: answers are counted by the tally
	gateAsk             // closed, but every call needs a lease
	gateOpen            // until openUntil
	gateHalfOpen        //
	gateState    = 3    // the mask for these
)

func (n *Node) breakerChanged(e breaker.StateChanged) {
	b := n.owner
	state := b.closedGate
	switch e.To {
	case breaker.Closed:
		if b.regains(e) {
			state = gateAsk
		}
	case breaker.HalfOpen:
		state = gateHalfOpen
	case breaker.Open:
		state = gateOpen
		until := int64(math.MaxInt64)
		if !e.Until.IsZero() { // else held open by hand
			until = b.since(e.Until)
		}
		n.openUntil.Store(until)
	}
	gate := n.gate.Load()&^gateState + gateState + 1 | state
	if b.regains(e) {
		n.regain.begin(b, gate)
	}
	n.gate.Store(gate)
	n.handOn(b, b.since(time.Time{})) // what was counted before is not for this state
	b.reconsider()
}
