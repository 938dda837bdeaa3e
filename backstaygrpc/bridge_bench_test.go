package backstaygrpc_test

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/leastrequest"
	"google.golang.org/grpc/connectivity"
	estats "google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/backstay/backstay/backstaygrpc"
)

// fakeConn is gRPC as its balancers see it: each connection is ready as soon as it is
// asked for, or does what the test says.
type fakeConn struct {
	grpcbalancer.ClientConn // nil: nothing else is called

	connect func(*fakeSub) // what a connection does; nil: it is ready at once

	reports  sync.WaitGroup
	mu       sync.Mutex
	state    grpcbalancer.State
	states   int
	subs     []*fakeSub
	resolved int
}

type fakeSub struct {
	grpcbalancer.SubConn // nil: nothing else is called

	conn     *fakeConn
	addrs    []resolver.Address
	listener func(grpcbalancer.SubConnState)
	mu       sync.Mutex
	connects int
	shut     bool
}

func (c *fakeConn) NewSubConn(addrs []resolver.Address, opts grpcbalancer.NewSubConnOptions) (grpcbalancer.SubConn, error) {
	s := &fakeSub{conn: c, addrs: addrs, listener: opts.StateListener}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs = append(c.subs, s)
	return s, nil
}

func (c *fakeConn) UpdateState(state grpcbalancer.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = state
	c.states++
}

func (c *fakeConn) last() grpcbalancer.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *fakeConn) ResolveNow(resolver.ResolveNowOptions) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resolved++
}

func (c *fakeConn) MetricsRecorder() estats.MetricsRecorder {
	return estats.UnimplementedMetricsRecorder{}
}

// to reports a state.
func (s *fakeSub) to(state connectivity.State, err error) {
	s.listener(grpcbalancer.SubConnState{ConnectivityState: state, ConnectionError: err})
}

func (s *fakeSub) Connect() {
	s.mu.Lock()
	s.connects++
	s.mu.Unlock()
	s.conn.reports.Go(func() {
		if s.conn.connect != nil {
			s.conn.connect(s)
			return
		}
		s.to(connectivity.Connecting, nil)
		s.to(connectivity.Ready, nil)
	})
}

func (s *fakeSub) Shutdown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = true
}

func (s *fakeSub) RegisterHealthListener(listener func(grpcbalancer.SubConnState)) {
	s.conn.reports.Go(func() { listener(grpcbalancer.SubConnState{ConnectivityState: connectivity.Ready}) })
}

// build builds one of gRPC's balancers over fake connections.
func build(t testing.TB, name string, conn *fakeConn) grpcbalancer.Balancer {
	t.Helper()
	b := grpcbalancer.Get(name).Build(conn, grpcbalancer.BuildOptions{Target: ordersTarget()})
	t.Cleanup(b.Close)
	return b
}

func ordersTarget() resolver.Target {
	return resolver.Target{URL: url.URL{Scheme: "dns", Path: "/orders"}}
}

func stateOfNodes(n int, cfg serviceconfig.LoadBalancingConfig) grpcbalancer.ClientConnState {
	var addrs []string
	for i := range n {
		addrs = append(addrs, fmt.Sprintf("10.0.%d.%d:80", i/256, i%256))
	}
	return grpcbalancer.ClientConnState{BalancerConfig: cfg, ResolverState: stateOf(addrs...)}
}

func BenchmarkBridgePick(b *testing.B) {
	for _, name := range []string{backstaygrpc.Name, leastrequest.Name} {
		b.Run(name, func(b *testing.B) {
			conn := new(fakeConn)
			lb := build(b, name, conn)
			var cfg serviceconfig.LoadBalancingConfig
			if name == leastrequest.Name {
				cfg = &leastrequest.LBConfig{ChoiceCount: 2}
			}
			require.NoError(b, lb.UpdateClientConnState(stateOfNodes(8, cfg)))
			soon(b, func() bool {
				conn.reports.Wait()
				return conn.last().ConnectivityState == connectivity.Ready
			}, "ready")
			p := conn.last().Picker
			info := grpcbalancer.PickInfo{FullMethodName: "/orders.v1.Orders/Get", Ctx: context.Background()}
			b.ReportAllocs()
			for b.Loop() {
				picked, err := p.Pick(info)
				if err != nil {
					b.Fatal(err)
				}
				picked.Done(grpcbalancer.DoneInfo{BytesSent: true, BytesReceived: true})
			}
		})
	}
}
