package retry_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// A try is one call of a function.
type try = func(context.Context) (string, error)

// tries is a function whose nth call is the nth try's, or the last one's.
type tries struct {
	steps []try

	mu   sync.Mutex
	ctxs []context.Context
}

func (s *tries) fn(ctx context.Context) (string, error) {
	s.mu.Lock()
	n := len(s.ctxs)
	s.ctxs = append(s.ctxs, ctx)
	s.mu.Unlock()
	return s.steps[min(n, len(s.steps)-1)](ctx)
}

func (s *tries) made() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ctxs)
}

func returns(v string, err error) try {
	return func(context.Context) (string, error) { return v, err }
}

// in does what t does, but later, unless the context ends.
func in(d time.Duration, t try) try {
	return func(ctx context.Context) (string, error) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return t(ctx)
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func never(ctx context.Context) (string, error) {
	<-ctx.Done()
	return "", ctx.Err()
}

func TestHedgeOfAFunctionAnswersForACallThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tries{steps: []try{never, in(10*time.Millisecond, returns("hedge", nil))}}
		rec := new(recorder)
		r := newRetrier(t, hedging(t, func(c *retry.Config) { c.Name, c.Observer = "mail", rec }))
		ctx := context.WithValue(t.Context(), valueKey{}, "value")
		begin := time.Now()
		v, err := retry.Do(ctx, r, s.fn)
		require.NoError(t, err)
		require.Equal(t, "hedge", v)
		require.Equal(t, 60*time.Millisecond, time.Since(begin))
		require.Equal(t, 2, s.made())
		require.ErrorContains(t, context.Cause(s.ctxs[0]), "superseded")
		require.ErrorIs(t, context.Cause(s.ctxs[0]), context.Canceled)
		require.Equal(t, "value", s.ctxs[1].Value(valueKey{}))
		require.Error(t, s.ctxs[1].Err(), "a function's context ends with it")
		require.Equal(t, []string{"retry.hedged"}, names(rec))
		require.Equal(t, retry.Hedged{Service: "mail", Hedge: 1, Delay: hedgeDelay}, rec.events[0])
	})
}

// goroutine is what the goroutine that asks is called.
func goroutine() string {
	stack := make([]byte, 64)
	name, _, _ := strings.Cut(string(stack[:runtime.Stack(stack, false)]), " [")
	return name
}

func TestFunctionsRunOnTheCallersGoroutineAndHedgesBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var first, hedge string
		var n atomic.Int32
		err := newRetrier(t, hedging(t)).Run(t.Context(), func(ctx context.Context) error {
			if n.Add(1) > 1 {
				hedge = goroutine()
				return nil
			}
			first = goroutine()
			<-ctx.Done()
			return ctx.Err()
		})
		require.NoError(t, err)
		require.Equal(t, goroutine(), first)
		require.NotEqual(t, first, hedge)
	})
}

func TestNoHedgeOfAFunctionBeginsForAnAnswerInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tries{steps: []try{in(hedgeDelay-1, returns("first", nil))}}
		v, err := retry.Do(t.Context(), newRetrier(t, hedging(t)), s.fn)
		require.NoError(t, err)
		require.Equal(t, "first", v)
		time.Sleep(time.Minute)
		require.Equal(t, 1, s.made())
	})
}

// closer is a value that is to be closed.
type closer struct{ closed *atomic.Int32 }

func (c closer) Close() error { c.closed.Add(1); return nil }

