package backstaygrpc_test

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

// counting sends n messages, and ends with err.
func counting(n int, err error) handlers {
	return handlers{stream: func(in string, s grpc.ServerStream) error {
		s.SetTrailer(metadata.Pairs("from", "server"))
		for i := range n {
			if err := s.SendMsg(wrapperspb.String(in + strconv.Itoa(i))); err != nil {
				return err
			}
		}
		return err
	}}
}

func openList(ctx context.Context, t *testing.T, conn grpc.ClientConnInterface, opts ...grpc.CallOption) grpc.ClientStream {
	t.Helper()
	s, err := conn.NewStream(ctx, listDesc, list, opts...)
	require.NoError(t, err)
	require.NoError(t, s.SendMsg(wrapperspb.String("m")))
	require.NoError(t, s.CloseSend())
	return s
}

// readAll returns the messages and the error that ended the stream.
func readAll(s grpc.ClientStream) (got []string, _ error) {
	for {
		m := new(text)
		if err := s.RecvMsg(m); err != nil {
			return got, err
		}
		got = append(got, m.GetValue())
	}
}

// ends counts the ends of a stream.
type ends struct {
	mu   sync.Mutex
	errs []error
}

func (e *ends) option() grpc.CallOption {
	return grpc.OnFinish(func(err error) {
		e.mu.Lock()
		e.errs = append(e.errs, err)
		e.mu.Unlock()
	})
}

func (e *ends) all() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.errs
}

func TestServersStreamEndsOnceWithItsStatus(t *testing.T) {
	for _, test := range []struct {
		name string
		n    int
		err  error
	}{
		{"messages", 3, nil},
		{"none", 0, nil},
		{"an error after messages", 3, status.Error(codes.Internal, "broken")},
		{"an error at once", 0, status.Error(codes.NotFound, "nobody")},
		{"unavailable after messages", 2, status.Error(codes.Unavailable, "gone")},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := newClient(t, quick(), startServer(t, counting(test.n, test.err)))
			conn := dial(t, client)
			ctx, log := call.WithLog(t.Context())
			var (
				e       ends
				trailer metadata.MD
			)
			s := openList(ctx, t, conn, e.option(), backstaygrpc.Idempotent(true), grpc.Trailer(&trailer))
			got, err := readAll(s)
			require.Len(t, got, test.n)
			if test.err == nil {
				require.Equal(t, io.EOF, err)
				require.Equal(t, []error{nil}, e.all())
			} else {
				require.Equal(t, status.Convert(test.err).Proto(), status.Convert(err).Proto())
				require.Equal(t, []error{err}, e.all())
			}
			require.Equal(t, err, s.RecvMsg(new(text)), "and again")
			require.Equal(t, []string{"server"}, trailer["from"])
			require.Equal(t, []string{"server"}, s.Trailer()["from"])
			require.Zero(t, conn.Balancer().InFlight())
			require.Len(t, log.Calls(), 1)
			require.Positive(t, log.Calls()[0].Duration)
			require.Equal(t, test.err == nil, log.Calls()[0].Err == nil)
			require.Len(t, log.Calls()[0].Attempts, 1)
		})
	}
}

// Trap 144.
func TestServersStreamIsTriedAgainOnlyBeforeTheFirstMessage(t *testing.T) {
	bad, good := startServer(t, counting(0, status.Error(codes.Unavailable, "gone"))), startServer(t, counting(3, nil))
	conn := dial(t, newClient(t, quick(), bad, good))
	twice := false
	for i := 0; i < 200 && !twice; i++ {
		ctx, log := call.WithLog(t.Context())
		var e ends
		got, err := readAll(openList(ctx, t, conn, e.option(), backstaygrpc.Idempotent(true)))
		require.Equal(t, io.EOF, err)
		require.Equal(t, []string{"m0", "m1", "m2"}, got)
		require.Equal(t, []error{nil}, e.all())
		twice = len(log.Calls()[0].Attempts) == 2
	}
	require.True(t, twice)
	require.Zero(t, conn.Balancer().InFlight())

	once := startServer(t, counting(1, status.Error(codes.Unavailable, "gone")))
	conn = dial(t, newClient(t, quick(), once, good))
	broken := false
	for i := 0; i < 200 && !broken; i++ {
		got, err := readAll(openList(t.Context(), t, conn, backstaygrpc.Idempotent(true)))
		if broken = err != io.EOF; broken { //nolint:errorlint // as RecvMsg has it
			require.Equal(t, codes.Unavailable, status.Code(err))
			require.Equal(t, []string{"m0"}, got)
		}
	}
	require.True(t, broken)
}

