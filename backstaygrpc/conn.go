package backstaygrpc

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/balancer"
)

// Conn makes gRPC calls to one service by the engine of a *backstay.Client. It is a
// [grpc.ClientConnInterface], which generated clients take; package documentation says
// what becomes of a call. All methods may be called concurrently.
type Conn struct {
	terms
	up   *backstay.Upstream
	b    *balancer.Balancer
	dial []grpc.DialOption

	// loadInterval is how often nodes are asked to report their load; 0 is never.
	loadInterval time.Duration

	methods atomic.Pointer[map[string]*method] // those that were called; nil before the first
	nodes   sync.Map                           // *nodeConn by *balancer.Node
	free    sync.Pool                          // of *invocation

	mu      sync.Mutex // held to add to methods and nodes
	closed  bool
	stop    context.CancelFunc // what Close has to end beside the connections
	closing sync.WaitGroup     // connections on their way out
}

var _ grpc.ClientConnInterface = (*Conn)(nil)

// NewClient returns a connection to a service of client's, which is named as in the
// host of a URL: "orders", "orders:50051". Nothing is connected to before a call needs
// it. The options are those of grpc.NewClient and hold for the connection to each
// node; at least transport credentials are wanted among them. The error says what is
// wrong with them or with the name.
//
// Close the Conn when it is no longer needed; it does not close the client.
func NewClient(service string, client *backstay.Client, opts ...grpc.DialOption) (*Conn, error) {
	if client == nil {
		return nil, fmt.Errorf("backstaygrpc: service %q: client is nil, want one, such as that of backstay.New(nil)", service)
	}
	up, err := client.Upstream(service)
	if err != nil {
		return nil, fmt.Errorf("backstaygrpc: service %q: %w", service, err)
	}
	cfg := up.Config()
	c := &Conn{up: up, b: up.Balancer(), terms: terms{
		service: up.Service(), hashKey: metadataKey(cfg.HashKey.Header), propagate: cfg.Propagate == backstay.On,
	}}
	c.dial = append(c.dial, defaults()...)
	for _, opt := range opts {
		switch own := opt.(type) {
		case classifierOption:
			c.classify = own.classify
		case loadOption:
			c.loadInterval = own.interval
		}
		c.dial = append(c.dial, opt)
	}
	if c.loadInterval != 0 && c.loadInterval < leastLoadInterval {
		up.Close()
		return nil, fmt.Errorf("backstaygrpc: service %q: interval of WithLoadReports is %v, want >= %v",
			c.service, c.loadInterval, leastLoadInterval)
	}
	// So that what multiplies attempts is off whatever the options say.
	c.dial = append(c.dial, grpc.WithDisableRetry(), grpc.WithDisableServiceConfig())
	trial, err := grpc.NewClient("passthrough:///"+c.service, c.dial...)
	if err != nil {
		up.Close()
		return nil, fmt.Errorf("backstaygrpc: service %q: %w", service, err)
	}
	_ = trial.Close()
	ctx, cancel := context.WithCancel(context.Background())
	stop, _ := c.b.OnLeave(c.drop)
	c.stop = func() { stop(); cancel() }
	c.b.Subscribe(ctx, c.readdress)
	return c, nil
}

// WithClassifier returns an option of [NewClient]: what judges the attempts, in place
// of [Classify].
func WithClassifier(classify Classifier) grpc.DialOption {
	return classifierOption{classify: classify}
}

type classifierOption struct {
	grpc.EmptyDialOption
	classify Classifier
}

// WithLoadReports returns an option of [NewClient]: each node that has had a call is
// asked to report its load every interval, by ORCA's out-of-band service
// (xds.service.orca.v3.OpenRcaService, gRFC A51), for policies that go by such reports:
// balancer.P2C with LoadReport, balancer.WeightedRoundRobin with Reported. With other
// policies nobody is asked, and a server that does not know the service is asked once.
// The stream keeps the node's connection from becoming idle. Reports that come with the
// calls need no option. The interval is at least 10ms.
func WithLoadReports(interval time.Duration) grpc.DialOption { return loadOption{interval: interval} }

type loadOption struct {
	grpc.EmptyDialOption
	interval time.Duration
}

// defaults are the options that the user's come after.
func defaults() []grpc.DialOption {
	return []grpc.DialOption{
		// A node that is back should be found before its breaker is tried again; grpc
		// would wait for two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 250 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithIdleTimeout(5 * time.Minute),
	}
}

// Service returns the service's name.
func (c *Conn) Service() string { return c.service }

// Balancer returns the service's balancer: its nodes with their state. It is the
// client's.
func (c *Conn) Balancer() *balancer.Balancer { return c.b }

// Ready waits until the service's endpoints are known, within ctx. It does not
// connect to them.
func (c *Conn) Ready(ctx context.Context) error { return errorOf(ctx, c.service, c.b.Ready(ctx)) }

// Close closes the connections to all nodes, whatever is still going on over them,
// and waits until that is done. It may be called more than once.
func (c *Conn) Close() error {
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	if first {
		c.stop()
		c.nodes.Range(func(node, _ any) bool {
			c.drop(node.(*balancer.Node)) //nolint:errcheck,forcetypeassert // only those are in it
			return true
		})
		c.up.Close()
	}
	c.closing.Wait()
	return nil
}

// method is what is known of a method.
type method struct {
	settings   *backstay.Settings
	idempotent bool // by its descriptor or its route
}

// method returns what is known of the method with that full name.
func (c *Conn) method(name string) *method {
	if known := c.methods.Load(); known != nil {
		if m := (*known)[name]; m != nil {
			return m
		}
	}
	m := &method{settings: c.up.Settings(name)}
	m.idempotent = m.settings.Retry.RetryNonIdempotent == backstay.On || declaredIdempotent(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	known := make(map[string]*method)
	if all := c.methods.Load(); all != nil {
		if len(*all) >= maxMethods {
			return m
		}
		maps.Copy(known, *all)
	}
	known[name] = m
	c.methods.Store(&known)
	return m
}

// maxMethods bounds what is kept of methods: proxies may be asked for anything.
const maxMethods = 1024
