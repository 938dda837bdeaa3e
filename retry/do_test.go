package retry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// failing returns a function that fails with err the first n times.
func failing(n int, err error, calls *int) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		if *calls++; *calls <= n {
			return "", err
		}
		return "ok", nil
	}
}

func TestMaxAttemptsIsTheNumberOfCallsInAll(t *testing.T) {
	for _, test := range []struct{ max, want int }{{1, 1}, {2, 2}, {5, 5}, {0, 3}, {-1, 1}, {-7, 1}} {
		calls := 0
		r := newRetrier(t, eager(func(c *retry.Config) { c.MaxAttempts = test.max }))
		_, err := retry.Do(t.Context(), r, failing(100, errBoom, &calls))
		require.Equal(t, errBoom, err, "the last error itself, not a summary")
		require.Equal(t, test.want, calls)
	}
}

func TestDoReturnsTheFirstSuccess(t *testing.T) {
	calls := 0
	v, err := retry.Do(t.Context(), newRetrier(t, eager()), failing(2, errBoom, &calls))
	require.NoError(t, err)
	require.Equal(t, "ok", v)
	require.Equal(t, 3, calls)
}

func TestRunIsDoForAnErrorAlone(t *testing.T) {
	calls := 0
	r := newRetrier(t, eager())
	require.Equal(t, errBoom, r.Run(t.Context(), func(context.Context) error { calls++; return errBoom }))
	require.Equal(t, 3, calls)
	require.NoError(t, r.Run(t.Context(), func(context.Context) error { return nil }))
}

func TestPreCancelledContextMakesNoAttemptAndTakesNoToken(t *testing.T) {
	b := newBudget(t, &retry.BudgetConfig{PerSecond: -1, Ratio: 10})
	r := newRetrier(t, eager(func(c *retry.Config) { c.Budget = b }))
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errBoom)
	calls := 0
	_, err := retry.Do(ctx, r, failing(0, nil, &calls))
	require.Equal(t, errBoom, err)
	require.Zero(t, calls)
	require.Zero(t, b.Balance(time.Time{}), "nothing deposited")
}

func TestCancelDuringTheSleepReturnsAtOnceWithCauseAndLastError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := &retry.Config{Backoff: retry.Backoff{New: constant(time.Second)}}
		r := newRetrier(t, cfg)
		ctx, cancel := context.WithCancelCause(t.Context())
		errCause := errors.New("enough")
		time.AfterFunc(300*time.Millisecond, func() { cancel(errCause) })
		begin, calls := time.Now(), 0
		_, err := retry.Do(ctx, r, failing(100, errBoom, &calls))
		require.Equal(t, 300*time.Millisecond, time.Since(begin))
		require.ErrorIs(t, err, errCause)
		require.ErrorIs(t, err, errBoom)
		require.Equal(t, 1, calls)
	})
}

// constant is a generator that always yields d.
func constant(d time.Duration) func() backoff.BackOff {
	return func() backoff.BackOff { return backoff.NewConstantBackOff(d) }
}

func TestNoSleepAfterTheFinalAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, &retry.Config{Backoff: retry.Backoff{New: constant(time.Second)}})
		begin, calls := time.Now(), 0
		_, err := retry.Do(t.Context(), r, failing(100, errBoom, &calls))
		require.Equal(t, errBoom, err)
		require.Equal(t, 2*time.Second, time.Since(begin))
	})
}

func TestBackoffThatDoesNotFitTheDeadlineGivesUpAtOnce(t *testing.T) {
	for _, test := range []struct {
		name     string
		call     time.Duration
		caller   time.Duration
		attempts int
	}{
		{"the caller's", 0, 2500 * time.Millisecond, 3},
		{"the caller's, just reached", 0, 2 * time.Second, 2},
		{"the call's", 1500 * time.Millisecond, 0, 2},
		{"the nearer of both", 10 * time.Second, 500 * time.Millisecond, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRetrier(t, &retry.Config{
					MaxAttempts: 10, Timeout: test.call, Backoff: retry.Backoff{New: constant(time.Second)},
				})
				ctx := t.Context()
				if test.caller > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.caller)
					defer cancel()
				}
				begin, calls := time.Now(), 0
				_, err := retry.Do(ctx, r, failing(100, errBoom, &calls))
				require.Equal(t, errBoom, err, "the last real error")
				require.Equal(t, test.attempts, calls)
				require.Equal(t, time.Duration(test.attempts-1)*time.Second, time.Since(begin))
			})
		})
	}
}

type hint time.Duration

