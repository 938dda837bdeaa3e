package breaker

import (
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/outcome"
)

// period is one stretch of a breaker's life in one state, under one mode and one
// configuration. A lease belongs to the period that gave it and counts in that
// one's window, so what it says after the period is over reaches nothing.
type period struct {
	b     *Breaker
	set   *Config
	win   *window
	state State // what calls meet
	mode  Mode
	cause error // of the last time the breaker opened
	timed bool  // slow calls are to be known
	plain bool  // a success only has to be counted

	// next is the time from which on a call may be admitted, or one of the
	// constants below. It is written under the breaker's lock, and read without
	// it by calls: those that come too early need no lock to be refused.
	next atomic.Int64

	// Guarded by the breaker's lock.
	probes    []probe
	lastProbe uint32
	succeeded int
	credit    float64 // of calls to admit while ramping up
}

const (
	always    = math.MinInt64     // every call, no questions
	sometimes = math.MinInt64 + 1 // any time, but ask under the lock
	never     = math.MaxInt64
)

// probe is a place for one call in a half-open period.
type probe struct {
	id      uint32 // of the lease that has it; 0 if none
	granted int64
	free    int64 // when another lease may have it
}

// begin ends the present period, if there is one, and begins the next as the
// breaker's fields say. The caller holds mu, and flushes the events after it.
func (b *Breaker) begin(t int64, why Reason, win *window) {
	set, old := b.set, b.cur.Load()
	p := &period{b: b, set: set, win: win, state: b.state, mode: b.mode, cause: b.cause}
	switch b.mode {
	case ForcedOpen:
		p.state = Open
	case ForcedClosed:
		p.state = Closed
	case Auto, Disabled:
	}
	p.timed = set.SlowTime > 0
	p.plain = !p.timed && set.Consecutive == 0
	if win == nil {
		if old != nil && old.state == Closed && p.state == Closed && old.set.Window == set.Window {
			p.win = old.win
		} else {
			p.win = newWindow(set.Window)
		}
	}
	p.next.Store(always)
	switch {
	case b.mode == ForcedOpen:
		p.next.Store(never)
	case p.state == Open:
		p.next.Store(b.openedAt + b.openFor)
	case p.state == HalfOpen:
		p.next.Store(sometimes)
		p.probes = make([]probe, set.Probes)
		for i := range p.probes {
			p.probes[i].free = sometimes
		}
	case b.mode != ForcedClosed && t-b.closedAt < int64(set.RampUp):
		p.next.Store(sometimes)
		p.credit = 1
	}
	b.cur.Store(p)
	if old != nil {
		b.emit(t, old, p.state, why)
	}
}

// consider is Acquire where not every call is admitted.
func (b *Breaker) consider(now time.Time) (Lease, error) {
	t := b.nanos(now)
	if p := b.cur.Load(); t < p.next.Load() {
		return p.refuse(t)
	}
	b.mu.Lock()
	l, ok := b.admit(t)
	b.mu.Unlock()
	b.events.Flush()
	if !ok {
		return l.period.refuse(t)
	}
	return l, nil
}

// admit returns a lease, or one that only bears the period that refuses.
func (b *Breaker) admit(t int64) (l Lease, ok bool) {
	p := b.cur.Load()
	if p.state == Open && t >= p.next.Load() {
		b.state = HalfOpen
		b.begin(t, ReasonOpenTimeOver, nil)
		p = b.cur.Load()
	}
	l = Lease{period: p, start: t}
	switch {
	case p.next.Load() == always:
		return l, true
	case t < p.next.Load():
		return l, false
	case p.state == Closed:
		return l, p.ramp(t)
	}
	for i := range p.probes {
		if place := &p.probes[i]; place.free <= t {
			p.lastProbe++
			l.probe = p.lastProbe
			*place = probe{id: l.probe, granted: t, free: t + int64(p.set.ProbeTimeout)}
			break
		}
	}
	p.setNext()
	return l, l.probe != 0
}

// setNext notes when the first place is free.
func (p *period) setNext() {
	next := int64(never)
	for i := range p.probes {
		next = min(next, p.probes[i].free)
	}
	p.next.Store(next)
}

