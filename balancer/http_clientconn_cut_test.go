package balancer_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// stalls is a handler whose answers stop at some point: /headers before, /body after
// the first line. /none has no body, /sized has its length told, and /open one that
// goes on when something is sent to more.
func stalls(more <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/headers":
			<-r.Context().Done()
		case "/none":
			w.WriteHeader(http.StatusNoContent)
		case "/sized":
			_, _ = io.WriteString(w, "answer")
		case "/body", "/open":
			_, _ = io.WriteString(w, "line\n")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-more:
				_, _ = io.WriteString(w, "end\n")
			case <-r.Context().Done():
			}
		}
	}
}

// bounds makes a call with bounds of a frame of its own, and reads the answer.
func (c *caller) bounds(path string, set func(*call.Frame)) error {
	c.t.Helper()
	ctx, frame := call.Push(c.t.Context(), call.ChainOf(c.rt), call.Info{Service: "orders", Start: time.Now()})
	set(frame)
	resp, err := c.rt.RoundTrip(c.request(ctx, http.MethodGet, path, nil))
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	return err
}

func TestTimeoutInAnyPhaseClosesTheConnectionOfItsOwnCallAlone(t *testing.T) {
	const bound = time.Second
	attempt := func(f *call.Frame) { f.SetAttemptTimeout(bound) }
	deadline := func(f *call.Frame) { f.SetDeadline(time.Now().Add(bound)) }
	idle := func(f *call.Frame) { f.SetBodyIdle(bound) }
	for name, test := range map[string]struct {
		path string
		max  int
		dark bool
		set  func(*call.Frame)
		kind error
		made int // connections, with that of the call beside
	}{
		"waiting for a connection":               {path: "/none", max: 1, set: attempt, kind: outcome.ErrAttemptTimeout, made: 1},
		"waiting for a connection, call timeout": {path: "/none", max: 1, set: deadline, kind: outcome.ErrCallTimeout, made: 1},
		"dialing":                                {path: "/none", dark: true, set: attempt, kind: outcome.ErrAttemptTimeout, made: 1},
		"headers":                                {path: "/headers", set: attempt, kind: outcome.ErrAttemptTimeout, made: 2},
		"headers, call timeout":                  {path: "/headers", set: deadline, kind: outcome.ErrCallTimeout, made: 2},
		"body idle":                              {path: "/body", set: idle, kind: outcome.ErrBodyIdle, made: 2},
		"body, call timeout":                     {path: "/body", set: deadline, kind: outcome.ErrCallTimeout, made: 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				more := make(chan struct{})
				network := backstaytest.NewNetwork()
				cfg := balancer.Config{AttemptTimeout: time.Hour, ConnectTimeout: time.Hour, Conns: balancer.ConnConfig{Max: test.max}}
				fleet := backstaytest.FleetConfig{Network: network, Handler: stalls(more)}
				c := newCaller(t, 1, fleet, cfg, nil)
				beside := c.get("/open")
				addr := c.Nodes()[0].Endpoint().Addr
				network.Blackhole(addr, test.dark)

				start := time.Now()
				err := c.bounds(test.path, test.set)
				require.InDelta(t, bound, time.Since(start), 1)
				var timeout *outcome.TimeoutError
				require.ErrorAs(t, err, &timeout)
				require.ErrorIs(t, err, test.kind)
				require.Equal(t, bound, timeout.After)
				require.False(t, outcome.NotSent(err))
				synctest.Wait()
				require.Equal(t, test.made, c.fleet.Stats().Connections)
				require.Equal(t, 1, c.fleet.Stats().OpenConnections, "what was cut is closed, and nothing else")
				require.Equal(t, 1, c.Snapshot().Nodes[0].Conns)
				require.Equal(t, 1, c.InFlight())

				network.Blackhole(addr, false)
				close(more)
				require.Equal(t, "line\nend\n", read(t, beside))
				requests := c.fleet.Stats().Requests
				require.Empty(t, c.fetch("/none"))
				require.Equal(t, requests+1, c.fleet.Stats().Requests, "nothing was sent again")
				c.settled()
			})
		})
	}
}

func TestTimeoutWhileTheRequestIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var far net.Conn
		b, err := balancer.New("orders", discovery.Static(endpoints(1)...), &balancer.Config{AttemptTimeout: time.Second})
		require.NoError(t, err)
		defer b.Close()
		rt := b.Layer(&http.Transport{DialContext: func(context.Context, string, string) (near net.Conn, _ error) {
			near, far = net.Pipe() // and nobody reads
			return near, nil
		}})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://orders/", strings.NewReader("hello"))
		require.NoError(t, err)
		start := time.Now()
		_, err = rt.RoundTrip(req)
		requireKind(t, err, outcome.ErrAttemptTimeout, time.Second)
		require.Equal(t, time.Second, time.Since(start))
		_, err = far.Write([]byte("x"))
		require.ErrorIs(t, err, io.ErrClosedPipe)
		synctest.Wait()
		require.Zero(t, b.Snapshot().Nodes[0].Conns)
	})
}

// slowToClose is a connection whose Close waits for something.
type slowToClose struct {
	net.Conn
	until <-chan struct{}
}

