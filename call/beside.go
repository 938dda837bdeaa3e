package call

import "slices"

// Lend prepares f for a frame that may be put beside it by another goroutine
// ([Frame.Beside]) while f's own is busy with an attempt. Whoever calls it, on f's
// goroutine, calls [Frame.Reclaim] there if no such frame was made.
func (f *Frame) Lend() {
	if f != nil && !f.shared {
		f.shared, f.lent = true, true
	}
}

// Reclaim undoes Lend: there is no frame beside f, and nobody will make one.
func (f *Frame) Reclaim() {
	if f != nil && f.lent {
		f.shared, f.lent = false, false
	}
}

// Beside returns a frame for a hedge: an attempt of f's call that is made while
// one of f's own is under way. What is known of the call is the same in both,
// the nodes that it has tried and its log among them; each has its own answer.
// f has been lent, or is shared anyway. With elsewhere the attempt must not go to
// a node that the call has tried.
func (f *Frame) Beside(elsewhere bool) *Frame {
	if f == nil {
		return nil
	}
	f.lock()
	defer f.unlock()
	return &Frame{
		info: f.info, chain: f.chain, entry: f.entry, log: f.log,
		deadline: f.deadline, attemptTimeout: f.attemptTimeout, bodyIdle: f.bodyIdle, retrying: f.retrying,
		latencyNeutral: f.latencyNeutral, subset: f.subset, elsewhere: elsewhere,
		shared: true, of: f,
	}
}

// Apart returns a frame for the attempt that f's call is about to make, if that is
// made by another goroutine and may go on when the call is over. It is like one that
// is [Frame.Beside] f, but its attempt is no hedge, and bears what f has noted for
// the next one: the wait, and why there is one. f has been lent, or is shared anyway.
func (f *Frame) Apart() *Frame {
	apart := f.Beside(false)
	if apart == nil {
		return nil
	}
	apart.own = true
	f.lock()
	apart.slept, apart.why, apart.budget, apart.refused = f.slept, f.why, f.budget, f.refused
	f.slept, f.why, f.budget, f.refused = 0, "", 0, nil
	f.unlock()
	return apart
}

// Elsewhere reports whether the attempt must go to a node that the call has not
// tried, or be refused.
func (f *Frame) Elsewhere() bool { return f != nil && f.elsewhere }

// Claim reports whether the attempt may go to a node, by its identity: always, but
// for one that must go [Frame.Elsewhere]. That may unless an attempt of the call has
// been sent there, or another one like it claims the node. It claims the node that it
// has asked for last: who passes a node over leaves it to the others.
func (f *Frame) Claim(node any) bool {
	if !f.Elsewhere() {
		return true
	}
	of := f.call()
	of.lock()
	defer of.unlock()
	if of.tried(node) || slices.ContainsFunc(of.claims, func(c claim) bool { return c.node == node && c.by != f }) {
		return false
	}
	of.claims = append(slices.DeleteFunc(of.claims, func(c claim) bool { return c.by == f }), claim{node, f})
	return true
}

// claim is a node that a frame has chosen, and not been sent to yet.
type claim struct {
	node any
	by   *Frame
}

// Adopt makes the answer of a frame beside f that of f: see [Frame.Outcome]. Both
// attempts are over. What refused the attempt of one that is [Frame.Apart] is f's
// again.
func (f *Frame) Adopt(beside *Frame) {
	if f == nil {
		return
	}
	beside.lock()
	answer, o, answered := beside.answer, beside.outcome, beside.answered
	var refused []Refusal
	if beside.own {
		refused, beside.refused = beside.refused, nil
	}
	beside.unlock()
	f.lock()
	f.answer, f.outcome, f.answered = answer, o, answered
	f.refused = append(f.refused, refused...)
	f.unlock()
}

// call returns the frame that holds the call's attempts: f, or the one that f is
// beside.
func (f *Frame) call() *Frame {
	if f.of != nil {
		return f.of
	}
	return f
}

// Share says that others may look at f from now on, as Carry does.
func (f *Frame) Share() {
	if f == nil || f.shared && !f.lent {
		return
	}
	f.shared, f.lent = true, false
}
