package backstaygrpc_test

import (
	"context"
	"iter"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/retry"
)

// listing is a resolver that yields what it is told.
type listing struct{ sets chan []discovery.Endpoint }

func newListing(first ...discovery.Endpoint) *listing {
	l := &listing{make(chan []discovery.Endpoint, 1)}
	l.sets <- first
	return l
}

func (l *listing) Watch(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		for {
			select {
			case set := <-l.sets:
				if !yield(discovery.Set{Endpoints: set}, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

func (l *listing) config() *backstay.Config {
	cfg := quick()
	orders := cfg.Services["orders"]
	orders.Resolver = l
	cfg.Services["orders"] = orders
	return cfg
}

func TestNodeThatLeavesFinishesItsStreamsAndIsThenClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := backstaytest.NewNetwork()
		a := startServerIn(t, n, "10.0.0.1:80", handlers{chat: echo})
		b := startServerIn(t, n, "10.0.0.2:80", handlers{chat: echo})
		l := newListing(discovery.Endpoint{Addr: a.addr})
		client := newClient(t, l.config(), a, b)
		conn := dial(t, client)
		s, err := conn.NewStream(t.Context(), chatDesc, chat)
		require.NoError(t, err)
		require.NoError(t, s.SendMsg(&text{Value: "x"}))
		require.NoError(t, s.RecvMsg(new(text)))
		l.sets <- []discovery.Endpoint{{Addr: b.addr}}
		time.Sleep(time.Second)
		for range 10 {
			addr, err := invoke(t.Context(), conn, "a")
			require.NoError(t, err)
			require.Equal(t, b.addr, addr)
		}
		require.NoError(t, s.SendMsg(&text{Value: "y"}))
		require.NoError(t, s.RecvMsg(new(text)))
		require.NoError(t, s.CloseSend())
		_, err = readAll(s)
		require.Error(t, err)
		synctest.Wait()
		dials := n.Dials()
		l.sets <- []discovery.Endpoint{{Addr: a.addr}}
		time.Sleep(time.Second)
		_, err = invoke(t.Context(), conn, "a")
		require.NoError(t, err)
		require.Greater(t, n.Dials(), dials, "its old connection has been closed")
	})
}

func TestStreamsOfANodeThatHasLeftAreEndedWhenItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := backstaytest.NewNetwork()
		a := startServerIn(t, n, "10.0.0.1:80", handlers{chat: echo})
		b := startServerIn(t, n, "10.0.0.2:80", handlers{})
		l := newListing(discovery.Endpoint{Addr: a.addr})
		conn := dial(t, newClient(t, l.config(), a, b))
		var e ends
		s, err := conn.NewStream(t.Context(), chatDesc, chat, e.option())
		require.NoError(t, err)
		l.sets <- []discovery.Endpoint{{Addr: b.addr}}
		start := time.Now()
		err = s.RecvMsg(new(text))
		require.Equal(t, codes.Canceled, status.Code(err), err)
		require.InDelta(t, 30, time.Since(start).Seconds(), 1)
		synctest.Wait() // another goroutine may be the one that tells of the end
		require.Len(t, e.all(), 1)
	})
}

func TestNodeThatHasMovedIsCalledWhereItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := backstaytest.NewNetwork()
		a := startServerIn(t, n, "10.0.0.1:80", handlers{})
		b := startServerIn(t, n, "10.0.0.2:80", handlers{})
		l := newListing(discovery.Endpoint{ID: "pod-0", Addr: a.addr})
		conn := dial(t, newClient(t, l.config(), a, b))
		addr, err := invoke(t.Context(), conn, "a")
		require.NoError(t, err)
		require.Equal(t, a.addr, addr)
		l.sets <- []discovery.Endpoint{{ID: "pod-0", Addr: b.addr}}
		time.Sleep(time.Second)
		addr, err = invoke(t.Context(), conn, "a")
		require.NoError(t, err)
		require.Equal(t, b.addr, addr)
	})
}

func TestFallbackAddressIsDialed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", handlers{})
		l := newListing(discovery.Endpoint{ID: "a", Addr: "10.0.0.9:80", Fallback: []string{a.addr}})
		conn := dial(t, newClient(t, l.config(), a))
		_, err := invoke(t.Context(), conn, "a")
		require.NoError(t, err)
	})
}

