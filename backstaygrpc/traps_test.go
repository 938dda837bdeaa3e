package backstaygrpc_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// rig is a server in memory and a connection to it that tries again.
type rig struct {
	*server
	conn grpc.ClientConnInterface
}

// bothWays runs a test in virtual time over a Conn and over grpc's own connection with
// the Retry interceptor. Whatever fails is repeated; a nil cfg means quickly.
func bothWays(t *testing.T, cfg *retry.Config, h func() handlers, do func(t *testing.T, r rig), opts ...grpc.DialOption) {
	t.Helper()
	if cfg == nil {
		cfg = &retry.Config{Backoff: retry.Backoff{Base: time.Millisecond, Max: 2 * time.Millisecond}}
	}
	for name, dial := range map[string]func(t *testing.T, s *server) grpc.ClientConnInterface{
		"Conn": func(t *testing.T, s *server) grpc.ClientConnInterface {
			own := *cfg
			orders := backstay.Service{Timeout: own.Timeout, AttemptTimeout: own.AttemptTimeout}
			own.Timeout, own.AttemptTimeout = 0, 0
			orders.Retry = own
			return dial(t, newClient(t, &backstay.Config{Services: map[string]backstay.Service{"orders": orders}}, s), opts...)
		},
		"Interceptor": func(t *testing.T, s *server) grpc.ClientConnInterface {
			i, err := backstaygrpc.Retry(cfg)
			require.NoError(t, err)
			return plain(t, s, append([]grpc.DialOption{grpc.WithChainUnaryInterceptor(i.Unary), grpc.WithChainStreamInterceptor(i.Stream)}, opts...)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", h())
				do(t, rig{s, dial(t, s)})
			})
		})
	}
}

// plain is grpc's own connection to a server in memory.
func plain(t *testing.T, s *server, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+s.addr, append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return s.net.DialContext(ctx, "tcp", addr) }),
	}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

// failTimes fails the first n calls, with a trailer.
func failTimes(n int64, code codes.Code, trailer metadata.MD) func() handlers {
	return func() handlers {
		var calls atomic.Int64
		return handlers{unary: func(ctx context.Context, in string) (string, error) {
			if calls.Add(1) <= n {
				_ = grpc.SetTrailer(ctx, trailer)
				return "", status.Error(code, "not now")
			}
			return in, nil
		}}
	}
}

func TestTrap138PushbackSetsTheDelayOrStops(t *testing.T) {
	for _, test := range []struct {
		name   string
		values []string
		calls  int64
		least  time.Duration
	}{
		{"valid", []string{"1500"}, 2, 1500 * time.Millisecond},
		{"zero", []string{"0"}, 2, 0},
		{"negative", []string{"-1"}, 1, 0},
		{"garbage", []string{"soon"}, 1, 0},
		{"repeated", []string{"10", "10"}, 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			slow := &retry.Config{Backoff: retry.Backoff{Base: time.Minute, Max: time.Hour}}
			bothWays(t, slow, failTimes(1, codes.Unavailable, metadata.MD{"grpc-retry-pushback-ms": test.values}), func(t *testing.T, r rig) {
				start := time.Now()
				_, err := invoke(t.Context(), r.conn, "a", backstaygrpc.Idempotent(true))
				require.Equal(t, test.calls == 1, err != nil)
				require.Equal(t, test.calls, r.seen.Load())
				require.GreaterOrEqual(t, time.Since(start), test.least)
				require.Less(t, time.Since(start), 2*test.least+time.Second)
			})
		})
	}
}

func TestTrap139TokensAreChargedAlsoWhenPushbackForbids(t *testing.T) {
	budget, err := retry.NewBudget(&retry.BudgetConfig{Kind: retry.TokenBudget})
	require.NoError(t, err)
	full := budget.Balance(time.Now())
	i, err := backstaygrpc.Retry(&retry.Config{Budget: budget})
	require.NoError(t, err)
	synctest.Test(t, func(t *testing.T) {
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", failTimes(4, codes.Unavailable, metadata.Pairs("grpc-retry-pushback-ms", "-1"))())
		conn := plain(t, s, grpc.WithChainUnaryInterceptor(i.Unary))
		for range 4 {
			_, err := invoke(t.Context(), conn, "a", backstaygrpc.Idempotent(true))
			require.Error(t, err)
		}
		require.EqualValues(t, 4, s.seen.Load())
		require.Less(t, budget.Balance(time.Now()), full)
	})
}

// jsonCodec leaves what is not in a message as it was.
type jsonCodec struct{}

func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }
func (jsonCodec) Name() string                       { return "stale-json" }