func (h hint) Error() string                 { return "come back in " + time.Duration(h).String() }
func (h hint) RetryAfterHint() time.Duration { return time.Duration(h) }

func TestServersHintReplacesTheBackoffWithAPositiveJitter(t *testing.T) {
	for _, test := range []struct{ hint, jitter time.Duration }{
		{10 * time.Millisecond, 10 * time.Millisecond}, // who asks for so little means it
		{5 * time.Second, time.Second},
		{25 * time.Second, 2500 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRetrier(t, &retry.Config{MaxAttempts: 2, Budget: unlimited(t)})
			seen := map[time.Duration]bool{}
			for range 200 {
				begin, calls := time.Now(), 0
				_, err := retry.Do(t.Context(), r, failing(1, hint(test.hint), &calls))
				require.NoError(t, err)
				slept := time.Since(begin)
				require.GreaterOrEqual(t, slept, test.hint)
				require.Less(t, slept, test.hint+test.jitter)
				seen[slept.Truncate(test.jitter/10)] = true
			}
			require.Greater(t, len(seen), 5, "not all clients come back at once")
		})
	}
}

func TestHintBeyondTheCapOrTheDeadlineEndsTheCall(t *testing.T) {
	for _, test := range []struct {
		name  string
		cfg   retry.Config
		hint  time.Duration
		calls int
	}{
		{"beyond the default cap", retry.Config{}, 31 * time.Second, 1},
		{"at the default cap", retry.Config{}, 30 * time.Second, 3},
		{"beyond a lower cap", retry.Config{MaxRetryAfter: time.Second}, 2 * time.Second, 1},
		{"beyond the call's deadline", retry.Config{Timeout: 5 * time.Second}, 5 * time.Second, 1},
		{"without a cap", retry.Config{MaxRetryAfter: -1}, time.Hour, 3},
		{"but not for ever", retry.Config{MaxRetryAfter: -1}, math.MaxInt64, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin, calls := time.Now(), 0
				_, err := retry.Do(t.Context(), newRetrier(t, &test.cfg), failing(100, hint(test.hint), &calls))
				require.Equal(t, hint(test.hint), err)
				require.Equal(t, test.calls, calls)
				if calls == 1 {
					require.Zero(t, time.Since(begin))
				}
			})
		})
	}
}

func TestPermanentEndsTheCallHoweverItIsWrapped(t *testing.T) {
	for _, err := range []error{
		outcome.Permanent(errBoom),
		fmt.Errorf("layer: %w", outcome.Permanent(errBoom)),
		errors.Join(errReset, fmt.Errorf("layer: %w", outcome.Permanent(errBoom))),
	} {
		calls := 0
		_, got := retry.Do(t.Context(), newRetrier(t, eager()), failing(100, err, &calls))
		require.Equal(t, err, got)
		require.Equal(t, 1, calls)
	}
}

func TestAttemptTimeoutIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, eager(func(c *retry.Config) { c.AttemptTimeout = time.Second }))
		begin, calls := time.Now(), 0
		v, err := retry.Do(t.Context(), r, func(ctx context.Context) (int, error) {
			if calls++; calls < 3 {
				<-ctx.Done()
				return 0, ctx.Err()
			}
			return calls, nil
		})
		require.NoError(t, err)
		require.Equal(t, 3, v)
		require.Equal(t, 2*time.Second, time.Since(begin))
	})
}

func TestAttemptsThatAllTimeOutEndInOurError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, eager(func(c *retry.Config) { c.AttemptTimeout = time.Second }))
		_, err := retry.Do(t.Context(), r, waitForEnd)
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, context.Canceled)
	})
}

func waitForEnd(ctx context.Context) (int, error) {
	<-ctx.Done()
	return 0, fmt.Errorf("query: %w", ctx.Err())
}

func TestCallersDeadlineAndCancelAreNotTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, attemptTimeout := range []time.Duration{-1, time.Second, time.Minute} {
			r := newRetrier(t, eager(func(c *retry.Config) { c.AttemptTimeout = attemptTimeout }))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			begin, calls := time.Now(), 0
			_, err := retry.Do(ctx, r, func(ctx context.Context) (int, error) { calls++; return waitForEnd(ctx) })
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NotErrorIs(t, err, outcome.ErrAttemptTimeout, "clipped by the caller, it is the caller's deadline")
			require.Equal(t, 1, calls)
			require.Equal(t, time.Second, time.Since(begin))

			ctx, cancel = context.WithCancel(t.Context())
			time.AfterFunc(time.Second/2, cancel)
			calls = 0
			_, err = retry.Do(ctx, r, func(ctx context.Context) (int, error) { calls++; return waitForEnd(ctx) })
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, 1, calls)
		}
	})
}

