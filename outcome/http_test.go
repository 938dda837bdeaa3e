package outcome_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/outcome"
)

func TestStatusesAreClassifiedByTheTable(t *testing.T) {
	const (
		success, failure, throttled  = outcome.Success, outcome.Failure, outcome.Throttled
		never, ifIdempotent          = outcome.Never, outcome.IfIdempotent
		retryAfter, overloaded, rate = "Retry-After", "X-Envoy-Overloaded", "X-Envoy-Ratelimited"
	)
	for _, test := range []struct {
		status int
		header http.Header
		class  outcome.Class
		retry  outcome.Retry
		after  time.Duration
	}{
		{status: 101},
		{status: 200},
		{status: 206},
		{status: 301},
		{status: 304},
		{status: 400},
		{status: 401},
		{status: 404},
		{status: 409},
		{status: 499},
		{status: 404, header: http.Header{retryAfter: {"5"}}},
		{status: 501},
		{status: 501, header: http.Header{retryAfter: {"5"}}},
		{status: 408, class: failure, retry: ifIdempotent},
		{status: 429, class: throttled, retry: ifIdempotent},
		{status: 429, header: http.Header{retryAfter: {"5"}}, class: throttled, retry: ifIdempotent, after: 5 * time.Second},
		{status: 429, header: http.Header{rate: {"true"}}, class: throttled, retry: never},
		{status: 500, class: failure, retry: never},
		{status: 502, class: failure, retry: ifIdempotent},
		{status: 503, class: failure, retry: ifIdempotent},
		{status: 503, header: http.Header{retryAfter: {"5"}}, class: throttled, retry: ifIdempotent, after: 5 * time.Second},
		{status: 503, header: http.Header{retryAfter: {"0"}}, class: throttled, retry: ifIdempotent},
		{status: 503, header: http.Header{retryAfter: {"soon"}}, class: failure, retry: ifIdempotent},
		{status: 503, header: http.Header{overloaded: {"true"}}, class: failure, retry: never},
		{status: 503, header: http.Header{"Backstay-Retry": {"No"}}, class: failure, retry: never},
		{status: 503, header: http.Header{"Backstay-Retry": {"yes"}}, class: failure, retry: ifIdempotent},
		{status: 503, header: http.Header{"Grpc-Retry-Pushback-Ms": {"-1"}}, class: failure, retry: never},
		{status: 503, header: http.Header{"Grpc-Retry-Pushback-Ms": {"soon"}}, class: failure, retry: never},
		{status: 503, header: http.Header{"Grpc-Retry-Pushback-Ms": {"5", "5"}}, class: failure, retry: never},
		{status: 503, header: http.Header{"Grpc-Retry-Pushback-Ms": {"5"}}, class: failure, retry: ifIdempotent},
		{status: 504, class: failure, retry: ifIdempotent},
		{status: 505, class: failure, retry: never},
		{status: 507, class: failure, retry: never},
		{status: 599, class: failure, retry: never},
	} {
		t.Run(fmt.Sprint(test.status, test.header), func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://orders.test", nil)
			require.NoError(t, err)
			resp := &http.Response{StatusCode: test.status, Header: test.header}
			want := outcome.Outcome{Class: test.class, Retry: test.retry, After: test.after}
			if test.class != success {
				want.Err = outcome.StatusError(test.status)
			}
			require.Equal(t, want, outcome.HTTP(req, resp, nil))
			require.Equal(t, want, outcome.Classifier(nil).Classify(req, resp, nil))
			require.Equal(t, test.class == failure, outcome.HTTP(req, resp, nil).Failed())
		})
	}
}

func TestAnswersAreClassifiedThoughTheCallersContextEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders.test", nil)
	require.NoError(t, err)
	o := outcome.HTTP(req, &http.Response{StatusCode: 500}, nil)
	require.Equal(t, outcome.Failure, o.Class)
}

func TestTransportThatReturnsNothingHasFailed(t *testing.T) {
	o := outcome.HTTP(nil, nil, nil)
	require.Equal(t, outcome.Failure, o.Class)
	require.Error(t, o.Err)
}

