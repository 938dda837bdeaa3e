package backstaygrpc

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTurnIsDoneForAllWhoPokeMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var under, most, done atomic.Int64
		seen, value := int64(0), new(atomic.Int64)
		turns := &turn{do: func() {
			most.Store(max(most.Load(), under.Add(1)))
			seen = value.Load()
			time.Sleep(time.Millisecond) // in the bubble
			under.Add(-1)
			done.Add(1)
		}}
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				value.Add(1)
				turns.poke()
			})
		}
		all.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		require.EqualValues(t, 1, most.Load(), "by one at a time")
		require.EqualValues(t, 1000, seen, "after the last has poked")
		require.LessOrEqual(t, done.Load(), int64(2))

		// One after the other, there is a rest after each.
		done.Store(0)
		for range 100 {
			turns.poke()
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		require.Less(t, done.Load(), int64(30))
		require.Greater(t, done.Load(), int64(10))

		// Who is in a hurry does not wait for it to be over.
		turns.poke()
		turns.poke()
		synctest.Wait()
		before := done.Load()
		turns.hurry()
		require.Equal(t, before+1, done.Load())
		time.Sleep(time.Second)
		require.Equal(t, before+1, done.Load(), "which was for them, too")
	})
}
