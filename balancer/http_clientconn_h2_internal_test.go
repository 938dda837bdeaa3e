package balancer

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/discovery"
)

// h2cNode is a node in memory that speaks HTTP/2 without TLS. It is for bubbles.
type h2cNode struct {
	t       *testing.T
	streams int // on each connection
	handler http.HandlerFunc

	mu     sync.Mutex
	server *http.Server
	in     *memory
	dials  int
	open   map[*memoryConn]struct{} // on the caller's side

	b *Balancer
	l *transport
}

// memory is a listener.
type memory struct {
	c    chan net.Conn
	done chan struct{}
	once sync.Once
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case nc := <-m.c:
		return nc, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error   { m.once.Do(func() { close(m.done) }); return nil }
func (m *memory) Addr() net.Addr { return &net.TCPAddr{} }

type memoryConn struct {
	net.Conn
	n *h2cNode
}

func (c *memoryConn) Close() error {
	c.n.mu.Lock()
	delete(c.n.open, c)
	c.n.mu.Unlock()
	return c.Conn.Close()
}

// newH2CNode begins a node that allows so many streams on each connection. Without
// any, HTTP/1.1 is spoken to it.
func newH2CNode(t *testing.T, streams int, conns ConnConfig, handler http.HandlerFunc) *h2cNode {
	t.Helper()
	n := &h2cNode{t: t, streams: streams, handler: handler, open: make(map[*memoryConn]struct{})}
	n.serve()
	conns.ClientConns = On
	cfg := &Config{H2C: streams > 0, AttemptTimeout: -1, Conns: conns}
	var err error
	n.b, err = New("orders", discovery.Static(discovery.Endpoint{Addr: "10.0.0.1:80"}), cfg)
	require.NoError(t, err)
	n.l = n.b.Layer(&http.Transport{DialContext: n.dial}).(*transport) //nolint:forcetypeassert // it is
	return n
}

// serve starts a server, in place of the one before.
func (n *h2cNode) serve() (before *http.Server) {
	in := &memory{c: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{
		Handler: n.handler, Protocols: new(http.Protocols),
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: n.streams},
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(in) }()
	n.mu.Lock()
	defer n.mu.Unlock()
	before, n.server, n.in = n.server, server, in
	return before
}

func (n *h2cNode) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	n.mu.Lock()
	in := n.in
	n.mu.Unlock()
	select {
	case in.c <- far:
	case <-in.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	nc := &memoryConn{near, n}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dials++
	n.open[nc] = struct{}{}
	return nc, nil
}

func (n *h2cNode) opened() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

func (n *h2cNode) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders"+path, nil)
	if err != nil {
		return nil, err
	}
	return n.l.RoundTrip(req)
}

func (n *h2cNode) pool() *pool { return n.l.conn(n.b.Nodes()[0]).own.last.Load() }

// quiet requires, when no call is under way, that nothing is left of any.
func (n *h2cNode) quiet() {
	n.t.Helper()
	p := n.pool()
	p.mu.Lock()
	defer p.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	require.Zero(n.t, p.inHand)
	require.Zero(n.t, p.dialing)
	require.Zero(n.t, p.landed)
	require.Empty(n.t, p.waiting)
	require.Len(n.t, n.open, len(p.members), "who is no member any more is closed")
	require.Len(n.t, p.free, len(p.members), "and the members have room")
}

// stop closes the balancer and then the server.
func (n *h2cNode) stop() {
	n.t.Helper()
	p := n.pool()
	start := time.Now()
	require.NoError(n.t, n.b.Close())
	require.Less(n.t, time.Since(start), time.Second)
	synctest.Wait()
	n.mu.Lock()
	require.Empty(n.t, n.open)
	server := n.server
	n.mu.Unlock()
	require.NoError(n.t, server.Close())
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Zero(n.t, p.inHand)
	require.Zero(n.t, p.dialing)
	require.Empty(n.t, p.waiting)
	require.Empty(n.t, p.members)
	require.Empty(n.t, p.free)
}

// gated is a handler whose answer to a path in gates ends when its gate is closed.
func gated(gates map[string]chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hello")
		_ = http.NewResponseController(w).Flush()
		if gate := gates[r.URL.Path]; gate != nil {
			<-gate
		}
	}
}

// ask makes a call on a goroutine of its own, and returns what it ends with.
func (n *h2cNode) ask(ctx context.Context, path string) <-chan error {
	done := make(chan error, 1)
	go func() {
		resp, err := n.get(ctx, path)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
		}
		done <- err
	}()
	return done
}

// within requires that the call succeeds before long.
func within(t *testing.T, done <-chan error, message string) {
	t.Helper()
	select {
	case err := <-done:
		require.NoError(t, err, message)
	case <-time.After(time.Second):
		require.Fail(t, message)
	}
}

