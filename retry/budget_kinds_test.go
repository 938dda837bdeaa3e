package retry_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

var (
	good = outcome.Outcome{Class: outcome.Success}
	bad  = outcome.Outcome{Class: outcome.Failure, Retry: outcome.IfIdempotent}
)

func TestConcurrencyBudgetAllowsAShareOfTheCallsUnderWayButAtLeastThree(t *testing.T) {
	b := newBudget(t, &retry.BudgetConfig{Kind: retry.ConcurrencyBudget})
	var now time.Time
	for calls := range 101 {
		require.Equal(t, max(3, calls/5), b.Balance(now), calls)
		b.Deposit(now)
	}
	for range 20 {
		require.True(t, b.Withdraw(now))
	}
	require.False(t, b.Withdraw(now))
	b.Return()
	require.Equal(t, 1, b.Balance(now))
	require.True(t, b.Withdraw(now))
	for range 50 { // with the calls goes what they allow
		b.Finish()
	}
	require.Zero(t, b.Balance(now))
	for range 10 {
		b.Return()
		require.False(t, b.Withdraw(now))
	}
	b.Return()
	require.True(t, b.Withdraw(now))

	none := newBudget(t, &retry.BudgetConfig{Kind: retry.ConcurrencyBudget, MinConcurrency: -1})
	require.False(t, none.Withdraw(now))
}

// Against a model that knows every call and every extra attempt.
func TestConcurrencyBudgetAgreesWithItsModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 2))
		b := newBudget(t, &retry.BudgetConfig{Kind: retry.ConcurrencyBudget, Ratio: 0.5, MinConcurrency: 2})
		calls, extra := 0, 0
		for range 2000 {
			switch op := rng.IntN(4); {
			case op == 0:
				b.Deposit(time.Time{})
				calls++
			case op == 1 && calls > 0:
				b.Finish()
				calls--
			case op == 2 && extra > 0:
				b.Return()
				extra--
			case op == 3:
				given := b.Withdraw(time.Time{})
				require.Equal(t, extra < max(2, calls/2), given)
				if given {
					extra++
				}
			}
			require.Equal(t, max(0, max(2, calls/2)-extra), b.Balance(time.Time{}))
		}
	}
}

func TestThousandGoroutinesNeverExceedTheConcurrencyBudget(t *testing.T) {
	b := newBudget(t, &retry.BudgetConfig{Kind: retry.ConcurrencyBudget, MinConcurrency: 7})
	var (
		wg           sync.WaitGroup
		active, most atomic.Int64
	)
	for range 1000 {
		wg.Go(func() {
			for range 20 {
				if !b.Withdraw(time.Time{}) {
					continue
				}
				n := active.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				runtime.Gosched()
				active.Add(-1)
				b.Return()
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, most.Load(), int64(7))
	require.Equal(t, 7, b.Balance(time.Time{}))
}

// Of a hundred calls that fail together, a fifth wait for another attempt; those
// in the midst of their wait count.
func TestWaitingRetriesCountInTheConcurrencyBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, &retry.BudgetConfig{Kind: retry.ConcurrencyBudget})
		r := newRetrier(t, &retry.Config{Budget: b, Backoff: retry.Backoff{Kind: retry.Constant, Base: time.Second}, MaxAttempts: 2})
		var waiting, refused atomic.Int64
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				begin := time.Now()
				err := r.Run(t.Context(), func(context.Context) error {
					time.Sleep(10 * time.Millisecond)
					return errBoom
				})
				if errors.Is(err, retry.ErrBudget) {
					refused.Add(1)
				} else if time.Since(begin) > time.Second {
					waiting.Add(1)
				}
			})
		}
		time.Sleep(500 * time.Millisecond)
		require.Zero(t, b.Balance(time.Time{}), "all are waiting")
		require.False(t, b.Withdraw(time.Time{}))
		wg.Wait()
		// Each that is refused is over, and allows a little less to the next.
		require.EqualValues(t, 100, waiting.Load()+refused.Load())
		require.LessOrEqual(t, waiting.Load(), int64(20))
		require.GreaterOrEqual(t, waiting.Load(), int64(15))
		require.Equal(t, 3, b.Balance(time.Time{}), "and all was returned")
	})
}