func TestWhatALosingFunctionReturnsIsClosed(t *testing.T) {
	for _, test := range []struct {
		name         string
		first, hedge time.Duration // when they return, whatever happens to their contexts
		took         time.Duration
	}{
		{"late hedge", 60 * time.Millisecond, time.Second, 60 * time.Millisecond},
		{"late first", 200 * time.Millisecond, 10 * time.Millisecond, 200 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var closed [2]atomic.Int32
				var n atomic.Int32
				r := newRetrier(t, hedging(t))
				begin := time.Now()
				v, err := retry.Do(t.Context(), r, func(context.Context) (closer, error) {
					i := n.Add(1) - 1
					time.Sleep([]time.Duration{test.first, test.hedge}[i])
					return closer{&closed[i]}, nil
				})
				require.NoError(t, err)
				require.Equal(t, test.took, time.Since(begin))
				time.Sleep(time.Minute)
				require.Zero(t, v.closed.Load())
				require.EqualValues(t, 1, closed[0].Load()+closed[1].Load())
			})
		})
	}
	t.Run("response", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			late := newBody("late")
			var n atomic.Int32
			resp, err := retry.Do(t.Context(), newRetrier(t, hedging(t)), func(ctx context.Context) (*http.Response, error) {
				if n.Add(1) == 1 {
					time.Sleep(60 * time.Millisecond)
					return response(200, newBody("first")), nil
				}
				time.Sleep(time.Second)
				return response(200, late), nil
			})
			require.NoError(t, err)
			require.Equal(t, "first", readAll(t, resp))
			time.Sleep(time.Minute)
			require.EqualValues(t, 1, late.closes.Load())
		})
	})
	t.Run("nil and a Close that panics", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var n atomic.Int32
			v, err := retry.Do(t.Context(), newRetrier(t, hedging(t)), func(context.Context) (*closer, error) {
				if n.Add(1) == 1 {
					time.Sleep(60 * time.Millisecond)
					return &closer{}, nil
				}
				time.Sleep(time.Second)
				return nil, nil
			})
			require.NoError(t, err)
			require.NotNil(t, v)
			time.Sleep(time.Minute) // the process lives
		})
	})
}

func TestHedgeOfAFunctionThatFailsDoesNotBeatALivingCall(t *testing.T) {
	for name, failure := range map[string]error{
		"error": errReset, "final": outcome.Permanent(errBoom), "refusal": refusal{}, "throttled": hint(time.Second),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &tries{steps: []try{in(time.Second, returns("first", nil)), returns("", failure)}}
				begin := time.Now()
				v, err := retry.Do(t.Context(), newRetrier(t, hedging(t)), s.fn)
				require.NoError(t, err)
				require.Equal(t, "first", v)
				require.Equal(t, time.Second, time.Since(begin))
				require.Equal(t, 2, s.made())
			})
		})
	}
}

func TestErrorThatTheClassifierTakesForASuccessIsAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errNotFound := errors.New("not found")
		s := &tries{steps: []try{never, returns("", errNotFound)}}
		r := newRetrier(t, hedging(t, func(c *retry.Config) {
			c.Classify = func(err error) outcome.Outcome {
				if errors.Is(err, errNotFound) {
					return outcome.Outcome{Err: err}
				}
				return outcome.Of(err)
			}
		}))
		begin := time.Now()
		_, err := retry.Do(t.Context(), r, s.fn)
		require.Equal(t, errNotFound, err)
		require.Equal(t, hedgeDelay, time.Since(begin))
	})
}

func TestFunctionThatFailsWaitsForItsHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tries{steps: []try{in(60*time.Millisecond, returns("", errReset)), in(time.Second, returns("hedge", nil))}}
		begin := time.Now()
		v, err := retry.Do(t.Context(), newRetrier(t, hedging(t)), s.fn)
		require.NoError(t, err)
		require.Equal(t, "hedge", v)
		require.Equal(t, 1050*time.Millisecond, time.Since(begin))
	})
}

