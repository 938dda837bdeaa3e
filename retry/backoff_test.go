package retry

import (
	"math"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/stretchr/testify/require"
)

func resolved(t *testing.T, b Backoff) *Backoff {
	c, err := (&Config{Backoff: b}).resolve()
	require.NoError(t, err)
	return &c.Backoff
}

func TestBackoffIsFullJitterUnderADoublingBound(t *testing.T) {
	b := resolved(t, Backoff{})
	for _, test := range []struct {
		n         int
		throttled bool
		bound     time.Duration
	}{
		{1, false, 50 * time.Millisecond},
		{2, false, 100 * time.Millisecond},
		{4, false, 400 * time.Millisecond},
		{6, false, 1600 * time.Millisecond},
		{7, false, 2 * time.Second},
		{20, false, 2 * time.Second},
		{1, true, time.Second},
		{2, true, 2 * time.Second},
		{9, true, 2 * time.Second},
	} {
		const draws = 2000
		var sum, least, most time.Duration = 0, math.MaxInt64, 0
		for range draws {
			var p pace
			d, more := p.next(b, test.n, test.throttled)
			require.True(t, more)
			sum, least, most = sum+d, min(least, d), max(most, d)
		}
		// Even from 0 to the bound, at the cap too.
		require.Positive(t, least)
		require.LessOrEqual(t, most, test.bound)
		require.Less(t, least, test.bound/20)
		require.Greater(t, most, test.bound*19/20)
		require.InDelta(t, 0.5, float64(sum)/draws/float64(test.bound), 0.05)
	}
}

func TestWaitIsNeverZeroNegativeOrAboveTheCapForAMillionAttempts(t *testing.T) {
	b := resolved(t, Backoff{})
	var p pace
	for n := 1; n <= 1_000_000; n++ {
		d, more := p.next(b, n, false)
		if !more || d <= 0 || d > 2*time.Second {
			t.Fatalf("attempt %d waits %v, %v", n, d, more)
		}
	}
}

func TestExtremeBoundsDoNotOverflow(t *testing.T) {
	for _, b := range []Backoff{
		{Base: 1, Max: 1}, {Base: 1, Max: math.MaxInt64}, {Base: math.MaxInt64, Max: math.MaxInt64},
	} {
		for range 100 {
			var p pace
			for n := 1; n < 100; n++ {
				d, more := p.next(resolved(t, b), n, false)
				require.True(t, more)
				require.Positive(t, d)
				require.LessOrEqual(t, d, b.Max)
			}
		}
	}
}

func TestKindsOfFailuresDoublesTheirBoundsTogether(t *testing.T) {
	b := resolved(t, Backoff{Max: time.Minute, ThrottledBase: 10 * time.Second})
	var most time.Duration
	for range 2000 {
		var p pace
		for n := 1; n <= 3; n++ {
			d, _ := p.next(b, n, n == 3)
			if n == 3 {
				most = max(most, d)
			}
		}
	}
	require.Greater(t, most, 30*time.Second, "the third wait is bounded by 4 times the throttled base")
	require.LessOrEqual(t, most, 40*time.Second)
}

// negative is a generator as backoff/v4 makes one of a randomization factor
// above 1.
type negative struct{ d time.Duration }

func (n negative) NextBackOff() time.Duration { return n.d }
func (negative) Reset()                       {}

func TestGeneratorsOfTheUsersAreBoundedAndMayStop(t *testing.T) {
	for _, test := range []struct{ drawn, want time.Duration }{
		{-5 * time.Second, 1}, {0, 1}, {time.Second, time.Second}, {time.Hour, 2 * time.Second},
	} {
		made := 0
		b := resolved(t, Backoff{New: func() backoff.BackOff { made++; return negative{test.drawn} }})
		var p pace
		for n := 1; n <= 3; n++ {
			d, more := p.next(b, n, n == 2)
			require.True(t, more)
			require.Equal(t, test.want, d)
		}
		require.Equal(t, 1, made, "one generator for a call")
	}
	b := resolved(t, Backoff{New: func() backoff.BackOff { return negative{backoff.Stop} }})
	var p pace
	_, more := p.next(b, 1, false)
	require.False(t, more)
}

func TestBackoffThatIsOffDoesNotWait(t *testing.T) {
	b := resolved(t, Backoff{Base: -1})
	var p pace
	d, more := p.next(b, 1, false)
	require.True(t, more)
	require.Zero(t, d)
	d, _ = p.next(b, 1, true)
	require.Positive(t, d, "a server that asks for less is not asked at once")
	b = resolved(t, Backoff{Base: -1, ThrottledBase: -1})
	d, _ = p.next(b, 1, true)
	require.Zero(t, d)
}
