package backstaygrpc_test

import (
	"context"
	"iter"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// backends are servers on loopback, and the resolver that finds those that are listed.
type backends struct {
	t       testing.TB
	servers []*backend

	mu     sync.Mutex
	listed []discovery.Endpoint
	err    error
	news   chan struct{}
	hints  atomic.Int64
}

// backend is one of them.
type backend struct {
	addr   string
	server *grpc.Server
	opts   []grpc.ServerOption
	calls  atomic.Int64
	code   atomic.Uint32 // what calls fail with, while it is not OK
	serve  func(*grpc.Server)
}

// interopServer registers gRPC's own test server.
func interopServer(s *grpc.Server) { testgrpc.RegisterTestServiceServer(s, interop.NewTestServer()) }

// newBackends starts n servers.
func newBackends(t testing.TB, n int, serve func(*grpc.Server), opts ...grpc.ServerOption) *backends {
	t.Helper()
	f := &backends{t: t, news: make(chan struct{})}
	for range n {
		b := &backend{serve: serve, opts: opts, addr: "127.0.0.1:0"}
		b.start(t)
		f.servers = append(f.servers, b)
		f.listed = append(f.listed, discovery.Endpoint{Addr: b.addr})
	}
	return f
}

// start starts a server, again at the same address.
func (b *backend) start(t testing.TB) {
	t.Helper()
	listener := listen(t, b.addr)
	b.addr = listener.Addr().String()
	opts := append([]grpc.ServerOption{grpc.ChainUnaryInterceptor(b.unary), grpc.ChainStreamInterceptor(b.stream)}, b.opts...)
	server := grpc.NewServer(opts...)
	b.server = server
	b.serve(server)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-ended
	})
}

// listen listens on loopback. A port that has been given up may have become that of
// somebody's connection, for as long as that lasts.
func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	var listener net.Listener
	soon(t, func() (ok bool) {
		l, err := net.Listen("tcp", addr)
		if err == nil {
			listener = l
		}
		return err == nil
	}, "listening on "+addr)
	return listener
}

func (b *backend) count() error {
	b.calls.Add(1)
	if code := codes.Code(b.code.Load()); code != codes.OK {
		return status.Error(code, "as the test wants it")
	}
	return nil
}

func (b *backend) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if aside(info.FullMethod) {
		return next(ctx, req)
	}
	if err := b.count(); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// aside reports whether a method is of gRPC's own services, such as health checks.
func aside(method string) bool {
	return strings.HasPrefix(method, "/grpc.") && !strings.HasPrefix(method, "/grpc.testing.") || strings.HasPrefix(method, "/xds.")
}

func (b *backend) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if aside(info.FullMethod) {
		return next(srv, ss)
	}
	if err := b.count(); err != nil {
		return err
	}
	return next(srv, ss)
}

// Watch makes the backends a resolver.
func (f *backends) Watch(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		for {
			f.mu.Lock()
			set, err, news := discovery.Set{Endpoints: f.listed, Authoritative: true}, f.err, f.news
			f.mu.Unlock()
			if (set.Endpoints != nil || err != nil) && !yield(set, err) {
				return
			}
			for told := false; !told; {
				select {
				case <-news:
					told = true
				case <-discovery.Hints(ctx):
					f.hints.Add(1)
				case <-ctx.Done():
					return
				}
			}
		}
	}
}

// list has the resolver yield these, or an error.
func (f *backends) list(err error, endpoints ...discovery.Endpoint) {
	f.mu.Lock()
	f.listed, f.err = append([]discovery.Endpoint{}, endpoints...), err
	if err != nil {
		f.listed = nil
	}
	close(f.news)
	f.news = make(chan struct{})
	f.mu.Unlock()
}

// balancer returns a balancer over the backends.
func (f *backends) balancer(cfg *balancer.Config) *balancer.Balancer {
	f.t.Helper()
	b, err := balancer.New("orders", f, cfg)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { require.NoError(f.t, b.Close()) })
	return b
}

// bridged returns a connection that goes by b.
func bridged(t testing.TB, b *balancer.Balancer, cfg *backstaygrpc.BridgeConfig, more ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts, err := backstaygrpc.DialOptions(b, cfg)
	require.NoError(t, err)
	return connect(t, "backstay:///orders", append(opts, more...)...)
}

// connect returns a connection to a target.
func connect(t testing.TB, target string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, opts...)
	conn, err := grpc.NewClient(target, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

// ask makes a unary call.
func ask(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
	_, err := testgrpc.NewTestServiceClient(conn).EmptyCall(ctx, new(testgrpc.Empty), opts...)
	return err
}

// calls returns how many calls each server has had.
func (f *backends) calls() []int64 {
	var counts []int64
	for _, b := range f.servers {
		counts = append(counts, b.calls.Load())
	}
	return counts
}

// soon waits until the condition holds, at most as long as a machine may be busy.
func soon(t testing.TB, holds func() bool, message string) {
	t.Helper()
	require.Eventually(t, holds, 20*time.Second, time.Millisecond, message)
}

// within is a context for calls that should not take long.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// newStream begins a stream in both directions.
func newStream(t testing.TB, conn grpc.ClientConnInterface) (testgrpc.TestService_FullDuplexCallClient, error) {
	t.Helper()
	return testgrpc.NewTestServiceClient(conn).FullDuplexCall(within(t))
}
