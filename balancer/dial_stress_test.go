package balancer_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
)

// TestDialsUnderChange dials, reads, breaks and closes while nodes are killed and
// come and go, and while the balancer is closed in the end. What is counted must
// come out even.
func TestDialsUnderChange(t *testing.T) {
	backstaytest.CheckLeaks(t)
	servers, list := newLineServers(t, 4)
	rec := newFeed(list...)
	b, err := balancer.New("orders", rec, unhurried(balancer.Config{DrainTimeout: 5 * time.Millisecond, SlowStart: -1}))
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, b.Ready(t.Context()))
	seen := make(map[*balancer.Node]bool)
	var good atomic.Int64
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 8 {
		work.Go(func() {
			for ctx.Err() == nil {
				dialing, stop := context.WithCancel(ctx)
				giveUp := time.AfterFunc(rand.N(4*time.Millisecond), stop)
				c, err := b.DialContext(dialing, "tcp", "orders:1")
				giveUp.Stop()
				stop()
				if errors.Is(err, balancer.ErrClosed) {
					return
				}
				if err != nil {
					continue
				}
				if _, err := ask(c); err == nil {
					good.Add(1)
				}
				var closing sync.WaitGroup // net.Conn may be closed by several
				for range 2 {
					closing.Go(func() { _ = c.Close() })
				}
				_, _ = c.Read(make([]byte, 1))
				closing.Wait()
			}
		})
	}
	for i := range 20 {
		for _, n := range b.Nodes() {
			seen[n] = true
		}
		servers[i%3].reset()
		rest := list[3:]
		if i%2 == 0 {
			rest = list
		}
		rec.yield(rest...)
		<-time.After(mergeWindow / 4)
	}
	for _, n := range b.Nodes() {
		n.Breaker().Reset()
	}
	idleConn, err := b.DialContext(t.Context(), "tcp", "orders:1")
	require.NoError(t, err)
	require.NoError(t, b.Close())
	work.Wait()
	_, err = idleConn.Read(make([]byte, 1))
	require.ErrorIs(t, err, net.ErrClosed)
	require.Positive(t, good.Load())
	for n := range seen {
		require.Zero(t, n.InFlight(), n.Key())
		require.Zero(t, n.Awaiting(), n.Key())
	}
	require.Zero(t, b.InFlight())
}
