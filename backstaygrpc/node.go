package backstaygrpc

import (
	"context"
	"net"
	"net/url"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// nodeConn is the connection to one node, and what tells it the node's address.
type nodeConn struct {
	*grpc.ClientConn
	node *balancer.Node
	name string // the service's, for its certificate and the :authority
	stop func() // ends the wait for reports of load

	mu       sync.Mutex
	endpoint discovery.Endpoint
	cc       resolver.ClientConn // nil while the connection is idle
}

// conn returns the connection to a node, which the caller has a lease on.
func (c *Conn) conn(n *balancer.Node) (*nodeConn, error) {
	if known, ok := c.nodes.Load(n); ok {
		return known.(*nodeConn), nil //nolint:errcheck,forcetypeassert // only those are in it
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.nodes.Load(n); ok {
		return known.(*nodeConn), nil //nolint:errcheck,forcetypeassert // as above
	}
	if c.closed {
		return nil, &balancer.Error{Service: c.service, Err: balancer.ErrClosed}
	}
	nc := &nodeConn{node: n, name: c.service, endpoint: n.Endpoint()}
	dialer := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return c.up.Dial(ctx, n, defaultPort)
	})
	// The user's options come later, and so may bring a dialer of their own.
	opts := append([]grpc.DialOption{dialer, grpc.WithResolvers(nc)}, c.dial...)
	opts = append(opts, grpc.WithChainUnaryInterceptor(nc.unary), grpc.WithChainStreamInterceptor(nc.stream))
	cc, err := grpc.NewClient(scheme+":///"+url.PathEscape(n.Key()), opts...)
	if err != nil {
		return nil, err // cannot be: NewClient has tried the options
	}
	nc.ClientConn, nc.stop = cc, func() {}
	if c.loadInterval > 0 && c.b.ReadsReports() {
		ctx, stop := context.WithCancel(context.Background())
		nc.stop = stop
		c.closing.Go(func() { watchLoad(ctx, cc, n, c.loadInterval) })
	}
	c.nodes.Store(n, nc)
	return nc, nil
}

// failing reports whether the last attempt to connect has failed. Grpc goes on trying,
// whether or not there are calls.
func (nc *nodeConn) failing() bool { return nc.GetState() == connectivity.TransientFailure }

// ready waits until the connection is there, within ctx, and returns whether it is.
func (nc *nodeConn) ready(ctx context.Context) bool {
	for {
		state := nc.GetState()
		switch state {
		case connectivity.Ready:
			return true
		case connectivity.TransientFailure, connectivity.Shutdown:
			return false
		case connectivity.Idle:
			nc.Connect()
		case connectivity.Connecting:
		}
		if !nc.WaitForStateChange(ctx, state) {
			return false
		}
	}
}

// errNotReady is what an attempt ends with that would wait for this very node, where
// the call could have another.
var errNotReady = status.Error(codes.Unavailable, "the node's connection is not ready")

// mustWait reports whether the call would wait for the connection. That may be said by
// default options and by interceptors, which nobody but the innermost one sees.
func (nc *nodeConn) mustWait(opts []grpc.CallOption) bool {
	for _, opt := range slices.Backward(opts) {
		if opt, ok := opt.(grpc.FailFastCallOption); ok {
			return !opt.FailFast && !nc.awake()
		}
	}
	return false
}

// awake reports whether the connection is ready. One that is idle is made, for later
// calls: this one does not get so far.
func (nc *nodeConn) awake() bool {
	state := nc.GetState()
	if state == connectivity.Idle {
		nc.Connect()
	}
	return state == connectivity.Ready
}

func (nc *nodeConn) unary(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if nc.mustWait(opts) {
		return errNotReady
	}
	return invoker(ctx, name, req, reply, cc, opts...)
}

func (nc *nodeConn) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, name string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if nc.mustWait(opts) {
		return nil, errNotReady
	}
	return streamer(ctx, desc, cc, name, opts...)
}

// drop closes the connection to a node that has nothing more to do.
func (c *Conn) drop(n *balancer.Node) {
	known, ok := c.nodes.LoadAndDelete(n)
	if !ok {
		return
	}
	nc := known.(*nodeConn) //nolint:errcheck,forcetypeassert // only those are in it
	nc.stop()
	// Not on this goroutine: it may be one that grpc waits for.
	c.closing.Go(func() { _ = nc.Close() })
}

// readdress has the connections learn where their nodes are now.
func (c *Conn) readdress() {
	c.nodes.Range(func(_, known any) bool {
		known.(*nodeConn).learn() //nolint:errcheck,forcetypeassert // only those are in it
		return true
	})
}

// learn tells the connection where its node is, if that is news.
func (nc *nodeConn) learn() {
	nc.mu.Lock()
	defer nc.mu.Unlock()
	now, old := nc.node.Endpoint(), nc.endpoint
	if now.Addr == old.Addr && now.ServerName == old.ServerName && slices.Equal(now.Fallback, old.Fallback) {
		return
	}
	nc.endpoint = now
	if nc.cc != nil {
		nc.tell()
	}
}

// tell hands the address on. nc.mu is held.
func (nc *nodeConn) tell() {
	_ = nc.cc.UpdateState(resolver.State{Endpoints: []resolver.Endpoint{{
		Addresses: []resolver.Address{{Addr: nc.endpoint.Addr, ServerName: nc.endpoint.ServerName}},
	}}})
}

// scheme is the one of the targets that a nodeConn resolves. Nobody else sees it.
const scheme = "backstay-node"

// Scheme returns the scheme. A nodeConn is its own [resolver.Builder], which knows one
// node, and its own [resolver.Resolver].
func (nc *nodeConn) Scheme() string { return scheme }

// Build begins to tell cc the node's address.
func (nc *nodeConn) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	nc.mu.Lock()
	defer nc.mu.Unlock()
	nc.cc, nc.endpoint = cc, nc.node.Endpoint()
	nc.tell()
	return nc.resolver(), nil
}

// OverrideAuthority has calls and certificates bear the service's name, unless the
// options or the endpoint's ServerName say otherwise.
func (nc *nodeConn) OverrideAuthority(resolver.Target) string { return nc.name }

func (nc *nodeConn) resolver() resolver.Resolver { return (*nodeResolver)(nc) }

// nodeResolver is a nodeConn as its resolver.
type nodeResolver nodeConn

// ResolveNow has nothing to do: who knows better tells the balancer.
func (r *nodeResolver) ResolveNow(resolver.ResolveNowOptions) {}

// Close is called when the connection becomes idle, too.
func (r *nodeResolver) Close() {
	r.mu.Lock()
	r.cc = nil
	r.mu.Unlock()
}