func TestFunctionWhoseHedgesFailTooReturnsAllErrors(t *testing.T) {
	slow := func(err error) try { return in(60*time.Millisecond, returns("", err)) }
	for _, test := range []struct {
		name         string
		first, hedge try
		want         string
	}{
		{"both", slow(errReset), returns("", errBoom), "connection reset (hedged: boom)"},
		{"an error rather than a refusal", slow(refusal{}), returns("", errBoom), "boom (not tried again: breaker is open)"},
		{"the call's own rather than a refusal", slow(errReset), returns("", refusal{}), "connection reset (not tried again: breaker is open)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &tries{steps: []try{test.first, test.hedge, returns("", refusal{})}}
				_, err := retry.Do(t.Context(), newRetrier(t, hedging(t, func(c *retry.Config) { c.MaxAttempts = 3 })), s.fn)
				if test.name == "both" {
					var hedged *retry.HedgedError
					require.ErrorAs(t, err, &hedged)
					test.want += " (not tried again: breaker is open)"
				}
				require.EqualError(t, err, test.want)
			})
		})
	}
}

func TestHedgesOfAFunctionCountAsAttempts(t *testing.T) {
	for attempts, want := range map[int]int{-1: 1, 2: 2, 3: 3, 6: 6} {
		t.Run(fmt.Sprint(attempts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &tries{steps: []try{in(time.Second, returns("", errReset))}}
				r := newRetrier(t, hedging(t, func(c *retry.Config) { c.MaxAttempts, c.Hedge.MaxHedges = attempts, 2 }))
				_, err := retry.Do(t.Context(), r, s.fn)
				require.ErrorIs(t, err, errReset)
				require.Equal(t, want, s.made())
			})
		})
	}
}

func TestOnlyFunctionsThatMayBeRepeatedAreHedged(t *testing.T) {
	r := func(t *testing.T) *retry.Retrier { return newRetrier(t, hedging(t)) }
	for _, test := range []struct {
		name string
		ctx  func(t *testing.T, r *retry.Retrier) context.Context
		want int
	}{
		{"by default", func(t *testing.T, _ *retry.Retrier) context.Context { return t.Context() }, 2},
		{"not idempotent", func(t *testing.T, _ *retry.Retrier) context.Context {
			return retry.WithIdempotent(t.Context(), false)
		}, 1},
		{"for a request that is final", func(t *testing.T, _ *retry.Retrier) context.Context {
			return call.WithInbound(t.Context(), &call.Inbound{NoRetry: true})
		}, 1},
		{"in a frame", func(t *testing.T, r *retry.Retrier) context.Context {
			ctx, _ := inFrame(t, r)
			return ctx
		}, 2},
		{"a long poll", func(t *testing.T, r *retry.Retrier) context.Context {
			ctx, f := inFrame(t, r)
			f.SetLatencyNeutral(true)
			return ctx
		}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := r(t)
				s := &tries{steps: []try{in(time.Second, returns("ok", nil))}}
				_, err := retry.Do(test.ctx(t, r), r, s.fn)
				require.NoError(t, err)
				require.Equal(t, test.want, s.made())
			})
		})
	}
}

func TestHedgesOfFunctionsHaveTheirShareAndTakeFromTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := func(r *retry.Retrier, n int) int {
			s := &tries{steps: []try{in(time.Second, returns("ok", nil))}}
			for range n {
				_, err := retry.Do(t.Context(), r, s.fn)
				require.NoError(t, err)
			}
			return s.made() - n
		}
		share := newRetrier(t, hedging(t, func(c *retry.Config) { c.Hedge.MaxExtra = 0.5 }))
		require.Equal(t, 6, calls(share, 10), "one, and half of the calls")
		none := newBudget(t, &retry.BudgetConfig{Ratio: 1e-6, PerSecond: -1})
		poor := newRetrier(t, hedging(t, func(c *retry.Config) { c.Budget = none }))
		require.Zero(t, calls(poor, 10))
	})
}

// What is given up for a hedge has taken at least as long as it has: were it left
// out, the percentile would sink below the truth.
func TestSupersededFunctionsCountForThePercentile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, hedging(t, func(c *retry.Config) { c.Hedge.Delay, c.Hedge.Percentile = 20*time.Millisecond, 0.5 }))
		for range 200 { // all are slow at first, and every hedge is fast
			s := &tries{steps: []try{in(time.Second, returns("slow", nil)), returns("fast", nil)}}
			_, err := retry.Do(t.Context(), r, s.fn)
			require.NoError(t, err)
			time.Sleep(10 * time.Millisecond)
		}
		s := &tries{steps: []try{in(time.Second, returns("slow", nil)), returns("fast", nil)}}
		begin := time.Now()
		_, err := retry.Do(t.Context(), r, s.fn)
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(begin), 19*time.Millisecond)
	})
}

