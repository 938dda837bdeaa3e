package breaker_test

import (
	"context"
	"errors"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

// atProbe runs test in a bubble with a breaker whose next call is its one probe,
// and checks that the probe's place is not lost afterwards.
func atProbe(t *testing.T, test func(t *testing.T, b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, exact(breaker.Config{Probes: 1, ProbeInterval: -1}))
		b.call(20, failure)
		time.Sleep(5 * time.Second)
		test(t, b)
		time.Sleep(time.Until(b.Snapshot(time.Time{}).Until))
		l, err := b.Acquire(time.Time{})
		require.NoError(t, err)
		l.Done(time.Time{}, success)
		require.Equal(t, breaker.Closed, b.State())
	})
}

func returns(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

func TestDoReturnsWhatTheFunctionReturns(t *testing.T) {
	b := newBench(t, nil)
	v, err := breaker.Do(t.Context(), b.Breaker, func(context.Context) (int, error) { return 7, errDown })
	require.Equal(t, 7, v)
	require.Equal(t, errDown, err)
	s := b.Snapshot(time.Time{})
	require.EqualValues(t, 1, s.Failures)

	b.ForceOpen()
	v, err = breaker.Do(t.Context(), b.Breaker, func(context.Context) (int, error) { panic("not called") })
	require.Zero(t, v)
	require.ErrorIs(t, err, breaker.ErrOpen)
}

func TestDoHandsTheContextOn(t *testing.T) {
	type key struct{}
	b := newBench(t, nil)
	ctx := context.WithValue(t.Context(), key{}, "value")
	require.NoError(t, b.Run(ctx, func(ctx context.Context) error {
		require.Equal(t, "value", ctx.Value(key{}))
		return nil
	}))
}

func TestTheCallersCancelIsNeutralAndGivesTheProbeBack(t *testing.T) {
	atProbe(t, func(t *testing.T, b *bench) {
		ctx, cancel := context.WithCancel(t.Context())
		err := b.Run(ctx, func(ctx context.Context) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		})
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, breaker.HalfOpen, b.State())
		require.Zero(t, b.Snapshot(time.Time{}).Calls)
	})
}

func TestTheCauseOfTheCallersCancelIsNeutral(t *testing.T) {
	b := newBench(t, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errDown)
	require.Equal(t, errDown, b.Run(ctx, context.Cause))
	require.Zero(t, b.Snapshot(time.Time{}).Calls)
}

func TestARealFailureCountsEvenIfTheContextHasEnded(t *testing.T) {
	b := newBench(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Equal(t, errDown, b.Run(ctx, returns(errDown)))
	require.EqualValues(t, 1, b.Snapshot(time.Time{}).Failures)
}

func TestTheCallersDeadlineIsNeutralAndOurTimeoutIsAFailure(t *testing.T) {
	b := newBench(t, nil)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	require.ErrorIs(t, b.Run(ctx, func(ctx context.Context) error { return ctx.Err() }), context.DeadlineExceeded)
	require.Zero(t, b.Snapshot(time.Time{}).Calls)

	timeout := &outcome.TimeoutError{Kind: outcome.ErrAttemptTimeout, After: time.Second}
	timed, end := context.WithCancelCause(t.Context())
	end(timeout)
	require.Error(t, b.Run(timed, context.Cause))
	require.EqualValues(t, 1, b.Snapshot(time.Time{}).Failures)
}

func TestTheDeadlineIsAFailureIfClassifySaysSo(t *testing.T) {
	b := newBench(t, exact(breaker.Config{Classify: func(err error) outcome.Outcome {
		if errors.Is(err, context.DeadlineExceeded) {
			return outcome.Outcome{Class: outcome.Failure, Err: err}
		}
		return outcome.Of(err)
	}}))
	require.Error(t, b.Run(t.Context(), returns(context.DeadlineExceeded)))
	require.EqualValues(t, 1, b.Snapshot(time.Time{}).Failures)
}

func panics(context.Context) error { panic(errDown) }

func TestAPanicIsAFailureAndGoesOnWithItsStack(t *testing.T) {
	atProbe(t, func(t *testing.T, b *bench) {
		var stack []byte
		func() {
			defer func() {
				stack = debug.Stack()
				require.Equal(t, errDown, recover(), "the same value")
			}()
			_ = b.Run(t.Context(), panics)
		}()
		require.Contains(t, string(stack), "breaker_test.panics")
		require.Equal(t, breaker.Open, b.State())
	})
}

func TestGoexitGivesTheProbeBackWithoutAVerdict(t *testing.T) {
	atProbe(t, func(t *testing.T, b *bench) {
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = b.Run(t.Context(), func(context.Context) error {
				runtime.Goexit()
				return nil
			})
		})
		wg.Wait()
		require.Equal(t, breaker.HalfOpen, b.State())
		require.Zero(t, b.Snapshot(time.Time{}).Calls)
	})
}

func TestARefusalOfAnInnerLayerGivesTheProbeBack(t *testing.T) {
	atProbe(t, func(t *testing.T, b *bench) {
		inner := newBench(t, nil)
		inner.ForceOpen()
		for range 10 {
			err := b.Run(t.Context(), func(ctx context.Context) error { return inner.Run(ctx, returns(nil)) })
			var refusal *breaker.OpenError
			require.ErrorAs(t, err, &refusal)
			require.Equal(t, breaker.ReasonForcedOpen, refusal.Reason, "the inner one's, not ours")
		}
		require.Equal(t, breaker.HalfOpen, b.State())
	})
}

// Inside a retry each attempt counts, outside it the call as a whole does.
func TestABreakerInsideARetrySeesAttemptsAndOneOutsideSeesCalls(t *testing.T) {
	retry := func(ctx context.Context, fn func(context.Context) error) (err error) {
		for range 3 {
			if err = fn(ctx); err == nil || errors.Is(err, breaker.ErrOpen) {
				return err
			}
		}
		return err
	}
	inside := newBench(t, nil)
	for range 6 {
		require.Equal(t, errDown, retry(t.Context(), func(ctx context.Context) error { return inside.Run(ctx, returns(errDown)) }))
	}
	require.EqualValues(t, 18, inside.Snapshot(time.Time{}).Failures)
	attempts := 0
	err := retry(t.Context(), func(ctx context.Context) error { attempts++; return inside.Run(ctx, returns(errDown)) })
	require.Equal(t, errDown, errors.Unwrap(err), "the refusal bears what failed before")
	require.Equal(t, 3, attempts, "two attempts open it, the third is refused")

	outside := newBench(t, nil)
	sent := 0
	for range 6 {
		err := outside.Run(t.Context(), func(ctx context.Context) error {
			return retry(ctx, func(context.Context) error {
				if sent++; sent%3 == 0 {
					return nil
				}
				return errDown
			})
		})
		require.NoError(t, err)
	}
	s := outside.Snapshot(time.Time{})
	require.EqualValues(t, 6, s.Calls)
	require.Zero(t, s.Failures, "what a retry mends is no failure to those outside it")
}

func TestDoDoesNotAllocate(t *testing.T) {
	b := newBench(t, nil)
	ctx := t.Context()
	fn := func(context.Context) (int, error) { return 1, nil }
	require.Zero(t, testing.AllocsPerRun(1000, func() { _, _ = breaker.Do(ctx, b.Breaker, fn) }))
}
