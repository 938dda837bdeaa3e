package balancer_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// lineServer is a server on loopback that answers each line with its own address.
type lineServer struct {
	addr     string
	listener net.Listener
	work     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func newLineServer(t testing.TB, network, addr string) *lineServer {
	t.Helper()
	listener, err := net.Listen(network, addr)
	require.NoError(t, err)
	e := &lineServer{addr: listener.Addr().String(), listener: listener, conns: make(map[net.Conn]struct{})}
	if network == "unix" {
		e.addr = "unix:" + e.addr
	}
	e.work.Go(e.accept)
	t.Cleanup(e.kill)
	return e
}

func newLineServers(t testing.TB, n int) ([]*lineServer, []discovery.Endpoint) {
	t.Helper()
	servers := make([]*lineServer, n)
	list := make([]discovery.Endpoint, n)
	for i := range servers {
		servers[i] = newLineServer(t, "tcp", "127.0.0.1:0")
		list[i].Addr = servers[i].addr
	}
	return servers, list
}

func (e *lineServer) accept() {
	for {
		c, err := e.listener.Accept()
		if err != nil {
			return
		}
		e.mu.Lock()
		e.conns[c] = struct{}{}
		e.mu.Unlock()
		e.work.Go(func() {
			defer c.Close()
			for lines := bufio.NewScanner(c); lines.Scan(); {
				if _, err := fmt.Fprintln(c, e.addr); err != nil {
					return
				}
			}
		})
	}
}

// reset breaks all connections, as a process that dies does.
func (e *lineServer) reset() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
		delete(e.conns, c)
	}
}

// kill resets, and refuses connections from then on.
func (e *lineServer) kill() {
	_ = e.listener.Close()
	e.reset()
	e.work.Wait()
}

// overTCP returns a balancer, ready.
func overTCP(t testing.TB, cfg balancer.Config, list ...discovery.Endpoint) *balancer.Balancer {
	t.Helper()
	b, err := balancer.New("orders", discovery.Static(list...), unhurried(cfg))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	require.NoError(t, b.Ready(t.Context()))
	return b
}

func dialed(t testing.TB, b *balancer.Balancer) net.Conn {
	t.Helper()
	c, err := b.DialContext(t.Context(), "tcp", "orders:1")
	require.NoError(t, err)
	return c
}

// ask sends a line and returns the answer.
func ask(c net.Conn) (string, error) {
	if _, err := io.WriteString(c, "who?\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

func failuresOf(n *balancer.Node) int64 { return n.Breaker().Snapshot(time.Time{}).Failures }

func TestDialsGoElsewhereWhenANodeIsKilled(t *testing.T) {
	backstaytest.CheckLeaks(t)
	servers, list := newLineServers(t, 3)
	b := overTCP(t, balancer.Config{Policy: balancer.RoundRobin{}}, list...)
	var open []net.Conn
	seen := make(map[string]int)
	for range 9 {
		c := dialed(t, b)
		open = append(open, c)
		who, err := ask(c)
		require.NoError(t, err)
		seen[who]++
	}
	require.Len(t, seen, 3)
	require.Equal(t, 9, b.InFlight())

	servers[0].kill()
	broken := 0
	for _, c := range open {
		if _, err := ask(c); err != nil {
			broken++
		}
		require.NoError(t, c.Close())
	}
	require.Equal(t, 3, broken)
	dead := b.Nodes()[0]
	require.Equal(t, servers[0].addr, dead.Key())
	require.Equal(t, int64(3), failuresOf(dead))
	for range 60 {
		c := dialed(t, b)
		who, err := ask(c)
		require.NoError(t, err)
		require.NotEqual(t, servers[0].addr, who)
		require.NoError(t, c.Close())
	}
	require.Greater(t, dead.FailureRate(time.Now()), 0.3) // it decays
	require.Zero(t, failuresOf(b.Nodes()[1])+failuresOf(b.Nodes()[2]))
	idle(t, b.Nodes())
}

func TestDialTriesEachNodeOnceAndReturnsTheLastError(t *testing.T) {
	for name, policy := range policies(1) {
		t.Run(name, func(t *testing.T) {
			var tried []string
			b := newStatic(t, 5, &balancer.Config{Policy: policy, Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
				tried = append(tried, addr)
				return nil, fmt.Errorf("%s is %w", addr, errDown)
			}})
			_, err := b.DialContext(t.Context(), "tcp", "orders:1")
			require.ErrorIs(t, err, errDown)
			ce, ok := errors.AsType[*balancer.ConnectError](err)
			require.True(t, ok)
			require.Len(t, tried, 5)
			require.Equal(t, tried[4], ce.Addr)
			require.True(t, outcome.NotSent(err))
			slices.Sort(tried)
			require.Len(t, slices.Compact(tried), 5)
			for _, n := range b.Nodes() {
				require.Equal(t, int64(1), failuresOf(n))
			}
			idle(t, b.Nodes())
		})
	}
}

func TestDialIsRefusedWhereEveryNodeRefuses(t *testing.T) {
	b := newStatic(t, 2, &balancer.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errDown }})
	var err error
	for i := 0; !errors.Is(err, breaker.ErrOpen); i++ {
		require.Less(t, i, 1000)
		_, err = b.DialContext(t.Context(), "tcp", "orders:1")
		require.Error(t, err)
	}
	_, err = b.DialContext(t.Context(), "udp", "orders:1")
	require.ErrorContains(t, err, "unknown network udp")
}

