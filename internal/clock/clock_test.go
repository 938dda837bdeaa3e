package clock

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNowAgreesWithTheStandardClock(t *testing.T) {
	before := time.Now()
	now := Now()
	after := time.Now()
	require.False(t, now.Before(before))
	require.False(t, now.After(after))
}

func TestNowFollowsTheFakeClockOfABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, std := Now(), time.Now()
		require.Zero(t, start.Sub(std))
		time.Sleep(3 * time.Hour)
		require.Equal(t, 3*time.Hour, Now().Sub(start))
		require.Equal(t, 3*time.Hour, Now().Sub(std))
	})
}

func TestOrKeepsAGivenTime(t *testing.T) {
	given := time.Now().Add(time.Hour)
	require.Equal(t, given, Or(given))
	require.WithinDuration(t, time.Now(), Or(time.Time{}), time.Minute)
}