func TestRoutesAreByTheMethodsFullName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", handlers{})
		for _, pattern := range []string{get, "/" + service + "/*", "/" + service + "/", "POST " + get, "orders" + get} {
			cfg := quick()
			cfg.Routes = map[string]backstay.Route{pattern: {Concurrency: limit.ConcurrencyConfig{Max: 7}}}
			conn := dial(t, newClient(t, cfg, s))
			ctx, log := call.WithLog(t.Context())
			_, err := invoke(ctx, conn, "a")
			require.NoError(t, err)
			require.Equal(t, pattern, log.Calls()[0].Route)
		}
	})
}

func TestCanaryGetsItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := backstaytest.NewNetwork()
		stable := startServerIn(t, n, "10.0.0.1:80", handlers{})
		canary := startServerIn(t, n, "10.0.0.2:80", handlers{})
		version := func(s *server, v string) discovery.Endpoint {
			return discovery.Endpoint{Addr: s.addr, Metadata: map[string]string{"version": v}}
		}
		cfg := newListing(version(stable, "1"), version(canary, "2")).config()
		orders := cfg.Services["orders"]
		orders.Subsets = map[string]balancer.Subset{
			"stable": {Match: map[string]string{"version": "1"}}, "canary": {Match: map[string]string{"version": "2"}},
		}
		orders.Split = balancer.Split{{Subset: "stable", Weight: 90}, {Subset: "canary", Weight: 10}}
		cfg.Services["orders"] = orders
		conn := dial(t, newClient(t, cfg, stable, canary))
		for range 1000 {
			_, err := invoke(t.Context(), conn, "a")
			require.NoError(t, err)
		}
		require.InDelta(t, 100, canary.seen.Load(), 60)
		for range 20 {
			addr, err := invoke(balancer.WithSubset(t.Context(), "canary"), conn, "a")
			require.NoError(t, err)
			require.Equal(t, canary.addr, addr)
		}
	})
}

func TestLimitsAndBreakersRefuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := backstaytest.NewNetwork()
		hold := make(chan struct{})
		s := startServerIn(t, n, "10.0.0.1:80", handlers{chat: func(grpc.ServerStream) error { <-hold; return nil }})
		cfg := quick()
		cfg.Routes = map[string]backstay.Route{chat: {Concurrency: limit.ConcurrencyConfig{Max: 1}}}
		client := newClient(t, cfg, s)
		conn := dial(t, client)
		first, err := conn.NewStream(t.Context(), chatDesc, chat)
		require.NoError(t, err)
		_, err = conn.NewStream(t.Context(), chatDesc, chat)
		require.ErrorIs(t, err, limit.ErrFull)
		require.True(t, backstay.Refused(err))
		require.Equal(t, codes.Unavailable, status.Code(err))
		close(hold)
		_, _ = readAll(first)
		second, err := conn.NewStream(t.Context(), chatDesc, chat)
		require.NoError(t, err, "a stream's permit is over with it")
		_, _ = readAll(second)

		conn.Balancer().Nodes()[0].Breaker().ForceOpen()
		_, err = invoke(t.Context(), conn, "a")
		require.ErrorIs(t, err, breaker.ErrOpen)
		require.Equal(t, codes.Unavailable, status.Code(err))
		info, _ := detailsOf(t, err)
		require.Equal(t, backstaygrpc.ReasonBreaker, info.GetReason())
		_, err = conn.NewStream(t.Context(), chatDesc, chat)
		require.ErrorIs(t, err, breaker.ErrOpen)
		_, err = listAll(t.Context(), conn, "a")
		require.ErrorIs(t, err, breaker.ErrOpen)
	})
}

