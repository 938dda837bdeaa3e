package breaker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/backstay/backstay/outcome"
)

// Do calls fn if b admits it, or else returns an [*OpenError] and fn's zero
// value. What fn returns is returned as it is, judged by Config.Classify; that
// ctx has ended is judged neutral where fn's error says so. If fn panics, that
// is a failure, and the panic goes on; if it ends its goroutine, the lease is
// returned without a verdict.
func Do[T any](ctx context.Context, b *Breaker, fn func(context.Context) (T, error)) (T, error) {
	lease, err := b.Acquire(time.Time{})
	if err != nil {
		var zero T
		return zero, err
	}
	returned := false
	defer lease.unwind(&returned)
	v, err := fn(ctx)
	o := b.cur.Load().set.classify(ctx, err)
	returned = true
	lease.Done(time.Time{}, o)
	return v, err
}

// Run is [Do] for a function that returns only an error.
func (b *Breaker) Run(ctx context.Context, fn func(context.Context) error) error {
	_, err := Do(ctx, b, func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) })
	return err
}

// classify is Classify, which does not know the context: an error that a caller
// gave as the cause of its cancel could be any.
func (c *Config) classify(ctx context.Context, err error) outcome.Outcome {
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		// Unless a timeout of ours is the cause: Classify knows those.
		if timeout := (*outcome.TimeoutError)(nil); !errors.As(err, &timeout) {
			return outcome.Outcome{Class: outcome.Neutral, Err: err}
		}
	}
	return c.Classify(err)
}

// unwind is deferred around a call out. If that has not returned it panics, or
// ends its goroutine; recover tells which.
func (l *Lease) unwind(returned *bool) {
	if *returned {
		return
	}
	v := recover()
	if v == nil {
		l.Done(time.Time{}, outcome.Outcome{Class: outcome.Neutral})
		return
	}
	l.Done(time.Time{}, outcome.Outcome{Class: outcome.Failure, Err: fmt.Errorf("breaker: the call panicked: %v", v)})
	panic(v) //nolint:forbidigo // it is handed on; from here, the stack still holds the frames that panicked first
}
