package backstaygrpc_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/balancer/loadreport"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/propagate"
)

// recovered has a handler's panic end its call only, as servers in production do.
func recovered() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
			defer func() {
				if v := recover(); v != nil {
					err = status.Error(codes.Internal, "panic")
				}
			}()
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer func() {
				if v := recover(); v != nil {
					err = status.Error(codes.Internal, "panic")
				}
			}()
			return next(srv, ss)
		}),
	}
}

// serving starts a server with the interceptors, and returns a connection to it.
func servingWith(t *testing.T, h handlers, interceptors ...backstaygrpc.ServerInterceptor) *grpc.ClientConn {
	t.Helper()
	s := startServer(t, h, append(recovered(), backstaygrpc.ServerOptions(interceptors...)...)...)
	return connect(t, s.addr)
}

// reportOf returns the one report in a trailer.
func reportOf(t *testing.T, trailer metadata.MD) loadreport.Report {
	t.Helper()
	values := trailer["endpoint-load-metrics-bin"]
	require.Len(t, values, 1)
	r, ok := loadreport.ParseBinary([]byte(values[0]))
	require.True(t, ok)
	return r
}

func TestServerLoadReportsInTheTrailer(t *testing.T) {
	load := &loadreport.Server{Fill: func(r *loadreport.Report) { r.CPUUtilization = 0.5 }}
	hold, held := make(chan struct{}), make(chan struct{}, 2)
	conn := servingWith(t, handlers{
		unary: func(_ context.Context, in string) (string, error) {
			switch in {
			case "wait":
				held <- struct{}{}
				<-hold
			case "fail":
				return "", status.Error(codes.Internal, "")
			case "panic":
				panic("as the test wants it")
			}
			return in, nil
		},
		chat: func(s grpc.ServerStream) error {
			if err := s.SendMsg(wrapperspb.String("first")); err != nil {
				return err
			}
			<-s.Context().Done()
			return s.Context().Err()
		},
		stream: func(in string, s grpc.ServerStream) error {
			for range 3 {
				if err := s.SendMsg(wrapperspb.String(in)); err != nil {
					return err
				}
			}
			return nil
		},
	}, backstaygrpc.ServerLoad(load))

	waiting := make(chan error, 1)
	go func() {
		_, err := invoke(within(t), conn, "wait")
		waiting <- err
	}()
	<-held
	var trailer metadata.MD
	_, err := invoke(within(t), conn, "a", grpc.Trailer(&trailer))
	require.NoError(t, err)
	r := reportOf(t, trailer)
	require.InDelta(t, 1, r.InFlight, 0, "the other one")
	require.Positive(t, r.ServiceTime)
	require.InDelta(t, 0.5, r.CPUUtilization, 0.001)

	for in, code := range map[string]codes.Code{"fail": codes.Internal, "panic": codes.Internal} {
		_, err = invoke(within(t), conn, in)
		require.Equal(t, code, status.Code(err))
	}
	stream, err := conn.NewStream(within(t), listDesc, list)
	require.NoError(t, err)
	require.NoError(t, stream.SendMsg(wrapperspb.String("x")))
	require.NoError(t, stream.CloseSend())
	for range 3 {
		require.NoError(t, stream.RecvMsg(new(text)))
	}
	require.Error(t, stream.RecvMsg(new(text)))
	require.InDelta(t, 1, reportOf(t, stream.Trailer()).InFlight, 0)

	ctx, cancel := context.WithCancel(within(t))
	stream, err = conn.NewStream(ctx, chatDesc, chat)
	require.NoError(t, err)
	require.NoError(t, stream.RecvMsg(new(text)))
	require.InDelta(t, 2, load.Report().InFlight, 0, "a stream counts until its end")
	cancel()
	close(hold)
	require.NoError(t, <-waiting)
	soon(t, func() bool { return load.Report().InFlight == 0 }, "nothing is left, after a panic either")
}