func TestHedgeGoesToAnotherNodeAndTheLoserIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := backstaytest.NewNetwork()
		var mu sync.Mutex
		var cancelled []string
		slow := func(addr string) handlers {
			return handlers{unary: func(ctx context.Context, in string) (string, error) {
				<-ctx.Done()
				mu.Lock()
				cancelled = append(cancelled, addr)
				mu.Unlock()
				return "", ctx.Err()
			}, stream: func(_ string, s grpc.ServerStream) error { <-s.Context().Done(); return nil }}
		}
		a := startServerIn(t, n, "10.0.0.1:80", slow("10.0.0.1:80"))
		b := startServerIn(t, n, "10.0.0.2:80", counting(3, nil))
		cfg := quick()
		orders := cfg.Services["orders"]
		orders.Retry.Hedge = retry.HedgeConfig{Delay: 100 * time.Millisecond, MaxExtra: -1}
		orders.Retry.RetryNonIdempotent = retry.On
		orders.Policy = balancer.RoundRobin{}
		orders.Outliers.Consecutive = -1
		cfg.Services["orders"] = orders
		conn := dial(t, newClient(t, cfg, a, b))
		for range 10 {
			start := time.Now()
			out, err := invoke(t.Context(), conn, "a")
			require.NoError(t, err)
			require.Equal(t, b.addr, out)
			require.LessOrEqual(t, time.Since(start), 100*time.Millisecond)
			got, err := listAll(t.Context(), conn, "m")
			require.Len(t, got, 3, err)
		}
		synctest.Wait()
		mu.Lock()
		require.NotEmpty(t, cancelled)
		mu.Unlock()
		require.Zero(t, conn.Balancer().InFlight())
	})
}

// startBoth starts a server of gRPC and HTTP on one port.
func startBoth(t *testing.T, h handlers, web http.HandlerFunc) *server {
	t.Helper()
	srv := grpc.NewServer()
	srv.RegisterService(h.desc(), nil)
	t.Cleanup(srv.Stop)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	both := &http.Server{Protocols: protocols, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Content-Type") == "application/grpc" {
			srv.ServeHTTP(w, r)
			return
		}
		web(w, r)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = both.Serve(l) }()
	t.Cleanup(func() { _ = both.Close(); <-done })
	return &server{addr: l.Addr().String()}
}

// visit makes a GET request, and returns the answer's status; 0 with an error.
func visit(client *backstay.Client) (int, error) {
	resp, err := client.Get("http://orders/")
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) }

