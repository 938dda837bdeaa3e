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
// then one more for each good answer that takes no longer than regainSlack times the
// first ones did: twice as many with each round of answers. Slower answers are a
// sign that calls wait for each other at the node; then it is one more with each
// round. A failure halves it. It is over when nobody has been refused for regainQuiet,
// and in any case after regainMost, for a service may have reasons of its own to
// answer slowly. Calls that are LatencyNeutral are neither counted nor refused.
type regain struct {
	gate atomic.Uint64 // the node's while it is regaining; else 0

	mu       sync.Mutex
	awaiting int     // calls of this gate that have no answer yet
	allowed  float64 // how many there may be
	least    float64
	quick    int64 // the least time to an answer so far
	began    int64
	refused  int64 // when somebody last was
}

const (
	regainSlack = 2
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
	r.awaiting, r.allowed, r.least, r.quick, r.began, r.refused = 0, probes, probes, 0, at, at
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
	case at-r.began > regainMost || at-r.refused > regainQuiet:
		r.gate.Store(0)
		return 0, true
	case r.awaiting < int(r.allowed):
		r.awaiting++
	default:
		r.refused = at
		return int(r.allowed), false
	}
	return 0, false
}

// answered takes back what admits has counted, and learns from it.
func (r *regain) answered(gate uint64, elapsed int64, class outcome.Class) {
	if gate&gateState != gateAsk || r.gate.Load() != gate {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gate.Load() != gate {
		return
	}
	r.awaiting--
	switch {
	case class == outcome.Neutral:
	case class != outcome.Success:
		r.allowed = max(r.allowed/2, r.least)
	case r.quick == 0 || elapsed <= regainSlack*r.quick:
		r.allowed++
		if r.quick == 0 || elapsed < r.quick {
			r.quick = max(elapsed, 1)
		}
	default:
		r.allowed += 1 / r.allowed
	}
}