func TestConcurrencyBudgetIsSettledOnEveryWayOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, &retry.BudgetConfig{Kind: retry.ConcurrencyBudget, Ratio: 1, MinConcurrency: 1})
		// Whatever of the calls was left would raise the balance, whatever of the
		// extra attempts lower it.
		check := func(name string) {
			t.Helper()
			require.Equal(t, 1, b.Balance(time.Time{}), name)
			b.Deposit(time.Time{})
			b.Deposit(time.Time{})
			require.Equal(t, 2, b.Balance(time.Time{}), name)
			b.Finish()
			b.Finish()
		}
		waits := newRetrier(t, &retry.Config{Budget: b, Backoff: retry.Backoff{Kind: retry.Constant, Base: time.Second}})
		soon := func() context.Context {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(10*time.Millisecond, cancel)
			return ctx
		}
		second := func(f func() error) func(context.Context) error {
			n := 0
			return func(context.Context) error {
				if n++; n == 1 {
					return errBoom
				}
				return f()
			}
		}
		for name, err := range map[string]error{
			"success": nil, "failures": errBoom, "permanent": outcome.Permanent(errBoom), "refused": refusal{},
		} {
			_ = waits.Run(t.Context(), func(context.Context) error { return err })
			check(name)
			_ = waits.Run(t.Context(), second(func() error { return err }))
			check("second attempt: " + name)
		}
		_ = waits.Run(soon(), func(context.Context) error { return errBoom })
		check("canceled during the wait")
		done, cancel := context.WithCancel(t.Context())
		cancel()
		_ = waits.Run(done, func(context.Context) error { return nil })
		check("canceled before")
		require.Panics(t, func() { _ = waits.Run(t.Context(), second(func() error { panic("boom") })) })
		check("panic")
		wg := sync.WaitGroup{}
		wg.Go(func() { _ = waits.Run(t.Context(), second(func() error { runtime.Goexit(); return nil })) })
		wg.Wait()
		check("Goexit")

		trip := func(name string, ctx context.Context, steps ...func(*http.Request) (*http.Response, error)) {
			resp, err := waits.Layer(&script{steps: steps}).RoundTrip(newRequest(t, ctx, "GET", nil))
			if err == nil {
				_ = resp.Body.Close()
			}
			check("HTTP: " + name)
		}
		trip("success", t.Context(), replies(200, "ok"))
		trip("failure, success", t.Context(), replies(503, "x"), replies(200, "ok"))
		trip("failures", t.Context(), replies(503, "x"))
		trip("errors", t.Context(), fails(errReset))
		trip("refused", t.Context(), fails(refusal{}))
		trip("refused at last", t.Context(), replies(503, "x"), fails(refusal{}))
		trip("not tried again", t.Context(), replies(500, "x"))
		trip("canceled during the wait", soon(), replies(503, "x"))
		require.Panics(t, func() {
			trip("", t.Context(), replies(503, "x"), func(*http.Request) (*http.Response, error) { panic("boom") })
		})
		check("HTTP: panic")
	})
}

// gRFC A6's own figures: 10 tokens, a tenth of one for each success.
func TestTokenBudgetStopsAfterFiveNetFailuresAndRecoversBySuccesses(t *testing.T) {
	b := newBudget(t, &retry.BudgetConfig{Kind: retry.TokenBudget})
	var now time.Time
	for left := 5; left > 0; left-- {
		require.Equal(t, left, b.Balance(now))
		require.True(t, b.Withdraw(now))
		b.Judge(bad)
	}
	require.False(t, b.Withdraw(now))
	require.Zero(t, b.Balance(now))
	b.Judge(good)
	require.True(t, b.Withdraw(now), "more than half")
	for range 100 {
		b.Judge(bad)
	}
	for range 50 {
		require.False(t, b.Withdraw(now))
		b.Judge(good)
	}
	require.False(t, b.Withdraw(now), "5 of 10")
	b.Judge(good)
	require.True(t, b.Withdraw(now))
	for range 1000 {
		b.Judge(good)
	}
	require.Equal(t, 5, b.Balance(now), "never more than there were")
}

func TestTokenBudgetCountsWhatTheServiceIsToBlameFor(t *testing.T) {
	for name, test := range map[string]struct {
		o     outcome.Outcome
		costs bool
	}{
		"a failure that might be tried again": {bad, true},
		"throttled":                           {outcome.Outcome{Class: outcome.Throttled, Retry: outcome.IfIdempotent}, true},
		"throttled, do not retry":             {outcome.Outcome{Class: outcome.Throttled}, true},
		"never sent":                          {outcome.Outcome{Class: outcome.Failure, Retry: outcome.Always}, true},
		"a failure that is final":             {outcome.Outcome{Class: outcome.Failure}, false},
		"neutral":                             {outcome.Outcome{Class: outcome.Neutral}, false},
	} {
		b := newBudget(t, &retry.BudgetConfig{Kind: retry.TokenBudget})
		for range 10 {
			b.Judge(test.o)
		}
		require.Equal(t, test.costs, b.Balance(time.Time{}) == 0, name)
	}
}