func TestServerLoadFeedsTheClientsPolicy(t *testing.T) {
	load := new(loadreport.Server)
	s := startServer(t, handlers{}, backstaygrpc.ServerOptions(backstaygrpc.ServerLoad(load))...)
	client := newClient(t, &backstay.Config{Default: backstay.Service{Policy: balancer.P2C{Cost: balancer.LoadReport{}}}}, s)
	conn := dial(t, client)
	_, err := invoke(within(t), conn, "")
	require.NoError(t, err)
	r, ok := conn.Balancer().Nodes()[0].Reported(time.Now())
	require.True(t, ok)
	require.Positive(t, r.ServiceTime)

	bridge := bridged(t, conn.Balancer(), nil)
	_, err = invoke(within(t), bridge, "")
	require.NoError(t, err)
}

func TestServerPropagateHeedsTheCaller(t *testing.T) {
	type seen struct {
		in   *call.Inbound
		left time.Duration
		end  bool
	}
	see := make(chan seen, 1)
	conn := servingWith(t, handlers{unary: func(ctx context.Context, _ string) (string, error) {
		deadline, ok := ctx.Deadline()
		see <- seen{call.InboundOf(ctx), time.Until(deadline), ok}
		return "", nil
	}}, backstaygrpc.ServerPropagate(&backstaygrpc.ServerPropagateConfig{
		Max: time.Minute, Margin: 10 * time.Second,
		Trust: func(ctx context.Context, method string) bool {
			md, _ := metadata.FromIncomingContext(ctx)
			return method == get && len(md["stranger"]) == 0
		},
	}))
	ask := func(timeout time.Duration, kv ...string) seen {
		ctx := metadata.AppendToOutgoingContext(t.Context(), kv...)
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		_, err := invoke(ctx, conn, "")
		require.NoError(t, err)
		return <-see
	}
	s := ask(0)
	require.False(t, s.end)
	require.False(t, s.in.Final())
	require.True(t, ask(0, "backstay-retry", "No").in.Final())
	require.Equal(t, 3, ask(0, "grpc-previous-rpc-attempts", "2").in.Attempt)
	require.Equal(t, 2, ask(0, "x-envoy-attempt-count", "2").in.Attempt)
	for _, garbage := range []string{"-1", "x", "99999999999999999999"} {
		require.Zero(t, ask(0, "grpc-previous-rpc-attempts", garbage).in.Attempt)
	}
	s = ask(time.Hour)
	require.LessOrEqual(t, s.left, 50*time.Second, "Max less Margin")
	require.Greater(t, s.left, 30*time.Second)
	s = ask(30 * time.Second)
	require.LessOrEqual(t, s.left, 20*time.Second)
	s = ask(12 * time.Second)
	require.Greater(t, s.left, time.Second, "at most half of it is taken off")
	s = ask(time.Hour, "stranger", "yes", "backstay-retry", "no")
	require.Nil(t, s.in)
	require.Greater(t, s.left, 30*time.Minute)
}

func TestServerPropagateSaysWhyTheCallHasEnded(t *testing.T) {
	conn := servingWith(t, handlers{chat: func(s grpc.ServerStream) error {
		<-s.Context().Done()
		if _, ok := errors.AsType[*propagate.DeadlineError](context.Cause(s.Context())); !ok {
			return status.Error(codes.Internal, "no cause")
		}
		return status.Error(codes.Aborted, "in time")
	}}, backstaygrpc.ServerPropagate(&backstaygrpc.ServerPropagateConfig{Max: time.Millisecond}))
	stream, err := conn.NewStream(within(t), chatDesc, chat)
	require.NoError(t, err)
	require.Equal(t, codes.Aborted, status.Code(stream.RecvMsg(new(text))))
}

func TestServerPropagateForbidsToRepeatWhatWasRepeatedInVain(t *testing.T) {
	conn := servingWith(t, handlers{unary: func(ctx context.Context, in string) (string, error) {
		if in != "fresh" {
			call.InboundOf(ctx).SetExhausted()
		}
		if in == "no such thing" {
			return "", status.Error(codes.NotFound, "")
		}
		return "", status.Error(codes.Unavailable, "")
	}}, backstaygrpc.ServerPropagate(nil))
	for in, want := range map[string]bool{"exhausted": true, "fresh": false, "no such thing": false} {
		var trailer metadata.MD
		_, err := invoke(within(t), conn, in, grpc.Trailer(&trailer))
		require.Equal(t, want, len(trailer["backstay-retry"]) > 0, in)
		require.Equal(t, want, len(trailer["grpc-retry-pushback-ms"]) > 0, in)
		o := backstaygrpc.Classify(err, trailer)
		require.Equal(t, want || in == "no such thing", o.Retry == outcome.Never)
	}
}

