package retry_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// inFrame returns a context with a frame for a call of a chain that r belongs to.
func inFrame(t testing.TB, r *retry.Retrier) (context.Context, *call.Frame) {
	return call.Push(t.Context(), call.NewChain("transport", r),
		call.Info{Service: "orders", Route: "/Get", Start: time.Now()})
}

// notes returns an attempt that notes itself in its frame, as a transport's does,
// and ends with err.
func notes(ctx context.Context, r *retry.Retrier, node string, err error, o outcome.Outcome) error {
	f := call.Join(ctx, r)
	i := f.Send(time.Now(), node, node, node)
	time.Sleep(time.Millisecond)
	if o.Err = err; err == nil {
		o = outcome.Outcome{}
	}
	f.Answered(time.Now(), i, nil, 0, o)
	return err
}

func TestDoMakesTheAttemptsOfTheCallWhoseFrameItFinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(recorder)
		r := newRetrier(t, &retry.Config{
			Name: "not this", Observer: rec, Backoff: retry.Backoff{New: constant(time.Second)},
		})
		ctx, log := call.WithLog(t.Context())
		ctx, f := call.Push(ctx, call.NewChain(r), call.Info{Service: "orders", Route: "/Get", Start: time.Now()})
		failure := outcome.Outcome{Class: outcome.Failure, Retry: outcome.IfIdempotent}
		n := 0
		v, err := retry.Do(ctx, r, func(ctx context.Context) (int, error) {
			if n++; n == 1 {
				return 0, notes(ctx, r, "a", errBoom, failure)
			}
			return n, notes(ctx, r, "b", nil, outcome.Outcome{})
		})
		f.Finish(time.Now(), 0, err)
		require.NoError(t, err)
		require.Equal(t, 2, v)
		failure.Err = errBoom
		require.Equal(t, []event.Event{
			retry.Retried{Service: "orders", Route: "/Get", Attempt: 1, Outcome: failure, Sleep: time.Second},
		}, rec.events)
		require.Equal(t, "orders: ok in 1s; a boom in 1ms; slept 1s; b ok in 1ms", log.String())
		a := log.Calls()[0].Attempts
		require.Len(t, a, 2, "each noted once")
		require.Equal(t, call.Backoff, a[1].Why)
		require.Equal(t, 99, a[1].Budget)
		require.Equal(t, 99, r.Budget("orders").Balance(time.Time{}))
		require.Equal(t, 100, r.Budget("").Balance(time.Time{}))
	})
}

func TestDoNotesWhatTheFunctionDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, eager())
		ctx, log := call.WithLog(t.Context())
		ctx, f := call.Push(ctx, call.NewChain(r), call.Info{Service: "orders", Start: time.Now()})
		calls := 0
		fn := failing(1, errBoom, &calls)
		_, err := retry.Do(ctx, r, func(ctx context.Context) (string, error) { time.Sleep(time.Second); return fn(ctx) })
		f.Finish(time.Now(), 0, err)
		require.NoError(t, err)
		require.Equal(t, "orders: ok in 2s; sent boom in 1s; sent ok in 1s", log.String())
		for _, a := range log.Calls()[0].Attempts {
			require.Equal(t, time.Second, a.Total)
		}
	})
}

func TestOutcomeThatTheFunctionNotedDecides(t *testing.T) {
	for _, test := range []struct {
		name  string
		noted outcome.Outcome
		wrap  bool
		want  int
	}{
		{"that of the very error", outcome.Outcome{Class: outcome.Failure}, false, 1},
		{"that of another error", outcome.Outcome{Class: outcome.Failure}, true, 3},
		{"one that outcome.Of would not retry", outcome.Outcome{Class: outcome.Failure, Retry: outcome.Always}, false, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRetrier(t, eager())
			ctx, _ := inFrame(t, r)
			n, failure := 0, errBoom
			if test.noted.Retry == outcome.Always {
				failure = context.Canceled
			}
			err := r.Run(ctx, func(ctx context.Context) error {
				n++
				err := notes(ctx, r, "a", failure, test.noted)
				if test.wrap {
					err = fmt.Errorf("wrapped: %w", err)
				}
				return err
			})
			require.ErrorIs(t, err, failure)
			require.Equal(t, test.want, n)
		})
	}
}

func TestOnlyTheOuterOfTwoCallsOfDoInAFrameRepeats(t *testing.T) {
	r := newRetrier(t, eager())
	ctx, _ := inFrame(t, r)
	n := 0
	err := r.Run(ctx, func(ctx context.Context) error {
		return r.Run(ctx, func(context.Context) error { n++; return errBoom })
	})
	require.Equal(t, errBoom, err)
	require.Equal(t, 3, n)
}

