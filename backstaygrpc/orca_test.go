package backstaygrpc_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/orca"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
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

func TestORCAReportsOutOfBandReachTheNodesOfAConn(t *testing.T) {
	backstaytest.CheckLeaks(t)
	var asked atomic.Int64
	count := grpc.ChainStreamInterceptor(func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		asked.Add(1)
		return h(srv, s)
	})
	f := newBackends(t, 2, func(s *grpc.Server) {
		interopServer(s)
		require.NoError(t, orca.Register(s, orca.ServiceOptions{ServerMetricsProvider: busy(100, 0.5)}))
	}, count)
	var endpoints []string
	for _, s := range f.servers {
		endpoints = append(endpoints, s.addr)
	}
	connect := func(t *testing.T, policy balancer.Policy) *backstaygrpc.Conn {
		client, err := backstay.New(&backstay.Config{Services: map[string]backstay.Service{
			"orders": {Endpoints: discovery.Addrs(endpoints...), Policy: policy},
		}})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, client.Close()) })
		conn := dial(t, client, backstaygrpc.WithLoadReports(30*time.Second))
		for range 20 {
			_, err := testgrpc.NewTestServiceClient(conn).EmptyCall(within(t), new(testgrpc.Empty))
			require.NoError(t, err)
		}
		return conn
	}
	t.Run("where nobody goes by them", func(t *testing.T) {
		connect(t, balancer.RoundRobin{})
		require.Zero(t, asked.Load())
	})
	t.Run("where the policy does", func(t *testing.T) {
		b := connect(t, balancer.WeightedRoundRobin{Reported: true}).Balancer()
		soon(t, func() bool {
			for _, n := range b.Nodes() {
				if r, ok := n.Reported(time.Now()); !ok || r.RPS < 99 {
					return false
				}
			}
			return len(b.Nodes()) == 2
		}, "nodes that have had a call report")
	})
	client, err := backstay.New(nil)
	require.NoError(t, err)
	defer client.Close()
	_, err = backstaygrpc.NewClient("orders", client, insecureOption(), backstaygrpc.WithLoadReports(time.Millisecond))
	require.ErrorContains(t, err, "interval of WithLoadReports is 1ms, want >= 10ms")
}
