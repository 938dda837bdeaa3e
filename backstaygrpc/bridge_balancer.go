package backstaygrpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/attributes"
	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

func attributesOf(s *shared) *attributes.Attributes { return attributes.New(sharedKey{}, s) }

// bridgeBuilder makes gRPC's side of the bridge.
type bridgeBuilder struct{}

// Name is what a service config calls the bridge.
func (bridgeBuilder) Name() string { return Name }

// ParseConfig reads what a service config says: see [Name].
func (bridgeBuilder) ParseConfig(data json.RawMessage) (serviceconfig.LoadBalancingConfig, error) {
	return parseSettings(data)
}

// Build returns a balancer that has nothing yet.
func (bridgeBuilder) Build(cc grpcbalancer.ClientConn, opts grpcbalancer.BuildOptions) grpcbalancer.Balancer {
	g := &bridge{cc: cc, target: opts.Target, subs: make(map[string]*sub)}
	g.do = g.reconcile
	return g
}

// bridge is one of gRPC's balancers, over one of ours. gRPC calls it on one goroutine,
// our balancer on any; what is done for either is done by one of them at a time: see
// turn.
type bridge struct {
	turn
	cc     grpcbalancer.ClientConn
	target resolver.Target
	moved  atomic.Bool // there may be other nodes, or addresses

	// These are gRPC's goroutine's.
	settings *settings // those that own was made by
	own      *balancer.Balancer
	feed     *feed // what own follows
	given    *shared
	unwatch  context.CancelFunc

	mu     sync.Mutex // guards what follows; never held while calling out
	behind *behind
	subs   map[string]*sub // by their nodes' keys
	closed bool
}

// behind is what the bridge leads to.
type behind struct {
	*balancer.Balancer
	rules *rules
	feed  *feed     // nil if the balancer is shared
	free  sync.Pool // of *attempt
}

// sub is gRPC's connection to a node.
type sub struct {
	addrs []resolver.Address
	conn  grpcbalancer.SubConn // nil if there can be none

	// These are guarded by the bridge's lock.
	to     *behind
	node   *balancer.Node
	state  connectivity.State
	left   bool  // it is no longer that of a node
	failed bool  // since it was ready last: nobody waits for one that fails and tries again
	err    error // why
	load   *loadProducer
}

// UpdateClientConnState takes what gRPC's resolver says: for a target of ours which
// balancer to use, for any other the endpoints.
func (g *bridge) UpdateClientConnState(state grpcbalancer.ClientConnState) error {
	config, _ := state.BalancerConfig.(*settings)
	given, _ := state.ResolverState.Attributes.Value(sharedKey{}).(*shared)
	switch {
	case given == nil:
		return g.updateOwn(state.ResolverState, config)
	case config != nil && !config.empty:
		err := fmt.Errorf("backstaygrpc: the service config has settings for service %q, want {}: its balancer, which DialOptions was given, has its own", given.balancer.Service())
		g.fail(err)
		return err
	case given != g.given:
		g.given = given
		g.follow(&behind{Balancer: given.balancer, rules: given.rules})
	}
	return nil
}

// fail has calls fail for a mistake that only who has made it can mend.
func (g *bridge) fail(err error) {
	g.cc.UpdateState(grpcbalancer.State{
		ConnectivityState: connectivity.TransientFailure,
		Picker:            failing{&Error{Service: g.service(), Err: &configError{err}}},
	})
}

// service is the name for a balancer of the bridge's own.
func (g *bridge) service() string { return g.target.Endpoint() }

// updateOwn takes the endpoints of somebody else's resolver.
func (g *bridge) updateOwn(state resolver.State, config *settings) error {
	if config == nil {
		config = new(settings)
	}
	set, addrs := endpointsOf(state)
	if g.own == nil || g.settings.raw != config.raw {
		f := newFeed(g.cc)
		own, err := balancer.New(g.service(), f, &config.balancer)
		if err != nil {
			g.fail(err)
			return err
		}
		old := g.own
		g.own, g.feed, g.settings = own, f, config
		f.set(set, addrs)
		g.follow(&behind{Balancer: own, rules: newRules(&config.bridge), feed: f})
		if old != nil {
			_ = old.Close()
		}
	} else {
		g.feed.set(set, addrs)
		g.changed() // the addresses may have other attributes
	}
	if len(set.Endpoints) == 0 {
		return grpcbalancer.ErrBadResolverState // so that it is asked again
	}
	return nil
}