func TestDialGivesTheNodesErrorWhereTheOthersRefuse(t *testing.T) {
	inBubble(t, exact(balancer.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errDown }}), endpoints(2),
		func(t *testing.T, r *rig) {
			r.open(addr(1))
			_, err := r.DialContext(t.Context(), "tcp", "orders:1")
			require.ErrorIs(t, err, errDown)
			require.NotErrorIs(t, err, breaker.ErrOpen)
		})
}

// piped is a dialer in memory, and how many of its connections are open.
type piped struct {
	mu   sync.Mutex
	open map[string]int
	took func(addr string) time.Duration
}

func (p *piped) dial(_ context.Context, _, addr string) (net.Conn, error) {
	if p.took != nil {
		time.Sleep(p.took(addr)) // in a bubble
	}
	server, client := net.Pipe()
	p.change(addr, 1)
	go func() {
		_, _ = io.Copy(io.Discard, server)
		_ = server.Close()
		p.change(addr, -1)
	}()
	return client, nil
}

func (p *piped) change(addr string, by int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = make(map[string]int)
	}
	p.open[addr] += by
}

func (p *piped) of(addr string) int {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open[addr]
}

func TestConnectionsOfANodeThatLeavesHaveTheDrainTimeout(t *testing.T) {
	p := new(piped)
	inBubble(t, exact(balancer.Config{Dial: p.dial, Policy: balancer.RoundRobin{}}), endpoints(2), func(t *testing.T, r *rig) {
		conns := []net.Conn{dialed(t, r.Balancer), dialed(t, r.Balancer)}
		require.Equal(t, 1, p.of(addr(0)))
		require.Equal(t, 1, p.of(addr(1)))
		began := time.Now()
		r.update(endpoints(2)[1])
		for range 4 {
			c := dialed(t, r.Balancer)
			require.NoError(t, c.Close())
		}
		time.Sleep(time.Until(began.Add(30 * time.Second))) // less the merge window
		require.Equal(t, 1, p.of(addr(0)), "it may finish")
		require.Equal(t, 2, r.InFlight())
		time.Sleep(mergeWindow)
		require.Zero(t, p.of(addr(0)))
		require.Equal(t, 1, p.of(addr(1)))
		require.Equal(t, 1, r.InFlight())
		closed := 0
		for _, c := range conns {
			if _, err := c.Write([]byte("x")); err != nil {
				require.ErrorIs(t, err, io.ErrClosedPipe)
				closed++
			}
			require.NoError(t, c.Close())
		}
		require.Equal(t, 1, closed)
		require.Zero(t, r.InFlight())
	})
}

func TestNodeWhoseTimeEndsWhileItIsDialedIsLeftForAnother(t *testing.T) {
	p := &piped{took: func(a string) time.Duration {
		if a == addr(0) {
			return 5 * time.Second
		}
		return 0
	}}
	cfg := balancer.Config{Dial: p.dial, DrainTimeout: time.Second, ConnectTimeout: -1}
	cfg = first(cfg)
	inBubble(t, exact(cfg), endpoints(2), func(t *testing.T, r *rig) {
		node := r.node(addr(0))
		time.AfterFunc(time.Second, func() { r.feed.yield(endpoints(2)[1]) })
		c := dialed(t, r.Balancer)
		require.Zero(t, p.of(addr(0)), "what came too late is closed")
		require.Equal(t, 1, p.of(addr(1)))
		require.Zero(t, node.InFlight())
		require.Zero(t, failuresOf(node))
		require.NoError(t, c.Close())
	})
}