func (n *h2cNode) member() *clientConn {
	p := n.pool()
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Len(n.t, p.members, 1)
	for m := range p.members {
		return m
	}
	return nil
}

// openConns is how many connections are open.
func (n *h2cNode) openConns() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.open)
}

func TestFullClientConnsOfHTTP2AreNotReplaced(t *testing.T) {
	for name, callers := range map[string]int{"hardly full": 14, "mostly full": 64} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newH2CNode(t, 5, ConnConfig{Max: 3}, func(http.ResponseWriter, *http.Request) {
					for range rand.N(50) {
						runtime.Gosched()
					}
				})
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for range 1000 / callers {
							if err := <-n.ask(t.Context(), "/"); err != nil {
								t.Error(err)
							}
						}
					})
				}
				wg.Wait()
				synctest.Wait()
				n.quiet()
				require.LessOrEqual(t, n.opened(), 3)
				n.stop()
			})
		})
	}
}

// newFullNode begins a node whose only connection carries as many calls as it may, which
// end with their gates, and a third one that waits.
func newFullNode(t *testing.T) (n *h2cNode, gates map[string]chan struct{}, first, second, third <-chan error) {
	t.Helper()
	gates = map[string]chan struct{}{"/1": make(chan struct{}), "/2": make(chan struct{})}
	n = newH2CNode(t, 2, ConnConfig{Max: 1}, gated(gates))
	first, second = n.ask(t.Context(), "/1"), n.ask(t.Context(), "/2")
	synctest.Wait()
	third = n.ask(t.Context(), "/")
	synctest.Wait()
	return n, gates, first, second, third
}

func TestFullClientConnOfHTTP2IsOfferedAgainWhenAStreamEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, gates, first, second, third := newFullNode(t)
		require.Empty(t, third, "there is no room")
		close(gates["/2"])
		within(t, second, "it has ended")
		synctest.Wait() // no time passes
		require.NotEmpty(t, third)
		within(t, third, "there is room")
		synctest.Wait()
		require.False(t, n.member().hooked.Load(), "nobody waits any more")
		close(gates["/1"])
		within(t, first, "it has ended")
		synctest.Wait()
		n.quiet()
		require.Equal(t, 1, n.opened())
		n.stop()
	})
}

// While a hook runs, and until net/http has had its next look, it forgets what happens.
func TestRoomThatNetHTTPDoesNotTellOfIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gates := map[string]chan struct{}{"/1": make(chan struct{}), "/2": make(chan struct{})}
		n := newH2CNode(t, 2, ConnConfig{Max: 1}, gated(gates))
		first := n.ask(t.Context(), "/1")
		synctest.Wait()
		m, out := n.member(), make(chan struct{})
		m.cc.SetStateHook(func(*http.ClientConn) { <-out })
		require.NoError(t, m.cc.Reserve())
		go m.cc.Release() // runs the hook
		synctest.Wait()
		second := n.ask(t.Context(), "/2")
		synctest.Wait()
		third := n.ask(t.Context(), "/")
		synctest.Wait()
		close(gates["/2"])
		within(t, second, "it has ended")
		synctest.Wait()
		close(out)
		within(t, third, "there is room")
		close(gates["/1"])
		within(t, first, "it has ended")
		n.stop()
	})
}

func TestClientConnOfHTTP1ThatNetHTTPDoesNotTellOfIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newH2CNode(t, 0, ConnConfig{Max: 1}, gated(nil))
		within(t, n.ask(t.Context(), "/"), "the first")
		synctest.Wait()
		p := n.pool()
		p.mu.Lock()
		p.remove(0) // as if its hook had not been run
		p.mu.Unlock()
		within(t, n.ask(t.Context(), "/"), "there is room")
		synctest.Wait()
		n.quiet()
		require.Equal(t, 1, n.opened())
		n.stop()
	})
}

func TestCallDoesNotWaitForTheLastStreamOfAClientConnThatGetsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, gates, first, second, third := newFullNode(t)
		before, down := n.serve(), make(chan error)
		go func() { down <- before.Shutdown(context.Background()) }() // says GOAWAY
		time.Sleep(time.Second)
		close(gates["/2"])
		within(t, second, "it has ended")
		within(t, third, "goes over another connection")
		require.Equal(t, 2, n.openConns())
		close(gates["/1"])
		within(t, first, "it has ended")
		require.NoError(t, <-down)
		synctest.Wait()
		n.quiet()
		n.stop()
	})
}

func TestClientConnOfHTTP2ThatHasJustBeenMadeIsCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newH2CNode(t, 5, ConnConfig{HTTP2Conns: 2}, gated(nil))
		within(t, n.ask(t.Context(), "/"), "the first")
		synctest.Wait()
		p := n.pool()
		p.mu.Lock()
		p.dialing, p.landed = 1, 1 // as before its dial has ended
		p.mu.Unlock()
		second := n.ask(t.Context(), "/")
		synctest.Wait()
		require.Empty(t, second, "it wants one of its own")
		p.mu.Lock()
		p.dialing, p.landed = 0, 0
		p.dialMore()
		p.mu.Unlock()
		within(t, second, "over another one")
		synctest.Wait()
		require.Equal(t, 2, n.opened())
		n.quiet()
		n.stop()
	})
}