func (s slowToClose) Close() error {
	err := s.Conn.Close()
	<-s.until
	return err
}

func TestConnectionThatIsSlowToCloseHoldsUpNoTimeoutButItsOwn(t *testing.T) {
	backstaytest.CheckLeaks(t)
	b, err := balancer.New("orders", discovery.Static(endpoints(1)...), &balancer.Config{AttemptTimeout: 20 * time.Millisecond})
	require.NoError(t, err)
	defer b.Close()
	until := make(chan struct{})
	var dials atomic.Int32
	rt := b.Layer(&http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		near, _ := net.Pipe()
		if dials.Add(1) == 1 {
			return slowToClose{near, until}, nil
		}
		return near, nil
	}})
	over := make(chan error, 6)
	for range cap(over) {
		go func() {
			_, err := getFrom(t, rt, "http://orders/")
			over <- err
		}()
	}
	for i := range cap(over) {
		if i == cap(over)-1 {
			close(until)
		}
		requireKind(t, <-over, outcome.ErrAttemptTimeout, 20*time.Millisecond)
	}
}

func requireKind(t *testing.T, err, kind error, after time.Duration) {
	t.Helper()
	var timeout *outcome.TimeoutError
	require.ErrorAs(t, err, &timeout)
	require.ErrorIs(t, err, kind)
	require.Equal(t, after, timeout.After)
}

// In the fake time of a bubble answers and timeouts fall on the same moment.
func TestTimeoutsThatFallOnTheAnswerHitNoOtherCall(t *testing.T) {
	stress := func(t *testing.T, c *caller, tick time.Duration) {
		t.Helper()
		var wg sync.WaitGroup
		var answers, timeouts atomic.Int64
		for i := range 24 {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(i))) //nolint:gosec // no secret
				for range 100 {
					path := []string{"/none", "/sized", "/chunks"}[random.IntN(3)]
					set := func(*call.Frame) {}
					bounded := random.IntN(2) == 0
					if bounded {
						bound := 2 * tick
						set = []func(*call.Frame){
							func(f *call.Frame) { f.SetAttemptTimeout(bound) },
							func(f *call.Frame) { f.SetDeadline(time.Now().Add(bound)) },
							func(f *call.Frame) { f.SetBodyIdle(bound) },
						}[random.IntN(3)]
					}
					err := c.bounds(path, set)
					var timeout *outcome.TimeoutError
					switch {
					case err == nil:
						answers.Add(1)
					case bounded && errors.As(err, &timeout):
						timeouts.Add(1)
					default:
						t.Errorf("%s: %v", path, err)
						return
					}
				}
			})
		}
		wg.Wait()
		require.Positive(t, answers.Load())
		require.Positive(t, timeouts.Load())
		c.settled()
	}
	handler := func(tick time.Duration, wait func(time.Duration)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			wait(time.Duration(rand.IntN(5)) * tick)
			switch r.URL.Path {
			case "/none":
				w.WriteHeader(http.StatusNoContent)
			case "/sized":
				_, _ = io.WriteString(w, "answer")
			case "/chunks":
				_, _ = io.WriteString(w, "some")
				_ = http.NewResponseController(w).Flush()
				wait(time.Duration(rand.IntN(3)) * tick)
				_, _ = io.WriteString(w, "more")
			}
		}
	}
	cfg := balancer.Config{AttemptTimeout: time.Hour, Conns: balancer.ConnConfig{Max: 4}}
	cfg.Breaker.MinCalls = 1 << 30
	t.Run("in a bubble", func(t *testing.T) {
		virtually(t, 1, handler(time.Millisecond, time.Sleep), cfg, func(t *testing.T, c *caller) { stress(t, c, time.Millisecond) })
	})
	t.Run("over sockets", func(t *testing.T) {
		backstaytest.CheckLeaks(t)
		c := newCaller(t, 1, backstaytest.FleetConfig{Handler: handler(100*time.Microsecond, func(d time.Duration) { <-time.After(d) })}, cfg, nil)
		stress(t, c, 100*time.Microsecond)
	})
}

// hangers counts what hangs on a context that never ends.
type hangers struct {
	context.Context
	done chan struct{}
	mu   sync.Mutex
	n    int
}

func (h *hangers) Done() <-chan struct{} { return h.done }

// AfterFunc is what package context asks for.
func (h *hangers) AfterFunc(func()) (stop func() bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n++
	var once sync.Once
	return func() bool {
		once.Do(func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.n--
		})
		return true
	}
}

func TestFailuresLeaveNothingBehindInAContextThatLivesLong(t *testing.T) {
	virtually(t, 2, stalls(nil), balancer.Config{AttemptTimeout: time.Second}, func(t *testing.T, c *caller) {
		worker := &hangers{Context: context.Background(), done: make(chan struct{})}
		for range 20 {
			_, err := c.rt.RoundTrip(c.request(worker, http.MethodGet, "/headers", nil))
			requireKind(t, err, outcome.ErrAttemptTimeout, time.Second)
			time.Sleep(time.Minute)
		}
		require.LessOrEqual(t, worker.n, 2, "what the first has left, and what waits for its end")

		ctx, cancel := context.WithCancel(t.Context())
		_, err := c.rt.RoundTrip(c.request(ctx, http.MethodGet, "/headers", nil))
		require.Error(t, err)
		time.AfterFunc(time.Second/2, cancel)
		start := time.Now()
		_, err = c.rt.RoundTrip(c.request(ctx, http.MethodGet, "/headers", nil))
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, time.Second/2, time.Since(start))
		require.Empty(t, c.fetch("/none"))
		c.settled()
	})
}

