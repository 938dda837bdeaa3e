package retry

import (
	"context"
	"errors"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/outcome"
)

// Do calls fn, and again if its error says so: see [outcome.Of] and
// Config.Classify. It returns what the last call of fn returned. fn must be such
// that it may be repeated, or [WithIdempotent] says that it is not; an error that
// it wraps in [outcome.Permanent] ends the call at once.
//
// fn gets a context that ends with the attempt, so what it returns must not
// depend on that context. If one of the retrier's own timeouts ended it, a
// context's error of fn's is returned as an [*outcome.TimeoutError].
//
// Do does not call fn at all if ctx has ended before. If ctx ends during a wait,
// the error wraps context.Cause(ctx) and what fn returned last. Where the budget
// or a refusal keeps fn from being called again, the error is a [*StoppedError].
//
// With Config.Hedge, fn is called again while it is still running, on another
// goroutine and with a context of its own. The first of these calls to return
// without an error ends the others' contexts, with a cause that is
// context.Canceled; Do returns when the call on its own goroutine has. What the
// others return after all is dropped, and closed if it is an io.Closer or an
// *http.Response.
//
// Do is also what a transport of its own kind can be built on, which chooses nodes
// and shares a [call.Frame] with its layers: if ctx carries a frame whose chain has
// r as a member, Do makes the attempts of that frame's call, within its deadline,
// on the budget of its service and with its route in events; in the frame it notes
// its waits and why it goes on, or does not. fn finds the frame in its context,
// and in that of a hedge one that is beside it ([call.Frame.Beside]). An attempt
// that fn notes there itself (Send, Answered) is not noted by Do, and if the error
// is the one that was noted, its outcome is the one that was noted, too. There is
// another node if [call.Frame.Others] says so; without a frame each attempt may
// meet another. Of two calls of Do in one frame only the outer one repeats.
func Do[T any](ctx context.Context, r *Retrier, fn func(context.Context) (T, error)) (T, error) {
	if ctx.Err() != nil {
		var none T
		return none, context.Cause(ctx)
	}
	p, plain := r.plain(ctx)
	if !plain {
		return doWithin(ctx, r, call.Join(ctx, r), task[T]{fn: fn, repeatable: idempotent(ctx, true)})
	}
	defer p.budget.Finish()
	v, err := once(ctx, p.start, &p.limits, &task[T]{fn: fn}, nil)
	if err == nil {
		p.budget.Judge(outcome.Outcome{Class: outcome.Success})
		return v, nil
	}
	return again(ctx, r, &p, fn, v, err)
}

// DoIn is [Do] for those who have the call's frame at hand, whose chain has r as a
// member: ctx need not carry it, and whether the call may be repeated although it may
// have been acted on is what repeatable says. fn is given the frame of its attempt: f,
// or in a hedge the one beside it.
func DoIn[T any](ctx context.Context, r *Retrier, f *call.Frame, repeatable bool, fn func(context.Context, *call.Frame) (T, error)) (T, error) {
	if ctx.Err() != nil {
		var none T
		return none, context.Cause(ctx)
	}
	return doWithin(ctx, r, f, task[T]{framed: fn, repeatable: repeatable})
}

// Run is [Do] for a function that returns only an error.
func (r *Retrier) Run(ctx context.Context, fn func(context.Context) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	p, plain := r.plain(ctx)
	if !plain {
		_, err := doWithin(ctx, r, call.Join(ctx, r), task[struct{}]{fn: withValue(fn), repeatable: idempotent(ctx, true)})
		return err
	}
	defer p.budget.Finish()
	// In place: this one does not outlive the attempt, and costs no allocation.
	t := task[struct{}]{fn: func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) }}
	v, err := once(ctx, p.start, &p.limits, &t, nil)
	if err == nil {
		p.budget.Judge(outcome.Outcome{Class: outcome.Success})
		return nil
	}
	_, err = again(ctx, r, &p, withValue(fn), v, err)
	return err
}

func withValue(fn func(context.Context) error) func(context.Context) (struct{}, error) {
	return func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) }
}

// plainCall is what a call needs that is in no frame and no log, and has no hedges.
type plainCall struct {
	budget *Budget
	start  time.Time // zero if nobody asks
	limits attempt.Limits
}

// plain begins a call under ctx, if it is a plain one.
func (r *Retrier) plain(ctx context.Context) (p plainCall, plain bool) {
	if r.cfg.Hedge.on() || call.Join(ctx, r) != nil || call.Logged(ctx) {
		return p, false
	}
	if r.cfg.AttemptTimeout > 0 || r.cfg.Timeout > 0 {
		p.start = clock.Now()
		r.cfg.limit(&p.limits, p.start, max(r.cfg.AttemptTimeout, 0))
	}
	p.budget = r.budgets.get("")
	p.budget.Deposit(p.start) // which reads the clock only if it must
	return p, true
}

// again goes on after a first attempt that returned v and err.
func again[T any](ctx context.Context, r *Retrier, p *plainCall, fn func(context.Context) (T, error), v T, err error) (T, error) {
	t := task[T]{fn: fn, repeatable: idempotent(ctx, true)}
	c := function[T]{r: r, ctx: ctx, task: t, of: subject{service: r.cfg.Name}, limits: p.limits}
	c.cfg, c.budget, c.deadline = r.cfg, p.budget, nearest(ctx, p.limits.Deadline)
	defer c.settle()
	return c.run(result[T]{v, err, r.cfg.Classify(err)})
}

// once makes one attempt. Nothing is derived where there is nothing to bound.
func once[T any](ctx context.Context, now time.Time, l *attempt.Limits, t *task[T], f *call.Frame) (T, error) {
	if l.Attempt <= 0 && l.Deadline.IsZero() {
		return t.do(ctx, f)
	}
	a := new(attempt.Attempt)
	a.Start(ctx, now, l)
	return under(a.Context(), a, t, f)
}

// under makes an attempt that has begun, with a context that is its own or derived
// from that.
func under[T any](ctx context.Context, a *attempt.Attempt, t *task[T], f *call.Frame) (T, error) {
	defer a.End()
	v, err := t.do(ctx, f)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		// Other errors are the function's word on what happened, and are left as they are.
		err = a.Error(err)
	}
	return v, err
}
