package cache

import (
	"math"
	"strings"
	"time"
)

// control is what a response's Cache-Control says (RFC 9111 §5.2.2), as far as
// this package heeds it.
type control struct {
	forbids         bool          // no-store, no-cache, private, or beyond understanding
	maxAge, sMaxAge time.Duration // negative if not said
}

// maxDelta is what a number of seconds is capped at (RFC 9111 §1.2.2).
const maxDelta = math.MaxInt32 * time.Second

// readControl reads the lines of a Cache-Control field. What is malformed counts
// as the most careful thing that it may have meant: of two ages the smaller one,
// an age that is no number as 0, a quote without end as a prohibition.
func readControl(lines []string) control {
	c := control{maxAge: -1, sMaxAge: -1}
	for _, line := range lines {
		for line != "" {
			var name, arg string
			var ok bool
			if name, arg, line, ok = nextDirective(line); !ok {
				c.forbids = true
			}
			switch strings.ToLower(name) {
			case "no-store", "no-cache", "private":
				// With a list of fields the latter two forbid less; to heed the
				// list is not worth it here.
				c.forbids = true
			case "max-age":
				c.maxAge = sooner(c.maxAge, arg)
			case "s-maxage":
				c.sMaxAge = sooner(c.sMaxAge, arg)
			}
		}
	}
	return c
}

// nextDirective cuts the first directive off a line, with its argument
// unquoted. It is not ok if a quote does not end.
func nextDirective(line string) (name, arg, rest string, ok bool) {
	end := strings.IndexAny(line, ",=")
	if end < 0 {
		return trim(line), "", "", true
	}
	name = trim(line[:end])
	rest = line[end+1:]
	if line[end] == ',' {
		return name, "", rest, true
	}
	unquoted := strings.TrimLeft(rest, " \t")
	if !strings.HasPrefix(unquoted, `"`) {
		arg, rest, _ = strings.Cut(rest, ",")
		return name, trim(arg), rest, true
	}
	var b strings.Builder
	for i := 1; i < len(unquoted); i++ {
		switch unquoted[i] {
		case '"':
			_, rest, _ = strings.Cut(unquoted[i+1:], ",")
			return name, b.String(), rest, true
		case '\\':
			if i++; i == len(unquoted) {
				return name, "", "", false
			}
		}
		b.WriteByte(unquoted[i])
	}
	return name, "", "", false
}

// sooner is the smaller of age, unless that is negative, and s seconds.
func sooner(age time.Duration, s string) time.Duration {
	d := readSeconds(s)
	if age < 0 {
		return d
	}
	return min(age, d)
}

// readSeconds reads 1*DIGIT, up to maxDelta; what is something else is 0.
func readSeconds(s string) time.Duration {
	var d time.Duration
	for _, digit := range []byte(s) {
		if digit < '0' || digit > '9' {
			return 0
		}
		d = min(d*10+time.Duration(digit-'0')*time.Second, maxDelta)
	}
	return d
}

func trim(s string) string { return strings.Trim(s, " \t") }
