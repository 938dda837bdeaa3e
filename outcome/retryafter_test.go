package outcome_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/outcome"
)

func TestParseRetryAfterForms(t *testing.T) {
	const (
		noon = "Sat, 01 Jan 2000 12:00:00 GMT"
		year = 365 * 24 * time.Hour
	)
	for _, test := range []struct {
		name   string
		values []string
		date   string
		want   time.Duration
		ok     bool
	}{
		{name: "absent"},
		{name: "seconds", values: []string{"120"}, want: 2 * time.Minute, ok: true},
		{name: "zero", values: []string{"0"}, ok: true},
		{name: "leading zeros", values: []string{"0007"}, want: 7 * time.Second, ok: true},
		{name: "spaces around", values: []string{" \t5 "}, want: 5 * time.Second, ok: true},
		{name: "empty", values: []string{""}},
		{name: "two headers", values: []string{"1", "2"}},
		{name: "twice the same", values: []string{"1", "1"}},
		{name: "negative", values: []string{"-5"}},
		{name: "plus", values: []string{"+5"}},
		{name: "fraction", values: []string{"1.5"}},
		{name: "exponent", values: []string{"1e3"}},
		{name: "unit", values: []string{"5s"}},
		{name: "garbage", values: []string{"soon"}},
		{name: "other digits", values: []string{"٣"}},
		{name: "a year", values: []string{"31536000"}, want: year, ok: true},
		{name: "more than a year", values: []string{"31536001"}, want: year, ok: true},
		{name: "twenty digits", values: []string{"99999999999999999999"}, want: year, ok: true},
		{name: "a thousand digits", values: []string{string(make9(1000))}, want: year, ok: true},
		{name: "IMF-fixdate", values: []string{"Sat, 01 Jan 2000 12:00:30 GMT"}, date: noon, want: 30 * time.Second, ok: true},
		{name: "RFC 850", values: []string{"Saturday, 01-Jan-00 12:00:30 GMT"}, date: noon, want: 30 * time.Second, ok: true},
		{name: "asctime", values: []string{"Sat Jan  1 12:00:30 2000"}, date: noon, want: 30 * time.Second, ok: true},
		{name: "date in the past", values: []string{"Sat, 01 Jan 2000 11:00:00 GMT"}, date: noon, ok: true},
		{name: "date ages ahead", values: []string{"Sat, 01 Jan 2900 12:00:00 GMT"}, date: noon, want: year, ok: true},
		{name: "against our clock", values: []string{"Sat, 01 Jan 2000 00:01:00 GMT"}, want: time.Minute, ok: true},
		{name: "against our clock, Date garbled", values: []string{"Sat, 01 Jan 2000 00:01:00 GMT"}, date: "today", want: time.Minute, ok: true},
		{name: "the server's clock is an hour ahead", values: []string{"Sat, 01 Jan 2000 01:00:10 GMT"}, date: "Sat, 01 Jan 2000 01:00:00 GMT", want: 10 * time.Second, ok: true},
		{name: "the server's clock is an hour behind", values: []string{"Fri, 31 Dec 1999 23:00:10 GMT"}, date: "Fri, 31 Dec 1999 23:00:00 GMT", want: 10 * time.Second, ok: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // whose clock says midnight, 1 January 2000
				h := http.Header{}
				if test.values != nil {
					h["Retry-After"] = test.values
				}
				if test.date != "" {
					h.Set("Date", test.date)
				}
				d, ok := outcome.ParseRetryAfter(h)
				require.Equal(t, test.ok, ok)
				require.Equal(t, test.want, d)
			})
		})
	}
}

func make9(n int) []byte {
	nines := make([]byte, n)
	for i := range nines {
		nines[i] = '9'
	}
	return nines
}

func TestParseRetryAfterAllocatesNothingForSeconds(t *testing.T) {
	h := http.Header{"Retry-After": {"120"}}
	require.Zero(t, testing.AllocsPerRun(100, func() { outcome.ParseRetryAfter(h) }))
}
