package retry

import (
	"context"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/outcome"
)

// function is one call of a function, with its attempts.
type function[T any] struct {
	series
	hedging
	r   *Retrier
	ctx context.Context //nolint:containedctx // the call's
	task[T]
	of      subject
	limits  attempt.Limits
	reached bool // an attempt may have reached the peer

	frame   *call.Frame // nil if there is neither a chain nor a log
	carried bool        // the frame is the call's, and not only for its log

	lane *attempt.Attempt // what to make the next attempt with, if it can be superseded
	now  time.Time        // when the next attempt begins; zero where nobody asks
}

// task is what is called: fn finds the frame in its context, framed is given it.
type task[T any] struct {
	fn         func(context.Context) (T, error)
	framed     func(context.Context, *call.Frame) (T, error) // instead of fn
	repeatable bool                                          // although it may have been acted on
}

func (t *task[T]) do(ctx context.Context, f *call.Frame) (T, error) {
	if t.framed != nil {
		return t.framed(ctx, f)
	}
	return t.fn(ctx)
}

// doWithin is Do where there is more to it than to call fn: a frame, hedges, a log.
func doWithin[T any](ctx context.Context, r *Retrier, f *call.Frame, t task[T]) (T, error) {
	if !f.BeginRetries() {
		return t.do(ctx, f)
	}
	start := f.Start()
	if start.IsZero() {
		start = clock.Now()
	}
	carried := f != nil
	var c function[T] // set field by field: a copy of the whole has to wait for its parts
	c.r, c.ctx, c.task, c.frame, c.carried = r, ctx, t, f, carried
	service := "" // of budgets
	if carried {
		c.of.service, c.of.route = f.Service(), f.Route()
		service = c.of.service
	} else if c.of.service = r.cfg.Name; call.Logged(ctx) {
		// A log only. fn does not see the frame: with and without a log the same
		// layers have to find the same frames.
		c.frame = call.New(ctx, nil, call.Info{Service: r.cfg.Name, Start: start})
	}
	c.cfg = r.cfg
	c.cfg.limit(&c.limits, start, max(c.cfg.AttemptTimeout, 0))
	if d := c.frame.Deadline(); !d.IsZero() && (c.limits.Deadline.IsZero() || d.Before(c.limits.Deadline)) {
		c.limits.Deadline, c.limits.Call = d, d.Sub(start) // fn need not look
	} else {
		c.frame.SetDeadline(c.limits.Deadline)
	}
	c.deadline = nearest(ctx, c.limits.Deadline)
	c.budget = r.budgets.get(service)
	c.budget.Deposit(start)
	defer c.budget.Finish()
	if c.cfg.Hedge.on() && !c.frame.LatencyNeutral() && t.repeatable && !call.InboundOf(ctx).Final() {
		c.hedger = r.hedgers.get(service)
		c.hedger.called(start)
	}
	defer c.settle()
	var first result[T]
	c.make(&first)
	v, err := c.run(first)
	if c.frame != nil && !carried {
		c.frame.Finish(clock.Now(), 0, err)
	}
	return v, err
}

// run goes on after the first attempt, which ended with a.
func (c *function[T]) run(a result[T]) (T, error) {
	c.attempts++
	c.reached = a.err == nil || !outcome.NotSent(a.err)
	for {
		c.ended(a.o)
		if a.o.Retry == outcome.Never || a.err == nil {
			c.tell(c.ctx, a.o, false)
			return a.value, a.err
		}
		others, elsewhere := false, true
		if c.carried {
			others = c.frame.Others()
			elsewhere = others
		}
		wait, why := c.next(clock.Now(), a.o, facts{
			repeatable: c.repeatable,
			resendable: true,
			elsewhere:  elsewhere,
			others:     others,
			final:      call.InboundOf(c.ctx).Final(),
		})
		if why == ReasonBudget {
			c.frame.Refused("", "retry budget", ErrBudget)
			return c.back(&a, why, ErrBudget)
		}
		if why != "" {
			c.frame.GaveUp(string(why))
			c.gaveUp(c.ctx, c.of, a.o, why)
			return a.value, a.err
		}
		if c.frame != nil {
			c.frame.Because(c.why, c.budget.Balance(time.Time{}))
		}
		c.retried(c.ctx, c.of, a.o, wait)
		if cause := sleep(c.ctx, wait, nil); cause != nil {
			c.frame.GaveUp(string(ReasonCanceled))
			c.gaveUp(c.ctx, c.of, a.o, ReasonCanceled)
			return a.value, canceled(cause, a.err)
		}
		c.frame.Slept(wait)
		var next result[T]
		c.make(&next)
		if refused(next.err) {
			return c.back(&a, ReasonRefused, next.err)
		}
		c.attempts++
		next.err = afterLast(next.err, a.err)
		switch {
		case next.err == nil || !outcome.NotSent(next.err):
			c.reached = true
		case c.reached:
			next.err = &reachedError{next.err}
		}
		a = next
	}
}