func TestDoLeavesTheFramesOfOtherChainsAlone(t *testing.T) {
	r, other := newRetrier(t, eager()), newRetrier(t, eager())
	ctx, f := inFrame(t, other)
	f.SetDeadline(time.Now().Add(-time.Hour))
	calls := 0
	_, err := retry.Do(ctx, r, func(ctx context.Context) (string, error) {
		require.Same(t, f, call.Join(ctx, other))
		return failing(2, errBoom, &calls)(ctx)
	})
	require.NoError(t, err)
	require.Zero(t, f.Attempts())
	require.True(t, f.BeginRetries())
}

func TestFramesDeadlineBoundsAttemptsAndWaitsOfAFunction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, &retry.Config{MaxAttempts: 10, Backoff: retry.Backoff{New: constant(time.Second)}})
		ctx, f := inFrame(t, r)
		f.SetDeadline(time.Now().Add(1500 * time.Millisecond))
		begin, calls := time.Now(), 0
		_, err := retry.Do(ctx, r, failing(100, errBoom, &calls))
		require.Equal(t, errBoom, err)
		require.Equal(t, 2, calls)
		require.Equal(t, time.Second, time.Since(begin))

		ctx, f = inFrame(t, r)
		f.SetDeadline(time.Now().Add(time.Second))
		begin = time.Now()
		_, err = retry.Do(ctx, r, waitForEnd)
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
		require.Equal(t, time.Second, time.Since(begin))
	})
}

func TestTimeoutOfAFunctionIsToldToTheLayersBelow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, &retry.Config{Timeout: time.Minute})
		ctx, f := inFrame(t, r)
		start := time.Now()
		time.Sleep(time.Second)
		require.NoError(t, r.Run(ctx, func(ctx context.Context) error {
			_, ok := ctx.Deadline()
			require.False(t, ok)
			return nil
		}))
		require.Equal(t, start.Add(time.Minute), f.Deadline(), "counted from the call's start")
	})
}

func TestRefusalWithinAFrameGivesBackTheEarlierError(t *testing.T) {
	r := newRetrier(t, eager())
	ctx, log := call.WithLog(t.Context())
	ctx, _ = call.Push(ctx, call.NewChain(r), call.Info{Service: "orders"})
	n := 0
	v, err := retry.Do(ctx, r, func(ctx context.Context) (int, error) {
		if n++; n == 1 {
			return 7, notes(ctx, r, "a", errReset, outcome.Of(errReset))
		}
		call.Join(ctx, r).Refused("b", "breaker", refusal{})
		return 0, refusal{}
	})
	require.Equal(t, 7, v)
	var stopped *retry.StoppedError
	require.ErrorAs(t, err, &stopped)
	require.Equal(t, errReset, stopped.Err)
	require.Equal(t, refusal{}, stopped.Reason)
	record := log.Calls()[0]
	require.Len(t, record.Attempts, 1, "a refusal is no attempt")
	require.Equal(t, "b", record.Refusals[0].Node)
	require.Equal(t, string(retry.ReasonRefused), record.GaveUp)
}

func TestCancelDuringAWaitIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, &retry.Config{Name: "mail", Backoff: retry.Backoff{New: constant(time.Second)}})
		ctx, log := call.WithLog(t.Context())
		ctx, cancel := context.WithCancel(ctx)
		time.AfterFunc(time.Second/2, cancel)
		require.ErrorIs(t, r.Run(ctx, func(context.Context) error { return errBoom }), context.Canceled)
		require.Equal(t, "mail: failed in 500ms: context canceled, while waiting to try again after: boom; "+
			"sent boom in 0s; gave up: canceled", log.String())

		ctx, log = call.WithLog(t.Context())
		ctx, cancel = context.WithCancel(ctx)
		time.AfterFunc(time.Second/2, cancel)
		_, err := r.Layer(&script{steps: []step{fails(errReset)}}).RoundTrip(newRequest(t, ctx, "GET", nil))
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, string(retry.ReasonCanceled), log.Calls()[0].GaveUp)
	})
}

func TestExhaustedBudgetIsNotedInTheFunctionsFrame(t *testing.T) {
	b := newBudget(t, nil)
	for b.Withdraw(time.Time{}) {
	}
	r := newRetrier(t, eager(func(c *retry.Config) { c.Budget = b }))
	ctx, log := call.WithLog(t.Context())
	ctx, _ = call.Push(ctx, call.NewChain(r), call.Info{Service: "orders"})
	require.ErrorIs(t, r.Run(ctx, func(context.Context) error { return errBoom }), retry.ErrBudget)
	record := log.Calls()[0]
	require.Equal(t, []call.Refusal{{By: "retry budget", Err: retry.ErrBudget}}, record.Refusals)
	require.Equal(t, string(retry.ReasonBudget), record.GaveUp)
}

func TestFunctionThatSentNothingGoesToAnotherNodeWithoutAWait(t *testing.T) {
	for others, waits := range map[bool]time.Duration{true: 0, false: 2 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			r := newRetrier(t, &retry.Config{Backoff: retry.Backoff{New: constant(time.Second)}})
			ctx, _ := inFrame(t, r)
			begin, calls := time.Now(), 0
			_, err := retry.Do(ctx, r, func(ctx context.Context) (string, error) {
				call.Join(ctx, r).SetOthers(others)
				return failing(2, unsent{}, &calls)(ctx)
			})
			require.NoError(t, err)
			require.Equal(t, waits, time.Since(begin))
		})
	}
}