// A service that is down is asked once per call as soon as it has cost the
// tokens, and is tried again when enough calls have succeeded.
func TestTokenBudgetThrottlesRetriesInAnOutage(t *testing.T) {
	for name, over := range map[string]func(r *retry.Retrier, down bool, attempts *int) error{
		"functions": func(r *retry.Retrier, down bool, attempts *int) error {
			return r.Run(t.Context(), func(context.Context) error {
				if *attempts++; down {
					return errBoom
				}
				return nil
			})
		},
		"HTTP": func(r *retry.Retrier, down bool, attempts *int) error {
			status := 200
			if down {
				status = 503
			}
			resp, err := r.Layer(roundTripper(func(req *http.Request) (*http.Response, error) {
				*attempts++
				return replies(status, "x")(req)
			})).RoundTrip(newRequest(t, t.Context(), "GET", nil))
			if err == nil {
				_ = resp.Body.Close()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBudget(t, &retry.BudgetConfig{Kind: retry.TokenBudget})
			r := newRetrier(t, eager(func(c *retry.Config) { c.Budget = b }))
			attempts := 0
			for range 100 {
				_ = over(r, true, &attempts)
			}
			require.Equal(t, 100+3, attempts, "two of the first call; the fifth failure is the second call's second")
			for range 51 {
				require.Zero(t, b.Balance(time.Time{}))
				require.NoError(t, over(r, false, &attempts))
			}
			require.Equal(t, 1, b.Balance(time.Time{}))
		})
	}
}

func TestTokenBudgetUnderConcurrentVerdicts(t *testing.T) {
	b := newBudget(t, &retry.BudgetConfig{Kind: retry.TokenBudget, MaxTokens: 1000, Ratio: 1})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				b.Judge(bad)
				b.Withdraw(time.Time{})
			}
		})
	}
	wg.Wait()
	require.Equal(t, 100, b.Balance(time.Time{}), "none is lost")
	for range 8 {
		wg.Go(func() {
			for range 25 {
				b.Judge(good)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 300, b.Balance(time.Time{}))
}

func TestNoKindOfBudgetAllocates(t *testing.T) {
	for _, cfg := range []retry.BudgetConfig{
		{Ratio: -1}, {}, {Kind: retry.ConcurrencyBudget}, {Kind: retry.TokenBudget},
	} {
		b := newBudget(t, &cfg)
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			now := time.Now()
			b.Deposit(now)
			b.Judge(bad)
			b.Balance(now)
			if b.Withdraw(now) {
				b.Return()
			}
			b.Judge(good)
			b.Finish()
		}), cfg.Kind)
		r := newRetrier(t, &retry.Config{Budget: b})
		run := func(context.Context) error { return nil }
		require.Zero(t, testing.AllocsPerRun(1000, func() { _ = r.Run(t.Context(), run) }), cfg.Kind)
	}
}

func TestKindThatIsOffRefusesNothing(t *testing.T) {
	for _, kind := range []retry.BudgetKind{retry.ConcurrencyBudget, retry.TokenBudget} {
		b := newBudget(t, &retry.BudgetConfig{Kind: kind, Ratio: -1})
		for range 1000 {
			b.Judge(bad)
			require.True(t, b.Withdraw(time.Time{}))
		}
	}
}

// A call's attempt and its hedges count each for itself, and once.
func TestTokenBudgetCountsEachAttemptOfAHedgedCallOnce(t *testing.T) {
	slow := func(s step) step { return after(60*time.Millisecond, s) }
	soon := func(s step) step { return after(30*time.Millisecond, s) }
	for name, test := range map[string]struct {
		steps    []step
		failures int
	}{
		"the hedge answers for an attempt that fails": {[]step{slow(replies(503, "")), soon(replies(200, ""))}, 1},
		"the hedge of a refused attempt fails":        {[]step{slow(fails(refusal{})), soon(replies(503, ""))}, 1},
		"both answer badly":                           {[]step{slow(replies(503, "")), soon(replies(503, ""))}, 2},
		"a bad answer instead of an error":            {[]step{slow(fails(errReset)), soon(replies(503, ""))}, 2},
		"the attempt is superseded":                   {[]step{hangs, soon(replies(200, ""))}, 0},
		"no hedge begins":                             {[]step{soon(replies(503, ""))}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBudget(t, &retry.BudgetConfig{Kind: retry.TokenBudget, MaxTokens: 100, Ratio: 0.001})
				cfg := hedging(t, func(c *retry.Config) { c.Budget, c.MaxAttempts = b, 2 })
				resp, err := newRetrier(t, cfg).Layer(&script{steps: test.steps}).RoundTrip(newRequest(t, t.Context(), "GET", nil))
				if err == nil {
					readAll(t, resp)
				}
				synctest.Wait()
				require.Equal(t, 50-test.failures, b.Balance(time.Time{}))
			})
		})
	}
}
