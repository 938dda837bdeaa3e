package attempt

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/outcome"
)

type seatedOne struct {
	Attempt
	seat *Seat
}

func (a *seatedOne) Seat() *Seat { return a.seat }
func (a *seatedOne) Abort()      {}
func (a *seatedOne) Ended(error) {}

// await waits without giving the processor away, for a while.
func await(n *atomic.Int64, least int64) {
	for spins := 1; n.Load() < least; spins++ {
		if spins%2000 == 0 {
			runtime.Gosched()
		}
	}
}

// The bound has passed, and the headers come at the very moment at which the watch sees
// that: both have to say the same of who was first.
func TestStressTheHeadersAndTheTimeoutAgree(t *testing.T) {
	late := time.Now().Add(-time.Minute)
	var round, looked atomic.Int64
	var now atomic.Pointer[seatedOne]
	var watch sync.WaitGroup
	watch.Go(func() {
		for i := int64(1); ; i++ {
			await(&round, i)
			a := now.Load()
			if a == nil {
				return
			}
			a.check()
			looked.Store(i)
		}
	})
	first := make(map[bool]int) // by whether it was the timeout
	for i := int64(1); i <= 10_000; i++ {
		a := new(seatedOne)
		a.Start(t.Context(), late, &Limits{Attempt: time.Second, Watch: new(Watch)})
		a.kind, a.ender = abortable, a
		a.state.Or(made)
		now.Store(a)
		round.Store(i)
		for range i % 1024 {
			_ = now.Load()
		}
		err := a.Headers()
		await(&looked, i)
		a.check() // nothing changes any more
		first[a.Aborted()]++
		if a.Aborted() {
			require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		} else {
			require.NoError(t, err)
		}
		require.Equal(t, a.Aborted(), a.cut())
		a.End()
	}
	now.Store(nil)
	round.Add(1)
	watch.Wait()
	t.Log("first was the timeout or not:", first)
}

// A seat keeps nothing of an attempt that is over: that would be a call's request and
// answer for as long as the connection is idle.
func TestASeatIsEmptyAfterAnAttempt(t *testing.T) {
	var w Watch
	var s Seat
	w.Add(&s)
	for _, end := range []func(a *seatedOne){
		func(a *seatedOne) { a.End() },
		func(a *seatedOne) {
			a.Stand()
			a.End()
		},
		func(a *seatedOne) {
			a.End()
			a.Stand()
		},
	} {
		a := &seatedOne{seat: &s}
		a.Start(t.Context(), time.Time{}, &Limits{Attempt: time.Hour, Watch: &w})
		a.Abortable(a)
		require.Same(t, &a.Attempt, s.taken.Load())
		end(a)
		require.Nil(t, s.taken.Load())
		require.True(t, a.closed)
	}
}
