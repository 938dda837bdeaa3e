package backstaygrpc_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

func detailsOf(t *testing.T, err error) (*errdetails.ErrorInfo, *errdetails.RetryInfo) {
	t.Helper()
	var (
		info  *errdetails.ErrorInfo
		retry *errdetails.RetryInfo
	)
	for _, detail := range status.Convert(err).Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.RetryInfo:
			retry = d
		default:
			t.Fatalf("detail %T", d)
		}
	}
	return info, retry
}

// Trap 148.
func TestRefusalsAreUnavailableAndSayWhoRefusedAndWhy(t *testing.T) {
	for _, test := range []struct {
		err    error
		reason string
		key    string
		after  time.Duration
	}{
		{&breaker.OpenError{Key: "orders/a", RetryAfter: time.Second}, backstaygrpc.ReasonBreaker, "breaker", time.Second},
		{
			&breaker.OpenError{Key: "orders/a", RetryAfter: time.Second, Err: status.Error(codes.Internal, "an earlier call's")},
			backstaygrpc.ReasonBreaker, "breaker", time.Second,
		},
		{&limit.FullError{Key: "orders", Max: 3}, backstaygrpc.ReasonConcurrency, "limit", 0},
		{&limit.RateError{Key: "orders", RetryAfter: time.Minute}, backstaygrpc.ReasonRate, "limit", time.Minute},
		{&balancer.Error{Service: "orders", Err: balancer.ErrNoNodes}, backstaygrpc.ReasonNoEndpoints, "", 0},
		{&balancer.Error{Service: "orders", Err: balancer.ErrPanic}, backstaygrpc.ReasonPanic, "", 0},
		{&balancer.Error{Service: "orders", Err: balancer.ErrClosed}, backstaygrpc.ReasonClosed, "", 0},
	} {
		t.Run(test.reason, func(t *testing.T) {
			err := error(&backstaygrpc.Error{Service: "orders", Err: test.err})
			for _, err := range []error{err, fmt.Errorf("listing: %w", err)} {
				require.Equal(t, codes.Unavailable, status.Code(err))
				require.ErrorIs(t, err, test.err)
				require.Equal(t, outcome.Refused(test.err), outcome.Refused(err))
				require.True(t, outcome.NotSent(err))
				after, ok := outcome.RetryAfter(err)
				require.Equal(t, test.after > 0, ok)
				require.Equal(t, test.after, after)
				info, retry := detailsOf(t, err)
				require.Equal(t, backstaygrpc.Domain, info.GetDomain())
				require.Equal(t, test.reason, info.GetReason())
				require.Equal(t, "orders", info.GetMetadata()["service"])
				if test.key != "" {
					require.Contains(t, info.GetMetadata()[test.key], "orders")
				}
				require.Equal(t, test.after, retry.GetRetryDelay().AsDuration())
			}
		})
	}
}

func TestStatusOfTheServerStaysWhateverIsAroundIt(t *testing.T) {
	theirs := withRetryInfo(t, codes.Unavailable, time.Second)
	err := error(&backstaygrpc.Error{Service: "orders", Err: &retry.StoppedError{Err: theirs, Reason: retry.ErrBudget}})
	require.ErrorIs(t, err, retry.ErrBudget)
	require.Equal(t, status.Convert(theirs).Proto(), status.Convert(err).Proto())
}

func TestTimeoutsAndCancellationsHaveTheirCodes(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		code codes.Code
	}{
		{"call timeout", &outcome.TimeoutError{Kind: outcome.ErrCallTimeout, Err: status.Error(codes.Unavailable, "")}, codes.DeadlineExceeded},
		{"attempt timeout", &outcome.TimeoutError{Kind: outcome.ErrAttemptTimeout}, codes.DeadlineExceeded},
		{"deadline while the first endpoints are awaited", &balancer.Error{Err: context.DeadlineExceeded}, codes.DeadlineExceeded},
		{"cancelled", context.Canceled, codes.Canceled},
		{"anything else", errors.New("broken"), codes.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := error(&backstaygrpc.Error{Service: "orders", Err: test.err})
			require.Equal(t, test.code, status.Code(err))
			require.ErrorIs(t, err, test.err)
			require.Contains(t, status.Convert(err).Message(), "orders")
		})
	}
}

// What is known of an attempt that was not sent rests on it, and grpc does not promise
// it: each stream has a trailer, if need be an empty one, and what was no stream none.
func TestGRPCTellsATrailerOfEachStream(t *testing.T) {
	hold := make(chan struct{})
	s := startServer(t, handlers{unary: func(ctx context.Context, in string) (string, error) {
		switch in {
		case "fail":
			return "", status.Error(codes.Unavailable, "no")
		case "hold":
			close(hold)
			<-ctx.Done()
		}
		return in, nil
	}})
	conn := roundRobin(t, s)
	invoke := func(ctx context.Context, in string) (metadata.MD, error) {
		var trailer metadata.MD
		err := conn.Invoke(ctx, get, wrapperspb.String(in), new(text), grpc.Trailer(&trailer))
		return trailer, err
	}
	trailer, err := invoke(t.Context(), "well")
	require.NoError(t, err)
	require.NotNil(t, trailer)
	trailer, err = invoke(t.Context(), "fail")
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.NotNil(t, trailer)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-hold
		s.kill()
	}()
	trailer, err = invoke(ctx, "hold")
	require.Error(t, err)
	require.NotNil(t, trailer)
	trailer, err = invoke(t.Context(), "nobody there")
	require.Error(t, err)
	require.Nil(t, trailer)
}