func TestServersStreamIsNotTriedAgainOnceItsHeaderWasHandedOn(t *testing.T) {
	h := handlers{stream: func(_ string, s grpc.ServerStream) error {
		if err := s.SendHeader(metadata.Pairs("from", "server")); err != nil {
			return err
		}
		return status.Error(codes.Unavailable, "gone")
	}}
	bad := startServer(t, h)
	conn := dial(t, newClient(t, quick(), bad))
	s := openList(t.Context(), t, conn, backstaygrpc.Idempotent(true))
	md, err := s.Header()
	require.NoError(t, err)
	require.Equal(t, []string{"server"}, md["from"])
	_, err = readAll(s)
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.EqualValues(t, 1, bad.seen.Load())

	_, err = readAll(openList(t.Context(), t, conn, backstaygrpc.Idempotent(true)))
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.EqualValues(t, 4, bad.seen.Load(), "a header that nobody has seen is none")
}

// echo sends back what it gets, and for Sum how much that was.
func echo(s grpc.ServerStream) error {
	n := 0
	for {
		in := new(text)
		err := s.RecvMsg(in)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		n++
		if method, _ := grpc.MethodFromServerStream(s); method == chat {
			if err := s.SendMsg(in); err != nil {
				return err
			}
		}
	}
	if method, _ := grpc.MethodFromServerStream(s); method == sum {
		return s.SendMsg(wrapperspb.String(strconv.Itoa(n)))
	}
	return nil
}

func TestClientsStream(t *testing.T) {
	conn := dial(t, newClient(t, quick(), startServer(t, handlers{chat: echo})))
	var e ends
	s, err := conn.NewStream(t.Context(), sumDesc, sum, e.option())
	require.NoError(t, err)
	for range 5 {
		require.NoError(t, s.SendMsg(wrapperspb.String("x")))
	}
	require.NoError(t, s.CloseSend())
	out := new(text)
	require.NoError(t, s.RecvMsg(out))
	require.Equal(t, "5", out.GetValue())
	require.Equal(t, []error{nil}, e.all())
	require.Zero(t, conn.Balancer().InFlight())
}

// Trap 147.
func TestBothWaysFromDifferentGoroutines(t *testing.T) {
	conn := dial(t, newClient(t, quick(), startServer(t, handlers{chat: echo})))
	var e ends
	s, err := conn.NewStream(t.Context(), chatDesc, chat, e.option())
	require.NoError(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for i := range 100 {
			if err := s.SendMsg(wrapperspb.String(strconv.Itoa(i))); err != nil {
				t.Error(err)
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Error(err)
		}
	})
	all.Go(func() {
		if _, err := s.Header(); err != nil {
			t.Error(err)
		}
	})
	got, err := readAll(s)
	all.Wait()
	require.Equal(t, io.EOF, err)
	require.Len(t, got, 100)
	require.Equal(t, []error{nil}, e.all())
	require.NotNil(t, s.Context())
	require.Zero(t, conn.Balancer().InFlight())
}

func TestClientsStreamIsTriedElsewhereIfNothingWasSent(t *testing.T) {
	dead, good := startServer(t, handlers{}), startServer(t, handlers{chat: echo})
	dead.kill()
	conn := dial(t, newClient(t, quick(), dead, good))
	for range 20 {
		s, err := conn.NewStream(t.Context(), chatDesc, chat)
		require.NoError(t, err)
		require.NoError(t, s.CloseSend())
		_, err = readAll(s)
		require.Equal(t, io.EOF, err)
	}
}