type order struct {
	ID   string `json:"id,omitempty"`
	Note string `json:"note,omitempty"`
}

func TestTrap140NothingOfAnEarlierReplyIsLeft(t *testing.T) {
	// The first attempt has a reply, and then fails.
	var n atomic.Int64
	breaking := grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if n.Add(1)%2 == 1 {
			switch reply := reply.(type) {
			case *order:
				reply.Note = "of the first attempt"
			case *text:
				reply.Value = "of the first attempt"
			}
			return status.Error(codes.Unavailable, "broken after the reply")
		}
		return invoker(ctx, method, req, reply, cc, opts...)
	})
	h := func() handlers {
		return handlers{unary: func(context.Context, string) (string, error) { return "", nil }}
	}
	for _, hedge := range []retry.HedgeConfig{{}, {Delay: 5 * time.Second}} {
		cfg := &retry.Config{Backoff: retry.Backoff{Base: time.Millisecond, Max: time.Millisecond}, Hedge: hedge}
		bothWays(t, cfg, h, func(t *testing.T, r rig) {
			reply := &order{ID: "mine"}
			r.register = func(srv *grpc.Server) {}
			err := r.conn.Invoke(t.Context(), "/backstay.test.Raw/Get", &order{}, reply, grpc.ForceCodec(jsonCodec{}), backstaygrpc.Idempotent(true))
			require.Equal(t, codes.Unimplemented, status.Code(err), "by the server, to the second attempt")
			if hedge.Delay == 0 {
				require.Equal(t, &order{ID: "mine"}, reply)
			}
			out, err := invoke(t.Context(), r.conn, "a", backstaygrpc.Idempotent(true))
			require.NoError(t, err)
			require.Empty(t, out)
		}, breaking)
	}
}

func TestTrap142RetriesOfAServiceConfigDoNotMultiply(t *testing.T) {
	config := grpc.WithDefaultServiceConfig(`{"methodConfig":[{"name":[{}],"retryPolicy":{
		"maxAttempts":4,"initialBackoff":"0.001s","maxBackoff":"0.001s","backoffMultiplier":1,"retryableStatusCodes":["UNAVAILABLE"]}}]}`)
	bothWays(t, nil, failTimes(100, codes.Unavailable, nil), func(t *testing.T, r rig) {
		_, err := invoke(t.Context(), r.conn, "a", backstaygrpc.Idempotent(true))
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.EqualValues(t, 3, r.seen.Load())
	}, config)
}

func TestTrap144ClientsStreamIsSentOnce(t *testing.T) {
	h := func() handlers {
		return handlers{chat: func(s grpc.ServerStream) error {
			_ = s.RecvMsg(new(text))
			return status.Error(codes.Unavailable, "gone")
		}}
	}
	bothWays(t, nil, h, func(t *testing.T, r rig) {
		for name, desc := range map[string]*grpc.StreamDesc{sum: sumDesc, chat: chatDesc} {
			before := r.seen.Load()
			s, err := r.conn.NewStream(t.Context(), desc, name, backstaygrpc.Idempotent(true))
			require.NoError(t, err)
			_ = s.SendMsg(wrapperspb.String("x"))
			require.Equal(t, codes.Unavailable, status.Code(s.RecvMsg(new(text))))
			require.Equal(t, before+1, r.seen.Load())
		}
	})
}

func TestTrap144ServersStreamOverTheInterceptor(t *testing.T) {
	h := func() handlers {
		var n atomic.Int64
		return handlers{stream: func(in string, s grpc.ServerStream) error {
			if n.Add(1) == 1 {
				return status.Error(codes.Unavailable, "gone")
			}
			return s.SendMsg(wrapperspb.String(in))
		}}
	}
	bothWays(t, nil, h, func(t *testing.T, r rig) {
		var e ends
		got, err := readAll(openList(t.Context(), t, r.conn, e.option(), backstaygrpc.Idempotent(true)))
		require.Equal(t, io.EOF, err)
		require.Equal(t, []string{"m"}, got)
		require.EqualValues(t, 2, r.seen.Load())
		require.Equal(t, []error{nil}, e.all())
	})
}

func hanging() handlers {
	return handlers{unary: func(ctx context.Context, _ string) (string, error) { <-ctx.Done(); return "", ctx.Err() }}
}

func TestTrap145CallersDeadlineIsNotTriedAgain(t *testing.T) {
	bothWays(t, nil, hanging, func(t *testing.T, r rig) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := invoke(ctx, r.conn, "a", backstaygrpc.Idempotent(true))
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(start))
		require.EqualValues(t, 1, r.seen.Load())
	})
}

