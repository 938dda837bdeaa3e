package balancer_test

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

type streamsKey struct{}

// A server that allows five streams on each connection and twenty calls at once:
// the next connection is opened, and no call waits for a stream.
func TestStreamsBeyondTheServersLimitGoOverFurtherConnections(t *testing.T) {
	const most, calls = 5, 20
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var conns, beyond atomic.Int64
	var all sync.WaitGroup
	all.Add(calls)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Protocols: protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: most},
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			conns.Add(1)
			return context.WithValue(ctx, streamsKey{}, new(atomic.Int64))
		},
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			streams := r.Context().Value(streamsKey{}).(*atomic.Int64) //nolint:forcetypeassert // set above
			if streams.Add(1) > most {
				beyond.Add(1)
			}
			defer streams.Add(-1)
			all.Done()
			all.Wait() // all are under way at once
		}),
	}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { require.NoError(t, server.Close()) })

	b, err := balancer.New("orders", discovery.Static(discovery.Addrs(listener.Addr().String())...), unhurried(balancer.Config{H2C: true}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	client := &http.Client{Transport: b.Layer(new(http.Transport)), Timeout: 20 * time.Second}
	errs := make(chan error, calls)
	for range calls {
		go func() {
			resp, err := client.Get("http://orders/")
			if err == nil {
				err = resp.Body.Close()
			}
			errs <- err
		}()
	}
	for range calls {
		require.NoError(t, <-errs)
	}
	require.Zero(t, beyond.Load())
	require.GreaterOrEqual(t, conns.Load(), int64(calls/most))
}
