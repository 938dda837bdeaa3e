package outcome_test

import (
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/backstay/backstay/outcome"
)

func FuzzParseRetryAfter(f *testing.F) {
	for _, seed := range []string{
		"", "0", "120", "-1", "1.5", " 7\t", "99999999999999999999", "Sun, 06 Nov 1994 08:49:37 GMT",
		"Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", "9223372036854775808", "\x00", "１",
	} {
		f.Add(seed, "Sun, 06 Nov 1994 08:49:30 GMT")
	}
	const year = 365 * 24 * time.Hour
	f.Fuzz(func(t *testing.T, value, date string) {
		d, ok := outcome.ParseRetryAfter(http.Header{"Retry-After": {value}, "Date": {date}})
		if d < 0 || d > year || (!ok && d != 0) {
			t.Fatalf("%q: %v, %v", value, d, ok)
		}
		digits := strings.Trim(value, " \t")
		if digits == "" || strings.Trim(digits, "0123456789") != "" {
			return
		}
		seconds, _ := new(big.Int).SetString(digits, 10)
		want := year
		if seconds.IsInt64() && seconds.Int64() < int64(year/time.Second) {
			want = time.Duration(seconds.Int64()) * time.Second
		}
		if !ok || d != want {
			t.Fatalf("%q: %v, %v, want %v", value, d, ok, want)
		}
	})
}
