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
// that it may be repeated; an error that it wraps in [outcome.Permanent] ends the
// call at once.
//
// fn gets a context that ends with the attempt, so what it returns must not
// depend on that context. If one of the retrier's own timeouts ended it, a
// context's error of fn's is returned as an [*outcome.TimeoutError].
//
// Do does not call fn at all if ctx has ended before. If ctx ends during a wait,
// the error wraps context.Cause(ctx) and what fn returned last. Where the budget
// or a refusal keeps fn from being called again, the error is a [*StoppedError].
func Do[T any](ctx context.Context, r *Retrier, fn func(context.Context) (T, error)) (T, error) {
	if ctx.Err() != nil {
		var none T
		return none, context.Cause(ctx)
	}
	var (
		start  time.Time
		limits attempt.Limits
	)
	if r.cfg.AttemptTimeout > 0 || r.cfg.Timeout > 0 {
		start = clock.Now()
		r.cfg.limit(&limits, start, max(r.cfg.AttemptTimeout, 0))
	}
	budget := r.budgets.get("")
	budget.Deposit(start) // which reads the clock only if it must
	defer budget.Finish()
	v, err := once(ctx, start, limits, fn)
	if err == nil {
		budget.Judge(outcome.Outcome{Class: outcome.Success})
		return v, nil
	}
	return again(ctx, r, budget, limits, fn, v, err)
}

// again goes on after a first attempt that returned v and err.
func again[T any](
	ctx context.Context, r *Retrier, budget *Budget, limits attempt.Limits,
	fn func(context.Context) (T, error), v T, err error,
) (T, error) {
	s := series{cfg: r.cfg, budget: budget, deadline: nearest(ctx, limits.Deadline), attempts: 1}
	defer s.settle()
	of := subject{service: r.cfg.Name}
	reached := !outcome.NotSent(err)
	for {
		o := r.cfg.Classify(err)
		s.ended(o)
		if o.Retry == outcome.Never {
			return v, err
		}
		wait, why := s.next(clock.Now(), o, facts{repeatable: idempotent(ctx, true), resendable: true, elsewhere: true, final: call.InboundOf(ctx).Final()})
		if why != "" {
			s.gaveUp(ctx, of, o, why)
			if why == ReasonBudget {
				err = &StoppedError{Err: err, Reason: ErrBudget}
			}
			return v, err
		}
		s.retried(ctx, of, o, wait)
		if cause := sleep(ctx, wait, nil); cause != nil {
			s.gaveUp(ctx, of, o, ReasonCanceled)
			return v, canceled(cause, err)
		}
		next, nextErr := once(ctx, clock.Now(), limits, fn)
		if nextErr != nil && outcome.Refused(nextErr) {
			s.gaveUp(ctx, of, o, ReasonRefused)
			return v, &StoppedError{Err: err, Reason: nextErr}
		}
		s.attempts++
		v, err = next, afterLast(nextErr, err)
		switch {
		case err == nil:
			s.ended(outcome.Outcome{Class: outcome.Success})
			return v, nil
		case !outcome.NotSent(err):
			reached = true
		case reached:
			err = &reachedError{err}
		}
	}
}

// Run is [Do] for a function that returns only an error.
func (r *Retrier) Run(ctx context.Context, fn func(context.Context) error) error {
	_, err := Do(ctx, r, func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) })
	return err
}

// once makes one attempt. Nothing is derived where there is nothing to bound.
func once[T any](ctx context.Context, now time.Time, l attempt.Limits, fn func(context.Context) (T, error)) (T, error) {
	if l.Attempt <= 0 && l.Deadline.IsZero() {
		return fn(ctx)
	}
	return bounded(ctx, now, l, fn)
}

func bounded[T any](ctx context.Context, now time.Time, l attempt.Limits, fn func(context.Context) (T, error)) (T, error) {
	a := new(attempt.Attempt)
	a.Start(ctx, now, &l)
	defer a.End()
	v, err := fn(a.Context())
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		// Other errors are fn's word on what happened, and are left as they are.
		err = a.Error(err)
	}
	return v, err
}