// ramp reports whether a call is in the share that a breaker admits that closed
// not long ago. The share is dealt out evenly: chance would refuse in clusters.
func (p *period) ramp(t int64) bool {
	share := float64(t-p.b.closedAt) / float64(p.set.RampUp)
	if share >= 1 {
		p.next.Store(always)
		return true
	}
	p.credit += share
	if p.credit < 1 {
		return false
	}
	p.credit--
	return true
}

// refuse returns the error for a call at t, or under Disabled a lease after all:
// one that is counted, but is no probe.
func (p *period) refuse(t int64) (Lease, error) {
	if p.mode == Disabled {
		return Lease{period: p, start: t}, nil
	}
	e := &OpenError{Key: p.b.key, Err: p.cause}
	switch next := p.next.Load(); {
	case p.mode == ForcedOpen:
		e.Reason, e.Err = ReasonForcedOpen, nil
	case p.state == Open:
		e.Reason, e.RetryAfter = ReasonOpen, time.Duration(next-t)
	case p.state == HalfOpen:
		// The probes should be answered long before they lose their places.
		e.Reason, e.RetryAfter = ReasonProbing, min(max(time.Duration(next-t), 0), time.Second)
	default:
		e.Reason = ReasonRampingUp
	}
	return Lease{}, e
}

// failed looks at the thresholds after a call that failed, with err, or was slow.
func (p *period) failed(t int64, err error) {
	b, set := p.b, p.set
	if p.state != Closed || p.mode == ForcedClosed || b.cur.Load() != p {
		return
	}
	var why Reason
	c := p.win.sum(t)
	switch enough := c.calls >= int64(set.MinCalls); {
	case enough && reaches(c.failures, c.calls, set.FailureRate):
		why = ReasonFailureRate
	case enough && p.timed && reaches(c.slow, c.calls, set.SlowRate):
		why = ReasonSlowRate
	case set.Consecutive > 0 && p.win.run.Load() >= int64(set.Consecutive):
		why = ReasonConsecutive
	default:
		return
	}
	random := set.Rand()
	b.mu.Lock()
	if b.cur.Load() == p {
		if t-b.closedAt >= int64(set.Window) {
			b.opens = 0
		}
		b.open(t, why, err, random)
	}
	b.mu.Unlock()
	b.events.Flush()
}

// open opens the breaker. The caller holds mu, so it has drawn the random number
// before: Config.Rand is a call out.
func (b *Breaker) open(t int64, why Reason, err error, random float64) {
	b.opens++
	b.state, b.openedAt, b.cause = Open, t, err
	b.openFor = int64(b.set.openTime(b.opens, random))
	b.begin(t, why, nil)
}

// probed counts the outcome of the probe with the given id, as that many calls,
// and reports whether it still had its place.
func (p *period) probed(id uint32, t, calls int64, o outcome.Outcome, slow bool) bool {
	b, random := p.b, p.set.Rand()
	b.mu.Lock()
	kept := b.cur.Load() == p && p.settle(id, t, calls, o, slow, random)
	b.mu.Unlock()
	b.events.Flush()
	return kept
}

func (p *period) settle(id uint32, t, calls int64, o outcome.Outcome, slow bool, random float64) bool {
	i := slices.IndexFunc(p.probes, func(place probe) bool { return place.id == id })
	if i < 0 {
		return false
	}
	p.win.count(t, calls, o, slow)
	b, place := p.b, &p.probes[i]
	switch {
	case o.Class == outcome.Failure:
		b.open(t, ReasonProbeFailed, o.Err, random)
	case o.Class != outcome.Success:
		place.id, place.free = 0, place.granted+int64(p.set.ProbeInterval)
		p.setNext()
	case slow:
		b.open(t, ReasonProbeSlow, nil, random)
	default:
		place.free = never // and keep the id: the body may break yet
		p.setNext()
		if p.succeeded++; p.succeeded == len(p.probes) {
			b.state, b.closedAt = Closed, t
			b.begin(t, ReasonProbesSucceeded, nil)
		}
	}
	return true
}