func TestHTTPAndGRPCShareBreakers(t *testing.T) {
	cfg := &backstay.Config{Services: map[string]backstay.Service{"orders": {
		H2C: backstay.On, Breaker: breaker.Config{MinCalls: 5}, Retry: retry.Config{MaxAttempts: -1},
	}}}
	client := newClient(t, cfg, startBoth(t, failing(codes.Unavailable), ok))
	conn := dial(t, client, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	code, err := visit(client)
	require.NoError(t, err)
	require.Equal(t, 200, code)
	require.Same(t, client.Balancer("orders"), conn.Balancer())
	require.Len(t, conn.Balancer().Nodes(), 1)

	for range 10 {
		_, _ = invoke(t.Context(), conn, "a")
	}
	require.Equal(t, breaker.Open, conn.Balancer().Nodes()[0].Breaker().State())
	_, err = visit(client)
	require.ErrorIs(t, err, breaker.ErrOpen, "what gRPC has found out HTTP knows")
	conn.Balancer().Nodes()[0].Breaker().ForceClosed()
	_, err = visit(client)
	require.NoError(t, err)
}

func TestHTTPAndGRPCShareABudget(t *testing.T) {
	for name, first := range map[string]string{"HTTP spends it": "http", "gRPC spends it": "grpc"} {
		t.Run(name, func(t *testing.T) {
			var visits, calls atomic.Int64
			s := startBoth(t, handlers{unary: func(context.Context, string) (string, error) {
				calls.Add(1)
				return "", status.Error(codes.Unavailable, "not now")
			}}, func(w http.ResponseWriter, _ *http.Request) {
				visits.Add(1)
				w.WriteHeader(http.StatusServiceUnavailable)
			})
			client := newClient(t, &backstay.Config{Services: map[string]backstay.Service{"orders": {
				H2C: backstay.On, Breaker: breaker.Config{MinCalls: 1000, Consecutive: -1}, Outliers: balancer.OutlierConfig{Consecutive: -1},
				Retry:  retry.Config{MaxAttempts: 2, Backoff: retry.Backoff{Base: time.Millisecond, Max: time.Millisecond}},
				Budget: retry.BudgetConfig{Kind: retry.TokenBudget, MaxTokens: 10},
			}}}, s)
			conn := dial(t, client, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
			get := func() { _, _ = visit(client) }
			call := func() { _, _ = invoke(t.Context(), conn, "a", backstaygrpc.Idempotent(true)) }
			spend, seen, other, others := get, &visits, call, &calls
			if first == "grpc" {
				spend, seen, other, others = call, &calls, get, &visits
			}
			for range 10 {
				spend()
			}
			require.Greater(t, seen.Load(), int64(10), "some were tried again")
			require.Less(t, seen.Load(), int64(20), "and then no more")
			for range 5 {
				other()
			}
			require.EqualValues(t, 5, others.Load(), "none is left for the others")
		})
	}
}

func TestHTTPAndGRPCShareOutliers(t *testing.T) {
	var visits atomic.Int64
	bad := startBoth(t, failing(codes.Unavailable), func(w http.ResponseWriter, r *http.Request) {
		visits.Add(1)
		ok(w, r)
	})
	good := startBoth(t, handlers{unary: func(context.Context, string) (string, error) { return "", nil }}, ok)
	client := newClient(t, &backstay.Config{Services: map[string]backstay.Service{"orders": {
		H2C: backstay.On, Policy: balancer.RoundRobin{}, Retry: retry.Config{MaxAttempts: -1},
		Breaker: breaker.Config{MinCalls: 1000, Consecutive: -1}, Outliers: balancer.OutlierConfig{Consecutive: 3},
	}}}, bad, good)
	conn := dial(t, client, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	soon(t, func() bool {
		_, _ = invoke(t.Context(), conn, "a")
		return client.Balancer("orders").Snapshot().Eligible == 1
	}, "the bad one is ejected by what it says to gRPC calls")
	for range 10 {
		code, err := visit(client)
		require.NoError(t, err)
		require.Equal(t, 200, code)
	}
	require.Zero(t, visits.Load(), "HTTP calls leave it alone, too")
}

func TestClientsCloseEndsWhatIsUnderWay(t *testing.T) {
	s := startServer(t, handlers{chat: echo})
	client, err := backstay.New(&backstay.Config{Services: map[string]backstay.Service{"orders": {Endpoints: endpointsOf(s)}}})
	require.NoError(t, err)
	conn := dial(t, client)
	stream, err := conn.NewStream(t.Context(), chatDesc, chat)
	require.NoError(t, err)
	require.NoError(t, client.Close())
	require.Error(t, stream.RecvMsg(new(text)))
	_, err = invoke(t.Context(), conn, "a")
	require.ErrorIs(t, err, backstay.ErrClosed)
	require.Equal(t, codes.Unavailable, status.Code(err))
	info, _ := detailsOf(t, err)
	require.Equal(t, backstaygrpc.ReasonClosed, info.GetReason())
}

func TestBadInput(t *testing.T) {
	client := newClient(t, nil, startServer(t, handlers{}))
	credentials := grpc.WithTransportCredentials(insecure.NewCredentials())
	_, err := backstaygrpc.NewClient("orders", nil, credentials)
	require.ErrorContains(t, err, `service "orders": client is nil`)
	_, err = backstaygrpc.NewClient("", client, credentials)
	require.ErrorContains(t, err, "want the name of a service")
	_, err = backstaygrpc.NewClient("dns:///orders:50051", client, credentials)
	require.ErrorContains(t, err, `URL's host is "dns:///orders:50051", want the name of a service`)
	_, err = backstaygrpc.NewClient("orders", client)
	require.ErrorContains(t, err, `service "orders"`)
	require.ErrorContains(t, err, "transport security")
	_, err = backstaygrpc.NewClient("orders", client, credentials, grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":`))
	require.ErrorContains(t, err, "service config")
	require.NoError(t, client.Close())
	_, err = backstaygrpc.NewClient("orders", client, credentials)
	require.ErrorIs(t, err, backstay.ErrClosed)
}

func TestServiceWithoutEndpointsSaysWhichAndWhy(t *testing.T) {
	cfg := newListing().config()
	conn := dial(t, newClient(t, cfg))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := invoke(ctx, conn, "a")
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, "orders")
	require.True(t, backstay.NotSent(err))
	info, _ := detailsOf(t, err)
	require.Equal(t, backstaygrpc.ReasonNoEndpoints, info.GetReason())
	require.Equal(t, "orders", info.GetMetadata()["service"])
}
