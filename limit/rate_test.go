package limit_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

func newRate(t testing.TB, cfg limit.RateConfig) *limit.Rate {
	t.Helper()
	r, err := limit.NewRate(&cfg)
	require.NoError(t, err)
	return r
}

func TestRateAllowsABurstAndThenTheLimit(t *testing.T) {
	r := newRate(t, limit.RateConfig{Key: "orders", Limit: 10, Burst: 3})
	now := time.Now()
	for range 3 {
		require.NoError(t, r.Allow(now))
	}
	err := r.Allow(now)
	require.ErrorIs(t, err, limit.ErrLimited)
	var refusal *limit.RateError
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, "orders", refusal.Key)
	require.Equal(t, 100*time.Millisecond, refusal.RetryAfter)
	require.EqualError(t, err, "limit: rate exceeded for orders, next in 100ms")
	require.True(t, outcome.Refused(err))
	require.True(t, outcome.NotSent(err))
	after, ok := outcome.RetryAfter(err)
	require.True(t, ok)
	require.Equal(t, refusal.RetryAfter, after)
	require.Equal(t, outcome.Neutral, outcome.Of(err).Class)

	require.Error(t, r.Allow(now.Add(after-time.Microsecond)))
	require.NoError(t, r.Allow(now.Add(after)), "the hint holds")
	require.Error(t, r.Allow(now.Add(after)))
}

func TestRefusalsTakeNoTokens(t *testing.T) {
	r := newRate(t, limit.RateConfig{Limit: 1})
	now := time.Now()
	require.NoError(t, r.Allow(now))
	for range 1000 {
		require.Error(t, r.Allow(now))
	}
	require.NoError(t, r.Allow(now.Add(time.Second)))
}

func TestTimesThatGoBackCannotExceedTheRate(t *testing.T) {
	r := newRate(t, limit.RateConfig{Limit: 1, Burst: 1})
	now := time.Now()
	allowed := 0
	for i := range 1000 {
		at := now
		if i%2 == 1 {
			at = now.Add(-time.Hour)
		}
		if r.Allow(at) == nil {
			allowed++
		}
	}
	require.Equal(t, 1, allowed)
	require.Error(t, r.Allow(now.Add(time.Second-time.Microsecond)))
	require.NoError(t, r.Allow(now.Add(time.Second)))
}

