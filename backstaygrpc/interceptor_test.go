package backstaygrpc_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/limit"
)

func with(i backstaygrpc.Interceptor) []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(i.Unary), grpc.WithChainStreamInterceptor(i.Stream)}
}

func TestBreakerInterceptorOpensByMethodAndTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, err := breaker.NewGroup(&breaker.GroupConfig{Config: breaker.Config{MinCalls: 5}})
		require.NoError(t, err)
		h := failing(codes.Unavailable)
		h.chat = echo
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", h)
		conn := plain(t, s, with(backstaygrpc.Breaker(g))...)
		for range 5 {
			_, err := invoke(t.Context(), conn, "a")
			require.Equal(t, "not now", status.Convert(err).Message())
		}
		_, err = invoke(t.Context(), conn, "a")
		require.ErrorIs(t, err, breaker.ErrOpen)
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.EqualValues(t, 5, s.seen.Load())
		require.Equal(t, breaker.Open, g.Get("passthrough:///10.0.0.1:80"+get).State())
		stream, err := conn.NewStream(t.Context(), chatDesc, chat)
		require.NoError(t, err, "another method")
		require.NoError(t, stream.CloseSend())
		_, _ = readAll(stream)

		time.Sleep(time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = invoke(ctx, conn, "a")
		require.Equal(t, codes.Canceled, status.Code(err))
		require.NotEqual(t, breaker.Closed, g.Get("passthrough:///10.0.0.1:80"+get).State())
	})
}

func TestProbeIsOverWithTheHeaderOfALongStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, err := breaker.NewGroup(&breaker.GroupConfig{Config: breaker.Config{MinCalls: 1, Probes: 1}})
		require.NoError(t, err)
		var broken atomic.Bool
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", handlers{chat: func(s grpc.ServerStream) error {
			if broken.Load() {
				return status.Error(codes.Internal, "broken")
			}
			return echo(s)
		}})
		for name, conn := range map[string]grpc.ClientConnInterface{
			"interceptor": plain(t, s, with(backstaygrpc.Breaker(g))...),
			"Conn": dial(t, newClient(t, &backstay.Config{Services: map[string]backstay.Service{
				"orders": {Breaker: breaker.Config{MinCalls: 1, Probes: 1}},
			}}, s)),
		} {
			broken.Store(true)
			stream, err := conn.NewStream(t.Context(), chatDesc, chat)
			require.NoError(t, err, name)
			_, err = readAll(stream)
			require.Equal(t, codes.Internal, status.Code(err))
			_, err = conn.NewStream(t.Context(), chatDesc, chat)
			require.ErrorIs(t, err, breaker.ErrOpen)
			broken.Store(false)
			time.Sleep(time.Minute)
			long, err := conn.NewStream(t.Context(), chatDesc, chat)
			require.NoError(t, err)
			require.NoError(t, long.SendMsg(&text{Value: "x"}))
			require.NoError(t, long.RecvMsg(new(text)))
			another, err := conn.NewStream(t.Context(), chatDesc, chat)
			require.NoError(t, err, "the first is still open")
			for _, s := range []grpc.ClientStream{long, another} {
				require.NoError(t, s.CloseSend())
				_, _ = readAll(s)
			}
		}
	})
}

func TestLimitInterceptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", handlers{chat: func(grpc.ServerStream) error { <-hold; return nil }})
		c, err := limit.NewConcurrency(&limit.ConcurrencyConfig{Max: 1})
		require.NoError(t, err)
		conn := plain(t, s, with(backstaygrpc.Concurrency(c))...)
		stream, err := conn.NewStream(t.Context(), chatDesc, chat)
		require.NoError(t, err)
		_, err = invoke(t.Context(), conn, "a")
		require.ErrorIs(t, err, limit.ErrFull)
		require.Equal(t, codes.Unavailable, status.Code(err))
		close(hold)
		_, _ = readAll(stream)
		_, err = invoke(t.Context(), conn, "a")
		require.NoError(t, err)
		require.Zero(t, c.InFlight())

		r, err := limit.NewRate(&limit.RateConfig{Limit: 1, Burst: 1})
		require.NoError(t, err)
		conn = plain(t, s, with(backstaygrpc.Rate(r))...)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err = invoke(ctx, conn, "a")
		require.NoError(t, err)
		_, err = invoke(ctx, conn, "a")
		require.ErrorIs(t, err, limit.ErrLimited)
		after, ok := backstay.RetryAfter(err)
		require.True(t, ok)
		require.Positive(t, after)
		_, info := detailsOf(t, err)
		require.Equal(t, after, info.GetRetryDelay().AsDuration())
	})
}

// saying answers with what the server is told of the attempt.
func saying() handlers {
	var n atomic.Int64
	return handlers{unary: func(ctx context.Context, _ string) (string, error) {
		if n.Add(1)%2 == 1 {
			return "", status.Error(codes.Unavailable, "once more")
		}
		md, _ := metadata.FromIncomingContext(ctx)
		out := "count"
		for _, v := range md["x-envoy-attempt-count"] {
			out += " " + v
		}
		for _, v := range md["backstay-retry"] {
			out += " retry " + v
		}
		return out, nil
	}}
}

func TestServerIsToldWhichAttemptItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", saying())
		r, err := backstaygrpc.Retry(nil)
		require.NoError(t, err)
		cfg := quick()
		orders := cfg.Services["orders"]
		orders.Propagate = backstay.On
		cfg.Services["orders"] = orders
		for name, conn := range map[string]grpc.ClientConnInterface{
			"interceptor": plain(t, s, append(with(r), with(backstaygrpc.Propagate())...)...),
			"Conn":        dial(t, newClient(t, cfg, s)),
		} {
			out, err := invoke(metadata.AppendToOutgoingContext(t.Context(), "x-envoy-attempt-count", "7"), conn, "a", backstaygrpc.Idempotent(true))
			require.NoError(t, err, name)
			require.Equal(t, "count 2", out)
		}
		// On behalf of a request that is being repeated nothing is.
		ctx := call.WithInbound(t.Context(), &call.Inbound{Attempt: 2})
		conn := dial(t, newClient(t, cfg, s))
		_, err = invoke(ctx, conn, "a", backstaygrpc.Idempotent(true))
		require.Equal(t, codes.Unavailable, status.Code(err))
		out, err := invoke(ctx, conn, "a", backstaygrpc.Idempotent(true))
		require.NoError(t, err)
		require.Equal(t, "count 1 retry no", out)
		out, err = invoke(t.Context(), dial(t, newClient(t, quick(), s)), "a", backstaygrpc.Idempotent(true))
		require.NoError(t, err)
		require.Equal(t, "count", out, "nothing of ours, unless the service wants it")
	})
}

func TestRecordOfAStreamComesAtItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", counting(2, status.Error(codes.Internal, "broken")))
		var records []call.Record
		conn := plain(t, s, with(backstaygrpc.Record(event.ObserverFunc(func(_ context.Context, e event.Event) {
			records = append(records, e.(call.Finished).Record)
		})))...)
		stream := openList(t.Context(), t, conn)
		require.Empty(t, records)
		_, err := readAll(stream)
		require.Equal(t, codes.Internal, status.Code(err))
		require.Len(t, records, 1)
		require.Equal(t, list, records[0].Path)
		require.Error(t, records[0].Err)
		ctx, log := call.WithLog(t.Context())
		_, err = invoke(ctx, conn, "a")
		require.NoError(t, err)
		require.Len(t, log.Calls(), 1)
	})
}

func TestPanicsOfInterceptorsLeaveNothingTaken(t *testing.T) {
	s := startServer(t, handlers{})
	c, err := limit.NewConcurrency(&limit.ConcurrencyConfig{Max: 10})
	require.NoError(t, err)
	g, err := breaker.NewGroup(nil)
	require.NoError(t, err)
	bad := []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(context.Context, string, any, any, *grpc.ClientConn, grpc.UnaryInvoker, ...grpc.CallOption) error {
			panic("unary")
		}),
		grpc.WithChainStreamInterceptor(func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, grpc.Streamer, ...grpc.CallOption) (grpc.ClientStream, error) {
			panic("stream")
		}),
	}
	retries, err := backstaygrpc.Retry(nil)
	require.NoError(t, err)
	own := dial(t, newClient(t, nil, s), bad...)
	alone := append(append(append(with(backstaygrpc.Concurrency(c)), with(retries)...), with(backstaygrpc.Breaker(g))...), bad...)
	alone = append(alone, insecureOption())
	theirs, err := grpc.NewClient(s.addr, alone...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = theirs.Close() })
	for _, conn := range []grpc.ClientConnInterface{own, theirs} {
		require.PanicsWithValue(t, "unary", func() { _, _ = invoke(t.Context(), conn, "a") })
		require.PanicsWithValue(t, "stream", func() { _, _ = conn.NewStream(t.Context(), chatDesc, chat) })
		require.PanicsWithValue(t, "stream", func() { _, _ = listAll(t.Context(), conn, "a") })
	}
	require.Zero(t, own.Balancer().InFlight())
	require.Zero(t, c.InFlight())
	require.NoError(t, own.Close())
}

func TestObservedServiceRefusesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", failTimes(100, codes.Unavailable, nil)())
		var would atomic.Int64
		cfg := quick()
		cfg.Observer = event.ObserverFunc(func(_ context.Context, e event.Event) {
			if _, ok := e.(backstay.WouldRefuse); ok {
				would.Add(1)
			}
		})
		orders := cfg.Services["orders"]
		orders.Observe, orders.Rate = backstay.On, limit.RateConfig{Limit: 1, Burst: 1, MaxWait: time.Millisecond}
		orders.Breaker.MinCalls = 2
		cfg.Services["orders"] = orders
		conn := dial(t, newClient(t, cfg, s))
		for i := range 20 {
			_, err := invoke(t.Context(), conn, "a", backstaygrpc.Idempotent(true))
			require.Equal(t, "not now", status.Convert(err).Message())
			require.EqualValues(t, i+1, s.seen.Load())
		}
		require.Positive(t, would.Load())
	})
}

// inMemory is an invoker that is no grpc connection's: it tells of a peer, but of no
// trailer where there is none.
func inMemory(calls *int, code codes.Code) grpc.UnaryInvoker {
	return func(_ context.Context, _ string, _, _ any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
		*calls++
		for _, opt := range opts {
			if opt, ok := opt.(grpc.PeerCallOption); ok {
				opt.PeerAddr.Addr = &net.UnixAddr{}
			}
		}
		return status.Error(code, "half-way")
	}
}

func TestInterceptorsOverWhatIsNoConnectionOfGrpc(t *testing.T) {
	calls := 0
	retries, err := backstaygrpc.Retry(nil)
	require.NoError(t, err)
	err = retries.Unary(t.Context(), "/a.B/Set", nil, new(text), nil, inMemory(&calls, codes.Unavailable))
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.Equal(t, 1, calls, "it may have been acted on")

	g, err := breaker.NewGroup(&breaker.GroupConfig{Config: breaker.Config{MinCalls: 5}})
	require.NoError(t, err)
	breaks := backstaygrpc.Breaker(g)
	for range 5 {
		_ = breaks.Unary(t.Context(), "/a.B/Set", nil, new(text), nil, inMemory(&calls, codes.Internal))
	}
	require.Equal(t, breaker.Open, g.Get("/a.B/Set").State())
}