func TestAbandonedStreamIsNobodysFailure(t *testing.T) {
	hang := func(s grpc.ServerStream) error { <-s.Context().Done(); return nil }
	srv := startServer(t, handlers{chat: hang, stream: func(_ string, s grpc.ServerStream) error { return hang(s) }})
	conn := dial(t, newClient(t, quick(), srv))
	for name, open := range map[string]func(context.Context, grpc.CallOption){
		"both ways":       func(ctx context.Context, o grpc.CallOption) { _, _ = conn.NewStream(ctx, chatDesc, chat, o) },
		"server's":        func(ctx context.Context, o grpc.CallOption) { openList(ctx, t, conn, o) },
		"without request": func(ctx context.Context, o grpc.CallOption) { _, _ = conn.NewStream(ctx, listDesc, list, o) },
		"after the header": func(ctx context.Context, o grpc.CallOption) {
			s, _ := conn.NewStream(ctx, chatDesc, chat, o)
			go s.Header()
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			var e ends
			open(ctx, e.option())
			cancel()
			require.Eventually(t, func() bool { return len(e.all()) == 1 && conn.Balancer().InFlight() == 0 }, 10*time.Second, time.Millisecond)
			require.Equal(t, codes.Canceled, status.Code(e.all()[0]))
			require.Zero(t, conn.Balancer().Nodes()[0].FailureRate(time.Time{}))
		})
	}
}

// Trap 143.
func TestAttemptTimeoutEndsNoStreamThatHasItsHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quick()
		orders := cfg.Services["orders"]
		orders.AttemptTimeout = 50 * time.Millisecond
		cfg.Services["orders"] = orders
		slow := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", handlers{stream: func(in string, s grpc.ServerStream) error {
			if err := s.SendHeader(nil); err != nil {
				return err
			}
			<-time.After(150 * time.Millisecond)
			return s.SendMsg(wrapperspb.String(in))
		}})
		conn := dial(t, newClient(t, cfg, slow))
		got, err := readAll(openList(t.Context(), t, conn))
		require.Equal(t, io.EOF, err)
		require.Equal(t, []string{"m"}, got)

		stalled := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", handlers{
			stream: func(_ string, s grpc.ServerStream) error { <-s.Context().Done(); return nil },
		})
		conn = dial(t, newClient(t, cfg, stalled))
		start := time.Now()
		_, err = readAll(openList(t.Context(), t, conn))
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.Equal(t, 50*time.Millisecond, time.Since(start))
	})
}

func TestIdleTimeoutEndsAStreamThatHasNothingToSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quick()
		orders := cfg.Services["orders"]
		orders.BodyIdleTimeout = 50 * time.Millisecond
		cfg.Services["orders"] = orders
		srv := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", handlers{stream: func(in string, s grpc.ServerStream) error {
			if err := s.SendMsg(wrapperspb.String(in)); err != nil {
				return err
			}
			<-s.Context().Done()
			return nil
		}})
		conn := dial(t, newClient(t, cfg, srv))
		var e ends
		start := time.Now()
		got, err := readAll(openList(t.Context(), t, conn, e.option()))
		require.Equal(t, []string{"m"}, got)
		require.ErrorIs(t, err, outcome.ErrBodyIdle)
		require.Equal(t, 50*time.Millisecond, time.Since(start))
		synctest.Wait() // another goroutine may be the one that tells of the end
		require.Len(t, e.all(), 1)
		require.Zero(t, conn.Balancer().InFlight())
	})
}

func TestShutdownWaitsForStreams(t *testing.T) {
	release := make(chan struct{})
	srv := startServer(t, handlers{chat: func(grpc.ServerStream) error { <-release; return nil }})
	client, err := backstay.New(&backstay.Config{Services: map[string]backstay.Service{"orders": {Endpoints: endpointsOf(srv)}}})
	require.NoError(t, err)
	conn := dial(t, client)
	s, err := conn.NewStream(t.Context(), chatDesc, chat)
	require.NoError(t, err)
	down := make(chan error, 1)
	go func() { down <- client.Shutdown(context.Background()) }()
	require.Eventually(t, func() bool { _, err := invoke(t.Context(), conn, "a"); return errors.Is(err, backstay.ErrClosed) }, 10*time.Second, time.Millisecond)
	select {
	case <-down:
		t.Fatal("the stream is still open")
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	_, err = readAll(s)
	require.Equal(t, io.EOF, err)
	require.NoError(t, <-down)
}