func TestConcurrentTimesCannotExceedTheRate(t *testing.T) {
	r := newRate(t, limit.RateConfig{Limit: 1, Burst: 1})
	start := time.Now()
	var wg sync.WaitGroup
	allowed := make([]int, 8)
	for worker := range allowed {
		wg.Go(func() {
			for i := range 2000 {
				if r.Allow(start.Add(time.Duration(i*(worker+1))*time.Millisecond)) == nil {
					allowed[worker]++
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range allowed {
		sum += n
	}
	require.LessOrEqual(t, sum, 17, "1 and one for each of 16 s")
}

func TestRateConfigEdges(t *testing.T) {
	for name, test := range map[string]struct {
		cfg  *limit.RateConfig
		want string
	}{
		"nothing":         {nil, "limit: Limit is 0, want > 0, or negative for no limit"},
		"zero":            {&limit.RateConfig{Burst: 1}, "limit: Limit is 0, want > 0, or negative for no limit"},
		"not a number":    {&limit.RateConfig{Limit: math.NaN()}, "limit: Limit is NaN, want > 0, or negative for no limit"},
		"negative burst":  {&limit.RateConfig{Limit: 1, Burst: -1}, "limit: Burst is -1, want >= 1"},
		"infinite":        {&limit.RateConfig{Limit: math.Inf(1)}, "limit: Limit is +Inf, want a finite number, negative for no limit"},
		"minus infinite":  {&limit.RateConfig{Limit: math.Inf(-1)}, "limit: Limit is -Inf, want a finite number, negative for no limit"},
		"as deadline":     {&limit.RateConfig{Limit: 1, AsDeadline: 7}, "limit: AsDeadline is 7, want On or Off"},
		"several at once": {&limit.RateConfig{Burst: -1}, "limit: Limit is 0, want > 0, or negative for no limit\nlimit: Burst is -1, want >= 1"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := limit.NewRate(test.cfg)
			require.EqualError(t, err, test.want)
			require.Nil(t, r)
		})
	}
	t.Run("negative is no limit", func(t *testing.T) {
		r := newRate(t, limit.RateConfig{Limit: -1})
		now := time.Now()
		for range 10_000 {
			require.NoError(t, r.Allow(now))
		}
		require.NoError(t, r.Wait(t.Context()))
		delay, err := r.Reserve(t.Context())
		require.NoError(t, err)
		require.Zero(t, delay)
	})
	t.Run("the shortest wait lets none wait", func(t *testing.T) {
		r := newRate(t, limit.RateConfig{Limit: 1, MaxWait: 1})
		require.NoError(t, r.Wait(t.Context()))
		require.ErrorIs(t, r.Wait(t.Context()), limit.ErrLimited)
	})
	t.Run("the default burst is the limit rounded up", func(t *testing.T) {
		for l, burst := range map[float64]int{0.01: 1, 1: 1, 2.5: 3, 100: 100} {
			r := newRate(t, limit.RateConfig{Limit: l})
			now, n := time.Now(), 0
			for r.Allow(now) == nil {
				n++
			}
			require.Equal(t, burst, n)
		}
	})
	t.Run("a tiny limit makes no overflow", func(t *testing.T) {
		r := newRate(t, limit.RateConfig{Limit: 1e-300})
		require.NoError(t, r.Allow(time.Time{}))
		var refusal *limit.RateError
		require.ErrorAs(t, r.Allow(time.Time{}), &refusal)
		require.Greater(t, refusal.RetryAfter, 24*time.Hour)
	})
}

func TestWaitRefusesAtOnceWhatWouldWaitTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		none := newRate(t, limit.RateConfig{Limit: 1})
		require.NoError(t, none.Wait(t.Context()))
		require.ErrorIs(t, none.Wait(t.Context()), limit.ErrLimited, "nobody waits by default")

		start := time.Now()
		r := newRate(t, limit.RateConfig{Limit: 1, MaxWait: 2 * time.Second})
		var wg sync.WaitGroup
		for range 3 { // at once, after 1 s and after 2 s
			wg.Go(func() {
				if err := r.Wait(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		var refusal *limit.RateError
		require.ErrorAs(t, r.Wait(t.Context()), &refusal)
		require.Equal(t, 3*time.Second, refusal.RetryAfter)
		require.ErrorIs(t, r.Allow(time.Time{}), limit.ErrLimited, "no one goes ahead of those who wait")
		wg.Wait()
		require.Equal(t, 2*time.Second, time.Since(start))
	})
}

func TestWaitRefusesAtOnceWhatWouldPassTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, as := range []limit.Switch{limit.Inherit, limit.On, limit.Off} {
			r := newRate(t, limit.RateConfig{Limit: 1, MaxWait: -1, AsDeadline: as})
			require.NoError(t, r.Wait(t.Context()))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			err := r.Wait(ctx)
			require.Zero(t, time.Since(start))
			require.ErrorIs(t, err, limit.ErrLimited)
			require.Equal(t, as == limit.On, errors.Is(err, context.DeadlineExceeded))
			require.Equal(t, outcome.Neutral, outcome.Of(err).Class)

			enough, cancel := context.WithTimeout(t.Context(), time.Second+1)
			defer cancel()
			require.NoError(t, r.Wait(enough), "who was refused has taken nothing")
		}
	})
}

// Reserve answers each of a number of callers as Wait would if all came at once.
func TestReserveTellsWhatWaitWouldDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, maxWait := range []time.Duration{0, 1, 2 * time.Second, -1} {
			cfg := limit.RateConfig{Key: "orders", Limit: 1, Burst: 2, MaxWait: maxWait}
			waiting, reserving := newRate(t, cfg), newRate(t, cfg)
			for round := range 2 {
				start := time.Now()
				var wg sync.WaitGroup
				for range 6 {
					ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second+1)
					delay, reserved := reserving.Reserve(ctx)
					wg.Go(func() {
						defer cancel()
						waited := waiting.Wait(ctx)
						if fmt.Sprint(waited) != fmt.Sprint(reserved) || time.Since(start) != delay {
							t.Errorf("round %d with MaxWait %v: %v after %v, reserved %v after %v",
								round, maxWait, waited, time.Since(start), reserved, delay)
						}
					})
					synctest.Wait()
				}
				wg.Wait()
			}
		}
	})
}

func TestReserveOfAnEndedContextTakesNoToken(t *testing.T) {
	r := newRate(t, limit.RateConfig{Limit: 1})
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	_, err := r.Reserve(ctx)
	require.Equal(t, cause, err)
	require.NoError(t, r.Allow(time.Time{}))
}

func TestAPreCancelledWaitTakesNoToken(t *testing.T) {
	r := newRate(t, limit.RateConfig{Limit: 1})
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	for range 10 {
		require.Equal(t, cause, r.Wait(ctx))
	}
	require.NoError(t, r.Allow(time.Time{}))
}