func newConcurrency(t *testing.T, cfg *limit.ConcurrencyConfig) *limit.Concurrency {
	t.Helper()
	c, err := limit.NewConcurrency(cfg)
	require.NoError(t, err)
	return c
}

func newServerLimit(t *testing.T, cfg *backstaygrpc.ServerLimitConfig) backstaygrpc.ServerInterceptor {
	t.Helper()
	i, err := backstaygrpc.ServerLimit(cfg)
	require.NoError(t, err)
	return i
}

// details returns the reason and the wait that a server gives for not serving a call.
func details(t *testing.T, err error) (reason string, after time.Duration) {
	t.Helper()
	for _, detail := range status.Convert(err).Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			require.Equal(t, backstaygrpc.ServerDomain, d.GetDomain())
			require.Equal(t, "orders", d.GetMetadata()["limit"])
			reason = d.GetReason()
		case *errdetails.RetryInfo:
			after = d.GetRetryDelay().AsDuration()
		}
	}
	return reason, after
}

func TestServerLimitRefusesWhatIsTooMuch(t *testing.T) {
	c := newConcurrency(t, &limit.ConcurrencyConfig{Key: "orders", Max: 1})
	state := health.NewServer()
	s := &server{t: t, h: handlers{
		unary: func(_ context.Context, in string) (string, error) {
			if in == "panic" {
				panic("as the test wants it")
			}
			return in, nil
		},
		chat: func(s grpc.ServerStream) error { return s.RecvMsg(new(text)) },
	}, register: func(s *grpc.Server) { grpc_health_v1.RegisterHealthServer(s, state) }}
	s.opts = append(recovered(), backstaygrpc.ServerOptions(newServerLimit(t, &backstaygrpc.ServerLimitConfig{Concurrency: c}))...)
	s.start()
	t.Cleanup(s.kill)
	conn := connect(t, s.addr)

	stream, err := conn.NewStream(within(t), chatDesc, chat)
	require.NoError(t, err)
	soon(t, func() bool { return c.InFlight() == 1 }, "a stream counts until its end")
	var trailer metadata.MD
	_, err = invoke(within(t), conn, "a", grpc.Trailer(&trailer))
	require.Equal(t, codes.Unavailable, status.Code(err))
	reason, after := details(t, err)
	require.Equal(t, backstaygrpc.ReasonConcurrency, reason)
	require.Equal(t, 100*time.Millisecond, after)
	require.Equal(t, []string{"100"}, trailer["grpc-retry-pushback-ms"])
	require.False(t, outcome.Refused(err), "to the client it is the peer that says no")
	o := backstaygrpc.Classify(err, trailer)
	require.Equal(t, outcome.Throttled, o.Class, "it opens no breaker")
	require.Equal(t, outcome.IfIdempotent, o.Retry)

	_, err = grpc_health_v1.NewHealthClient(conn).Check(within(t), new(grpc_health_v1.HealthCheckRequest))
	require.NoError(t, err, "a server that is full can say that it is alive")

	require.NoError(t, stream.SendMsg(wrapperspb.String("end")))
	soon(t, func() bool { return c.InFlight() == 0 }, "it is over")
	_, err = invoke(within(t), conn, "panic")
	require.Equal(t, codes.Internal, status.Code(err))
	_, err = invoke(within(t), conn, "a")
	require.NoError(t, err, "a panic gives the permission back")
}

func TestServerLimitRefusesWhatComesTooOften(t *testing.T) {
	rate, err := limit.NewRate(&limit.RateConfig{Key: "orders", Limit: 0.01, Burst: 1})
	require.NoError(t, err)
	conn := servingWith(t, handlers{}, newServerLimit(t, &backstaygrpc.ServerLimitConfig{Rate: rate}))
	_, err = invoke(within(t), conn, "")
	require.NoError(t, err)
	_, err = invoke(within(t), conn, "")
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	reason, after := details(t, err)
	require.Equal(t, backstaygrpc.ReasonRate, reason)
	require.Greater(t, after, 50*time.Second)
}

