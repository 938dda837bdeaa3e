package backstaygrpc_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// TestInteropOverTheBridge runs gRPC's own test cases that pass over a plain ClientConn
// against interop.NewTestServer. They end the process where they fail.
func TestInteropOverTheBridge(t *testing.T) {
	conn := bridged(t, newBackends(t, 2, interopServer).balancer(nil), nil)
	client := testgrpc.NewTestServiceClient(conn)
	for name, do := range map[string]func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption){
		"empty_unary":                 interop.DoEmptyUnaryCall,
		"large_unary":                 interop.DoLargeUnaryCall,
		"client_streaming":            interop.DoClientStreaming,
		"server_streaming":            interop.DoServerStreaming,
		"ping_pong":                   interop.DoPingPong,
		"empty_stream":                interop.DoEmptyStream,
		"timeout_on_sleeping_server":  interop.DoTimeoutOnSleepingServer,
		"cancel_after_begin":          interop.DoCancelAfterBegin,
		"cancel_after_first_response": interop.DoCancelAfterFirstResponse,
		"status_code_and_message":     interop.DoStatusCodeAndMessage,
		"special_status_message":      interop.DoSpecialStatusMessage,
		"custom_metadata":             interop.DoCustomMetadata,
	} {
		t.Run(name, func(t *testing.T) { do(t.Context(), client) })
	}
	t.Run("unimplemented_method", func(t *testing.T) { interop.DoUnimplementedMethod(t.Context(), conn) })
	t.Run("unimplemented_service", func(t *testing.T) {
		interop.DoUnimplementedService(t.Context(), testgrpc.NewUnimplementedServiceClient(conn))
	})
	t.Run("rpc_soak", func(t *testing.T) {
		interop.DoSoakTest(t.Context(), interop.SoakTestConfig{
			RequestSize: 1000, ResponseSize: 1000, PerIterationMaxAcceptableLatency: 20 * time.Second,
			OverallTimeout: time.Minute, NumWorkers: 4, Iterations: 40,
			ChannelForTest: func() (*grpc.ClientConn, func()) { return conn, func() {} },
		})
	})
}
