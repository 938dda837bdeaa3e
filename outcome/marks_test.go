package outcome_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/outcome"
)

type refusal struct{ after time.Duration }

func (refusal) Error() string                   { return "refused" }
func (refusal) Refused() bool                   { return true }
func (r refusal) RetryAfterHint() time.Duration { return r.after }

type unsent struct{ bool }

func (unsent) Error() string   { return "unsent" }
func (u unsent) NotSent() bool { return u.bool }

// dressings are the ways in which an error reaches who asks.
func dressings(err error) map[string]error {
	return map[string]error{
		"bare":        err,
		"with %w":     fmt.Errorf("orders: %w", err),
		"joined":      errors.Join(io.EOF, err),
		"twice":       fmt.Errorf("a: %w", errors.Join(io.EOF, fmt.Errorf("b: %w", err))),
		"http.Client": &url.Error{Op: "Get", URL: "http://orders", Err: err},
	}
}

func TestMarksAreSeenThroughWrapping(t *testing.T) {
	for name, err := range dressings(refusal{after: time.Second}) {
		t.Run("refused "+name, func(t *testing.T) {
			require.True(t, outcome.Refused(err))
			require.False(t, outcome.NotSent(err))
			after, ok := outcome.RetryAfter(err)
			require.True(t, ok)
			require.Equal(t, time.Second, after)
			require.Equal(t, outcome.Outcome{Class: outcome.Neutral, After: time.Second, Err: err}, outcome.Of(err))
		})
	}
	for name, err := range dressings(unsent{true}) {
		t.Run("not sent "+name, func(t *testing.T) {
			require.True(t, outcome.NotSent(err))
			require.Equal(t, outcome.Outcome{Class: outcome.Failure, Retry: outcome.Always, Err: err}, outcome.Of(err))
		})
	}
	for name, err := range dressings(outcome.Permanent(unsent{true})) {
		t.Run("permanent "+name, func(t *testing.T) {
			require.Equal(t, outcome.Outcome{Class: outcome.Failure, Err: err}, outcome.Of(err))
			require.ErrorIs(t, err, unsent{true})
		})
	}
	for name, err := range dressings(&outcome.BodyError{Err: io.ErrClosedPipe}) {
		t.Run("body "+name, func(t *testing.T) {
			require.Equal(t, outcome.Outcome{Class: outcome.Neutral, Err: err}, outcome.Of(err))
			require.ErrorIs(t, err, io.ErrClosedPipe)
		})
	}
}

func TestMarksThatSayNo(t *testing.T) {
	require.False(t, outcome.NotSent(unsent{false}))
	require.Equal(t, outcome.IfIdempotent, outcome.Of(unsent{false}).Retry)
	for _, after := range []time.Duration{0, -time.Second} {
		_, ok := outcome.RetryAfter(refusal{after})
		require.False(t, ok)
	}
	for _, err := range []error{nil, io.EOF} {
		require.False(t, outcome.Refused(err))
		require.False(t, outcome.NotSent(err))
		_, ok := outcome.RetryAfter(err)
		require.False(t, ok)
	}
	require.NoError(t, outcome.Permanent(nil))
	require.Equal(t, "EOF", outcome.Permanent(io.EOF).Error())
}

func TestDialsAndLookUpsWereNotSent(t *testing.T) {
	for op, want := range map[string]bool{"dial": true, "proxyconnect": true, "read": false, "write": false, "remote error": false} {
		require.Equal(t, want, outcome.NotSent(&net.OpError{Op: op, Err: io.EOF}), op)
	}
	require.True(t, outcome.NotSent(&net.DNSError{Err: "no such host"}))
}

func TestErrorsOfFunctions(t *testing.T) {
	require.Equal(t, outcome.Outcome{}, outcome.Of(nil))
	for _, test := range []struct {
		err   error
		class outcome.Class
		retry outcome.Retry
	}{
		{io.EOF, outcome.Failure, outcome.IfIdempotent},
		{context.Canceled, outcome.Neutral, outcome.Never},
		{context.DeadlineExceeded, outcome.Neutral, outcome.Never},
		{fmt.Errorf("rpc: %w", context.DeadlineExceeded), outcome.Neutral, outcome.Never},
		{os.ErrDeadlineExceeded, outcome.Failure, outcome.IfIdempotent},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, outcome.Failure, outcome.IfIdempotent},
		{&outcome.TimeoutError{Kind: outcome.ErrAttemptTimeout}, outcome.Failure, outcome.IfIdempotent},
		{&outcome.TimeoutError{Kind: outcome.ErrBodyIdle}, outcome.Failure, outcome.IfIdempotent},
		{&outcome.TimeoutError{Kind: outcome.ErrCallTimeout}, outcome.Neutral, outcome.Never},
		{&outcome.TimeoutError{Kind: outcome.ErrCallTimeout, Err: &outcome.TimeoutError{Kind: outcome.ErrAttemptTimeout}}, outcome.Neutral, outcome.Never},
	} {
		t.Run(test.err.Error(), func(t *testing.T) {
			require.Equal(t, outcome.Outcome{Class: test.class, Retry: test.retry, Err: test.err}, outcome.Of(test.err))
		})
	}
}

func TestTimeoutErrorIsATimeout(t *testing.T) {
	err := error(&outcome.TimeoutError{Kind: outcome.ErrAttemptTimeout, After: 10 * time.Second, Err: io.EOF})
	require.EqualError(t, err, "backstay: attempt timeout after 10s: EOF")
	require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
	require.NotErrorIs(t, err, outcome.ErrCallTimeout)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, io.EOF)
	var netErr net.Error
	require.ErrorAs(t, &url.Error{Op: "Get", Err: err}, &netErr)
	require.True(t, netErr.Timeout())
	require.EqualError(t, &outcome.TimeoutError{Kind: outcome.ErrCallTimeout, After: time.Second}, "backstay: call timeout after 1s")
}
