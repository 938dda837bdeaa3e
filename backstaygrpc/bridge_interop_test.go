package backstaygrpc_test

import (
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// TestInteropOverTheBridge runs gRPC's own test cases that pass over a plain ClientConn
// against interop.NewTestServer.
func TestInteropOverTheBridge(t *testing.T) {
	conn := bridged(t, newBackends(t, 2, interopServer).balancer(nil), nil)
	client := testgrpc.NewTestServiceClient(conn)
	interopCases(t, client)
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
