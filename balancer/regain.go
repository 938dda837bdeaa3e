package balancer

import (
	"cmp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/outcome"
)

// regain is how a node comes back to its calls after its breaker has closed. Probes
// tell that it answers, and not how much it can bear: breakers that an overload has
// opened close one after the other, and the first node would get the calls of all,
// fail again, and so would the next one.
//
// So the node may have as many calls awaiting an answer as there were probes, and
// then one more for each good answer: twice as many with each round of answers. When
// they take regainSlack times as long as before, on average, calls wait for each other
// at the node; then it is one more with each round. A single slow answer means nothing,
// and what goes on for long enough is how the node is: so what there was before is a
// mean that goes down at once and up slowly.
//
// A failure takes back a good answer, so that a node comes back whose breaker stays
// closed. But calls that wait for too long fail together. When half of those fail that
// awaited an answer when the first of them did, it has been too much: half are left,
// and beyond that half it is one more with each round. (So does TCP with what is lost:
// RFC 5681.) Without that, nodes that had come back took turns at being given too much
// and too little for as long as the load was near what they can do. After regainMost
// without such a loss, the node is what it is: both measures are taken anew.
//
// There are never more than twice as many as have been needed. It is over when nobody
// has been refused for regainQuiet and calls do not wait for each other, or if the node
// has answered hardly anybody in regainMost, so that nothing is known. Calls that are
// LatencyNeutral are neither counted nor refused.
type regain struct {
	gate atomic.Uint64 // the node's while it is regaining; else 0

	mu       sync.Mutex
	awaiting int     // calls of this gate that have no answer yet
	peak     int     // the most there have been
	allowed  float64 // how many there may be
	least    float64
	quick    int64 // what an answer takes; 0 until regainSample are here
	slow     bool  // they take longer
	round    int64 // after how many good answers that is thought over
	answers  int64 // those so far
	took     int64 // all of them
	began    int64
	refused  int64   // when somebody last was
	cut      int64   // when a call failed that was sent after the cut before
	lost     int     // how many have failed since then that were sent before it
	floor    float64 // half of what there might be then
	bend     float64 // beyond it there is one more with each round; 0 if it is not known
	bent     int64   // when half of them were lost
}

const (
	regainSlack  = 2
	regainSample = 16
	regainRise   = 24 // the rounds in which quick goes most of the way up

	regainQuiet = int64(10 * time.Second)
	regainMost  = int64(time.Minute)
)

// regains reports whether a change of the breaker is the node's coming back.
func (b *Balancer) regains(e breaker.StateChanged) bool {
	return e.To == breaker.Closed && e.Reason == breaker.ReasonProbesSucceeded && !b.cfg.ObserveOnly
}

// begin is called before the node has this gate.
func (r *regain) begin(b *Balancer, gate uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, probes := b.since(clock.Now()), float64(cmp.Or(b.cfg.Breaker.Probes, 3))
	r.awaiting, r.peak, r.allowed, r.least, r.began, r.refused = 0, 0, probes, probes, at, at
	r.quick, r.slow, r.answers, r.took, r.round = 0, false, 0, 0, regainSample
	r.cut, r.lost, r.floor = at, 0, probes
	r.gate.Store(gate)
}

// admits counts another call, or returns how many there may be; or says that it is
// over.
func (r *regain) admits(gate uint64, at int64) (most int, over bool) {
	if r.gate.Load() != gate {
		return 0, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.gate.Load() != gate:
	case r.over(at):
		r.gate.Store(0)
		return 0, true
	case r.awaiting < int(r.allowed):
		r.awaiting++
		r.peak = max(r.peak, r.awaiting)
	default:
		r.refused = at
		return int(r.allowed), false
	}
	return 0, false
}

// limit returns how many calls there may be; 0 if it is over, or the node is not
// regaining anything.
func (r *regain) limit(gate uint64, at int64) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if gate&gateState != gateAsk || r.gate.Load() != gate || r.over(at) {
		return 0
	}
	return int(r.allowed)
}

// over reports whether the node has regained its calls. r.mu is held.
func (r *regain) over(at int64) bool {
	return at-r.refused > regainQuiet && !r.slow || at-r.began > regainMost && r.quick == 0
}

// answered takes back what admits has counted, and learns from it.
func (r *regain) answered(gate uint64, at, elapsed int64, class outcome.Class) {
	if r.gate.Load() != gate {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gate.Load() != gate {
		return
	}
	r.awaiting--
	switch class {
	case outcome.Success:
		r.good(at, elapsed)
	case outcome.Neutral:
	default:
		r.failed(at, elapsed)
	}
}

// failed takes a failure into account. r.mu is held.
func (r *regain) failed(at, elapsed int64) {
	if at-elapsed >= r.cut {
		r.cut, r.lost, r.floor = at, 0, max(r.allowed/2, r.least)
	}
	r.allowed = max(r.allowed-r.step(), r.floor)
	if r.lost++; float64(r.lost) >= max(r.floor, regainSample) {
		r.allowed, r.bend, r.bent = r.floor, r.floor, at
	}
}

// step is what an answer makes of what there may be. r.mu is held.
func (r *regain) step() float64 {
	if r.slow || r.bend > 0 && r.allowed >= r.bend {
		return 1 / r.allowed
	}
	return 1
}

// good takes a good answer into account. r.mu is held.
func (r *regain) good(at, elapsed int64) {
	r.answers++
	r.took += elapsed
	if r.quick > 0 && r.answers >= regainSample {
		r.slow = r.took > regainSlack*r.quick*r.answers
	}
	if r.allowed < 2*float64(r.peak) {
		r.allowed += r.step()
	}
	if r.answers < r.round {
		return
	}
	mean := max(r.took/r.answers, 1)
	switch {
	case at-max(r.began, r.bent) > regainMost:
		r.quick, r.bend = mean, 0
	case r.quick == 0 || mean < r.quick:
		r.quick = mean
	default:
		r.quick += (mean - r.quick) / regainRise
	}
	r.answers, r.took, r.round = 0, 0, max(regainSample, int64(r.allowed))
}
