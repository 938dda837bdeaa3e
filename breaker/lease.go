package breaker

import (
	"time"

	"github.com/backstay/backstay/outcome"
)

// Lease is permission for one call. The caller returns it with Done once the
// call is over, on every way out: defer it where the call may panic. A caller
// that learns of an answer before its end reports that with Answered first.
//
// A lease is a value for the caller's stack or struct. It must not be copied
// once a method was called, and is not safe for concurrent use. The zero Lease
// does nothing.
type Lease struct {
	period *period // nil once there is nothing more to say
	start  int64   // when it was given, if that is needed
	probe  uint32  // 0: not a probe
	stage  stage
}

type stage uint8

const (
	given  stage = iota
	passed       // answered with success: the body may still break
	judged
)

// Answered reports the peer's answer: an HTTP response's headers, a stream's
// begin, or that there will be none. This is the breaker's verdict, the end of a
// probe, and the moment up to which slowness is measured. Only the first call
// has an effect.
func (l *Lease) Answered(now time.Time, o outcome.Outcome) {
	p := l.period
	if p == nil || l.stage != given {
		return
	}
	l.stage = judged
	switch o.Class {
	case outcome.Success:
		l.stage = passed
		if p.plain && l.probe == 0 {
			p.win.at(p.b.nanos(now)).calls.Add(1)
			return
		}
	case outcome.Failure:
	default:
		if l.probe == 0 {
			return
		}
	}
	l.judge(p.b.nanos(now), o)
}

// judge is Answered where there is more to do than to count a success.
func (l *Lease) judge(t int64, o outcome.Outcome) {
	p := l.period
	slow := p.timed && t-l.start >= int64(p.set.SlowTime)
	bad := o.Class == outcome.Failure
	if l.probe == 0 {
		p.win.count(t, 1, o, slow)
	} else if !p.probed(l.probe, t, 1, o, slow) {
		*l = Lease{} // it lost its place: another speaks for it
		return
	}
	if bad || slow && o.Class == outcome.Success {
		p.failed(t, o.Err)
	}
}

// Done reports the end of the call, and returns the lease. Without Answered
// before, it is that too. After an answer that was a success, a failure here (a
// body that broke) is counted as one; everything else was said by the answer.
// Only the first call has an effect.
func (l *Lease) Done(now time.Time, o outcome.Outcome) {
	switch {
	case l.stage == given:
		l.Answered(now, o)
	case l.stage == passed && o.Class == outcome.Failure:
		l.stage = judged
		l.broke(l.period.b.nanos(now), o)
	}
	if l.stage == passed && l.period.set.Consecutive > 0 && l.period.win.run.Load() != 0 {
		l.period.win.run.Store(0)
	}
	*l = Lease{}
}

// broke counts a failure after an answer that was counted as a success: no call
// more, for there was one.
func (l *Lease) broke(t int64, o outcome.Outcome) {
	p := l.period
	if l.probe == 0 || !p.probed(l.probe, t, 0, o, false) {
		p.win.count(t, 0, o, false)
	}
	p.failed(t, o.Err)
}
