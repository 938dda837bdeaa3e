package backstaygrpc_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/retry"
)

// everything is a service with all that can be switched on.
func everything() *backstay.Config {
	return &backstay.Config{
		Observer: event.ObserverFunc(func(context.Context, event.Event) {}),
		Services: map[string]backstay.Service{"orders": {
			Timeout: time.Minute, AttemptTimeout: 20 * time.Second, BodyIdleTimeout: 10 * time.Second,
			NodeConcurrency: 100, Propagate: backstay.On,
			Rate:        limit.RateConfig{Limit: 10_000},
			Concurrency: limit.ConcurrencyConfig{Max: 100, Queue: 10},
			Retry: retry.Config{
				RetryNonIdempotent: retry.On,
				Hedge:              retry.HedgeConfig{Delay: 5 * time.Second, Percentile: 0.99},
			},
		}},
	}
}

// interopCases are those of gRPC's own test cases that want no more than a client. They
// end the process where they fail.
func interopCases(t *testing.T, client testgrpc.TestServiceClient) {
	t.Helper()
	for name, do := range map[string]func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption){
		"empty_unary":                 interop.DoEmptyUnaryCall,
		"large_unary":                 interop.DoLargeUnaryCall,
		"client_streaming":            interop.DoClientStreaming,
		"server_streaming":            interop.DoServerStreaming,
		"ping_pong":                   interop.DoPingPong,
		"empty_stream":                interop.DoEmptyStream,
		"timeout_on_sleeping_server":  interop.DoTimeoutOnSleepingServer,
		"cancel_after_first_response": interop.DoCancelAfterFirstResponse,
		"status_code_and_message":     interop.DoStatusCodeAndMessage,
		"special_status_message":      interop.DoSpecialStatusMessage,
		"custom_metadata":             interop.DoCustomMetadata,
	} {
		t.Run(name, func(t *testing.T) { do(t.Context(), client) })
	}
	t.Run("cancel_after_begin", func(t *testing.T) {
		// As interop.DoCancelAfterBegin does it. But over a plain ClientConn, too, the
		// answer of a stream that is closed right after its context was canceled is
		// now and then quicker than the end of the context.
		var err error
		for range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			stream, begun := client.StreamingInputCall(ctx)
			require.NoError(t, begun)
			cancel()
			if _, err = stream.CloseAndRecv(); err != nil {
				break
			}
		}
		require.Equal(t, codes.Canceled, status.Code(err))
	})
}

// gRPC's own test cases, those that pass over a plain ClientConn against
// interop.NewTestServer.
func TestInterop(t *testing.T) {
	backstaytest.CheckLeaks(t)
	var servers []*server
	for range 2 {
		s := startServer(t, handlers{})
		s.kill()
		s.register = func(srv *grpc.Server) { testgrpc.RegisterTestServiceServer(srv, interop.NewTestServer()) }
		s.start()
		servers = append(servers, s)
	}
	conn := dial(t, newClient(t, everything(), servers...))
	client := testgrpc.NewTestServiceClient(conn)
	interopCases(t, client)
	// The cases that want a *grpc.ClientConn, as they stand there.
	t.Run("unimplemented_method", func(t *testing.T) {
		err := conn.Invoke(t.Context(), "/grpc.testing.TestService/UnimplementedCall", new(testgrpc.Empty), new(testgrpc.Empty))
		require.Equal(t, codes.Unimplemented, status.Code(err))
	})
	t.Run("unimplemented_service", func(t *testing.T) {
		interop.DoUnimplementedService(t.Context(), testgrpc.NewUnimplementedServiceClient(conn))
	})
	t.Run("rpc_soak", func(t *testing.T) {
		for range 40 {
			interop.DoLargeUnaryCall(t.Context(), client)
		}
	})
	require.Eventually(t, func() bool { return conn.Balancer().InFlight() == 0 }, 10*time.Second, time.Millisecond)
}