func TestCloseClosesConnections(t *testing.T) {
	backstaytest.CheckLeaks(t)
	_, list := newLineServers(t, 2)
	b := overTCP(t, balancer.Config{}, list...)
	conns := []net.Conn{dialed(t, b), dialed(t, b), dialed(t, b)}
	require.NoError(t, b.Close())
	for _, c := range conns {
		_, err := c.Read(make([]byte, 1))
		require.ErrorIs(t, err, net.ErrClosed)
		_ = c.Close()
	}
	require.Zero(t, b.InFlight())
	_, err := b.DialContext(t.Context(), "tcp", "orders:1")
	require.ErrorIs(t, err, balancer.ErrClosed)
}

func TestCloseWhileDialingClosesWhatComesOfIt(t *testing.T) {
	p := &piped{took: func(string) time.Duration { return time.Second }}
	inBubble(t, exact(balancer.Config{Dial: p.dial, ConnectTimeout: -1}), endpoints(2), func(t *testing.T, r *rig) {
		time.AfterFunc(time.Second/2, func() { _ = r.Close() })
		_, err := r.DialContext(t.Context(), "tcp", "orders:1")
		require.ErrorIs(t, err, balancer.ErrClosed)
		require.Zero(t, p.of(addr(0))+p.of(addr(1)))
		require.Zero(t, r.InFlight())
	})
}

func TestCancelledDialIsNeutral(t *testing.T) {
	hang := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, fmt.Errorf("dialing: %w", ctx.Err())
	}
	inBubble(t, exact(balancer.Config{Dial: hang, ConnectTimeout: -1}), endpoints(3), func(t *testing.T, r *rig) {
		for _, fallback := range []bool{false, true} {
			if fallback {
				list := endpoints(3)
				for i := range list {
					list[i].Fallback = []string{"10.9.9.9:80"}
				}
				r.update(list...)
			}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(10*time.Second, cancel)
			began := time.Now()
			_, err := r.DialContext(ctx, "tcp", "orders:1")
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, 10*time.Second, time.Since(began), "and no other node is tried")
			ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
			_, err = r.DialContext(ctx, "tcp", "orders:1")
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		for _, n := range r.Nodes() {
			require.Zero(t, failuresOf(n))
		}
		idle(t, r.Nodes())
	})
}

// TestDialThatTimesOutJustBeforeItsContextIsNeutral stands for net.Dialer: it leaves
// the deadline to the system, and is back before the context's own timer.
func TestDialThatTimesOutJustBeforeItsContextIsNeutral(t *testing.T) {
	dials := 0
	b := newStatic(t, 2, &balancer.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
		dials++
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
	}, ConnectTimeout: -1})
	_, err := b.DialContext(due{t.Context()}, "tcp", "orders:1")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Equal(t, 1, dials)
	for _, n := range b.Nodes() {
		require.Zero(t, failuresOf(n))
	}
}

// due is a context whose deadline has come and whose timer has not fired yet.
type due struct{ context.Context }

func (due) Deadline() (time.Time, bool) { return time.Now(), true }

func TestNodeThatDoesNotConnectInTimeIsLeftForAnother(t *testing.T) {
	p := new(piped)
	dial := func(ctx context.Context, network, a string) (net.Conn, error) {
		if a == addr(0) {
			<-ctx.Done()
			return nil, ctx.Err() // which must not pass for the caller's
		}
		return p.dial(ctx, network, a)
	}
	inBubble(t, exact(first(balancer.Config{Dial: dial})), endpoints(2), func(t *testing.T, r *rig) {
		began := time.Now()
		c := dialed(t, r.Balancer)
		require.Equal(t, time.Second, time.Since(began))
		require.Equal(t, 1, p.of(addr(1)))
		require.Equal(t, int64(1), failuresOf(r.node(addr(0))))
		require.NoError(t, c.Close())
	})
}

func TestTimeToConnectIsTheLatency(t *testing.T) {
	p := &piped{took: func(string) time.Duration { return 20 * time.Millisecond }}
	inBubble(t, exact(balancer.Config{Dial: p.dial}), endpoints(1), func(t *testing.T, r *rig) {
		c := dialed(t, r.Balancer)
		time.Sleep(time.Second)
		require.NoError(t, c.Close())
		latency, ok := r.node(addr(0)).Latency(time.Now())
		require.True(t, ok)
		require.InDelta(t, 20*time.Millisecond, latency, float64(3*time.Millisecond))
	})
}

