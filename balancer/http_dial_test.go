package balancer_test

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// slowDialer is a template whose dials take as long as the test says.
type slowDialer struct {
	network *backstaytest.Network
	takes   map[string]time.Duration
	stray   bool // dials go on after their context has ended

	mu     sync.Mutex
	begun  map[string]time.Duration
	start  time.Time
	opened atomic.Int32
	closed atomic.Int32
}

func (d *slowDialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	d.mu.Lock()
	d.begun[addr] = time.Since(d.start)
	d.mu.Unlock()
	if d.stray {
		ctx = context.WithoutCancel(ctx)
	}
	if d.takes[addr] > 0 {
		select {
		case <-time.After(d.takes[addr]):
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	nc, err := d.network.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	d.opened.Add(1)
	return &counted{nc, sync.OnceFunc(func() { d.closed.Add(1) })}, nil
}

type counted struct {
	net.Conn
	closed func()
}

func (c *counted) Close() error { c.closed(); return c.Conn.Close() }

func TestFallbackAddressesRace(t *testing.T) {
	const one, two, three = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
	for name, c := range map[string]struct {
		takes map[string]time.Duration
		delay time.Duration
		stray bool
		won   string
		after time.Duration
		begun map[string]time.Duration
	}{
		"the first is in time":        {map[string]time.Duration{one: 200 * time.Millisecond}, 0, false, one, 200 * time.Millisecond, map[string]time.Duration{one: 0}},
		"the first is late":           {map[string]time.Duration{one: 900 * time.Millisecond, two: 100 * time.Millisecond}, 0, false, two, 400 * time.Millisecond, map[string]time.Duration{one: 0, two: 300 * time.Millisecond}},
		"the first is late, but wins": {map[string]time.Duration{one: 400 * time.Millisecond, two: 900 * time.Millisecond}, 0, false, one, 400 * time.Millisecond, map[string]time.Duration{one: 0, two: 300 * time.Millisecond}},
		"all are late":                {map[string]time.Duration{one: 950 * time.Millisecond, two: 950 * time.Millisecond, three: 100 * time.Millisecond}, 0, false, three, 700 * time.Millisecond, map[string]time.Duration{one: 0, two: 300 * time.Millisecond, three: 600 * time.Millisecond}},
		"another delay":               {map[string]time.Duration{one: 900 * time.Millisecond}, 50 * time.Millisecond, false, two, 50 * time.Millisecond, map[string]time.Duration{one: 0, two: 50 * time.Millisecond}},
		"one after another":           {map[string]time.Duration{one: 2 * time.Second}, -1, false, two, time.Second, map[string]time.Duration{one: 0, two: time.Second}},
		"the loser connects, too":     {map[string]time.Duration{one: 900 * time.Millisecond}, 0, true, two, 300 * time.Millisecond, map[string]time.Duration{one: 0, two: 300 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &slowDialer{network: backstaytest.NewNetwork(), takes: c.takes, stray: c.stray, begun: make(map[string]time.Duration), start: time.Now()}
				servers := make(map[string]*backstaytest.Server)
				for _, addr := range []string{one, two, three} {
					servers[addr] = backstaytest.NewServer(t, nil, &backstaytest.ServerConfig{Network: d.network, Addr: addr})
				}
				cfg := balancer.Config{Conns: balancer.ConnConfig{FallbackDelay: c.delay}}
				b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{ID: "a", Addr: one, Fallback: []string{two, three}}), &cfg)
				require.NoError(t, err)
				resp, err := getFrom(t, b.Layer(&http.Transport{DialContext: d.DialContext}), "http://orders/")
				require.NoError(t, err)
				read(t, resp)
				require.Equal(t, c.after, time.Since(d.start))
				require.Equal(t, 1, servers[c.won].Stats().Requests)
				require.Equal(t, c.begun, d.begun)
				time.Sleep(time.Minute)
				require.EqualValues(t, 1, d.opened.Load()-d.closed.Load(), "the others are closed")
				require.Equal(t, 1, servers[one].Stats().OpenConnections+servers[two].Stats().OpenConnections+servers[three].Stats().OpenConnections)
				require.NoError(t, b.Close())
				require.Equal(t, d.opened.Load(), d.closed.Load())
			})
		})
	}
}

func TestCallersEndEndsTheWaitForARace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := backstaytest.NewNetwork()
		network.Blackhole("10.0.0.1:80", true)
		network.Blackhole("10.0.0.2:80", true)
		b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{Addr: "10.0.0.1:80", Fallback: []string{"10.0.0.2:80"}}), nil)
		require.NoError(t, err)
		defer b.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
		require.NoError(t, err)
		_, err = b.Layer(network.Transport()).RoundTrip(req)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, b.Nodes()[0].Breaker().Snapshot(time.Now()).Failures)
	})
}
