package attempt_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/outcome"
)

func watched(w *attempt.Watch, timeout time.Duration) *attempt.Attempt {
	a := new(attempt.Attempt)
	a.Start(context.Background(), time.Time{}, &attempt.Limits{Attempt: timeout, Watch: w})
	return a
}

func TestAttemptsOfOneWatchEndEachAtItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w attempt.Watch
		var work sync.WaitGroup
		start := time.Now()
		for _, seconds := range []int{3, 1, 2, 1, 10, 4} {
			bound := time.Duration(seconds) * time.Second
			a := watched(&w, bound)
			work.Go(func() {
				<-a.Context().Done()
				require.Equal(t, bound, time.Since(start))
				requireTimeout(t, context.Cause(a.Context()), outcome.ErrAttemptTimeout, bound)
				a.End()
			})
			synctest.Wait()
		}
		work.Wait()

		a := watched(&w, time.Second) // after the timer had nothing to do any more
		<-a.Context().Done()
		require.Equal(t, 11*time.Second, time.Since(start))
		a.End()
	})
}

func TestAttemptThatIsOverIsForgottenByItsWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w attempt.Watch
		over, other := watched(&w, time.Second), watched(&w, time.Minute)
		over.Context().Done()
		other.Context().Done()
		over.End()
		over.End()
		time.Sleep(time.Second)
		synctest.Wait()
		require.ErrorIs(t, context.Cause(over.Context()), context.Canceled, "no timeout")
		require.NoError(t, other.Context().Err())
		time.Sleep(time.Minute - time.Second)
		synctest.Wait()
		requireTimeout(t, context.Cause(other.Context()), outcome.ErrAttemptTimeout, time.Minute)
		other.End()
	})
}

func TestBoundThatMovesIsKeptByAWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w attempt.Watch
		a := watched(&w, 2*time.Second)
		a.Context().Done()
		time.Sleep(time.Second)
		a.Restart(time.Now())
		time.Sleep(2*time.Second - 1)
		require.NoError(t, a.Context().Err())
		time.Sleep(1)
		synctest.Wait()
		require.Error(t, a.Context().Err())
		a.End()
	})
}

func TestStressAWatch(t *testing.T) {
	var w attempt.Watch
	var work sync.WaitGroup
	for range 16 {
		work.Go(func() {
			for range 500 {
				a := watched(&w, time.Duration(rand.IntN(400)+1)*time.Microsecond)
				done := a.Context().Done()
				if rand.IntN(2) == 0 {
					<-done
				}
				a.End()
				<-done
			}
		})
	}
	work.Wait()
}

func TestWatchHasRoomForAsManyAsThereAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w attempt.Watch
		all := make([]*attempt.Attempt, 1000)
		for i := range all {
			all[i] = watched(&w, time.Duration(i+1)*time.Millisecond)
			all[i].Context().Done()
		}
		for i := range all {
			if i%2 == 0 {
				all[i].End()
			}
		}
		time.Sleep(time.Duration(len(all)/2) * time.Millisecond)
		synctest.Wait()
		for i, a := range all {
			switch {
			case i%2 == 0:
				require.Equal(t, context.Canceled, context.Cause(a.Context()))
			case i < len(all)/2:
				requireTimeout(t, context.Cause(a.Context()), outcome.ErrAttemptTimeout, time.Duration(i+1)*time.Millisecond)
			default:
				require.NoError(t, a.Context().Err())
			}
			a.End()
		}
	})
}