func TestCallTimeoutEndsTheCallAndBearsTheLastError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, eager(func(c *retry.Config) { c.Timeout = time.Second }))
		begin, calls := time.Now(), 0
		_, err := retry.Do(t.Context(), r, func(ctx context.Context) (int, error) {
			if calls++; calls == 1 {
				return 0, errBoom
			}
			return waitForEnd(ctx)
		})
		require.Equal(t, time.Second, time.Since(begin))
		require.Equal(t, 2, calls)
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
		require.ErrorIs(t, err, errBoom)
		require.EqualError(t, err, "backstay: call timeout after 1s: boom")
	})
}

func TestErrorsOfTheFunctionAreNotReplacedByATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, eager(func(c *retry.Config) { c.AttemptTimeout, c.MaxAttempts = time.Second, -1 }))
		err := r.Run(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return errBoom })
		require.Equal(t, errBoom, err)
	})
}

func TestContextOfAnAttemptIsReleased(t *testing.T) {
	r := newRetrier(t, eager(func(c *retry.Config) { c.AttemptTimeout, c.MaxAttempts = time.Hour, -1 }))
	var seen context.Context
	keep := func(ctx context.Context) (int, error) { seen = ctx; ctx.Done(); return 0, nil }
	_, err := retry.Do(t.Context(), r, keep)
	require.NoError(t, err)
	require.Error(t, seen.Err())

	require.Panics(t, func() {
		_, _ = retry.Do(t.Context(), r, func(ctx context.Context) (int, error) { _, _ = keep(ctx); panic("fn") })
	})
	require.Error(t, seen.Err())

	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = retry.Do(t.Context(), r, func(ctx context.Context) (int, error) {
			_, _ = keep(ctx)
			runtime.Goexit()
			return 0, nil
		})
	})
	wg.Wait()
	require.Error(t, seen.Err())
}

func TestExhaustedBudgetAnnotatesTheLastErrorBeforeAnySleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, nil)
		for b.Withdraw(time.Time{}) {
		}
		r := newRetrier(t, &retry.Config{Budget: b})
		begin, calls := time.Now(), 0
		_, err := retry.Do(t.Context(), r, failing(100, errBoom, &calls))
		require.Zero(t, time.Since(begin))
		require.Equal(t, 1, calls)
		require.ErrorIs(t, err, errBoom)
		require.ErrorIs(t, err, retry.ErrBudget)
		require.EqualError(t, err, "boom (not tried again: retry: the budget is exhausted)")
	})
}

// A retry that waits has been paid for.
func TestRetriesWaitingInBackoffCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, &retry.BudgetConfig{Ratio: 1e-6, PerSecond: 1}) // 10
		r := newRetrier(t, &retry.Config{Budget: b, Backoff: retry.Backoff{New: constant(time.Second)}})
		var attempts atomic.Int32
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				_ = r.Run(t.Context(), func(context.Context) error { attempts.Add(1); return errBoom })
			})
		}
		synctest.Wait()
		require.EqualValues(t, 100, attempts.Load())
		require.Zero(t, b.Balance(time.Time{}), "all are asleep and have paid")
		wg.Wait()
		require.EqualValues(t, 110, attempts.Load())
	})
}

func TestOnlyFirstAttemptsDeposit(t *testing.T) {
	b := newBudget(t, &retry.BudgetConfig{Ratio: 1, PerSecond: -1})
	r := newRetrier(t, eager(func(c *retry.Config) { c.Budget, c.MaxAttempts = b, 2 }))
	calls := 0
	_, _ = retry.Do(t.Context(), r, failing(100, errBoom, &calls))
	require.Equal(t, 2, calls)
	require.Zero(t, b.Balance(time.Time{}), "one deposited, one taken")
}