func TestPanicOfAFunctionsHedgeReachesTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tries{steps: []try{never, func(context.Context) (string, error) { panic(errBoom) }}}
		r := newRetrier(t, hedging(t))
		require.PanicsWithValue(t, errBoom, func() { _, _ = retry.Do(t.Context(), r, s.fn) })
	})
}

func TestPanicOfAFunctionsHedgeThatCameTooLateIsNobodys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tries{steps: []try{in(60*time.Millisecond, returns("", nil)), func(context.Context) (string, error) {
			time.Sleep(time.Second)
			panic(errBoom)
		}}}
		_, err := retry.Do(t.Context(), newRetrier(t, hedging(t)), s.fn)
		require.NoError(t, err)
		time.Sleep(time.Minute)
	})
}

func TestGoexitOfAFunctionsHedgeIsAFailureOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := func(context.Context) (string, error) { runtime.Goexit(); return "", nil }
		s := &tries{steps: []try{in(time.Second, returns("first", nil)), exits}}
		v, err := retry.Do(t.Context(), newRetrier(t, hedging(t)), s.fn)
		require.NoError(t, err)
		require.Equal(t, "first", v)
	})
}

func TestPanicOrGoexitOfAFunctionEndsItsHedge(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(errBoom) }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &tries{steps: []try{func(context.Context) (string, error) {
					time.Sleep(time.Second)
					end()
					return "", nil
				}, never}}
				done := make(chan any)
				go func() {
					defer func() { done <- recover() }()
					_, _ = retry.Do(t.Context(), newRetrier(t, hedging(t)), s.fn)
				}()
				require.Equal(t, name == "panic", <-done != nil)
				<-s.ctxs[1].Done()
			})
		})
	}
}

// The caller goes away at every moment of calls that go every way, and is not kept
// waiting by what does not heed its context but on his own goroutine. The bubble
// sees what is left behind.
func TestCallerOfAFunctionMayGoAwayAtAnyMoment(t *testing.T) {
	deaf := func(context.Context) (string, error) { time.Sleep(time.Second); return "", errBoom }
	for name, steps := range map[string][]try{
		"both hang":     {never, never},
		"hedge answers": {never, in(20*time.Millisecond, returns("", nil)), never},
		"first answers": {in(70*time.Millisecond, returns("", nil)), never},
		"first fails":   {in(60*time.Millisecond, returns("", errReset)), in(30*time.Millisecond, returns("", nil))},
		"both fail":     {in(60*time.Millisecond, returns("", errReset)), in(10*time.Millisecond, returns("", errBoom)), never},
		"hedge is deaf": {never, deaf},
	} {
		t.Run(name, func(t *testing.T) {
			for ms := 0; ms <= 120; ms += 10 {
				synctest.Test(t, func(t *testing.T) {
					ctx, cancel := context.WithTimeoutCause(t.Context(), time.Duration(ms)*time.Millisecond, errBoom)
					defer cancel()
					s := &tries{steps: steps}
					begin := time.Now()
					_, _ = retry.Do(ctx, newRetrier(t, hedging(t)), s.fn)
					require.LessOrEqual(t, time.Since(begin), time.Duration(ms)*time.Millisecond)
					time.Sleep(2 * time.Second) // the deaf come to their end
				})
			}
		})
	}
}

