package propagate

import (
	"math"
	"strconv"
	"time"
)

// gRPC's units, the finest first.
var units = [...]struct { //nolint:gochecknoglobals // constant
	letter byte
	length time.Duration
}{
	{'n', time.Nanosecond},
	{'u', time.Microsecond},
	{'m', time.Millisecond},
	{'S', time.Second},
	{'M', time.Minute},
	{'H', time.Hour},
}

// mostDigits is how many digits gRPC's form has at most, and most the largest
// number of that many.
const (
	mostDigits = 8
	most       = 99_999_999
)

// formatTimeout writes d in gRPC's form: in the finest unit that is coarse enough
// for eight digits, rounded down. What is less than a nanosecond is one, because
// there is no form for less.
func formatTimeout(d time.Duration) string {
	d = max(d, 1)
	u := 0
	for d/units[u].length > most {
		u++
	}
	return string(append(strconv.AppendInt(nil, int64(d/units[u].length), 10), units[u].letter))
}

// parseTimeout reads what formatTimeout writes, and what others may write in its
// place. It is false for zero: a call that has no time left is not made.
func parseTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > mostDigits+1 {
		return 0, false
	}
	digits, letter := s[:len(s)-1], s[len(s)-1]
	for _, u := range units {
		if u.letter == letter {
			return parseCount(digits, u.length)
		}
	}
	return 0, false
}

// formatMillis writes d in whole milliseconds, rounded down, or nothing if that
// is none: to Envoy 0 is no limit.
func formatMillis(d time.Duration) (string, bool) {
	ms := d.Milliseconds()
	return strconv.FormatInt(ms, 10), ms > 0
}

// parseMillis reads what formatMillis writes.
func parseMillis(s string) (time.Duration, bool) { return parseCount(s, time.Millisecond) }

// parseCount reads digits, and nothing but digits, as so many units. What is too
// long for a time.Duration is the longest one.
func parseCount(digits string, unit time.Duration) (time.Duration, bool) {
	n, ok := parseNumber(digits)
	if !ok {
		return 0, false
	}
	if n > uint64(math.MaxInt64/unit) { //nolint:gosec // both are positive
		return math.MaxInt64, true
	}
	return time.Duration(n) * unit, true //nolint:gosec // it has just been compared
}

// parseNumber reads a decimal number above zero.
func parseNumber(digits string) (uint64, bool) {
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && n > 0
}
