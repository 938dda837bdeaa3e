package propagate

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func FuzzTimeoutIsReadAsWrittenAndNeverLonger(f *testing.F) {
	for _, d := range []int64{-1, 0, 1, 99_999_999, 100_000_999, int64(119 * time.Second), 1<<63 - 1} {
		f.Add(d)
	}
	f.Fuzz(func(t *testing.T, n int64) {
		d := time.Duration(n)
		s := formatTimeout(d)
		require.LessOrEqual(t, len(s), 9)
		back, ok := parseTimeout(s)
		require.True(t, ok, s)
		require.LessOrEqual(t, back, max(d, 1))
		if d > 0 {
			// A unit is at most a thousand of the one before, so five digits are left.
			require.Greater(t, back, d-d/100_000-1)
		}
		if ms, ok := formatMillis(d); ok {
			back, ok := parseMillis(ms)
			require.True(t, ok)
			require.LessOrEqual(t, back, d)
			require.Greater(t, back, d-time.Millisecond)
		}
	})
}

func FuzzTimeoutsOfOthersAreReadOrLeft(f *testing.F) {
	for _, s := range []string{"1S", "99999999H", "0m", "-1S", "1s", "", "S", "18446744073709551616"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (time.Duration, bool){parseTimeout, parseMillis} {
			if d, ok := parse(s); ok {
				require.Positive(t, d)
				require.Regexp(t, `^[0-9]+[HMSmun]?$`, s)
			} else {
				require.Zero(t, d)
			}
		}
	})
}