func TestClassifierOfTheUsersOwnDecidesFirst(t *testing.T) {
	teapot := outcome.Classifier(func(req *http.Request, resp *http.Response, err error) outcome.Outcome {
		if resp != nil && resp.StatusCode == http.StatusTeapot {
			return outcome.Outcome{Class: outcome.Failure, Err: outcome.StatusError(http.StatusTeapot)}
		}
		return outcome.HTTP(req, resp, err)
	})
	require.Equal(t, outcome.Failure, teapot.Classify(nil, &http.Response{StatusCode: 418}, nil).Class)
	require.Equal(t, outcome.Success, teapot.Classify(nil, &http.Response{StatusCode: 404}, nil).Class)
	require.Equal(t, outcome.Failure, teapot.Classify(nil, nil, io.ErrUnexpectedEOF).Class)
}

func TestContextsEndIsTheCallersOnlyIfTheErrorSaysSo(t *testing.T) {
	gone := errors.New("the user closed the tab")
	ended := func(cause error) *http.Request {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders.test", nil)
		require.NoError(t, err)
		return req
	}
	attemptTimeout := &outcome.TimeoutError{Kind: outcome.ErrAttemptTimeout, After: time.Second}
	callTimeout := &outcome.TimeoutError{Kind: outcome.ErrCallTimeout, After: time.Second}
	for _, test := range []struct {
		name  string
		cause error
		err   error
		class outcome.Class
		retry outcome.Retry
	}{
		{"cancelled", nil, context.Canceled, outcome.Neutral, outcome.Never},
		{"cancelled, wrapped", nil, fmt.Errorf("get: %w", context.Canceled), outcome.Neutral, outcome.Never},
		{"cancelled with a cause", gone, fmt.Errorf("get: %w", gone), outcome.Neutral, outcome.Never},
		{"cancelled with a cause, the transport says Canceled", gone, context.Canceled, outcome.Neutral, outcome.Never},
		{"the connection broke first", gone, io.ErrUnexpectedEOF, outcome.Failure, outcome.IfIdempotent},
		{"our attempt timeout", attemptTimeout, attemptTimeout, outcome.Failure, outcome.IfIdempotent},
		{"our call timeout", callTimeout, callTimeout, outcome.Neutral, outcome.Never},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := outcome.HTTP(ended(test.cause), nil, test.err)
			require.Equal(t, test.class, o.Class)
			require.Equal(t, test.retry, o.Retry)
			require.Equal(t, test.err, o.Err)
		})
	}
}

func TestIdempotentByMethodOrKey(t *testing.T) {
	for method, want := range map[string]bool{
		"": true, "GET": true, "HEAD": true, "OPTIONS": true, "TRACE": true, "PUT": true, "DELETE": true,
		"POST": false, "PATCH": false, "CONNECT": false, "get": false, "PURGE": false,
	} {
		t.Run("method "+method, func(t *testing.T) {
			require.Equal(t, want, outcome.Idempotent(&http.Request{Method: method}))
			require.True(t, outcome.Idempotent(&http.Request{Method: method, Header: http.Header{"Idempotency-Key": {"1"}}}))
			require.True(t, outcome.Idempotent(&http.Request{Method: method, Header: http.Header{"X-Idempotency-Key": {"1"}}}))
		})
	}
}

func TestNamesOfTheConstants(t *testing.T) {
	require.Equal(t, []string{"success", "failure", "throttled", "neutral"},
		[]string{outcome.Success.String(), outcome.Failure.String(), outcome.Throttled.String(), outcome.Neutral.String()})
	require.Equal(t, []string{"never", "if idempotent", "always", "elsewhere"},
		[]string{outcome.Never.String(), outcome.IfIdempotent.String(), outcome.Always.String(), outcome.Elsewhere.String()})
	require.Equal(t, "503 Service Unavailable", outcome.StatusError(503).Error())
}
