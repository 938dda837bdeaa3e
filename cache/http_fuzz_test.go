package cache

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestReadControl(t *testing.T) {
	none := control{maxAge: -1, sMaxAge: -1}
	forbidden := control{forbids: true, maxAge: -1, sMaxAge: -1}
	age := func(d time.Duration) control { return control{maxAge: d, sMaxAge: -1} }
	for _, tc := range []struct {
		lines []string
		want  control
	}{
		{nil, none},
		{[]string{""}, none},
		{[]string{" , ,, "}, none},
		{[]string{"public, must-revalidate"}, none},
		{[]string{"no-storex, x-no-store"}, none},
		{[]string{`ext="no-store, no-cache"`}, none},
		{[]string{`ext="\", no-store"`}, none},
		{[]string{"no-store"}, forbidden},
		{[]string{"\tNO-STORE "}, forbidden},
		{[]string{"no-store=1"}, forbidden},
		{[]string{`private="a, b"`}, forbidden},
		{[]string{"no-cache=Set-Cookie"}, forbidden},
		{[]string{"public", "no-cache"}, forbidden},
		{[]string{`ext="a", no-store`}, forbidden},
		{[]string{`ext = "a" , no-store`}, forbidden},
		{[]string{`ext="a\"b", no-store`}, forbidden},
		{[]string{`ext="never ends`}, forbidden},
		{[]string{`ext="never ends\`}, forbidden},
		{[]string{"max-age=60"}, age(time.Minute)},
		{[]string{`Max-Age = "60" x`}, age(time.Minute)},
		{[]string{"max-age=60, max-age=30"}, age(30 * time.Second)},
		{[]string{"max-age=30", "max-age=60"}, age(30 * time.Second)},
		{[]string{"max-age"}, age(0)},
		{[]string{"max-age="}, age(0)},
		{[]string{"max-age=-1"}, age(0)},
		{[]string{"max-age=1.5"}, age(0)},
		{[]string{"max-age=1s"}, age(0)},
		{[]string{"max-age=99999999999999999999999"}, age(maxDelta)},
		{[]string{"s-maxage=1, max-age=2"}, control{maxAge: 2 * time.Second, sMaxAge: time.Second}},
	} {
		require.Equal(t, tc.want, readControl(tc.lines), "%q", tc.lines)
	}
}

func FuzzReadControl(f *testing.F) {
	for _, s := range []string{"", "max-age=60, public", `private="a, \"b\"", s-maxage=1`, `x="`, "no-store", "max-age=\x00"} {
		f.Add(s, "no-cache")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		one, other, both := readControl([]string{a}), readControl([]string{b}), readControl([]string{a, b})
		require.Equal(t, both, readControl([]string{b, a}), "the order of lines")
		require.Equal(t, one.forbids || other.forbids, both.forbids)
		for _, ages := range [][3]time.Duration{{one.maxAge, other.maxAge, both.maxAge}, {one.sMaxAge, other.sMaxAge, both.sMaxAge}} {
			want := min(ages[0], ages[1])
			if want < 0 {
				want = max(ages[0], ages[1])
			}
			require.Equal(t, want, ages[2])
			require.LessOrEqual(t, want, maxDelta)
		}
		// Whatever stands before, a prohibition is heard.
		require.True(t, readControl([]string{a + ",no-store"}).forbids || strings.Contains(a, `"`))
		if !strings.ContainsAny(a, `"\`) {
			// A reader as simple as it can be without quotes.
			forbids := false
			for directive := range strings.SplitSeq(a, ",") {
				name, _, _ := strings.Cut(directive, "=")
				name = strings.Trim(name, " \t")
				forbids = forbids || slices.ContainsFunc([]string{"no-store", "no-cache", "private"}, func(s string) bool {
					return strings.EqualFold(s, name)
				})
			}
			require.Equal(t, forbids, one.forbids)
		}
	})
}

func FuzzRecorder(f *testing.F) {
	f.Add([]byte("hello"), uint8(3), uint8(10), int8(5), uint8(0))
	f.Add([]byte("hello"), uint8(1), uint8(4), int8(0), uint8(2))
	f.Add(bytes.Repeat([]byte("x"), 60), uint8(6), uint8(200), int8(0), uint8(0)) // grows beyond its length
	f.Fuzz(func(t *testing.T, body []byte, chunk, maxBody uint8, expected int8, mode uint8) {
		var inner io.Reader = bytes.NewReader(body)
		switch mode % 3 {
		case 1:
			inner = iotest.DataErrReader(inner)
		case 2:
			inner = io.MultiReader(inner, iotest.ErrReader(http.ErrAbortHandler))
		}
		calls := 0
		var stored []byte
		var ok bool
		r := &recorder{
			inner: io.NopCloser(inner), expected: int64(max(expected, 0)), maxBody: int64(maxBody),
			done: func(b []byte, complete bool) {
				calls++
				stored, ok = b, complete
			},
		}
		var got []byte
		var err error
		p := make([]byte, int(chunk)+1)
		for early := int(mode / 3); err == nil && early != 1; early-- {
			var n int
			n, err = r.Read(p)
			got = append(got, p[:n]...)
		}
		require.NoError(t, r.Close())
		require.NoError(t, r.Close())
		require.Equal(t, 1, calls)
		require.True(t, bytes.HasPrefix(body, got), "what is read is what came")
		if ok {
			require.True(t, mode%3 != 2 || expected > 0, "broken, and no length to say that all was there")
			require.Equal(t, string(got), string(stored))
			require.LessOrEqual(t, len(stored), int(maxBody))
			require.LessOrEqual(t, cap(stored), 8+len(stored)*9/8, "memory that nobody accounts for")
			if expected > 0 { // then it alone says what is complete
				require.Len(t, stored, int(expected))
			} else {
				require.Len(t, stored, len(body))
			}
		}
		if errors.Is(err, io.EOF) && len(body) <= int(maxBody) && (expected <= 0 || len(body) == int(expected)) {
			require.True(t, ok, "a whole body that fits is stored")
		}
	})
}