// back gives back the last attempt's error because there is no other attempt.
func (c *function[T]) back(last *result[T], why Reason, reason error) (T, error) {
	c.frame.GaveUp(string(why))
	c.gaveUp(c.ctx, c.of, last.o, why)
	return last.value, &StoppedError{Err: last.err, Reason: reason}
}

// make makes one attempt, and its hedges if it comes to that.
func (c *function[T]) make(a *result[T]) {
	if c.hedger == nil {
		c.now = call.Now(c.frame)
		c.try(a)
		return
	}
	c.race(a)
}

// try makes one attempt.
func (c *function[T]) try(a *result[T]) {
	sent, refusals := c.frame.Attempts(), c.frame.Refusals()
	if c.lane == nil {
		a.value, a.err = once(c.ctx, c.now, &c.limits, &c.task, c.frame)
	} else {
		c.lane.Start(c.ctx, c.now, &c.limits)
		c.lane.Cancelable()
		ctx := c.lane.Context()
		if c.carried && c.framed == nil {
			ctx = call.Carry(ctx, c.frame)
		}
		a.value, a.err = under(ctx, c.lane, &c.task, c.frame)
	}
	c.judge(a, c.frame.Attempts() > sent, c.frame.Refusals() > refusals)
}

// judge fills in the attempt's outcome: what fn has noted of this very error, or
// else what we make of it. What fn has not noted in the frame we do, unless it was
// refused: then there was no attempt.
func (c *function[T]) judge(a *result[T], noted, refusals bool) {
	if a.err != nil {
		o, known := outcome.Outcome{}, false
		if noted {
			o, known = c.frame.Outcome(nil, a.err)
		}
		if !known {
			o = c.cfg.Classify(a.err)
		}
		a.o = o
	}
	if c.frame == nil || noted || a.err != nil && (refusals || outcome.Refused(a.err)) {
		return
	}
	now := clock.Now()
	i := c.frame.Send(c.now, nil, "", "")
	c.frame.Answered(now, i, nil, 0, a.o)
	c.frame.Ended(now, i, a.o)
}

// functionRace is a race of calls of a function.
type functionRace[T any] struct {
	race[T]
	call function[T] // what a hedge is made from
}

// race is try with hedges.
func (c *function[T]) race(a *result[T]) {
	start := clock.Now()
	c.now = start
	delay, percentile, room := c.plan(&c.series, start)
	if room <= 0 {
		c.try(a)
		c.hedger.observe(start, &a.o)
		return
	}
	pool := &c.r.races
	r, _ := pool.Get().(*functionRace[T])
	if r == nil {
		r = new(functionRace[T])
		r.by = r
	}
	lane := new(attempt.Attempt)
	r.first, r.hedger, r.delay, r.percentile, r.begun, r.room = lane, c.hedger, delay, percentile, c.hedged, room
	r.budget, r.observer, r.ctx, r.frame = c.budget, c.cfg.Observer, c.ctx, c.frame
	r.call.cfg, r.call.ctx, r.call.task, r.call.of, r.call.limits, r.call.carried = c.cfg, c.ctx, c.task, c.of, c.limits, c.carried
	settled := false
	defer func() {
		c.lane = nil
		if !settled { // a panic or Goexit
			r.abandon()
		}
	}()
	if c.cfg.Hedge.LoserGrace > 0 {
		r.apart(a)
	} else {
		r.start()
		c.lane = lane
		c.try(a)
	}
	c.hedger.observe(start, &a.o)
	begun, sent, idle := r.settle(a, good(a))
	settled = true
	c.hedged += begun
	c.judged = begun > 0
	c.attempts += sent
	if idle {
		begin := r.begin
		*r = functionRace[T]{}
		r.begin, r.by = begin, r
		pool.Put(r)
	}
}

// good reports whether an answer is given to the caller without waiting for another
// one. An error that the classifier takes for a success is an answer.
func good[T any](a *result[T]) bool {
	return a.err == nil || a.o.Class == outcome.Success && a.o.Retry == outcome.Never
}

func (r *functionRace[T]) lane() canceler { return new(attempt.Attempt) }

func (r *functionRace[T]) dispose(value T) { dispose(value) }

func (r *functionRace[T]) subject() subject { return r.call.of }

// run makes a hedge's attempt, or that of the call where it runs apart.
func (r *functionRace[T]) run(h *hedge[T]) {
	c := function[T]{ctx: h.ctx, task: r.call.task, limits: r.call.limits, carried: r.call.carried, frame: h.frame, now: clock.Now()}
	c.cfg = r.call.cfg
	c.lane, _ = h.lane.(*attempt.Attempt)
	c.try(&h.answer)
	h.good, h.whole = good(&h.answer), true
	h.free()
}
