package balancer_test

import (
	"context"
	"errors"
	"iter"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// waiters begin n calls, whose errors are returned when all have ended.
func (r *rig) waiters(ctx context.Context, n int) (wait func() []error) {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			l, err := r.Acquire(ctx, balancer.Call{})
			errs[i] = err
			l.Done(time.Time{}, success)
		})
	}
	synctest.Wait()
	return func() []error { wg.Wait(); return errs }
}

func TestCallsWaitForTheFirstSet(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, r *rig) {
		start := time.Now()
		wait := r.waiters(t.Context(), 100)
		ready := make(chan error, 1)
		go func() { ready <- r.Ready(t.Context()) }()
		time.Sleep(5 * time.Second)
		r.feed.yield(endpoints(2)...)
		for _, err := range wait() {
			require.NoError(t, err)
		}
		require.NoError(t, <-ready)
		require.Equal(t, 5*time.Second, time.Since(start), "the first set is not delayed")
		require.EqualValues(t, 1, r.feed.watches.Load())
	})
}

func TestWaitingObeysTheContext(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, r *rig) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		for _, err := range append(r.waiters(ctx, 10)(), r.Ready(ctx)) {
			var e *balancer.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, "orders", e.Service)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.True(t, outcome.NotSent(err))
			require.Equal(t, outcome.Neutral, outcome.Of(err).Class)
		}
		require.Equal(t, 3*time.Second, time.Since(start))

		cause, why := context.WithCancelCause(t.Context())
		why(errDown)
		require.ErrorIs(t, r.Ready(cause), errDown, "the caller's cause")
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

func TestFirstErrorFailsTheWaitersAndThoseWhoComeLater(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, r *rig) {
		start := time.Now()
		wait := r.waiters(t.Context(), 10)
		time.Sleep(time.Second)
		r.feed.yields <- yield{err: errDown}
		check := func(err error) {
			var e *balancer.Error
			var unresolved *discovery.ResolveError
			require.ErrorAs(t, err, &e)
			require.ErrorAs(t, err, &unresolved)
			require.ErrorIs(t, err, errDown)
			require.True(t, outcome.NotSent(err))
			require.False(t, outcome.Refused(err))
			require.Equal(t, outcome.Always, outcome.Of(err).Retry)
		}
		for _, err := range wait() {
			check(err)
		}
		_, err := r.Acquire(t.Context(), balancer.Call{})
		check(err)
		check(r.Ready(t.Context()))
		require.Equal(t, time.Second, time.Since(start), "a service that cannot be found holds up nobody")
		r.update(endpoints(1)...)
		r.counts(10)
	})
}

func TestWarningFailsNobody(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, r *rig) {
		wait := r.waiters(t.Context(), 3)
		r.feed.yields <- yield{err: &discovery.Warning{Service: "orders", Err: errDown}}
		time.Sleep(time.Second)
		synctest.Wait()
		r.feed.yield(endpoints(1)...)
		for _, err := range wait() {
			require.NoError(t, err)
		}
	})
}

func TestCallsThatFindNoNodesHintTheResolver(t *testing.T) {
	var hints atomic.Int32
	resolver := discovery.ResolverFunc(func(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
		return func(yield func(discovery.Set, error) bool) {
			if !yield(discovery.Set{}, errDown) {
				return
			}
			for {
				select {
				case <-discovery.Hints(ctx):
					hints.Add(1)
				case <-ctx.Done():
					return
				}
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b, err := balancer.New("orders", resolver, nil)
		require.NoError(t, err)
		defer b.Close()
		synctest.Wait()
		for range 100 {
			_, err := b.Acquire(t.Context(), balancer.Call{})
			require.ErrorIs(t, err, errDown)
		}
		synctest.Wait()
		require.EqualValues(t, 1, hints.Load())
	})
}

func TestLastGoodSetIsKeptOnFailure(t *testing.T) {
	inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
		for range 10 {
			r.feed.yields <- yield{err: errDown}
			time.Sleep(time.Minute)
		}
		r.feed.yields <- yield{set: discovery.Set{}} // empty, and not authoritative: perhaps a mistake
		time.Sleep(time.Second)
		synctest.Wait()
		require.Len(t, r.Nodes(), 3)
		r.counts(10)
	})
}