func TestACancelledWaiterLeavesItsTokenToThoseBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newRate(t, limit.RateConfig{Limit: 1, MaxWait: -1})
		require.NoError(t, r.Wait(t.Context()))

		cancels := make([]context.CancelFunc, 10)
		served := make([]time.Duration, 10)
		var wg sync.WaitGroup
		for i := range cancels {
			var ctx context.Context
			ctx, cancels[i] = context.WithCancel(t.Context())
			wg.Go(func() {
				if err := r.Wait(ctx); err == nil {
					served[i] = time.Since(start)
				} else if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
			synctest.Wait() // in this order
		}
		time.Sleep(500 * time.Millisecond)
		for _, i := range []int{0, 3, 4, 9} { // the first, some between, the last
			cancels[i]()
		}
		wg.Wait()
		for i, place := range map[int]int{1: 1, 2: 2, 5: 3, 6: 4, 7: 5, 8: 6} {
			require.Equal(t, time.Duration(place)*time.Second, served[i], "waiter %d", i)
			cancels[i]()
		}
		time.Sleep(time.Second)
		require.NoError(t, r.Allow(time.Time{}), "and the bucket fills as if they had never been")
	})
}

// Of callers that nearly all give up, those that stay are still served at the
// full rate, and no more than that.
func TestLateCancelsNeitherStarveNorExceedTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRate(t, limit.RateConfig{Limit: 100, Burst: 1, MaxWait: -1})
		served := 0
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 5000 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 2 * time.Millisecond)
				// Cancelled and not timed out: a deadline would be refused at once.
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				patience := time.Duration(i%50)*time.Millisecond + time.Millisecond/2
				defer time.AfterFunc(patience, cancel).Stop()
				if r.Wait(ctx) == nil {
					mu.Lock()
					served++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		require.InDelta(t, 1000, served, 10, "100 a second for 10 s")
	})
}

func TestWaitersAreServedInOrderAtTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newRate(t, limit.RateConfig{Limit: 10, Burst: 1, MaxWait: -1})
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				if err := r.Wait(t.Context()); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
			})
			synctest.Wait()
		}
		wg.Wait()
		require.IsIncreasing(t, order)
		require.Len(t, order, 50)
		require.InDelta(t, 4900*time.Millisecond, time.Since(start), float64(time.Microsecond))
	})
}

func TestNobodyTakesTheTokenOfThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 20 {
			start := time.Now()
			r := newRate(t, limit.RateConfig{Limit: 1, Burst: 1, MaxWait: 3 * time.Second / 2})
			require.NoError(t, r.Wait(t.Context()))
			var wg sync.WaitGroup
			late := func() {
				time.Sleep(time.Second) // until the very moment at which there is a token
				if r.Allow(time.Time{}) == nil {
					t.Error("went ahead")
				}
				if r.Wait(t.Context()) == nil && time.Since(start) < 2*time.Second {
					t.Error("went ahead too")
				}
			}
			for range 4 {
				wg.Go(late)
			}
			synctest.Wait()
			wg.Go(func() {
				if err := r.Wait(t.Context()); err != nil || time.Since(start).Round(time.Millisecond) != time.Second {
					t.Error("served late", time.Since(start), err)
				}
			})
			synctest.Wait()
			for range 4 {
				wg.Go(late)
			}
			wg.Wait()
		}
	})
}

func TestUpdateOfARateReachesThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newRate(t, limit.RateConfig{Key: "orders", Limit: 0.01, MaxWait: -1})
		require.NoError(t, r.Wait(t.Context()))
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := r.Wait(t.Context()); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		require.ErrorContains(t, r.Update(nil), "limit: Limit is 0")
		require.NoError(t, r.Update(&limit.RateConfig{Limit: 1}))
		wg.Wait()
		require.Equal(t, time.Second, time.Since(start))
		require.ErrorContains(t, r.Wait(t.Context()), "orders")
	})
}

func TestUpdateKeepsTheTokensWhateverTheLimitsWere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRate(t, limit.RateConfig{Limit: 10})
		for range 6 {
			require.NoError(t, r.Allow(time.Time{}))
		}
		left := func() (n int) {
			for r.Allow(time.Time{}) == nil {
				if n++; n > 1000 {
					break
				}
			}
			return n
		}
		require.NoError(t, r.Update(&limit.RateConfig{Limit: 1, Burst: 20}))
		require.Equal(t, 4, left())
		require.NoError(t, r.Update(&limit.RateConfig{Limit: -1}))
		require.Greater(t, left(), 1000)
		require.NoError(t, r.Update(&limit.RateConfig{Limit: 1, Burst: 5}))
		require.Equal(t, 5, left(), "there is a limit again, all at the same moment")
		time.Sleep(2 * time.Second)
		require.Equal(t, 2, left())
	})
}

func TestAllowDoesNotAllocate(t *testing.T) {
	r := newRate(t, limit.RateConfig{Limit: 1e9})
	ctx := t.Context()
	require.Zero(t, testing.AllocsPerRun(1000, func() { _ = r.Allow(time.Time{}) }))
	require.Zero(t, testing.AllocsPerRun(1000, func() { _ = r.Wait(ctx) }))
}
