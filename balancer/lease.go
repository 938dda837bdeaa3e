package balancer

import (
	"context"
	"errors"
	"time"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

// Lease is permission to send one attempt to a node, given back exactly once:
// [Lease.Answered] at the answer's headers, if they come, and [Lease.Done] at
// the end of the body or stream. Done alone does both. Give it back in a
// deferred call, so that a panic does not keep it. Later calls do nothing; so
// does the zero Lease.
//
// A Lease is a value that must not be copied once in use, and is not safe for
// concurrent use by itself: Answered and Done may come from different
// goroutines, but one after the other.
type Lease struct {
	node    *Node
	owner   *Balancer
	breaker breaker.Lease // inert while the node's gate is free
	gate    uint64        // the node's, when the lease was taken
	start   int64
	place   int32 // the attempt's, in its call's frame, from 1; 0 if it has none there
	state   leaseState
}

type leaseState uint8

const (
	leaseOpen     leaseState = 1 << iota // not done yet
	leaseWaiting                         // counted among those awaiting an answer
	leaseAnswered                        // has been answered
	leaseGood                            // and well
)

// Node returns the node that the attempt goes to; nil for the zero Lease.
func (l *Lease) Node() *Node { return l.node }

// send notes in the frame that an attempt is now being sent to the lease's node.
func (l *Lease) send(frame *call.Frame, now time.Time) {
	n := l.node
	l.place = int32(frame.Send(now, n, n.key, n.endpoint.Load().Addr)) + 1 //nolint:gosec // there are not so many
}

// answer is Answered, noted in the frame with the answer and its status.
func (l *Lease) answer(frame *call.Frame, now time.Time, answer any, status int, o outcome.Outcome) outcome.Outcome {
	o = l.Answered(now, o)
	frame.Answered(now, int(l.place)-1, answer, status, o)
	return o
}

// end is Done, noted in the frame.
func (l *Lease) end(frame *call.Frame, now time.Time, o outcome.Outcome) {
	l.Done(now, o)
	if l.place > 0 {
		frame.Ended(now, int(l.place)-1, o)
	}
}

// acquire takes a lease on n, or says why not: *breaker.OpenError or
// *limit.FullError. *l is the zero Lease, as it is again after an error: it is set
// field by field, for the copy of a whole one has to wait for its parts.
func (n *Node) acquire(b *Balancer, c *Call, now int64, l *Lease) error {
	l.node, l.owner, l.gate, l.start, l.place, l.state = n, b, n.gate.Load(), now, 0, leaseOpen
	if l.gate&gateState != gateFree {
		var err error
		if l.breaker, err = n.breaker.Acquire(b.at(now)); err != nil {
			*l = Lease{}
			return err
		}
	}
	add := oneInFlight
	if !c.LatencyNeutral {
		add += oneAwaiting
		l.state |= leaseWaiting
	}
	load := n.load.Add(add)
	if most := b.cfg.MaxConcurrency; most > 0 && inFlightOf(load) > int64(most) {
		return n.full(add, most, l)
	}
	if l.gate&gateState == gateAsk && !c.LatencyNeutral {
		most, over := n.regain.admits(l.gate, now)
		if most > 0 {
			return n.full(add, most, l)
		}
		if over {
			n.gate.CompareAndSwap(l.gate, l.gate&^gateState+gateState+1|b.closedGate)
		}
	}
	if awaitingOf(load) == 1 && l.start-n.firstWaiter.Load() > 1<<tickShift {
		n.firstWaiter.Store(l.start) // no oftener than anybody can tell by the ticks
	}
	return nil
}

// full takes back what acquire has done.
func (n *Node) full(add uint64, most int, l *Lease) error {
	if load := n.load.Add(-add); inFlightOf(load) == 0 && n.hasLeft() {
		n.leave()
	}
	l.breaker.Done(l.owner.at(l.start), outcome.Outcome{Class: outcome.Neutral})
	*l = Lease{}
	return &limit.FullError{Key: n.breaker.Key(), Max: most}
}

// Answered tells what came of the attempt when the answer's headers are there,
// or when it failed: it ends the wait for the answer, which is the latency that
// counts, and gives the breaker its verdict. It returns the outcome as the node
// sees it: a deadline of the caller's is neutral for those who look at one call,
// but a failure of a node that has had a second and three times the service's
// median, or that has left five such calls in a row without an answer.
func (l *Lease) Answered(now time.Time, o outcome.Outcome) outcome.Outcome {
	if l.state&(leaseOpen|leaseAnswered) != leaseOpen {
		return o
	}
	waiting := l.state&leaseWaiting != 0
	l.state = l.state&^leaseWaiting | leaseAnswered
	o, change := l.learn(l.owner.since(now), !waiting, o)
	if waiting {
		change -= oneAwaiting
	}
	if change != 0 {
		l.node.load.Add(change)
	}
	return o
}

// Done gives the lease back at the end of the body or stream. If the attempt had
// been answered well, a failing outcome counts as one failure: the body broke.
func (l *Lease) Done(now time.Time, o outcome.Outcome) {
	if l.state&leaseOpen == 0 {
		return
	}
	n, at := l.node, int64(0)
	change := ^uint64(0) // −oneInFlight, modular
	// The clock is not read for what nearly always happens: a good answer whose
	// body comes to its end.
	if failed := o.Class == outcome.Failure; failed || l.state&leaseAnswered == 0 || l.gate&gateState != gateFree {
		at = l.owner.since(now)
	}
	switch {
	case l.state&leaseAnswered == 0:
		waiting := l.state&leaseWaiting != 0
		var counted uint64
		o, counted = l.learn(at, !waiting, o)
		change += counted
		if waiting {
			change -= oneAwaiting
		}
	case l.state&leaseGood != 0 && o.Class == outcome.Failure:
		n.countBroken(l, at, &o)
	}
	l.state = 0
	if l.gate&gateState != gateFree {
		l.breaker.Done(l.owner.at(at), o)
	}
	if load := n.load.Add(change); inFlightOf(load) == 0 && n.hasLeft() {
		n.leave()
	}
}

// learn takes what came of the attempt into the node's estimates, and has the
// breaker told. The second result is what the caller has to add to the node's load
// for it.
func (l *Lease) learn(at int64, latencyNeutral bool, o outcome.Outcome) (outcome.Outcome, uint64) {
	n, elapsed := l.node, at-l.start
	if o.Class == outcome.Neutral {
		if o = n.judge(l.owner, elapsed, o); o.Class == outcome.Neutral {
			if !latencyNeutral {
				n.raise(at, elapsed)
				l.regained(at, elapsed, o.Class)
			}
			l.breaker.Answered(l.owner.at(at), o)
			return o, 0
		}
	} else if n.unwell.Load()&unansweredMask != 0 {
		n.unwell.And(^unansweredMask)
	}
	if !latencyNeutral {
		l.regained(at, elapsed, o.Class)
	}
	row, flags := uint32(0), uint32(0)
	switch {
	case o.Class == outcome.Failure:
		row = n.oneMore(failure, failureMask)
	case n.unwell.Load()&(failureMask|probation) != 0:
		flags = n.unwell.And(^failureMask)
	}
	if o.Class == outcome.Success {
		l.state |= leaseGood
	}
	n.observe(at, elapsed, &o, latencyNeutral)
	counted := n.count(l, at, &o)
	switch {
	case row > 0:
		l.owner.failedAgain(n, l.start, at, int(row), &o)
	case flags != 0:
		l.owner.wellAgain(n, flags, l.start, at)
	}
	l.owner.refresh(at)
	return o, counted
}

// regained tells a node that is regaining its calls of an answer. Of any other it does
// not even touch that part.
func (l *Lease) regained(at, elapsed int64, class outcome.Class) {
	if l.gate&gateState == gateAsk {
		l.node.regain.answered(l.gate, at, elapsed, class)
	}
}

const (
	unansweredLimit = 5
	deadlineFloor   = int64(time.Second)
	deadlineFactor  = 3
)

// judge decides whether a neutral outcome is one after all: see Answered.
func (n *Node) judge(b *Balancer, elapsed int64, o outcome.Outcome) outcome.Outcome {
	if !errors.Is(o.Err, context.DeadlineExceeded) || outcome.Refused(o.Err) {
		return o
	}
	enough := max(deadlineFloor, int64(deadlineFactor*b.typicalLatency()))
	if n.oneMore(unanswered, unansweredMask) >= unansweredLimit || elapsed >= enough {
		o.Class = outcome.Failure
	}
	return o
}