func TestCloseWakesThoseWhoWait(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, r *rig) {
		wait := r.waiters(t.Context(), 10)
		require.NoError(t, r.Close())
		after := func() error { _, err := r.Acquire(t.Context(), balancer.Call{}); return err }
		for _, err := range append(wait(), after(), r.Ready(t.Context())) {
			var e *balancer.Error
			require.ErrorAs(t, err, &e)
			require.ErrorIs(t, err, balancer.ErrClosed)
			require.True(t, outcome.Refused(err), "it is not the peer that said no")
			require.True(t, outcome.NotSent(err))
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
		held := r.acquire(balancer.Call{})
		r.open(addr(0))
		require.NoError(t, r.Eject(addr(1), time.Hour)) // timers are set
		r.update(endpoints(2)...)
		view := r.View(nil)
		r.rec.Clear()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { require.NoError(t, r.Close()) })
		}
		wg.Wait()
		require.Zero(t, r.feed.under.Load())
		_, err := r.Acquire(t.Context(), balancer.Call{})
		require.ErrorIs(t, err, balancer.ErrClosed)
		time.Sleep(2 * time.Hour)
		require.Empty(t, r.rec.Events(), "no timer is left")
		held.Done(time.Time{}, success)
		l, err := tryAcquire(view, balancer.Call{})
		require.NoError(t, err, "a view is immutable")
		l.Done(time.Time{}, success)
		require.NoError(t, r.Eject(addr(1), time.Second), "whoever is late does no harm")
		require.Empty(t, r.rec.Events())
	})
}

func TestCloseWaitsForTheResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := false
		resolver := discovery.ResolverFunc(func(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
			return func(yield func(discovery.Set, error) bool) {
				yield(discovery.Set{Endpoints: endpoints(1)}, nil)
				<-ctx.Done()
				require.ErrorIs(t, context.Cause(ctx), balancer.ErrClosed)
				time.Sleep(3 * time.Second) // saying goodbye to a registry
				left = true
			}
		})
		b, err := balancer.New("orders", resolver, nil)
		require.NoError(t, err)
		require.NoError(t, b.Ready(t.Context()))
		require.NoError(t, b.Close())
		require.True(t, left)
	})
}

func TestSubscribersHearOfEveryChange(t *testing.T) {
	inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
		ctx, cancel := context.WithCancel(t.Context())
		var heard, also atomic.Int64
		r.Subscribe(ctx, func() {
			heard.Add(1)
			_ = r.Nodes() // may look
			_ = r.View(nil)
		})
		r.Subscribe(t.Context(), func() { also.Add(1) })
		hears := func(what string, change func()) {
			t.Helper()
			before := heard.Load()
			change()
			synctest.Wait()
			require.Greater(t, heard.Load(), before, what)
			require.Equal(t, heard.Load(), also.Load())
		}
		hears("a set", func() { r.update(endpoints(4)...) })
		hears("an ejection", func() { require.NoError(t, r.Eject(addr(1), 10*time.Second)) })
		hears("its end", func() { time.Sleep(10 * time.Second) })
		hears("a breaker", func() { r.open(addr(0)) })
		hears("half-open", func() { time.Sleep(5 * time.Second) })
		hears("recovery", func() {
			time.Sleep(time.Minute)
			r.counts(100)
		})
		cancel()
		synctest.Wait()
		before := heard.Load()
		r.update(endpoints(1)...)
		require.Equal(t, before, heard.Load())
		require.Greater(t, also.Load(), before)
	})
}

func TestErrorSaysWhatWentWrong(t *testing.T) {
	e := &balancer.Error{Service: "orders", Err: errDown}
	require.EqualError(t, e, `balancer: service "orders": down`)
	require.ErrorIs(t, e, errDown)
	require.False(t, e.Refused())
	require.True(t, (&balancer.Error{Err: errors.Join(errDown, balancer.ErrClosed)}).Refused())
}

// The wait after a failure has nothing to do with how long a set holds.
func TestFirstResolutionThatFailsIsTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		b, err := balancer.New("orders", discovery.ResolverFunc(func(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
			return func(yield func(discovery.Set, error) bool) {
				if asked++; asked == 1 {
					yield(discovery.Set{}, errDown)
				} else if yield(discovery.Set{Endpoints: endpoints(1), TTL: time.Hour}, nil) {
					<-ctx.Done()
				}
			}
		}), nil)
		require.NoError(t, err)
		defer b.Close()
		require.ErrorIs(t, b.Ready(t.Context()), errDown)
		time.Sleep(1200 * time.Millisecond)
		synctest.Wait()
		require.NoError(t, b.Ready(t.Context()))
	})
}
