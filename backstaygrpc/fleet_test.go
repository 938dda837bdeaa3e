package backstaygrpc_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/retry"
)

// faulty is a server that can be told to fail.
type faulty struct {
	*server
	fails atomic.Bool
	stall atomic.Pointer[chan struct{}] // until it is closed, calls hang
}

func startFaulty(t testing.TB, n *backstaytest.Network, addr string) *faulty {
	f := new(faulty)
	trouble := func(ctx context.Context) error {
		if hold := f.stall.Load(); hold != nil {
			select {
			case <-*hold:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if f.fails.Load() {
			return status.Error(codes.Unavailable, "failing fast")
		}
		return nil
	}
	f.server = startServerIn(t, n, addr, handlers{
		unary: func(ctx context.Context, in string) (string, error) {
			<-time.After(10*time.Millisecond + rand.N(20*time.Millisecond))
			return in, trouble(ctx)
		},
		stream: func(in string, s grpc.ServerStream) error {
			if err := trouble(s.Context()); err != nil {
				return err
			}
			for i := range 5 {
				<-time.After(1 + rand.N(10*time.Millisecond))
				if err := s.SendMsg(wrapperspb.String(in + strconv.Itoa(i))); err != nil {
					return err
				}
			}
			return nil
		},
	})
	return f
}

// What befalls one of the four.
var faults = map[string]func(f *faulty, during func()){
	"killed":       func(f *faulty, during func()) { f.kill(); during(); f.start() },
	"draining":     func(f *faulty, during func()) { f.drain(); during(); f.start() },
	"restarted":    func(f *faulty, during func()) { f.kill(); f.start(); during() },
	"failing fast": func(f *faulty, during func()) { f.fails.Store(true); during(); f.fails.Store(false) },
	"stalled": func(f *faulty, during func()) {
		hold := make(chan struct{})
		f.stall.Store(&hold)
		during()
		close(hold)
		f.stall.Store(nil)
	},
}

// Four servers and 64 callers, and one of the servers is in trouble.
func TestNoIdempotentCallIsLostWhateverBefallsOneOfFour(t *testing.T) {
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { fourServers(t, fault) }) })
	}
}

func fourServers(t *testing.T, fault func(f *faulty, during func())) {
	n := backstaytest.NewNetwork()
	var servers []*faulty
	var plain []*server
	for i := range 4 {
		f := startFaulty(t, n, fmt.Sprintf("10.0.0.%d:80", i+1))
		servers, plain = append(servers, f), append(plain, f.server)
	}
	cfg := &backstay.Config{Services: map[string]backstay.Service{"orders": {
		Retry:          retry.Config{RetryNonIdempotent: retry.On},
		AttemptTimeout: 250 * time.Millisecond,
	}}}
	conn := dial(t, newClient(t, cfg, plain...))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var (
		all              sync.WaitGroup
		calls, streams   atomic.Int64
		brokenAfterFirst atomic.Int64
	)
	for worker := range 64 {
		all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				in := strconv.Itoa(worker) + "/" + strconv.Itoa(i)
				if i%4 == 3 {
					var e ends
					got, err := listAll(t.Context(), conn, in, e.option())
					if len(e.all()) != 1 {
						t.Errorf("%d ends", len(e.all()))
					}
					switch {
					case err == io.EOF && len(got) == 5: //nolint:errorlint // as RecvMsg has it
					case len(got) > 0 && status.Code(err) == codes.Unavailable:
						brokenAfterFirst.Add(1)
					default:
						t.Errorf("stream: %d messages and %v", len(got), err)
					}
					streams.Add(1)
					continue
				}
				ctx, log := call.WithLog(t.Context())
				out, err := invoke(ctx, conn, in)
				if err != nil {
					t.Errorf("%v\n%v", err, log)
				} else if out != in {
					t.Errorf("answer is %q, want %q", out, in)
				}
				calls.Add(1)
			}
		})
	}
	settle := func() { <-time.After(300 * time.Millisecond) }
	settle()
	fault(servers[0], settle)
	settle()
	stop()
	all.Wait()
	t.Logf("%d calls, %d streams, %d broken after the first message", calls.Load(), streams.Load(), brokenAfterFirst.Load())
	require.Zero(t, conn.Balancer().InFlight())
}

func listAll(ctx context.Context, conn grpc.ClientConnInterface, in string, opts ...grpc.CallOption) ([]string, error) {
	s, err := conn.NewStream(ctx, listDesc, list, opts...)
	if err != nil {
		return nil, err
	}
	if err := s.SendMsg(wrapperspb.String(in)); err != nil {
		return nil, err
	}
	return readAll(s)
}
