package backstaygrpc_test

import (
	"cmp"
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/discovery"
)

// The service of these tests. Its requests and replies are strings.
const (
	service = "backstay.test.Orders"
	get     = "/" + service + "/Get"
	list    = "/" + service + "/List" // a server's stream
	sum     = "/" + service + "/Sum"  // a client's stream
	chat    = "/" + service + "/Chat" // both
)

type text = wrapperspb.StringValue

// handlers is what a server does.
type handlers struct {
	unary  func(ctx context.Context, in string) (string, error)
	stream func(in string, s grpc.ServerStream) error // List; in is the request
	chat   func(s grpc.ServerStream) error            // Sum and Chat
}

func (h *handlers) desc() *grpc.ServiceDesc {
	unary := func(_ any, ctx context.Context, decode func(any) error, i grpc.UnaryServerInterceptor) (any, error) {
		in := new(text)
		if err := decode(in); err != nil {
			return nil, err
		}
		handle := func(ctx context.Context, in any) (any, error) {
			out, err := h.unary(ctx, in.(*text).GetValue())
			return wrapperspb.String(out), err
		}
		if i == nil {
			return handle(ctx, in)
		}
		return i(ctx, in, &grpc.UnaryServerInfo{FullMethod: get}, handle)
	}
	listing := func(_ any, s grpc.ServerStream) error {
		in := new(text)
		if err := s.RecvMsg(in); err != nil {
			return err
		}
		return h.stream(in.GetValue(), s)
	}
	chatting := func(_ any, s grpc.ServerStream) error {
		if h.chat == nil {
			return nil
		}
		return h.chat(s)
	}
	return &grpc.ServiceDesc{
		ServiceName: service, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Get", Handler: unary}},
		Streams: []grpc.StreamDesc{
			{StreamName: "List", Handler: listing, ServerStreams: true},
			{StreamName: "Sum", Handler: chatting, ClientStreams: true},
			{StreamName: "Chat", Handler: chatting, ClientStreams: true, ServerStreams: true},
		},
	}
}

var (
	listDesc = &grpc.StreamDesc{StreamName: "List", ServerStreams: true}
	sumDesc  = &grpc.StreamDesc{StreamName: "Sum", ClientStreams: true}
	chatDesc = &grpc.StreamDesc{StreamName: "Chat", ClientStreams: true, ServerStreams: true}
)

// server is a gRPC server on loopback. It can be stopped and started again.
type server struct {
	t        testing.TB
	h        handlers
	opts     []grpc.ServerOption
	addr     string
	net      *backstaytest.Network // nil for loopback
	seen     atomic.Int64          // unary calls and streams
	register func(*grpc.Server)    // other services; may be nil

	mu  sync.Mutex
	srv *grpc.Server
	end chan struct{}
}

// startServer starts a server that answers with its address, unless h says
// something else.
func startServer(t testing.TB, h handlers, opts ...grpc.ServerOption) *server {
	t.Helper()
	return startServerIn(t, nil, "", h, opts...)
}

// startServerIn starts a server in memory, unless n is nil.
func startServerIn(t testing.TB, n *backstaytest.Network, addr string, h handlers, opts ...grpc.ServerOption) *server {
	t.Helper()
	s := &server{t: t, h: h, opts: opts, net: n, addr: addr}
	if h.unary == nil {
		s.h.unary = func(context.Context, string) (string, error) { return s.addr, nil }
	}
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *server) start() {
	s.t.Helper()
	var l net.Listener
	if s.net != nil {
		var err error
		l, err = s.net.Listen(s.addr)
		require.NoError(s.t, err)
	} else {
		l = listen(s.t, cmp.Or(s.addr, "127.0.0.1:0"))
	}
	s.addr = l.Addr().String()
	count := grpc.ChainUnaryInterceptor(func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		s.seen.Add(1)
		return h(ctx, in)
	})
	countStreams := grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		s.seen.Add(1)
		return h(srv, stream)
	})
	srv := grpc.NewServer(append(slices.Clone(s.opts), count, countStreams)...)
	srv.RegisterService(s.h.desc(), nil)
	if s.register != nil {
		s.register(srv)
	}
	end := make(chan struct{})
	go func() {
		defer close(end)
		_ = srv.Serve(l)
	}()
	s.mu.Lock()
	s.srv, s.end = srv, end
	s.mu.Unlock()
}

// take returns the running server, which is then the caller's to stop.
func (s *server) take() (*grpc.Server, chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	srv, end := s.srv, s.end
	s.srv = nil
	return srv, end
}

// kill closes the listener and all connections.
func (s *server) kill() {
	if srv, end := s.take(); srv != nil {
		srv.Stop()
		<-end
	}
}

// drain lets calls finish and sends GOAWAY.
func (s *server) drain() {
	if srv, end := s.take(); srv != nil {
		srv.GracefulStop()
		<-end
	}
}

func endpointsOf(servers ...*server) []discovery.Endpoint {
	var all []discovery.Endpoint
	for _, s := range servers {
		all = append(all, discovery.Endpoint{Addr: s.addr})
	}
	return all
}

// newClient returns a client of the service "orders".
func newClient(t testing.TB, cfg *backstay.Config, servers ...*server) *backstay.Client {
	t.Helper()
	var own backstay.Config
	if cfg != nil {
		own = *cfg
	}
	orders := own.Services["orders"]
	if orders.Resolver == nil {
		orders.Endpoints = endpointsOf(servers...)
	}
	if len(servers) > 0 && servers[0].net != nil {
		own.Base = servers[0].net.Transport()
	}
	own.Services = maps.Clone(own.Services)
	if own.Services == nil {
		own.Services = make(map[string]backstay.Service)
	}
	own.Services["orders"] = orders
	client, err := backstay.New(&own)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

// dial returns a connection to the client's service "orders".
func dial(t testing.TB, client *backstay.Client, opts ...grpc.DialOption) *backstaygrpc.Conn {
	t.Helper()
	opts = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, opts...)
	conn, err := backstaygrpc.NewClient("orders", client, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

func invoke(ctx context.Context, conn grpc.ClientConnInterface, in string, opts ...grpc.CallOption) (string, error) {
	out := new(text)
	err := conn.Invoke(ctx, get, wrapperspb.String(in), out, opts...)
	return out.GetValue(), err
}

func insecureOption() grpc.DialOption {
	return grpc.WithTransportCredentials(insecure.NewCredentials())
}