// follow goes over to another balancer of ours.
func (g *bridge) follow(to *behind) {
	if g.unwatch != nil {
		g.unwatch()
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.unwatch = cancel
	g.mu.Lock()
	g.behind = to
	g.mu.Unlock()
	to.Subscribe(ctx, g.changed)
	g.changed()
}

// changed tells that the nodes may have changed.
func (g *bridge) changed() {
	g.moved.Store(true)
	g.poke()
}

// ResolverError takes the failure of somebody else's resolver.
func (g *bridge) ResolverError(err error) {
	switch {
	case g.feed != nil:
		g.feed.fail(err)
	case g.given == nil:
		g.cc.UpdateState(grpcbalancer.State{
			ConnectivityState: connectivity.TransientFailure,
			Picker:            failing{plain(&Error{Service: g.service(), Err: err})},
		})
	}
}

// UpdateSubConnState is not called: each connection has a listener.
func (g *bridge) UpdateSubConnState(grpcbalancer.SubConn, grpcbalancer.SubConnState) {}

// ExitIdle has nothing to do: connections that are idle are made again at once.
func (g *bridge) ExitIdle() {}

// Close ends the connections, and the balancer if it is the bridge's own.
func (g *bridge) Close() {
	if g.unwatch != nil {
		g.unwatch()
	}
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.moved.Store(true)
	g.hurry()
	if g.own != nil {
		_ = g.own.Close()
	}
}

// reconcile sees to it that each node has a connection, and nobody else, and gives gRPC
// a new picker. It is called by one goroutine at a time.
func (g *bridge) reconcile() {
	g.mu.Lock()
	to, closed := g.behind, g.closed
	g.mu.Unlock()
	if to == nil {
		return
	}
	var nodes []*balancer.Node
	if !closed {
		nodes = to.Nodes()
	}
	var left []*sub
	if g.moved.Swap(false) {
		left = g.connect(to, nodes)
	}
	if closed {
		shutdown(left)
		return
	}
	g.cc.UpdateState(g.state(to, nodes))
	if len(left) > 0 {
		time.AfterFunc(subLinger, func() { shutdown(left) })
	}
}

// subLinger is how long a connection stays open that is no longer picked. A call that
// was given it a moment ago, and comes to gRPC's transport after the connection has been
// shut down and while it has other streams, is kept waiting there until those end.
const subLinger = time.Second

// connect makes the connections that there should be, and returns the others.
func (g *bridge) connect(to *behind, nodes []*balancer.Node) (left []*sub) {
	wanted := make(map[string]bool, len(nodes))
	for _, n := range nodes {
		key := n.Key()
		wanted[key] = true
		addrs, err := to.addresses(n)
		g.mu.Lock()
		old := g.subs[key]
		g.mu.Unlock()
		if old != nil && slices.EqualFunc(old.addrs, addrs, resolver.Address.Equal) {
			g.lead(old, to, n)
			continue
		}
		s := &sub{addrs: addrs, to: to, node: n, state: connectivity.Connecting}
		if err == nil {
			//nolint:staticcheck // deprecated for several addresses only, and there is nothing else yet
			s.conn, err = g.cc.NewSubConn(addrs, grpcbalancer.NewSubConnOptions{
				HealthCheckEnabled: true, // if the service config wants it
				StateListener:      func(state grpcbalancer.SubConnState) { g.listen(s, state) },
			})
		}
		if err != nil {
			s.state, s.failed, s.err = connectivity.TransientFailure, true, err
		}
		g.mu.Lock()
		if old != nil {
			old.left = true
			left = append(left, old)
		}
		g.subs[key] = s
		g.mu.Unlock()
		if s.conn != nil {
			s.conn.Connect()
		}
	}
	g.mu.Lock()
	for key, s := range g.subs {
		if !wanted[key] {
			s.left = true
			left = append(left, s)
			delete(g.subs, key)
		}
	}
	g.mu.Unlock()
	if to.feed != nil {
		to.feed.forget(wanted)
	}
	return left
}

// lead has a connection that stays be that of a node, which is another one if the
// balancer is, or if its endpoint had left for a moment.
func (g *bridge) lead(s *sub, to *behind, n *balancer.Node) {
	g.mu.Lock()
	same := s.to == to && s.node == n
	s.to, s.node = to, n
	load, ready := s.load, s.state == connectivity.Ready
	g.mu.Unlock()
	if same {
		return
	}
	load.stop()
	if ready {
		g.watchLoad(s)
	}
}

// watchLoad begins to ask a node that is ready for reports of its load. gRPC ends that
// when the connection's state changes.
func (g *bridge) watchLoad(s *sub) {
	g.mu.Lock()
	to, node := s.to, s.node
	g.mu.Unlock()
	if to.rules.loadInterval <= 0 || !to.ReadsReports() {
		return
	}
	p := &loadProducer{node: node, interval: to.rules.loadInterval}
	s.conn.GetOrBuildProducer(p)
	g.mu.Lock()
	s.load = p
	g.mu.Unlock()
}

// shutdown ends connections; calls that they have go on to their end.
func shutdown(left []*sub) {
	for _, s := range left {
		if s.conn != nil {
			s.conn.Shutdown()
		}
	}
}

// listen takes a connection's new state.
func (g *bridge) listen(s *sub, state grpcbalancer.SubConnState) {
	g.mu.Lock()
	if s.left {
		g.mu.Unlock()
		return
	}
	was, failed, to := s.state, s.failed, s.to
	s.state = state.ConnectivityState
	switch s.state {
	case connectivity.Ready:
		s.failed, s.err = false, nil
	case connectivity.TransientFailure:
		s.failed, s.err = true, state.ConnectionError
	case connectivity.Idle, connectivity.Connecting, connectivity.Shutdown:
	}
	// Whether a connection is idle or being made makes no difference to picks.
	differs := (was == connectivity.Ready) != (s.state == connectivity.Ready) || s.failed != failed
	g.mu.Unlock()
	switch state.ConnectivityState {
	case connectivity.Ready:
		g.watchLoad(s)
	case connectivity.Idle:
		s.conn.Connect()
		if was == connectivity.Ready {
			to.Hint()
		}
	case connectivity.TransientFailure:
		to.Hint()
	case connectivity.Connecting:
	case connectivity.Shutdown:
		return
	}
	if differs {
		g.poke()
	}
}

// state returns what gRPC should know: who can be picked now, and if nobody, why.
func (g *bridge) state(to *behind, nodes []*balancer.Node) grpcbalancer.State {
	conns := make(map[*balancer.Node]grpcbalancer.SubConn, len(nodes))
	waiting := false
	var last error
	g.mu.Lock()
	for _, n := range nodes {
		switch s := g.subs[n.Key()]; {
		case s == nil:
		case s.state == connectivity.Ready:
			conns[n] = s.conn
		case s.failed:
			last = s.err
		default:
			waiting = true
		}
	}
	g.mu.Unlock()
	p := &picker{to: to, conns: conns, waiting: waiting, reads: to.ReadsReports()}
	p.view = to.View(func(n *balancer.Node) bool { return conns[n] != nil })
	switch {
	case len(conns) > 0:
		return grpcbalancer.State{ConnectivityState: connectivity.Ready, Picker: p}
	case waiting:
		return grpcbalancer.State{ConnectivityState: connectivity.Connecting, Picker: failing{grpcbalancer.ErrNoSubConnAvailable}}
	case len(nodes) > 0:
		err := fmt.Errorf("no connection to any of %d nodes, the last error: %w", len(nodes), last)
		return grpcbalancer.State{
			ConnectivityState: connectivity.TransientFailure,
			Picker:            failing{plain(&Error{Service: to.Service(), Err: err})},
		}
	}
	var lease balancer.Lease
	err := p.view.TryAcquire(&balancer.Call{}, &lease)
	lease.Done(time.Time{}, outcome.Outcome{Class: outcome.Neutral})
	if s := to.Snapshot(); err == nil || s.Total > 0 || errors.Is(err, balancer.ErrNoNodes) && !s.Known {
		// Nobody has looked yet, or nodes or an error have come since we began: then
		// there is another poke on its way.
		return grpcbalancer.State{ConnectivityState: connectivity.Connecting, Picker: failing{grpcbalancer.ErrNoSubConnAvailable}}
	}
	return grpcbalancer.State{ConnectivityState: connectivity.TransientFailure, Picker: failing{refusal(to.Service(), err)}}
}

// addresses returns where a node is, as gRPC puts it.
func (to *behind) addresses(n *balancer.Node) ([]resolver.Address, error) {
	if to.feed != nil {
		if addrs := to.feed.addresses(n.Key()); addrs != nil {
			return addrs, nil
		}
	}
	return addressesOf(n.Endpoint())
}

// defaultPort is for endpoints without one, as gRPC's own resolvers have it.
const defaultPort = "443"

func addressesOf(e discovery.Endpoint) ([]resolver.Address, error) {
	addrs := make([]resolver.Address, 0, 1+len(e.Fallback))
	for _, addr := range append([]string{e.Addr}, e.Fallback...) {
		network, hostport, err := discovery.DialAddr(addr, defaultPort)
		if err != nil {
			return addrs, err
		}
		if network == "unix" {
			hostport = "unix:" + hostport
		}
		addrs = append(addrs, resolver.Address{Addr: hostport, ServerName: e.ServerName})
	}
	return addrs, nil
}