// Whatever way a call ends, it has paid once for each extra attempt.
func TestTokensAreSettledOnceOnEveryWayOut(t *testing.T) {
	for name, fn := range map[string]func(ctx context.Context, cancel func(), n int) error{
		"success": func(_ context.Context, _ func(), n int) error { return []error{errBoom, nil}[n-1] },
		"permanent": func(_ context.Context, _ func(), n int) error {
			return []error{errBoom, outcome.Permanent(errBoom)}[n-1]
		},
		"panic": func(_ context.Context, _ func(), n int) error {
			if n == 2 {
				panic("fn")
			}
			return errBoom
		},
		"cancel": func(_ context.Context, cancel func(), n int) error {
			if n == 1 {
				time.AfterFunc(time.Millisecond, cancel)
			}
			return errBoom
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBudget(t, nil)
				r := newRetrier(t, &retry.Config{Budget: b, Backoff: retry.Backoff{New: constant(time.Second)}})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				n := 0
				func() {
					defer func() { _ = recover() }()
					_ = r.Run(ctx, func(ctx context.Context) error { n++; return fn(ctx, cancel, n) })
				}()
				require.Equal(t, 99, b.Balance(time.Time{}))
			})
		})
	}
}

func TestRefusalAfterAFailureBearsBothTheRealOneFirst(t *testing.T) {
	r := newRetrier(t, eager())
	n := 0
	v, err := retry.Do(t.Context(), r, func(context.Context) (int, error) {
		if n++; n == 1 {
			return 7, errReset
		}
		return 8, refusal{}
	})
	require.Equal(t, 7, v)
	require.Equal(t, 2, n, "a refusal is final")
	require.ErrorIs(t, err, errReset)
	require.ErrorIs(t, err, refusal{})
	require.False(t, outcome.Refused(err), "the peer was asked, and failed")
	require.False(t, outcome.NotSent(err))
	require.Equal(t, outcome.Failure, outcome.Of(err).Class)
	after, ok := outcome.RetryAfter(err)
	require.True(t, ok)
	require.Equal(t, time.Second, after)
	var stopped *retry.StoppedError
	require.ErrorAs(t, err, &stopped)
	require.Equal(t, errReset, stopped.Err)
	require.Equal(t, refusal{}, stopped.Reason)
	require.False(t, stopped.Timeout())
	timeout := &retry.StoppedError{Err: &outcome.TimeoutError{Kind: outcome.ErrAttemptTimeout}, Reason: refusal{}}
	require.True(t, timeout.Timeout())
	require.True(t, timeout.Temporary())
}

func TestRefusalOfTheFirstAttemptIsFinalAndItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin, calls := time.Now(), 0
		_, err := retry.Do(t.Context(), newRetrier(t, nil), failing(100, refusal{}, &calls))
		require.Equal(t, refusal{}, err)
		require.Equal(t, 1, calls)
		require.Zero(t, time.Since(begin))
	})
}

func TestElsewhereIsTriedOncePerCall(t *testing.T) {
	calls := 0
	r := newRetrier(t, eager(func(c *retry.Config) {
		c.MaxAttempts = 10
		c.Classify = func(err error) outcome.Outcome {
			return outcome.Outcome{Class: outcome.Failure, Retry: outcome.Elsewhere, Err: err}
		}
	}))
	_, err := retry.Do(t.Context(), r, failing(100, errBoom, &calls))
	require.Equal(t, errBoom, err)
	require.Equal(t, 2, calls)
}

func TestPanicOfTheClassifierPropagates(t *testing.T) {
	r := newRetrier(t, eager(func(c *retry.Config) { c.Classify = func(error) outcome.Outcome { panic("hook") } }))
	require.PanicsWithValue(t, "hook", func() {
		_ = r.Run(t.Context(), func(context.Context) error { return errBoom })
	})
}

func TestObserverSeesEachRetryAndWhyItEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(recorder)
		r := newRetrier(t, &retry.Config{
			Name: "orders", Observer: rec, Backoff: retry.Backoff{New: constant(time.Second)},
		})
		calls := 0
		_, _ = retry.Do(t.Context(), r, failing(100, errBoom, &calls))
		o := outcome.Of(errBoom)
		require.Equal(t, []event.Event{
			retry.Retried{Service: "orders", Attempt: 1, Outcome: o, Sleep: time.Second},
			retry.Retried{Service: "orders", Attempt: 2, Outcome: o, Sleep: time.Second},
			retry.GaveUp{Service: "orders", Attempts: 3, Outcome: o, Reason: retry.ReasonAttempts},
		}, rec.events)
	})
}

func TestObserverThatPanicsDoesNotDisturbTheCall(t *testing.T) {
	was := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler)) // where the panic is reported
	defer slog.SetDefault(was)
	r := newRetrier(t, eager(func(c *retry.Config) {
		c.Observer = event.ObserverFunc(func(context.Context, event.Event) { panic("observer") })
	}))
	calls := 0
	v, err := retry.Do(t.Context(), r, failing(2, errBoom, &calls))
	require.NoError(t, err)
	require.Equal(t, "ok", v)
}

