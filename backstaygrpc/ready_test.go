package backstaygrpc_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

func TestWithoutWaitForReadyACallFailsFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", handlers{})
		s.kill()
		conn := dial(t, newClient(t, quick(), s))
		start := time.Now()
		_, err := invoke(t.Context(), conn, "a")
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.True(t, outcome.NotSent(err))
		require.Less(t, time.Since(start), time.Second)
	})
}

func TestWaitForReadyWaitsForAnyNode(t *testing.T) {
	for name, option := range map[string][]grpc.DialOption{
		"by the call":           nil,
		"by the Conn's default": {grpc.WithDefaultCallOptions(grpc.WaitForReady(true))},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := backstaytest.NewNetwork()
				a, b := startServerIn(t, n, "10.0.0.1:80", handlers{}), startServerIn(t, n, "10.0.0.2:80", handlers{})
				a.kill()
				b.kill()
				conn := dial(t, newClient(t, quick(), a, b), option...)
				time.AfterFunc(20*time.Second, b.start)
				var opts []grpc.CallOption
				if option == nil {
					opts = append(opts, grpc.WaitForReady(true))
				}
				start := time.Now()
				_, err := invoke(t.Context(), conn, "a", opts...)
				require.NoError(t, err)
				require.Greater(t, time.Since(start), 19*time.Second)
				require.Less(t, time.Since(start), 30*time.Second)
				stream, err := conn.NewStream(t.Context(), chatDesc, chat, opts...)
				require.NoError(t, err)
				require.NoError(t, stream.CloseSend())
			})
		})
	}
}

func TestTrap146WaitForReadyKeepsToTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServerIn(t, backstaytest.NewNetwork(), "10.0.0.1:80", handlers{})
		s.kill()
		cfg := quick()
		orders := cfg.Services["orders"]
		orders.Timeout = 5 * time.Second
		cfg.Services["orders"] = orders
		conn := dial(t, newClient(t, cfg, s))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := invoke(ctx, conn, "a", grpc.WaitForReady(true))
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.Equal(t, time.Second, time.Since(start))

		start = time.Now()
		_, err = invoke(t.Context(), conn, "a", grpc.WaitForReady(true))
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.Equal(t, 5*time.Second, time.Since(start))

		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = conn.NewStream(ctx, chatDesc, chat, grpc.WaitForReady(true))
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	})
}

func TestNodeWithoutConnectionIsPassedOverAndNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := backstaytest.NewNetwork()
		a, b := startServerIn(t, n, "10.0.0.1:80", handlers{}), startServerIn(t, n, "10.0.0.2:80", handlers{})
		cfg := quick()
		orders := cfg.Services["orders"]
		orders.Outliers.Consecutive, orders.Breaker.MinCalls = -1, 1_000_000
		cfg.Services["orders"] = orders
		conn := dial(t, newClient(t, cfg, a, b))
		for range 20 {
			_, err := invoke(t.Context(), conn, "a")
			require.NoError(t, err)
		}
		a.kill()
		passed := 0
		for range 200 {
			ctx, log := call.WithLog(t.Context())
			addr, err := invoke(ctx, conn, "a", backstaygrpc.Idempotent(true)) // the first may meet a connection as it breaks
			require.NoError(t, err, log)
			require.Equal(t, b.addr, addr)
			for _, attempt := range log.Calls()[0].Attempts {
				for _, refusal := range attempt.Refusals {
					require.Equal(t, "connection", refusal.By)
					passed++
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		require.Positive(t, passed)
		a.start()
		time.Sleep(10 * time.Second)
		before := a.seen.Load()
		for range 100 {
			_, err := invoke(t.Context(), conn, "a")
			require.NoError(t, err)
			time.Sleep(100 * time.Millisecond)
		}
		require.Greater(t, a.seen.Load(), before+20)
	})
}
