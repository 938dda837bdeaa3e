package backstaygrpc_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/outcome"
)

func withRetryInfo(t *testing.T, code codes.Code, after time.Duration) error {
	t.Helper()
	st, err := status.New(code, "later").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
	require.NoError(t, err)
	return st.Err()
}

func TestStatusCodesAreJudged(t *testing.T) {
	const (
		success, failure, throttled, neutral = outcome.Success, outcome.Failure, outcome.Throttled, outcome.Neutral
		never, ifIdempotent                  = outcome.Never, outcome.IfIdempotent
	)
	pushback := func(values ...string) metadata.MD { return metadata.MD{"grpc-retry-pushback-ms": values} }
	for _, test := range []struct {
		name    string
		err     error
		trailer metadata.MD
		class   outcome.Class
		retry   outcome.Retry
		after   time.Duration
	}{
		{name: "OK", class: success},
		{name: "InvalidArgument", err: status.Error(codes.InvalidArgument, ""), class: success},
		{name: "NotFound", err: status.Error(codes.NotFound, ""), class: success},
		{name: "Aborted", err: status.Error(codes.Aborted, ""), class: success},
		{name: "Unimplemented", err: status.Error(codes.Unimplemented, ""), class: success},
		{name: "Canceled", err: status.Error(codes.Canceled, ""), class: neutral},
		{name: "Unknown", err: status.Error(codes.Unknown, ""), class: failure},
		{name: "Internal", err: status.Error(codes.Internal, ""), class: failure},
		{name: "Internal with a pushback", err: status.Error(codes.Internal, ""), trailer: pushback("5"), class: failure},
		{name: "DataLoss", err: status.Error(codes.DataLoss, ""), class: failure},
		{name: "DeadlineExceeded", err: status.Error(codes.DeadlineExceeded, ""), class: failure, retry: ifIdempotent},
		{name: "Unavailable", err: status.Error(codes.Unavailable, ""), class: failure, retry: ifIdempotent},
		{name: "wrapped", err: fmt.Errorf("a: %w", status.Error(codes.Unavailable, "")), class: failure, retry: ifIdempotent},
		{name: "pushback", err: status.Error(codes.Unavailable, ""), trailer: pushback("250"), class: throttled, retry: ifIdempotent, after: 250 * time.Millisecond},
		{name: "pushback of nothing", err: status.Error(codes.Unavailable, ""), trailer: pushback("0"), class: throttled, retry: ifIdempotent, after: 1},
		{name: "negative pushback", err: status.Error(codes.Unavailable, ""), trailer: pushback("-1"), class: throttled, retry: never},
		{name: "garbage", err: status.Error(codes.Unavailable, ""), trailer: pushback("soon"), class: throttled, retry: never},
		{name: "repeated", err: status.Error(codes.Unavailable, ""), trailer: pushback("5", "5"), class: throttled, retry: never},
		{name: "backstay-retry", err: status.Error(codes.Unavailable, ""), trailer: metadata.Pairs("backstay-retry", "No"), class: failure, retry: never},
		{name: "RetryInfo", err: withRetryInfo(t, codes.Unavailable, time.Second), class: throttled, retry: ifIdempotent, after: time.Second},
		{name: "pushback before RetryInfo", err: withRetryInfo(t, codes.Unavailable, time.Second), trailer: pushback("3"), class: throttled, retry: ifIdempotent, after: 3 * time.Millisecond},
		{name: "ResourceExhausted", err: status.Error(codes.ResourceExhausted, ""), class: throttled, retry: never},
		{name: "ResourceExhausted with RetryInfo", err: withRetryInfo(t, codes.ResourceExhausted, time.Second), class: throttled, retry: ifIdempotent, after: time.Second},
		{name: "ResourceExhausted with a pushback", err: status.Error(codes.ResourceExhausted, ""), trailer: pushback("7"), class: throttled, retry: ifIdempotent, after: 7 * time.Millisecond},
		{name: "no status", err: errors.New("broken"), class: failure, retry: ifIdempotent},
		{name: "context.Canceled", err: context.Canceled, class: neutral},
		{name: "our attempt timeout", err: &outcome.TimeoutError{Kind: outcome.ErrAttemptTimeout}, class: failure, retry: ifIdempotent},
		{name: "our call timeout", err: &outcome.TimeoutError{Kind: outcome.ErrCallTimeout, Err: status.Error(codes.Unavailable, "")}, class: neutral},
	} {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, outcome.Outcome{Class: test.class, Retry: test.retry, After: test.after, Err: test.err},
				backstaygrpc.Classify(test.err, test.trailer))
		})
	}
}
