package attempt_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/outcome"
)

// seated begins an attempt in a seat.
func seated(t *testing.T, w *attempt.Watch, s *attempt.Seat, bound time.Duration) *aborted {
	t.Helper()
	a := &aborted{seat: s, now: make(chan struct{})}
	a.Start(t.Context(), time.Time{}, &attempt.Limits{Attempt: bound, Watch: w})
	a.Abortable(a)
	return a
}

func TestAttemptsInASeatOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w attempt.Watch
		var s attempt.Seat
		w.Add(&s)
		first := seated(t, &w, &s, time.Second)
		require.NoError(t, first.Headers())
		second := seated(t, &w, &s, time.Second) // before the first is over
		first.End()
		begin := time.Now()
		<-second.now
		require.Equal(t, time.Second, time.Since(begin), "the first has not taken the seat away from it")
		requireTimeout(t, second.Headers(), outcome.ErrAttemptTimeout, time.Second)
		second.End()
		time.Sleep(time.Hour)
		require.Zero(t, first.times)
		require.Equal(t, 1, second.times)
		w.Remove(&s)
	})
}

func TestAttemptThatStandsIsWatchedWithoutItsSeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w attempt.Watch
		var s attempt.Seat
		w.Add(&s)
		begin := time.Now()
		standing := seated(t, &w, &s, 2*time.Second)
		w.Remove(&s) // and now nobody looks there
		standing.Stand()
		standing.Stand()
		over := seated(t, &w, &s, 2*time.Second)
		over.End()
		over.Stand()
		late := seated(t, &w, nil, 3*time.Second) // has waited, and needs no seat any more
		late.Stand()
		<-standing.now
		require.Equal(t, 2*time.Second, time.Since(begin))
		<-late.now
		require.Equal(t, 3*time.Second, time.Since(begin))
		standing.Stand()
		time.Sleep(time.Hour)
		for a, want := range map[*aborted]int{standing: 1, late: 1, over: 0} {
			a.End()
			require.Equal(t, want, a.times)
		}
	})
}

func TestAbortingIsClosedForThoseWhoAskBeforeAndAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := seated(t, new(attempt.Watch), nil, time.Second)
		before := a.Aborting()
		require.False(t, a.Aborted())
		begin := time.Now()
		<-before
		require.Equal(t, time.Second, time.Since(begin))
		require.True(t, a.Aborted())
		b := seated(t, new(attempt.Watch), nil, time.Second)
		<-b.now
		<-b.Aborting()
		a.End()
		b.End()
	})
}

func TestStressSeats(t *testing.T) {
	var w attempt.Watch
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			var s attempt.Seat
			w.Add(&s)
			for i := range 300 {
				if i%10 == 0 {
					w.Remove(&s)
					w.Add(&s)
				}
				a := seated(t, &w, &s, time.Duration(rand.IntN(400)+1)*time.Microsecond)
				if rand.IntN(3) == 0 {
					w.Remove(&s)
					a.Stand()
					w.Add(&s)
				}
				if rand.IntN(2) == 0 {
					<-a.now // or it has been forgotten
				}
				a.End()
			}
			w.Remove(&s)
		})
	}
	work.Wait()
}
