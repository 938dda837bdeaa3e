package propagate

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTimeoutIsWrittenInTheFinestUnitThatFits(t *testing.T) {
	for _, test := range []struct {
		d    time.Duration
		want string
	}{
		{-time.Second, "1n"},
		{0, "1n"},
		{1, "1n"},
		{99_999_999, "99999999n"},
		{100_000_000, "100000u"},
		{100_000_999, "100000u"}, // never up
		{time.Second, "1000000u"},
		{99_999_999 * time.Microsecond, "99999999u"},
		{99_999_999*time.Microsecond + 1, "99999999u"},
		{100 * time.Second, "100000m"},
		{119 * time.Second, "119000m"},
		{27 * time.Hour, "97200000m"},
		{28 * time.Hour, "100800S"},
		{math.MaxInt64, "2562047H"},
	} {
		t.Run(test.d.String(), func(t *testing.T) {
			require.Equal(t, test.want, formatTimeout(test.d))
		})
	}
}

func TestTimeoutIsReadInEveryUnit(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"1n":        1,
		"007u":      7 * time.Microsecond,
		"99999999m": 99_999_999 * time.Millisecond,
		"5S":        5 * time.Second,
		"2M":        2 * time.Minute,
		"3H":        3 * time.Hour,
		"99999999H": math.MaxInt64,
	} {
		d, ok := parseTimeout(s)
		require.True(t, ok, s)
		require.Equal(t, want, d, s)
	}
}

func TestNonsenseIsNoTimeout(t *testing.T) {
	for _, s := range []string{
		"", "S", "1", "1s", "1h", "0S", "00000000n", "-1S", "+1S", "1.5S", " 1S", "1 S", "1S ",
		"123456789S", "1_000S", "0x1S", "１S", "1e3S", "nS",
	} {
		_, ok := parseTimeout(s)
		require.False(t, ok, "%q", s)
	}
	for _, s := range []string{"", "0", "-1", "+1", "1.5", " 1", "1m", "18446744073709551616", "1_0"} {
		_, ok := parseMillis(s)
		require.False(t, ok, "%q", s)
	}
}

func TestMillisecondsAreRoundedDownAndNeverZero(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Millisecond:                "1",
		1999 * time.Microsecond:         "1",
		time.Hour + 999*time.Nanosecond: "3600000",
	} {
		s, ok := formatMillis(d)
		require.True(t, ok)
		require.Equal(t, want, s)
	}
	for _, d := range []time.Duration{time.Millisecond - 1, 0, -time.Second} {
		_, ok := formatMillis(d)
		require.False(t, ok)
	}
	d, ok := parseMillis("9223372036854775807")
	require.True(t, ok)
	require.Equal(t, time.Duration(math.MaxInt64), d)
}