func TestWrongPeerOfAFunctionIsTriedOnceMoreOnlyWhereThereAreOtherNodes(t *testing.T) {
	for others, want := range map[bool]int{true: 2, false: 1} {
		r := newRetrier(t, eager(func(c *retry.Config) {
			c.MaxAttempts = 5
			c.Classify = func(err error) outcome.Outcome {
				return outcome.Outcome{Class: outcome.Failure, Retry: outcome.Elsewhere, Err: err}
			}
		}))
		ctx, _ := inFrame(t, r)
		n := 0
		_ = r.Run(ctx, func(ctx context.Context) error { n++; call.Join(ctx, r).SetOthers(others); return errBoom })
		require.Equal(t, want, n)
	}
}

func TestFunctionThatMustNotBeRepeatedIsTriedAgainOnlyIfNothingWasSent(t *testing.T) {
	for _, framed := range []bool{false, true} {
		for name, test := range map[string]struct {
			err  error
			want int
		}{"sent": {errReset, 1}, "not sent": {unsent{}, 3}} {
			t.Run(fmt.Sprint(name, " framed ", framed), func(t *testing.T) {
				rec := new(recorder)
				r := newRetrier(t, eager(func(c *retry.Config) { c.Observer = rec }))
				ctx := t.Context()
				if framed {
					ctx, _ = inFrame(t, r)
				}
				ctx = retry.WithIdempotent(ctx, false)
				is, said := retry.Idempotent(ctx)
				require.True(t, said)
				require.False(t, is)
				n := 0
				require.ErrorIs(t, r.Run(ctx, func(context.Context) error { n++; return test.err }), test.err)
				require.Equal(t, test.want, n)
				if test.want == 1 {
					require.Equal(t, []retry.Reason{retry.ReasonNotIdempotent}, rec.reasons())
				}
			})
		}
	}
	_, said := retry.Idempotent(t.Context())
	require.False(t, said)
}

func TestFunctionUnderALogIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, &retry.Config{Name: "mail", Backoff: retry.Backoff{New: constant(time.Second)}, MaxAttempts: 2})
		ctx, log := call.WithLog(t.Context())
		calls := 0
		fn := failing(1, errBoom, &calls)
		send := func(ctx context.Context) (string, error) {
			require.Nil(t, call.Join(ctx, r), "a log changes nothing for what is below")
			time.Sleep(time.Millisecond)
			return fn(ctx)
		}
		_, err := retry.Do(ctx, r, send)
		require.NoError(t, err)
		require.Equal(t, "mail: ok in 1s; sent boom in 1ms; slept 1s; sent ok in 1ms", log.String())

		ctx, log = call.WithLog(t.Context())
		_, err = retry.Do(ctx, newRetrier(t, eager()), failing(100, errBoom, new(int)))
		require.Error(t, err)
		require.Equal(t, "call: failed in 0s: boom; sent boom in 0s; sent boom in 0s; sent boom in 0s; gave up: attempts", log.String())

		// Of two, one in the other, both repeat, log or no log.
		ctx, log = call.WithLog(t.Context())
		n := 0
		_ = r.Run(ctx, func(ctx context.Context) error {
			return r.Run(ctx, func(context.Context) error { n++; return errBoom })
		})
		require.Equal(t, 4, n)
		require.Len(t, log.Calls(), 3)
	})
}

func TestPanicOfAFunctionInAFrameSettlesTheBudget(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(errBoom) }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			b := newBudget(t, &retry.BudgetConfig{Kind: retry.ConcurrencyBudget})
			r := newRetrier(t, eager(func(c *retry.Config) { c.Budget = b }))
			ctx, _ := inFrame(t, r)
			done := make(chan any)
			go func() {
				defer func() { done <- recover() }()
				n := 0
				_ = r.Run(ctx, func(context.Context) error {
					if n++; n == 2 {
						end()
					}
					return errBoom
				})
			}()
			require.Equal(t, name == "panic", <-done != nil)
			require.Equal(t, 3, b.Balance(time.Time{}))
		})
	}
}

func TestDoInAFrameTellsTheTierAboveThatItTriedInVain(t *testing.T) {
	for name, errs := range map[string][]error{
		"all attempts":     {errBoom, errBoom, errBoom},
		"a final failure":  {errBoom, outcome.Permanent(errBoom)},
		"a first, at once": {outcome.Permanent(errBoom)},
	} {
		in := new(call.Inbound)
		r := newRetrier(t, eager())
		ctx, _ := inFrame(t, r)
		n := 0
		err := r.Run(call.WithInbound(ctx, in), func(context.Context) error { n++; return errs[n-1] })
		require.ErrorIs(t, err, errBoom)
		require.Equal(t, len(errs), n)
		require.Equal(t, n > 1, in.Exhausted(), name)
	}
}