func TestCallsThatAreOverAreForgottenByTheirConnections(t *testing.T) {
	more := make(chan struct{})
	c := newCaller(t, 1, backstaytest.FleetConfig{Handler: stalls(more)}, balancer.Config{Conns: balancer.ConnConfig{Max: 2}}, nil)
	var gone atomic.Int64
	const calls = 20
	for i := range calls {
		func() {
			ctx, frame := call.Push(t.Context(), call.ChainOf(c.rt), call.Info{Service: "orders", Start: time.Now()})
			path := []string{"/none", "/sized", "/body"}[i%3]
			if path == "/body" {
				frame.SetBodyIdle(time.Millisecond)
			}
			req := c.request(ctx, http.MethodGet, path, nil)
			runtime.AddCleanup(req, func(int) { gone.Add(1) }, 0)
			resp, err := c.rt.RoundTrip(req)
			require.NoError(t, err)
			_, err = io.ReadAll(resp.Body)
			if path == "/body" {
				require.ErrorIs(t, err, outcome.ErrBodyIdle)
			} else {
				require.NoError(t, err)
			}
			require.NoError(t, resp.Body.Close())
		}()
	}
	eventually(t, func() bool { runtime.GC(); return gone.Load() >= calls-2 }, "some are kept")
	require.NotZero(t, c.Snapshot().Nodes[0].Conns)
	c.settled()
}

// Both go to the same name: plain ones over pools of our own, the others over
// net/http's, made for the first of them.
func TestPlainAndSecureCallsOfOneServiceAndConnectionsAhead(t *testing.T) {
	for _, secureFirst := range []bool{false, true} {
		backstaytest.CheckLeaks(t)
		plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		secure := quietTLS()
		var dials atomic.Int32
		template := secure.Client().Transport.(*http.Transport).Clone()
		template.ForceAttemptHTTP2, template.Protocols = false, new(http.Protocols)
		template.Protocols.SetHTTP1(true)
		template.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			target := plain
			if strings.HasSuffix(addr, ":443") {
				target = secure
			}
			return new(net.Dialer).DialContext(ctx, network, target.Listener.Addr().String())
		}
		b, err := balancer.New("example.com", discovery.Static(discovery.Endpoint{Addr: "example.com"}), unhurried(balancer.Config{Conns: balancer.ConnConfig{Min: 2}}))
		require.NoError(t, err)
		rt := b.Layer(template)
		urls := []string{"http://example.com:80/", "https://example.com:443/"}
		if secureFirst {
			urls[0], urls[1] = urls[1], urls[0]
		}
		for _, url := range urls {
			for range 3 {
				resp, err := getFrom(t, rt, url)
				require.NoError(t, err)
				require.Empty(t, read(t, resp))
			}
		}
		if !secureFirst {
			// Two ahead by http, and by https the one that the calls have needed: none
			// is made that no call would be given.
			eventually(t, func() bool { return b.Snapshot().Nodes[0].Conns == 3 }, "%v", b.Snapshot().Nodes[0].Conns)
			<-time.After(50 * time.Millisecond)
			require.EqualValues(t, 3, dials.Load())
		}
		require.NoError(t, b.Close())
		plain.Close()
		secure.Close()
	}
}

func TestCloseAndRenewalWhileTheFirstSecureCallsAreMade(t *testing.T) {
	backstaytest.CheckLeaks(t)
	server := quietTLS()
	defer server.Close()
	addr := server.Listener.Addr().String()
	for range 20 {
		f := newFeed(discovery.Endpoint{ID: "a", Addr: addr, ServerName: "example.com"})
		b, err := balancer.New("orders", f, unhurried(balancer.Config{}))
		require.NoError(t, err)
		require.NoError(t, b.Ready(t.Context()))
		rt := b.Layer(server.Client().Transport)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if resp, err := getFrom(t, rt, "https://orders/"); err == nil {
					_ = resp.Body.Close()
				}
			})
		}
		wg.Go(func() { rt.(interface{ CloseIdleConnections() }).CloseIdleConnections() })
		wg.Go(func() { f.yield(discovery.Endpoint{ID: "a", Addr: addr, ServerName: "127.0.0.1"}) })
		wg.Go(func() { _ = b.Snapshot(); _ = b.Close() })
		wg.Wait()
		require.NoError(t, b.Close())
		_, err = getFrom(t, rt, "https://orders/")
		require.ErrorIs(t, err, balancer.ErrClosed)
	}
}

// quietTLS is a server that does not log each client that hangs up.
func quietTLS() *httptest.Server {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	return s
}
