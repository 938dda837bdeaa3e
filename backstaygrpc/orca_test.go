package backstaygrpc_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/orca"

	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
)

// busy is a server's metrics by gRPC's own recorder.
func busy(rps, utilization float64) orca.ServerMetricsRecorder {
	r := orca.NewServerMetricsRecorder()
	r.SetQPS(rps)
	r.SetApplicationUtilization(utilization)
	return r
}

func TestORCAReportsInTrailersReachTheNodes(t *testing.T) {
	f := newBackends(t, 1, interopServer, orca.CallMetricsServerOption(busy(100, 0.5)))
	for _, policy := range []balancer.Policy{
		balancer.P2C{Cost: balancer.LoadReport{}}, balancer.WeightedRoundRobin{Reported: true}, balancer.P2C{},
	} {
		b := f.balancer(&balancer.Config{Policy: policy})
		conn := bridged(t, b, nil)
		_, err := testgrpc.NewTestServiceClient(conn).UnaryCall(within(t), new(testgrpc.SimpleRequest))
		require.NoError(t, err)
		idle(t, b)
		r, ok := b.Nodes()[0].Reported(time.Now())
		require.Equal(t, b.ReadsReports(), ok, "%T: they are looked at where somebody goes by them", policy)
		if ok {
			require.InDelta(t, 100, r.RPS, 0.01)
			require.InDelta(t, 0.5, r.ApplicationUtilization, 0.01)
		}
	}
}

func TestORCAReportsOutOfBandReachTheNodes(t *testing.T) {
	backstaytest.CheckLeaks(t)
	f := newBackends(t, 2, func(s *grpc.Server) {
		interopServer(s)
		require.NoError(t, orca.Register(s, orca.ServiceOptions{ServerMetricsProvider: busy(100, 0.5)}))
	})
	b := f.balancer(&balancer.Config{Policy: balancer.WeightedRoundRobin{Reported: true}})
	conn := bridged(t, b, &backstaygrpc.BridgeConfig{LoadInterval: 30 * time.Second}, quickly())
	conn.Connect()
	reported := func() bool {
		for _, n := range b.Nodes() {
			if r, ok := n.Reported(time.Now()); !ok || r.RPS < 99 {
				return false
			}
		}
		return len(b.Nodes()) == 2
	}
	soon(t, reported, "nodes that nobody has called report")
	require.Equal(t, []int64{0, 0}, f.calls())
}

func TestNobodyIsAskedForReportsWhereNobodyGoesByThem(t *testing.T) {
	f := newBackends(t, 1, func(s *grpc.Server) {
		interopServer(s)
		require.NoError(t, orca.Register(s, orca.ServiceOptions{ServerMetricsProvider: busy(100, 0.5)}))
	})
	b := f.balancer(nil)
	conn := bridged(t, b, &backstaygrpc.BridgeConfig{LoadInterval: 30 * time.Second})
	require.NoError(t, ask(within(t), conn))
	_, ok := b.Nodes()[0].Reported(time.Now())
	require.False(t, ok)
}