func TestEveryReasonIsTold(t *testing.T) {
	stop := func() backoff.BackOff { return &backoff.StopBackOff{} }
	empty := newBudget(t, nil)
	for empty.Withdraw(time.Time{}) {
	}
	for _, test := range []struct {
		want retry.Reason
		cfg  retry.Config
		errs []error
	}{
		{retry.ReasonAttempts, *eager(), []error{errBoom, errBoom, errBoom}},
		{retry.ReasonBudget, retry.Config{Budget: empty}, []error{errBoom}},
		{retry.ReasonDeadline, retry.Config{Timeout: 1}, []error{hint(time.Second)}},
		{retry.ReasonRetryAfter, retry.Config{}, []error{hint(time.Hour)}},
		{retry.ReasonBackoff, retry.Config{Backoff: retry.Backoff{New: stop}}, []error{errBoom}},
		{retry.ReasonBackoff, retry.Config{Backoff: retry.Backoff{New: func() backoff.BackOff { return nil }}}, []error{errBoom}},
		{retry.ReasonElsewhere, *eager(), []error{io.ErrNoProgress, io.ErrNoProgress}},
		{retry.ReasonRefused, *eager(), []error{errBoom, refusal{}}},
	} {
		rec := new(recorder)
		test.cfg.Observer = rec
		test.cfg.Classify = func(err error) outcome.Outcome {
			o := outcome.Of(err)
			if errors.Is(err, io.ErrNoProgress) {
				o.Retry = outcome.Elsewhere
			}
			return o
		}
		n := 0
		_ = newRetrier(t, &test.cfg).Run(t.Context(), func(context.Context) error { n++; return test.errs[n-1] })
		require.Equal(t, []retry.Reason{test.want}, rec.reasons())
		require.Len(t, test.errs, n)
	}
	rec := new(recorder)
	calls := 0
	_, _ = retry.Do(t.Context(), newRetrier(t, &retry.Config{MaxAttempts: -1, Observer: rec}), failing(1, errBoom, &calls))
	require.Empty(t, rec.events, "where retries are off nothing is given up")
}

func TestEventsAreLoggedWithTheirFields(t *testing.T) {
	o := outcome.Of(errBoom)
	require.Equal(t, "retry.retried", retry.Retried{}.EventName())
	require.Equal(t, "[service=s route=r attempt=1 outcome=failure error=boom sleep=1s]",
		retry.Retried{Service: "s", Route: "r", Attempt: 1, Outcome: o, Sleep: time.Second}.LogValue().String())
	require.Equal(t, "retry.gave_up", retry.GaveUp{}.EventName())
	require.Equal(t, "WARN", retry.GaveUp{}.Level().String())
	require.Equal(t, "[service=s route=r attempts=2 outcome=failure error=boom reason=budget]",
		retry.GaveUp{Service: "s", Route: "r", Attempts: 2, Outcome: o, Reason: retry.ReasonBudget}.LogValue().String())
}

// One policy, many goroutines: the state of a call is the call's own.
func TestOneRetrierServesThousandGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, &retry.Config{Budget: unlimited(t), AttemptTimeout: time.Minute})
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				calls := 0
				v, err := retry.Do(t.Context(), r, failing(2, errBoom, &calls))
				if err != nil || v != "ok" || calls != 3 {
					t.Error(v, err, calls)
				}
			})
		}
		wg.Wait()
	})
}

// A bubble that ends with a goroutine left fails; no timer keeps one.
func TestCancelledWaitersLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, &retry.Config{
			Budget: unlimited(t), AttemptTimeout: time.Hour, Backoff: retry.Backoff{New: constant(time.Hour), Max: time.Hour},
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 10_000 {
			wg.Go(func() {
				err := r.Run(ctx, func(ctx context.Context) error { ctx.Done(); return errBoom })
				if !errors.Is(err, context.Canceled) || !errors.Is(err, errBoom) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		cancel()
		begin := time.Now()
		wg.Wait()
		require.Zero(t, time.Since(begin))
	})
}

func TestNestedRetriesAreBoundedByTheBudget(t *testing.T) {
	outer := newRetrier(t, eager())
	inner := newRetrier(t, eager())
	attempts := 0
	for range 1000 {
		_ = outer.Run(t.Context(), func(ctx context.Context) error {
			return inner.Run(ctx, func(context.Context) error { attempts++; return errBoom })
		})
	}
	// Each of the two adds a fifth and its reserve: far from the product of 9.
	require.LessOrEqual(t, attempts, 1000+(200+100)+(260+100))
}