func TestAttemptTimeoutIsTriedAgainAndCallTimeoutIsNot(t *testing.T) {
	cfg := &retry.Config{AttemptTimeout: time.Second, Backoff: retry.Backoff{Base: time.Millisecond, Max: time.Millisecond}}
	bothWays(t, cfg, hanging, func(t *testing.T, r rig) {
		_, err := invoke(t.Context(), r.conn, "a", backstaygrpc.Idempotent(true))
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.EqualValues(t, 3, r.seen.Load())
		_, err = invoke(t.Context(), r.conn, "a")
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.EqualValues(t, 4, r.seen.Load(), "not for a call that may have been acted on")
	})
	cfg = &retry.Config{Timeout: time.Second}
	bothWays(t, cfg, hanging, func(t *testing.T, r rig) {
		start := time.Now()
		_, err := invoke(t.Context(), r.conn, "a", backstaygrpc.Idempotent(true))
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.EqualValues(t, 1, r.seen.Load())
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestTrap149CanceledIsNobodysFailureWhoeverSaysIt(t *testing.T) {
	bothWays(t, nil, failTimes(100, codes.Canceled, nil), func(t *testing.T, r rig) {
		_, err := invoke(t.Context(), r.conn, "a", backstaygrpc.Idempotent(true))
		require.Equal(t, codes.Canceled, status.Code(err))
		require.EqualValues(t, 1, r.seen.Load())
		if conn, ok := r.conn.(*backstaygrpc.Conn); ok {
			require.Zero(t, conn.Balancer().Nodes()[0].FailureRate(time.Now()))
		}
	})
	bothWays(t, nil, hanging, func(t *testing.T, r rig) {
		gone := errors.New("the user closed the tab")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(gone) })
		_, err := invoke(ctx, r.conn, "a", backstaygrpc.Idempotent(true))
		require.Equal(t, codes.Canceled, status.Code(err))
		require.EqualValues(t, 1, r.seen.Load())
		_, err = invoke(ctx, r.conn, "a")
		require.Equal(t, codes.Canceled, status.Code(err), "before it began")
		if conn, ok := r.conn.(*backstaygrpc.Conn); ok {
			require.Zero(t, conn.Balancer().Nodes()[0].FailureRate(time.Now()))
		}
	})
}

func TestCallersEndDuringTheWaitIsCanceledAndNotTheLastStatus(t *testing.T) {
	slow := &retry.Config{Backoff: retry.Backoff{Base: time.Hour, Max: 2 * time.Hour}}
	bothWays(t, slow, failTimes(100, codes.Unavailable, nil), func(t *testing.T, r rig) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		_, err := invoke(ctx, r.conn, "a", backstaygrpc.Idempotent(true))
		require.Equal(t, codes.Canceled, status.Code(err))
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorContains(t, err, "not now")
	})
}

func TestTrap150CallsAndAttemptsAreCountedApart(t *testing.T) {
	var calls, attempts atomic.Int64
	count := func(n *atomic.Int64) event.Observer {
		return event.ObserverFunc(func(_ context.Context, e event.Event) {
			if _, ok := e.(call.Finished); ok {
				n.Add(1)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", failTimes(2, codes.Unavailable, nil)())
		i, err := backstaygrpc.Retry(nil)
		require.NoError(t, err)
		conn := plain(t, s, grpc.WithChainUnaryInterceptor(
			backstaygrpc.Record(count(&calls)).Unary, i.Unary, backstaygrpc.Record(count(&attempts)).Unary))
		_, err = invoke(t.Context(), conn, "a", backstaygrpc.Idempotent(true))
		require.NoError(t, err)
		require.EqualValues(t, 1, calls.Load())
		require.EqualValues(t, 3, attempts.Load())
		require.EqualValues(t, 3, s.seen.Load())
	})

	synctest.Test(t, func(t *testing.T) {
		calls.Store(0)
		attempts.Store(0)
		var noted atomic.Int64
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", failTimes(2, codes.Unavailable, nil)())
		cfg := quick()
		cfg.Observer = event.ObserverFunc(func(_ context.Context, e event.Event) {
			if f, ok := e.(call.Finished); ok {
				calls.Add(1)
				noted.Add(int64(len(f.Record.Attempts)))
			}
		})
		conn := dial(t, newClient(t, cfg, s), grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			attempts.Add(1)
			return invoker(ctx, method, req, reply, cc, opts...)
		}))
		_, err := invoke(t.Context(), conn, "a", backstaygrpc.Idempotent(true))
		require.NoError(t, err)
		require.EqualValues(t, 1, calls.Load())
		require.EqualValues(t, 3, attempts.Load())
		require.EqualValues(t, 3, noted.Load())
	})
}
