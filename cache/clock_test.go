package cache

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func newClock() *lazyClock {
	c := new(lazyClock)
	c.init()
	return c
}

func TestClockIsSharedOnlyWhileItIsReadOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClock()
		far := int64(time.Hour)
		for range burst - 1 {
			require.False(t, c.passed(far))
			require.Equal(t, unknown, c.recent.Load())
		}
		require.False(t, c.passed(far))
		shared := c.recent.Load()
		require.Equal(t, int64(time.Since(c.start)), shared)
		time.Sleep(tick - 1)
		require.False(t, c.passed(far))
		require.Equal(t, shared, c.recent.Load())
		time.Sleep(1)
		synctest.Wait()
		require.Equal(t, unknown, c.recent.Load(), "a reading is shared for one tick")
	})
}

func TestClockThatIsNeverNeededIsNeverRead(t *testing.T) {
	c := newClock()
	for range 10 * burst {
		require.False(t, c.passed(never))
	}
	require.Zero(t, c.readings.Load())
}

func TestClockGivesUpAReadingWhoseTimerIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClock()
		time.Sleep(time.Hour)
		c.recent.Store(1) // as if no timer had come for an hour
		c.now()           // by a write, or a read near its deadline
		require.Equal(t, unknown, c.recent.Load())
		require.True(t, c.passed(int64(time.Hour)))
	})
}

func TestClockGivesUpAReadingOfTheFuture(t *testing.T) {
	c := newClock() // outside of the bubble, whose time is another one
	c.recent.Store(int64(1000 * time.Hour))
	c.now()
	require.Equal(t, unknown, c.recent.Load())
}

func TestCacheMadeOutsideServesSeveralBubbles(t *testing.T) {
	c, err := New(&Config[string, int]{Jitter: -1, TTL: time.Minute})
	require.NoError(t, err)
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			c.Set("k", 1)
			for range 10 * burst {
				_, ok := c.GetIfPresent("k")
				require.True(t, ok)
			}
			time.Sleep(time.Minute - 1)
			_, ok := c.GetIfPresent("k")
			require.True(t, ok)
			time.Sleep(1)
			_, ok = c.GetIfPresent("k")
			require.False(t, ok)
			for range 10 * burst {
				c.Set("k", 1) // leaves a reading to share, whose timer never comes
			}
		})
	}
	c.Set("k", 1)
	_, ok := c.GetIfPresent("k")
	require.True(t, ok)
}