func TestServerLimitHasCallsOfHighPriorityGoFirst(t *testing.T) {
	for name, cfg := range map[string]backstaygrpc.ServerLimitConfig{
		"by metadata": {PriorityMetadata: "x-priority"},
		"by function": {Priority: func(ctx context.Context, _ string) limit.Priority {
			if metadata.ValueFromIncomingContext(ctx, "x-priority")[0] == "high" {
				return limit.High
			}
			return limit.Low
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConcurrency(t, &limit.ConcurrencyConfig{Max: 1, Queue: 2, MaxWait: -1})
			cfg.Concurrency = c
			order := make(chan string, 3)
			release := make(chan struct{})
			conn := servingWith(t, handlers{unary: func(_ context.Context, in string) (string, error) {
				order <- in
				<-release
				return in, nil
			}}, newServerLimit(t, &cfg))
			done := make(chan error, 3)
			send := func(priority string) {
				ctx := metadata.AppendToOutgoingContext(within(t), "x-priority", priority)
				go func() {
					_, err := invoke(ctx, conn, priority)
					done <- err
				}()
			}
			send("normal")
			require.Equal(t, "normal", <-order)
			send("low")
			soon(t, func() bool { return c.Waiting() == 1 }, "one waits")
			send("high")
			soon(t, func() bool { return c.Waiting() == 2 }, "two wait")
			close(release)
			require.Equal(t, "high", <-order)
			require.Equal(t, "low", <-order)
			for range 3 {
				require.NoError(t, <-done)
			}
		})
	}
}

func TestServerLimitLetsGoOfCallersThatLeave(t *testing.T) {
	c := newConcurrency(t, &limit.ConcurrencyConfig{Max: 1, Queue: 1, MaxWait: -1})
	lease, err := c.TryAcquire()
	require.NoError(t, err)
	defer lease.Done()
	conn := servingWith(t, handlers{}, newServerLimit(t, &backstaygrpc.ServerLimitConfig{Concurrency: c}))
	ctx, cancel := context.WithCancel(within(t))
	done := make(chan error, 1)
	go func() {
		_, err := invoke(ctx, conn, "")
		done <- err
	}()
	soon(t, func() bool { return c.Waiting() == 1 }, "it waits")
	cancel()
	require.Equal(t, codes.Canceled, status.Code(<-done))
	soon(t, func() bool { return c.Waiting() == 0 }, "and no more")
}

func TestServerLimitWantsALimit(t *testing.T) {
	_, err := backstaygrpc.ServerLimit(nil)
	require.EqualError(t, err, "backstaygrpc: there is neither Concurrency nor Rate, want at least one")
	_, err = backstaygrpc.ServerLimit(&backstaygrpc.ServerLimitConfig{
		Concurrency: newConcurrency(t, nil), PriorityMetadata: "X", Priority: func(context.Context, string) limit.Priority { return 0 },
	})
	require.EqualError(t, err, `backstaygrpc: PriorityMetadata is "X", want a key of metadata in lower case
backstaygrpc: there are both Priority and PriorityMetadata, want one`)
}

// TestSuppressionGoesThroughTheTiers has a server in the middle whose own calls fail.
func TestSuppressionGoesThroughTheTiers(t *testing.T) {
	bottom := startServer(t, handlers{unary: func(context.Context, string) (string, error) {
		return "", status.Error(codes.Unavailable, "")
	}})
	var idempotent backstay.Config
	idempotent.Default.Retry.RetryNonIdempotent = backstay.On
	own := dial(t, newClient(t, &idempotent, bottom))
	middle := startServer(t, handlers{unary: func(ctx context.Context, in string) (string, error) {
		return invoke(ctx, own, in)
	}}, backstaygrpc.ServerOptions(backstaygrpc.ServerPropagate(nil))...)
	conn := dial(t, newClient(t, &idempotent, middle))
	_, err := invoke(within(t), conn, "")
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.EqualValues(t, 1, middle.seen.Load(), "only the tier next to the failure tries again")
	require.EqualValues(t, 3, bottom.seen.Load())
}
