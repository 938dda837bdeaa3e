package retry_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/retry"
)

func TestCallsForAFinalRequestAreNotRepeated(t *testing.T) {
	for _, in := range []*call.Inbound{{Attempt: 2}, {NoRetry: true}} {
		ctx := call.WithInbound(t.Context(), in)
		rec := new(recorder)
		server, _ := answers(503, 200)
		r := newRetrier(t, eager(func(c *retry.Config) { c.Observer = rec }))
		resp, err := r.Layer(server).RoundTrip(newRequest(t, ctx, http.MethodGet, nil))
		require.NoError(t, err)
		readAll(t, resp)
		require.Equal(t, 503, resp.StatusCode)
		require.Equal(t, 1, server.attempts())
		require.Equal(t, []retry.Reason{retry.ReasonInbound}, rec.reasons())

		calls := 0
		err = r.Run(ctx, func(context.Context) error { calls++; return errors.New("down") })
		require.ErrorContains(t, err, "down")
		require.Equal(t, 1, calls)
		require.False(t, in.Exhausted(), "who repeats the request may go on")
	}
}

func TestInboundIsExhaustedByFailuresThatWereTriedAgainOrMustNotBe(t *testing.T) {
	for _, test := range []struct {
		name    string
		answers []func(*http.Request) (*http.Response, error)
		change  func(*retry.Config)
		method  string
		want    bool
	}{
		{name: "success", answers: seq(replies(200, ""))},
		{name: "cured", answers: seq(replies(503, ""), replies(200, ""))},
		{name: "not found after a failure", answers: seq(replies(503, ""), replies(404, ""))},
		{name: "in vain", answers: seq(replies(503, ""), replies(503, "again"), replies(503, "still")), want: true},
		{name: "final failure after one", answers: seq(replies(503, ""), replies(500, "")), want: true},
		{name: "final failure at once", answers: seq(replies(500, ""))},
		{name: "not idempotent", answers: seq(replies(503, "")), method: http.MethodPost},
		{name: "single attempts", answers: seq(replies(503, "")), change: func(c *retry.Config) { c.MaxAttempts = -1 }},
		{
			name: "budget", answers: seq(replies(503, "")), want: true,
			change: func(c *retry.Config) {
				budget, err := retry.NewBudget(&retry.BudgetConfig{Ratio: 1e-6, PerSecond: -1})
				if err != nil {
					panic(err)
				}
				c.Budget = budget
			},
		},
		{name: "the tier below says so", answers: seq(replies(503, "", "Backstay-Retry", "no")), want: true},
		{name: "refused after a failure", answers: seq(fails(errors.New("reset")), fails(refusal{})), want: false},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := new(call.Inbound)
			var changes []func(*retry.Config)
			if test.change != nil {
				changes = append(changes, test.change)
			}
			method := test.method
			if method == "" {
				method = http.MethodGet
			}
			n := 0
			rt := roundTripper(func(req *http.Request) (*http.Response, error) {
				n++
				return test.answers[n-1](req)
			})
			r := newRetrier(t, eager(changes...))
			resp, err := r.Layer(rt).RoundTrip(newRequest(t, call.WithInbound(t.Context(), in), method, nil))
			if err == nil {
				readAll(t, resp)
			}
			require.Len(t, test.answers, n)
			require.Equal(t, test.want, in.Exhausted())
		})
	}
}

func seq(all ...func(*http.Request) (*http.Response, error)) []func(*http.Request) (*http.Response, error) {
	return all
}

func TestLogSaysWhyEachAttemptWaitedAndWhyThereIsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, log := call.WithLog(t.Context())
		n := 0
		rt := roundTripper(func(req *http.Request) (*http.Response, error) {
			n++
			if n == 1 {
				return replies(503, "", "Retry-After", "1")(req)
			}
			return replies(503, "")(req)
		})
		r := newRetrier(t, &retry.Config{Backoff: retry.Backoff{Base: 50 * time.Millisecond}})
		resp, err := r.Layer(rt).RoundTrip(newRequest(t, ctx, http.MethodGet, nil))
		require.NoError(t, err)
		readAll(t, resp)
		record := log.Calls()[0]
		require.Equal(t, string(retry.ReasonAttempts), record.GaveUp)
		var why []string
		var left []int
		for _, a := range record.Attempts {
			why, left = append(why, a.Why), append(left, a.Budget)
		}
		require.Equal(t, []string{"", call.Hint, call.Backoff}, why)
		require.Equal(t, []int{0, 99, 98}, left)
		require.GreaterOrEqual(t, record.Attempts[1].Slept, time.Second)
	})
}
