package limit_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

func newConcurrency(t testing.TB, cfg limit.ConcurrencyConfig) *limit.Concurrency {
	t.Helper()
	c, err := limit.NewConcurrency(&cfg)
	require.NoError(t, err)
	return c
}

// fill takes all there is.
func fill(t testing.TB, c *limit.Concurrency) (leases []*limit.Lease) {
	t.Helper()
	for {
		l, err := c.TryAcquire()
		if err != nil {
			require.ErrorIs(t, err, limit.ErrFull)
			return leases
		}
		leases = append(leases, &l)
	}
}

func TestConcurrencyRefusesBeyondMax(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{Key: "orders", Max: 3})
	leases := fill(t, c)
	require.Len(t, leases, 3)
	require.Equal(t, 3, c.InFlight())
	_, err := c.Acquire(t.Context())
	var refusal *limit.FullError
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, limit.FullError{Key: "orders", Max: 3}, *refusal)
	require.EqualError(t, err, "limit: full for orders, 3 calls under way")
	require.True(t, outcome.Refused(err))
	require.True(t, outcome.NotSent(err))
	require.Equal(t, outcome.Neutral, outcome.Of(err).Class)

	leases[1].Done()
	leases[1].Done()
	require.Equal(t, 2, c.InFlight(), "a lease is returned once")
	l, err := c.Acquire(t.Context())
	require.NoError(t, err)
	l.Done()
}

func TestTheZeroLeaseDoesNothing(t *testing.T) {
	var l limit.Lease
	l.Done()
	l.Done()
}

func TestConcurrencyConfigEdges(t *testing.T) {
	c, err := limit.NewConcurrency(nil)
	require.NoError(t, err)
	require.Len(t, fill(t, c), 1000)

	c, err = limit.NewConcurrency(&limit.ConcurrencyConfig{UntilHeaders: 7})
	require.EqualError(t, err, "limit: UntilHeaders is 7, want On or Off")
	require.Nil(t, c)

	c = newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: -1})
	fill(t, c)
	_, err = c.Acquire(t.Context())
	require.ErrorIs(t, err, limit.ErrFull, "a negative queue is none")

	c = newConcurrency(t, limit.ConcurrencyConfig{Max: -1})
	for range 10_000 {
		_, err := c.TryAcquire()
		require.NoError(t, err)
	}
	require.Equal(t, 10_000, c.InFlight())
}

func TestAPermitIsReturnedAfterPanicAndGoexit(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1})
	for range 10 {
		require.PanicsWithValue(t, "boom", func() {
			_ = c.Run(t.Context(), func(context.Context) error { panic("boom") })
		})
		var wg sync.WaitGroup
		wg.Go(func() { _ = c.Run(t.Context(), func(context.Context) error { runtime.Goexit(); return nil }) })
		wg.Wait()
	}
	failed := errors.New("failed")
	require.Equal(t, failed, c.Run(t.Context(), func(context.Context) error {
		require.Equal(t, 1, c.InFlight())
		return failed
	}))
	require.Zero(t, c.InFlight())
	fill(t, c)
	require.ErrorIs(t, c.Run(t.Context(), func(context.Context) error { panic("not called") }), limit.ErrFull)
}

func TestTheQueueIsFirstInFirstOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 20})
		held := fill(t, c)[0]
		var order []int
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				l, err := c.Acquire(t.Context())
				if err != nil {
					t.Error(err)
				}
				order = append(order, i) // one at a time: it is the permit that guards it
				l.Done()
			})
			synctest.Wait()
		}
		require.Equal(t, 20, c.Waiting())
		_, err := c.Acquire(t.Context())
		require.ErrorIs(t, err, limit.ErrFull, "the queue has an end")
		held.Done()
		wg.Wait()
		require.IsIncreasing(t, order)
		require.Len(t, order, 20)
		require.Zero(t, c.InFlight())
		require.Zero(t, c.Waiting())
	})
}

func TestNobodyGoesAheadOfThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 1})
		held := fill(t, c)[0]
		admitted := make(chan *limit.Lease, 1)
		go func() {
			l, _ := c.Acquire(t.Context())
			admitted <- &l
		}()
		synctest.Wait()
		held.Done()
		_, err := c.TryAcquire()
		require.ErrorIs(t, err, limit.ErrFull, "the permit has been handed on")
		(<-admitted).Done()
		require.Len(t, fill(t, c), 1)
	})
}

func TestTheQueueHonoursTheContextAndMaxWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 10})
		fill(t, c)
		start := time.Now()
		_, err := c.Acquire(t.Context())
		var refusal *limit.FullError
		require.ErrorAs(t, err, &refusal)
		require.Equal(t, time.Second, time.Since(start), "the default")
		require.Equal(t, time.Second, refusal.Waited)
		require.EqualError(t, err, "limit: full, 1 calls under way after 1s in the queue")

		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Millisecond, func() { cancel(cause) })
		_, err = c.Acquire(ctx)
		require.Equal(t, cause, err)
		require.Equal(t, time.Second+time.Millisecond, time.Since(start))

		_, err = c.Acquire(ctx)
		require.Equal(t, cause, err, "who has gone before does not enter")
		require.Zero(t, c.Waiting())
		require.Equal(t, 1, c.InFlight())

		require.NoError(t, c.Update(&limit.ConcurrencyConfig{Max: 1, Queue: 10, MaxWait: -1}))
		late, cancelLate := context.WithTimeout(t.Context(), time.Hour)
		defer cancelLate()
		_, err = c.Acquire(late)
		require.ErrorIs(t, err, context.DeadlineExceeded, "as long as the context lasts")
	})
}