func TestCostOfConnectionsSpreadsThemByWeight(t *testing.T) {
	p := &piped{took: func(a string) time.Duration {
		if a == addr(0) {
			return 50 * time.Millisecond // slow to connect to, but no worse for that
		}
		return time.Millisecond
	}}
	list := endpoints(3)
	list[2].Weight = 2
	cfg := balancer.Config{Dial: p.dial, Policy: balancer.P2C{Cost: balancer.Connections{}, Rand: rand.NewPCG(1, 2)}}
	inBubble(t, exact(cfg), list, func(t *testing.T, r *rig) {
		var conns []net.Conn
		for range 40 {
			conns = append(conns, dialed(t, r.Balancer))
		}
		require.InDelta(t, 10, p.of(addr(0)), 2)
		require.InDelta(t, 10, p.of(addr(1)), 2)
		require.InDelta(t, 20, p.of(addr(2)), 2)
		for _, c := range conns {
			require.NoError(t, c.Close())
		}
	})
}

func TestDialerThatPanicsOrExitsGivesTheLeaseBack(t *testing.T) {
	backstaytest.CheckLeaks(t)
	for _, fallback := range [][]string{nil, {"10.9.9.9:80"}} {
		exit := false
		dial := func(context.Context, string, string) (net.Conn, error) {
			if exit {
				runtime.Goexit()
			}
			panic("boom")
		}
		b := overTCP(t, balancer.Config{Dial: dial}, discovery.Endpoint{Addr: addr(0), Fallback: fallback})
		require.PanicsWithValue(t, "boom", func() { _, _ = b.DialContext(t.Context(), "tcp", "orders:1") })
		idle(t, b.Nodes())
		require.Equal(t, int64(1), failuresOf(b.Nodes()[0]))
		exit = true
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, err := b.DialContext(t.Context(), "tcp", "orders:1")
			if err == nil {
				t.Error("no error")
			}
		}()
		<-ended
		idle(t, b.Nodes())
		require.Equal(t, int64(2), failuresOf(b.Nodes()[0]))
	}
}

func TestDialTakesThePortFromTheAddressWhereTheEndpointHasNone(t *testing.T) {
	var got []string
	dial := func(_ context.Context, network, addr string) (net.Conn, error) {
		got = append(got, network+" "+addr)
		return nil, errDown
	}
	for _, c := range []struct{ endpoint, network, addr, want string }{
		{"10.0.0.1", "tcp", "cache:6379", "tcp 10.0.0.1:6379"},
		{"10.0.0.1:7000", "tcp4", "cache:6379", "tcp4 10.0.0.1:7000"},
		{"::1", "tcp6", "cache:6379", "tcp6 [::1]:6379"},
		{"10.0.0.1:7000", "tcp", "cache", "tcp 10.0.0.1:7000"},
		{"10.0.0.1:7000", "unix", "/run/db.sock", "tcp 10.0.0.1:7000"},
		{"unix:/run/db.sock", "tcp", "db:5432", "unix /run/db.sock"},
	} {
		got = nil
		b := overTCP(t, balancer.Config{Dial: dial}, discovery.Endpoint{Addr: c.endpoint})
		_, err := b.DialContext(t.Context(), c.network, c.addr)
		require.ErrorIs(t, err, errDown)
		require.Equal(t, []string{c.want}, got)
	}
	got = nil
	b := overTCP(t, balancer.Config{Dial: dial}, discovery.Endpoint{Addr: "10.0.0.1"})
	_, err := b.DialContext(t.Context(), "tcp", "cache")
	require.ErrorContains(t, err, "no port")
	require.Empty(t, got)
	require.Zero(t, failuresOf(b.Nodes()[0]), "which is not the node's fault")
	idle(t, b.Nodes())
}

func TestDialerThatReturnsNothingHasFailed(t *testing.T) {
	b := newStatic(t, 2, &balancer.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, nil }})
	_, err := b.DialContext(t.Context(), "tcp", "orders:1")
	require.ErrorContains(t, err, "neither a connection nor an error")
	idle(t, b.Nodes())
	for _, n := range b.Nodes() {
		require.Equal(t, int64(1), failuresOf(n))
	}
}
