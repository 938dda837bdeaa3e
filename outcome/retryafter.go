package outcome

import (
	"net/http"
	"strings"
	"time"
)

// maxRetryAfter bounds what a Retry-After can say; callers cap far below it. It
// keeps the arithmetic clear of overflow.
const maxRetryAfter = 365 * 24 * time.Hour

// ParseRetryAfter reads a response's Retry-After header (RFC 9110 §10.2.3):
// seconds, or a date in any of the three forms of RFC 9110 §5.6.7. A date is
// compared with the response's own Date header, so that a server whose clock is
// wrong is understood; without one, with the present time. A date in the past
// is a hint of zero. The second result is false if there is no such header, or
// more than one, or one that means nothing: a negative, fractional or garbled
// value. More than a year is taken as a year.
func ParseRetryAfter(h http.Header) (time.Duration, bool) {
	values := h["Retry-After"]
	if len(values) != 1 {
		return 0, false
	}
	value := strings.Trim(values[0], " \t")
	if d, ok := parseSeconds(value); ok {
		return d, true
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	now := time.Now()
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), maxRetryAfter), true
}

// parseSeconds reads 1*DIGIT. strconv would take signs as well.
func parseSeconds(s string) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	var d time.Duration
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		if d < maxRetryAfter {
			d = d*10 + time.Duration(c-'0')*time.Second
		}
	}
	return min(d, maxRetryAfter), true
}