func TestAPreCancelledAcquireTakesNothing(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Acquire(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, c.InFlight())
}

// waitWith queues a call and sends its name when it has been admitted; the
// permit goes back at once.
func waitWith(t *testing.T, c *limit.Concurrency, p limit.Priority, name string, log chan<- string) {
	t.Helper()
	ctx := limit.WithPriority(t.Context(), p)
	go func() {
		l, err := c.Acquire(ctx)
		if err != nil {
			name = "refused " + name
		}
		log <- name
		l.Done()
	}()
	synctest.Wait()
}

func TestHigherPrioritiesGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 10})
		held := fill(t, c)[0]
		log := make(chan string, 10)
		waitWith(t, c, limit.Low, "low 1", log)
		waitWith(t, c, -100, "low 2", log)
		waitWith(t, c, limit.Normal, "normal", log)
		waitWith(t, c, limit.High, "high 1", log)
		waitWith(t, c, 100, "high 2", log)
		held.Done()
		for _, want := range []string{"high 1", "high 2", "normal", "low 1", "low 2"} {
			require.Equal(t, want, <-log)
		}
	})
}

func TestLowPriorityIsNotStarvedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 100, MaxWait: -1})
		held := fill(t, c)[0]
		var wg sync.WaitGroup
		before, served := 0, false // guarded by the only permit
		wg.Go(func() {
			l, err := c.Acquire(limit.WithPriority(t.Context(), limit.Low))
			if err != nil {
				t.Error(err)
			}
			served = true
			l.Done()
		})
		synctest.Wait()
		for range 5 { // of high priority there is always one more
			wg.Go(func() {
				for done := false; !done; {
					l, err := c.Acquire(limit.WithPriority(t.Context(), limit.High))
					if err != nil {
						t.Error(err)
					}
					if done = served || before > 1000; !done {
						before++
					}
					l.Done()
				}
			})
		}
		synctest.Wait()
		held.Done()
		wg.Wait()
		require.Equal(t, 7, before, "the eighth is who has waited the longest")
	})
}

func TestAFullQueueRefusesTheLowestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 3})
		held := fill(t, c)[0]
		log := make(chan string, 10)
		waitWith(t, c, limit.Low, "low 1", log)
		waitWith(t, c, limit.Low, "low 2", log)
		waitWith(t, c, limit.Normal, "normal 1", log)

		waitWith(t, c, limit.Low, "low 3", log)
		require.Equal(t, "refused low 3", <-log, "as low as they are, and later")
		waitWith(t, c, limit.High, "high 1", log)
		require.Equal(t, "refused low 2", <-log, "low does not keep high out")
		waitWith(t, c, limit.Normal, "normal 2", log)
		require.Equal(t, "refused low 1", <-log)
		waitWith(t, c, limit.High, "high 2", log)
		require.Equal(t, "refused normal 2", <-log)
		require.Equal(t, 3, c.Waiting())

		held.Done()
		for _, want := range []string{"high 1", "high 2", "normal 1"} {
			require.Equal(t, want, <-log)
		}
	})
}

func TestUpdateAdmitsThoseWhoWaitWhenThereIsMoreRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 10})
		held := fill(t, c)
		admitted := make(chan *limit.Lease, 3)
		for range 3 {
			go func() {
				l, err := c.Acquire(t.Context())
				if err != nil {
					t.Error(err)
				}
				admitted <- &l
			}()
		}
		synctest.Wait()
		require.Empty(t, admitted)
		require.Error(t, c.Update(&limit.ConcurrencyConfig{UntilHeaders: 7}))
		require.NoError(t, c.Update(&limit.ConcurrencyConfig{Max: 3, Queue: 10}))
		synctest.Wait()
		require.Len(t, admitted, 2)

		// Less room than what is under way: it has to go down first.
		require.NoError(t, c.Update(&limit.ConcurrencyConfig{Max: 1, Queue: 10}))
		held[0].Done()
		(<-admitted).Done()
		synctest.Wait()
		require.Len(t, admitted, 1)
		(<-admitted).Done()
		synctest.Wait()
		require.Len(t, admitted, 1)
		(<-admitted).Done()
		require.Zero(t, c.InFlight())
	})
}

func TestAcquireDoesNotAllocateWhenItDoesNotWait(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 1})
	ctx := t.Context()
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		l, err := c.Acquire(ctx)
		if err != nil {
			t.Error(err)
		}
		l.Done()
	}))
}
