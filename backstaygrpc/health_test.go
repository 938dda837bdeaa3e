package backstaygrpc_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

const (
	serving    = grpc_health_v1.HealthCheckResponse_SERVING
	notServing = grpc_health_v1.HealthCheckResponse_NOT_SERVING
)

func TestHealthCheckGoesByGRPCsHealthService(t *testing.T) {
	state := health.NewServer()
	healthy := newBackends(t, 1, func(s *grpc.Server) {
		interopServer(s)
		grpc_health_v1.RegisterHealthServer(s, state)
	})
	state.SetServingStatus("orders", serving)
	without := newBackends(t, 1, interopServer)
	gone := newBackends(t, 1, interopServer)
	gone.servers[0].server.Stop()

	node := func(f *backends) *balancer.Node {
		b := f.balancer(nil)
		require.NoError(t, b.Ready(within(t)))
		return b.Nodes()[0]
	}
	plain := grpc.WithTransportCredentials(insecure.NewCredentials())
	check := backstaygrpc.HealthCheck("orders", plain)
	require.NoError(t, check(within(t), node(healthy)))
	require.NoError(t, check(within(t), node(without)), "Unimplemented is well: gRFC A17")
	require.Error(t, check(within(t), node(gone)))
	require.NoError(t, backstaygrpc.HealthCheck("", plain)(within(t), node(healthy)))
	require.ErrorContains(t, backstaygrpc.HealthCheck("others", plain)(within(t), node(healthy)), "unknown service")
	state.SetServingStatus("orders", notServing)
	require.ErrorContains(t, check(within(t), node(healthy)), "NOT_SERVING")
	require.ErrorContains(t, backstaygrpc.HealthCheck("orders")(within(t), node(healthy)), "no transport security")
}

func TestHealthCheckTakesNodesOutOfTheBridge(t *testing.T) {
	states := []*health.Server{health.NewServer(), health.NewServer(), health.NewServer()}
	next := 0
	f := newBackends(t, 3, func(s *grpc.Server) {
		interopServer(s)
		grpc_health_v1.RegisterHealthServer(s, states[next])
		next++
	})
	b := f.balancer(&balancer.Config{
		Policy: balancer.RoundRobin{},
		Health: balancer.HealthConfig{
			Check:    backstaygrpc.HealthCheck("", grpc.WithTransportCredentials(insecure.NewCredentials())),
			Interval: 20 * time.Millisecond, Timeout: 5 * time.Second, Unhealthy: 1, Healthy: 1,
		},
	})
	conn := bridged(t, b, nil)
	allReady(t, f, conn)
	states[1].SetServingStatus("", notServing)
	evenly(t, f, conn, 5, 0, 5) // it gets no calls
	before := f.servers[1].calls.Load()
	states[1].SetServingStatus("", serving)
	soon(t, func() bool {
		require.NoError(t, ask(within(t), conn))
		return f.servers[1].calls.Load() > before
	}, "it is back")
}

// TestHealthByTheServiceConfig is gRPC's own health check of each connection.
func TestHealthByTheServiceConfig(t *testing.T) {
	state := health.NewServer()
	f := newBackends(t, 1, func(s *grpc.Server) {
		interopServer(s)
		grpc_health_v1.RegisterHealthServer(s, state)
	})
	b, err := balancer.New("orders", discovery.Static(f.listed...), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	conn := bridged(t, b, nil, grpc.WithDefaultServiceConfig(
		`{"loadBalancingConfig": [{"backstay": {}}], "healthCheckConfig": {"serviceName": ""}}`))
	require.NoError(t, ask(within(t), conn))
	state.SetServingStatus("", notServing)
	soon(t, func() bool { return ask(within(t), conn) != nil }, "nobody is ready")
	state.SetServingStatus("", serving)
	require.NoError(t, ask(within(t), conn, grpc.WaitForReady(true)))
}