func TestClientConnOfHTTP2ThatDiesWhileIdleIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newH2CNode(t, 2, ConnConfig{Min: 1}, gated(nil))
		within(t, n.ask(t.Context(), "/"), "the first")
		synctest.Wait()
		m := n.member()
		require.NoError(t, n.serve().Close())
		time.Sleep(time.Minute)
		require.NotSame(t, m, n.member())
		n.quiet()
		require.Equal(t, 2, n.opened())
		within(t, n.ask(t.Context(), "/"), "over the new one")
		require.Equal(t, 2, n.opened())
		n.stop()
	})
}

func TestRetiredClientConnOfHTTP2IsClosedWhenItsLastBodyEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gates := map[string]chan struct{}{"/long": make(chan struct{})}
		n := newH2CNode(t, 5, ConnConfig{MaxAge: time.Minute}, gated(gates))
		long := n.ask(t.Context(), "/long")
		time.Sleep(2 * time.Minute) // its age has come
		within(t, n.ask(t.Context(), "/"), "over another one")
		synctest.Wait()
		require.Equal(t, 2, n.openConns())
		close(gates["/long"])
		within(t, long, "it has ended")
		synctest.Wait() // no time passes
		require.Equal(t, 1, n.openConns())
		n.quiet()
		n.stop()
	})
}

func TestCallThatStopsWaitingHandsItsClientConnOn(t *testing.T) {
	for name, streams := range map[string]int{"HTTP/1.1": 0, "HTTP/2": 5} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newH2CNode(t, streams, ConnConfig{Max: 1}, gated(nil))
				within(t, n.ask(t.Context(), "/"), "the first")
				synctest.Wait()
				p, m := n.pool(), n.member()
				one, two := &waiter{ready: make(chan struct{})}, &waiter{ready: make(chan struct{})}
				p.mu.Lock()
				p.remove(0)
				calls := m.calls
				p.waiting = append(p.waiting, one, two)
				p.mu.Unlock()
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
				require.NoError(t, err)

				p.offer(m, false)
				require.Same(t, m, one.m)
				require.ErrorIs(t, p.leave(one, req), context.Canceled)
				require.Same(t, m, two.m)
				require.ErrorIs(t, p.leave(two, req), context.Canceled)
				require.Equal(t, calls, m.calls)
				require.Zero(t, m.picks.Load())
				n.quiet()
				within(t, n.ask(t.Context(), "/"), "it is free")
				require.Equal(t, 1, n.opened())
				n.stop()
			})
		})
	}
}

func TestClientConnsOfHTTP2UnderStress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newH2CNode(t, 5, ConnConfig{Max: 3, MaxRequests: 30, MaxAge: 50 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "hello, ")
			_ = http.NewResponseController(w).Flush()
			if rand.IntN(2) == 0 {
				time.Sleep(time.Millisecond + rand.N(5*time.Millisecond))
			}
			_, _ = io.WriteString(w, "world")
		})
		var callers, servers sync.WaitGroup
		var answers atomic.Int64
		for range 64 {
			callers.Go(func() {
				for range 40 {
					ctx, cancel := context.WithCancel(t.Context())
					if rand.IntN(4) == 0 {
						time.AfterFunc(time.Millisecond+rand.N(4*time.Millisecond), cancel)
					}
					resp, err := n.get(ctx, "/")
					switch {
					case err != nil:
						if ctx.Err() == nil {
							t.Error(err)
						}
					case rand.IntN(4) == 0:
						_ = resp.Body.Close()
					default:
						time.Sleep(time.Millisecond + rand.N(5*time.Millisecond))
						data, err := io.ReadAll(resp.Body)
						if ctx.Err() == nil && (err != nil || string(data) != "hello, world") {
							t.Errorf("%q: %v", data, err)
						}
						_ = resp.Body.Close()
						answers.Add(1)
					}
					cancel()
				}
			})
		}
		over := make(chan struct{})
		servers.Go(func() {
			for {
				select {
				case <-over:
					return
				case <-time.After(20*time.Millisecond + rand.N(20*time.Millisecond)):
					before := n.serve()
					servers.Go(func() {
						if err := before.Shutdown(context.Background()); err != nil && !errors.Is(err, net.ErrClosed) {
							t.Error(err)
						}
					})
				}
			}
		})
		callers.Wait()
		close(over)
		servers.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		require.Positive(t, answers.Load())
		n.quiet()
		n.stop()
	})
}