func TestTimeoutsBoundEachOfAFunctionsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tries{steps: []try{never}}
		r := newRetrier(t, hedging(t, func(c *retry.Config) { c.AttemptTimeout, c.MaxAttempts = time.Second, 2 }))
		begin := time.Now()
		_, err := retry.Do(t.Context(), r, s.fn)
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.Equal(t, time.Second+hedgeDelay, time.Since(begin))

		s = &tries{steps: []try{never}}
		r = newRetrier(t, hedging(t, func(c *retry.Config) { c.Timeout = 200 * time.Millisecond }))
		begin = time.Now()
		_, err = retry.Do(t.Context(), r, s.fn)
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
		require.Equal(t, 200*time.Millisecond, time.Since(begin))
		require.Equal(t, 2, s.made())
	})
}

func TestHedgeOfAFunctionHasAFrameBesideThatOfItsCall(t *testing.T) {
	for _, same := range []retry.Switch{retry.Off, retry.On} {
		synctest.Test(t, func(t *testing.T) {
			r := newRetrier(t, hedging(t, func(c *retry.Config) { c.Hedge.SameNode = same }))
			ctx, log := call.WithLog(t.Context())
			ctx, f := call.Push(ctx, call.NewChain(r), call.Info{Service: "orders", Start: time.Now()})
			var n atomic.Int32
			v, err := retry.Do(ctx, r, func(ctx context.Context) (string, error) {
				own := call.Join(ctx, r)
				if n.Add(1) == 1 {
					require.Same(t, f, own)
					i := own.Send(time.Now(), "a", "a", "a")
					_, err := never(ctx)
					own.Answered(time.Now(), i, nil, 0, outcome.Of(err))
					return "", err
				}
				require.NotSame(t, f, own)
				require.Equal(t, same != retry.On, own.Elsewhere())
				require.True(t, own.Tried("a"))
				require.False(t, own.BeginRetries())
				i := own.Send(time.Now(), "b", "b", "b")
				time.Sleep(time.Millisecond)
				own.Answered(time.Now(), i, nil, 0, outcome.Outcome{})
				return "hedge", nil
			})
			f.Finish(time.Now(), 0, err)
			require.NoError(t, err)
			require.Equal(t, "hedge", v)
			require.Equal(t, "orders: ok in 51ms; a context canceled in 51ms; hedge b ok in 1ms", log.String())
		})
	}
}

func TestLogOfAFunctionShowsItsHedges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, hedging(t, func(c *retry.Config) { c.Name = "mail" }))
		ctx, log := call.WithLog(t.Context())
		s := &tries{steps: []try{never, in(10*time.Millisecond, returns("hedge", nil))}}
		_, err := retry.Do(ctx, r, s.fn)
		require.NoError(t, err)
		require.Equal(t, "mail: ok in 60ms; hedge sent ok in 10ms; sent context canceled in 60ms", log.String())
	})
}

func TestServiceOfAFrameWithoutAnotherNodeIsNotHedgedForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, hedging(t))
		made := 0
		for range 5 {
			ctx, _ := inFrame(t, r)
			var n atomic.Int32
			_, err := retry.Do(ctx, r, func(ctx context.Context) (string, error) {
				if n.Add(1) > 1 {
					return "", refusal{}
				}
				return in(time.Second/2, returns("", nil))(ctx)
			})
			require.NoError(t, err)
			made += int(n.Load())
		}
		require.Equal(t, 7, made, "the first and the fourth")
	})
}

func TestOneRetrierHedgesFunctionsOfSeveralKindsAndRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, hedging(t))
		layer := r.Layer(&script{steps: []step{after(time.Millisecond, replies(200, ""))}})
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				v, err := retry.Do(t.Context(), r, func(context.Context) (int, error) { time.Sleep(time.Millisecond); return i, nil })
				if err != nil || v != i {
					t.Error(v, err)
				}
				if err := r.Run(t.Context(), func(context.Context) error { time.Sleep(time.Second); return errBoom }); err == nil {
					t.Error("no error")
				}
				resp, err := layer.RoundTrip(newRequest(t, t.Context(), "GET", nil))
				if err != nil {
					t.Error(err)
					return
				}
				_ = resp.Body.Close()
			})
		}
		all.Wait()
	})
}
