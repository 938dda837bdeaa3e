package main

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"time"

	orca "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/leastrequest"
	"google.golang.org/grpc/balancer/roundrobin"
	"google.golang.org/grpc/balancer/weightedroundrobin"
	"google.golang.org/grpc/connectivity"
	estats "google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/backstay/backstay/backstaygrpc"
)

const moduleGRPC = "google.golang.org/grpc"

// grpcPicks are the pickers of grpc-go's balancers, and go-zero's, which is one
// of those too.
func grpcPicks(n int) []peer {
	return []peer{
		grpcPick("grpc-round_robin", moduleGRPC, func(s *stage) (balancer.Picker, error) {
			_, conn, err := readyBalancer(s, roundrobin.Name, grpcEndpoints(n, nil))
			return conn.picker, err
		}),
		grpcPick("grpc-weighted_round_robin", moduleGRPC, func(s *stage) (balancer.Picker, error) {
			return weightedPicker(s, n)
		}),
		grpcPick("grpc-least_request", moduleGRPC, func(s *stage) (balancer.Picker, error) {
			cfg := &leastrequest.LBConfig{ChoiceCount: 2}
			_, conn, err := readyBalancer(s, leastrequest.Name, grpcEndpoints(n, cfg))
			return conn.picker, err
		}),
		grpcPick("go-zero-p2c", moduleGoZero, func(*stage) (balancer.Picker, error) { return goZeroPicker(n) }),
		grpcPick("backstay-bridge", "", func(s *stage) (balancer.Picker, error) { return bridgePicker(s, n) }),
	}
}

// grpcPick picks, and says that the call is over.
func grpcPick(name, module string, build func(*stage) (balancer.Picker, error)) peer {
	return peer{name: name, module: module, setup: func(s *stage) (job, error) {
		p, err := build(s)
		info := balancer.PickInfo{FullMethodName: "/orders.v1.Orders/Get", Ctx: context.Background()}
		return func(l *loop) error {
			for l.next() {
				picked, err := p.Pick(info)
				if err != nil {
					return err
				}
				if picked.Done != nil {
					picked.Done(balancer.DoneInfo{BytesSent: true, BytesReceived: true})
				}
			}
			return nil
		}, err
	}}
}

// bridgePicker is that of our bridge, over a balancer of its own with every default.
// The balancer and the connections report in their own time.
func bridgePicker(s *stage, n int) (balancer.Picker, error) {
	conn := &grpcConn{atOnce: true}
	if _, err := buildBalancer(s, backstaygrpc.Name, grpcEndpoints(n, nil), conn); err != nil {
		return nil, err
	}
	var last balancer.Picker
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for same := 0; same < 50; same++ { // until there has been no other picker for a while
		<-tick.C
		conn.mu.Lock()
		if conn.ready < n || conn.picker != last {
			same = 0
		}
		last = conn.picker
		conn.mu.Unlock()
	}
	return last, nil
}

// grpcEndpoints is what a balancer is told of its endpoints.
func grpcEndpoints(n int, cfg serviceconfig.LoadBalancingConfig) balancer.ClientConnState {
	state := balancer.ClientConnState{BalancerConfig: cfg}
	for i := range n {
		addr := resolver.Address{Addr: nodeAddr(i)}
		state.ResolverState.Endpoints = append(state.ResolverState.Endpoints,
			resolver.Endpoint{Addresses: []resolver.Address{addr}})
	}
	return state
}

// readyBalancer builds one of grpc-go's balancers and has all its connections
// ready.
func readyBalancer(s *stage, name string, state balancer.ClientConnState) (balancer.Balancer, *grpcConn, error) {
	conn := new(grpcConn)
	b, err := buildBalancer(s, name, state, conn)
	conn.reports.Wait()
	return b, conn, err
}

func buildBalancer(s *stage, name string, state balancer.ClientConnState, conn *grpcConn) (balancer.Balancer, error) {
	target := resolver.Target{URL: url.URL{Scheme: "dns", Path: "/orders"}}
	b := balancer.Get(name).Build(conn, balancer.BuildOptions{Target: target})
	s.cleanup(b.Close)
	return b, b.UpdateClientConnState(state)
}

// weightedPicker has the endpoints report unequal loads, so that they have
// unequal weights, and takes the picker that is made of them then.
func weightedPicker(s *stage, n int) (balancer.Picker, error) {
	parser, ok := balancer.Get(weightedroundrobin.Name).(balancer.ConfigParser)
	if !ok {
		return nil, fmt.Errorf("%s takes no config", weightedroundrobin.Name)
	}
	// The weights are used at once and never looked at again.
	cfg, err := parser.ParseConfig([]byte(`{"blackoutPeriod": "0s", "weightUpdatePeriod": "86400s"}`))
	if err != nil {
		return nil, err
	}
	state := grpcEndpoints(n, cfg)
	b, conn, err := readyBalancer(s, weightedroundrobin.Name, state)
	if err != nil {
		return nil, err
	}
	for i := range n { // in turn, while there are no weights
		picked, err := conn.picker.Pick(balancer.PickInfo{})
		if err != nil {
			return nil, err
		}
		picked.Done(balancer.DoneInfo{ServerLoad: &orca.OrcaLoadReport{
			ApplicationUtilization: 0.5, RpsFractional: float64(100 + 10*(i%7)),
		}})
	}
	err = b.UpdateClientConnState(state)
	return conn.picker, err
}

// grpcConn is what a balancer has for its ClientConn: each connection that it
// asks for is ready soon after.
type grpcConn struct {
	balancer.ClientConn // nil: nothing else is called

	atOnce  bool // no report waits for others
	reports sync.WaitGroup
	mu      sync.Mutex
	picker  balancer.Picker // the last one; read when the reports are done
	ready   int             // connections
}

func (c *grpcConn) NewSubConn(_ []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	return &grpcSubConn{conn: c, listener: opts.StateListener}, nil
}

func (c *grpcConn) UpdateState(state balancer.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.picker = state.Picker
}

func (c *grpcConn) MetricsRecorder() estats.MetricsRecorder {
	return estats.UnimplementedMetricsRecorder{}
}

type grpcSubConn struct {
	balancer.SubConn // nil: nothing else is called

	conn     *grpcConn
	listener func(balancer.SubConnState)
}

// Connect reports from another goroutine, for its caller holds locks that the
// report takes. It awaits the reports of earlier connections, which are cheap as
// long as the balancer is still at it: afterwards each has a new picker made,
// and with ten thousand of them that takes a while.
func (c *grpcSubConn) Connect() {
	if !c.conn.atOnce {
		c.conn.reports.Wait()
	}
	c.conn.reports.Go(func() {
		c.listener(balancer.SubConnState{ConnectivityState: connectivity.Connecting})
		c.listener(balancer.SubConnState{ConnectivityState: connectivity.Ready})
		c.conn.mu.Lock()
		c.conn.ready++
		c.conn.mu.Unlock()
	})
}

func (c *grpcSubConn) RegisterHealthListener(listener func(balancer.SubConnState)) {
	c.conn.reports.Go(func() { listener(balancer.SubConnState{ConnectivityState: connectivity.Ready}) })
}

func (c *grpcSubConn) Shutdown() {}
