package balancer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

func TestLayerOverClientConnsIsATransport(t *testing.T) {
	for name, conns := range map[string]balancer.ConnConfig{
		"plain": {}, "with connections ahead": {Min: 2, MaxRequests: 20, HTTP2Conns: 2, MaxAge: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			conns.ClientConns = balancer.On
			skip := []string{"request reaches the transport as it was"} // as in TestLayerIsATransport
			if conns.Min > 0 {
				skip = append(skip, "connections are used again", "HTTP/2 shares a connection")
			}
			layer := func(next http.RoundTripper) http.RoundTripper {
				return &byHost{t: t, cfg: balancer.Config{Conns: conns}, next: next, layers: make(map[string]http.RoundTripper)}
			}
			backstaytest.TestTransport(t, layer, &backstaytest.TransportOptions{Skip: skip, Patience: time.Minute})
		})
	}
}

func TestReplacingClientConnsLosesNoCall(t *testing.T) {
	for name, conns := range map[string]balancer.ConnConfig{
		"by age":             {MaxAge: 5 * time.Millisecond},
		"by calls":           {MaxRequests: 3},
		"with some in stock": {MaxAge: 20 * time.Millisecond, Min: 4},
		"over several":       {MaxRequests: 5, HTTP2Conns: 3},
		"within a bound":     {MaxRequests: 5, Max: 4},
	} {
		t.Run(name, func(t *testing.T) {
			overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
				conns.ClientConns = balancer.On
				c := newCaller(t, 2, backstaytest.FleetConfig{Protocol: p, Handler: echo}, balancer.Config{Conns: conns}, nil)
				var wg sync.WaitGroup
				var calls atomic.Int64
				stop := time.Now().Add(100 * time.Millisecond)
				for range 16 {
					wg.Go(func() {
						for time.Now().Before(stop) || c.fleet.Stats().Connections <= 4 {
							resp, err := c.rt.RoundTrip(c.request(t.Context(), http.MethodPost, "/", once("hello")))
							if err != nil {
								t.Error(err)
								return
							}
							if data, err := io.ReadAll(resp.Body); err != nil || !bytes.HasSuffix(data, []byte("body=hello")) {
								t.Errorf("%s: %v", data, err)
							}
							_ = resp.Body.Close()
							calls.Add(1)
						}
					})
				}
				wg.Wait()
				require.EqualValues(t, c.fleet.Stats().Requests, calls.Load())
				require.Greater(t, c.fleet.Stats().Connections, 4, "they are replaced")
				c.settled()
			})
		})
	}
}

// Net/http flushes each request's head, and its body, by itself.
func TestRequestsOfAMomentAreOneWriteOverH2C(t *testing.T) {
	var slow slowWrites
	c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: backstaytest.H2C, Handler: echo}, balancer.Config{}, func(tr *http.Transport) {
		tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, network, addr)
			return &slowConn{nc, &slow}, err
		}
	})
	c.fetch("/")
	slow.count.Store(0)
	slow.by.Store(int64(50 * time.Millisecond))
	const calls = 20
	var all sync.WaitGroup
	for range calls {
		all.Go(func() {
			resp, err := c.rt.RoundTrip(c.request(t.Context(), http.MethodPost, "/", strings.NewReader("hello")))
			if err != nil {
				t.Error(err)
				return
			}
			if text := read(t, resp); !strings.HasSuffix(text, "body=hello") {
				t.Error(text)
			}
		})
	}
	all.Wait()
	require.Equal(t, 1, c.fleet.Stats().Connections)
	require.Less(t, int(slow.count.Load()), calls, "not two for each")
}

// slowWrites is how long connections' writes take, and how many there have been.
type slowWrites struct{ by, count atomic.Int64 }

type slowConn struct {
	net.Conn
	of *slowWrites
}

func (c *slowConn) Write(p []byte) (int, error) {
	c.of.count.Add(1)
	time.Sleep(time.Duration(c.of.by.Load()))
	return c.Conn.Write(p)
}

func TestClientConnsOfServersThatShutDownLoseNoCallThatMayBeRepeated(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		c := newCaller(t, 4, backstaytest.FleetConfig{Protocol: p, Handler: echo}, balancer.Config{Conns: balancer.ConnConfig{ClientConns: balancer.On}}, nil)
		more, stop := c.crowdOf(func(req *http.Request) error {
			if p == backstaytest.HTTP1 { // whose servers close idle connections without a word
				req.Header.Set("Idempotency-Key", "x")
			}
			var err error
			for range 1000 { // while the dead are in the majority, it may take some
				if err = c.try(req); err == nil {
					return nil
				}
				o := outcome.HTTP(req, nil, err)
				if !outcome.Refused(err) && o.Retry != outcome.Always && (o.Retry != outcome.IfIdempotent || !outcome.Idempotent(req)) {
					return err
				}
				req = req.Clone(req.Context())
				req.Body, _ = req.GetBody()
			}
			return err
		})
		defer stop()
		for i := range 3 {
			more()
			shutDown(t, c.fleet.Server(i))
		}
		more()
		stop()
		c.settled()
	})
}

func TestClientConnsOfServersThatLeaveInGoodOrderLoseNoCall(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		c := newCaller(t, 3, backstaytest.FleetConfig{Protocol: p, Handler: echo}, balancer.Config{Conns: balancer.ConnConfig{ClientConns: balancer.On}}, nil)
		more, stop := c.crowdOf(func(req *http.Request) error {
			req.GetBody = nil
			return c.try(req)
		})
		defer stop()
		for i := range 2 {
			more()
			leaving := c.fleet.Server(i)
			c.fleet.Unlist(leaving)
			eventually(t, func() bool { return leaving.Stats().OpenConnections == 0 }, "its connections are not closed")
			shutDown(t, leaving)
		}
		more()
		stop()
		c.settled()
	})
}

// goAways is an h2c server that answers the first request of a connection by
// GOAWAY, on all connections but those from the good one on.
func goAways(t *testing.T, last uint32, good int32) (addr string, seen *atomic.Int32) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	seen = new(atomic.Int32)
	var work sync.WaitGroup
	t.Cleanup(work.Wait)
	t.Cleanup(func() { _ = listener.Close() })
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	work.Go(func() {
		for n := int32(1); ; n++ {
			nc, err := listener.Accept()
			if err != nil {
				return
			}
			if n >= good {
				work.Go(func() { new(http2.Server).ServeConn(nc, &http2.ServeConnOpts{Handler: answer}) }) //nolint:staticcheck // it serves one connection
				continue
			}
			work.Go(func() {
				defer nc.Close()
				_, _ = io.CopyN(io.Discard, nc, int64(len(http2.ClientPreface)))
				f := http2.NewFramer(nc, nc)
				_ = f.WriteSettings()
				for {
					frame, err := f.ReadFrame()
					if err != nil {
						return
					}
					switch frame.(type) {
					case *http2.SettingsFrame:
						if !frame.Header().Flags.Has(http2.FlagSettingsAck) {
							_ = f.WriteSettingsAck()
						}
					case *http2.HeadersFrame:
						seen.Add(1)
						_ = f.WriteGoAway(last, http2.ErrCodeNo, nil)
						if last > 0 {
							return
						}
					}
				}
			})
		}
	})
	return listener.Addr().String(), seen
}

// RFC 9113 §6.8: streams above the last one that a GOAWAY names have not been
// looked at, and may be sent again whatever they are.
func TestPostThatGoAwayDeclinesIsSentAgainOverAnotherClientConn(t *testing.T) {
	for name, test := range map[string]struct {
		body    func() io.Reader
		last    uint32
		well    bool
		notSent bool
	}{
		"with a body that can be had again": {body: func() io.Reader { return strings.NewReader("hello") }, well: true},
		"with another body":                 {body: func() io.Reader { return once("hello") }, notSent: true},
		"that may have been looked at":      {body: func() io.Reader { return strings.NewReader("hello") }, last: 1},
	} {
		t.Run(name, func(t *testing.T) {
			backstaytest.CheckLeaks(t)
			addr, seen := goAways(t, test.last, 2)
			b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{Addr: addr}), unhurried(balancer.Config{H2C: true, Conns: balancer.ConnConfig{ClientConns: balancer.On}}))
			require.NoError(t, err)
			defer b.Close()
			rt := b.Layer(&http.Transport{})
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://orders/", test.body())
			require.NoError(t, err)
			resp, err := rt.RoundTrip(req)
			require.EqualValues(t, 1, seen.Load())
			if !test.well {
				require.Error(t, err)
				require.Equal(t, test.notSent, outcome.NotSent(err), err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, "hello", read(t, resp))
		})
	}
}

func TestServerThatAlwaysSaysGoAwayIsNotAskedForEver(t *testing.T) {
	backstaytest.CheckLeaks(t)
	addr, seen := goAways(t, 0, 1<<30)
	b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{Addr: addr}), unhurried(balancer.Config{H2C: true, Conns: balancer.ConnConfig{ClientConns: balancer.On}}))
	require.NoError(t, err)
	defer b.Close()
	_, err = getFrom(t, b.Layer(&http.Transport{}), "http://orders/")
	require.True(t, outcome.NotSent(err), err)
	require.EqualValues(t, 6, seen.Load())
}

// counting is a handler that counts calls by connection, and how many there are at
// once.
type counting struct {
	mu          sync.Mutex
	calls, most map[string]int
	now         map[string]int
	hold        time.Duration
}

func newCounting(hold time.Duration) *counting {
	return &counting{calls: make(map[string]int), most: make(map[string]int), now: make(map[string]int), hold: hold}
}

func (c *counting) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.calls[r.RemoteAddr]++
	c.now[r.RemoteAddr]++
	c.most[r.RemoteAddr] = max(c.most[r.RemoteAddr], c.now[r.RemoteAddr])
	c.mu.Unlock()
	if c.hold > 0 {
		<-time.After(c.hold)
	}
	c.mu.Lock()
	c.now[r.RemoteAddr]--
	c.mu.Unlock()
}

func TestClientConnsAreNotGivenMoreStreamsThanTheServerAllows(t *testing.T) {
	backstaytest.CheckLeaks(t)
	count := newCounting(100 * time.Millisecond)
	server := &http.Server{Handler: count, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 4}, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{Addr: listener.Addr().String()}), unhurried(balancer.Config{H2C: true, Conns: balancer.ConnConfig{ClientConns: balancer.On}}))
	require.NoError(t, err)
	defer b.Close()
	rt := b.Layer(&http.Transport{})
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if resp, err := getFrom(t, rt, "http://orders/"); err != nil {
				t.Error(err)
			} else {
				_ = resp.Body.Close()
			}
		})
	}
	wg.Wait()
	calls := 0
	for conn, n := range count.calls {
		calls += n
		require.LessOrEqual(t, count.most[conn], 4)
	}
	require.Equal(t, 40, calls, "none was refused and sent again")
	require.GreaterOrEqual(t, len(count.calls), 2, "and they did not all queue for one connection")
}

func TestClientConnTakesExactlySoManyCalls(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		count := newCounting(0)
		c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: p, Handler: count}, balancer.Config{Conns: balancer.ConnConfig{MaxRequests: 10, ClientConns: balancer.On}}, nil)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 50 {
					c.fetch("/")
				}
			})
		}
		wg.Wait()
		complete := 0
		for conn, n := range count.calls {
			require.LessOrEqual(t, n, 12, conn)
			if n >= 8 {
				complete++
			}
		}
		require.GreaterOrEqual(t, complete, 400/12-8, "%v", count.calls)
		eventually(t, func() bool { return c.fleet.Stats().OpenConnections <= 8 }, "the old ones stay open")
	})
}

// Whatever was used last is mostly the connection to the slowest: golang/go#34511.
func TestClientConnsOfHTTP1AreUsedInTurn(t *testing.T) {
	const conns = 4
	count := newCounting(0)
	var together sync.WaitGroup // so that each has a connection of its own
	together.Add(conns)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count.ServeHTTP(w, r)
		if r.URL.Path == "/together" {
			together.Done()
			together.Wait()
		}
	})
	c := newCaller(t, 1, backstaytest.FleetConfig{Handler: handler}, balancer.Config{Conns: balancer.ConnConfig{ClientConns: balancer.On}}, nil)
	var wg sync.WaitGroup
	for range conns {
		wg.Go(func() { c.fetch("/together") })
	}
	wg.Wait()
	count.mu.Lock()
	require.Len(t, count.calls, conns)
	clear(count.calls)
	count.mu.Unlock()
	for range 4 * conns {
		c.fetch("/")
	}
	require.Len(t, count.calls, conns)
	for conn, n := range count.calls {
		require.Equal(t, 4, n, conn)
	}
}

func TestClientConnIsRetiredAtItsOwnAge(t *testing.T) {
	cfg := balancer.Config{Conns: balancer.ConnConfig{MaxAge: 10 * time.Second, ClientConns: balancer.On}, AttemptTimeout: -1}
	virtually(t, 1, drip, cfg, func(t *testing.T, c *caller) {
		busy := c.get("/") // for ten seconds
		time.Sleep(8 * time.Second)
		c.fetch("/fast") // over a second connection
		require.Equal(t, 2, c.fleet.Stats().Connections)
		time.Sleep(4 * time.Second) // the first is over its age
		require.Equal(t, strings.Repeat("line\n", 10), read(t, busy))
		synctest.Wait()
		require.Equal(t, 1, c.fleet.Stats().OpenConnections, "the second is younger")
		c.fetch("/fast")
		require.Equal(t, 2, c.fleet.Stats().Connections)
		time.Sleep(8 * time.Second)
		synctest.Wait()
		require.Zero(t, c.fleet.Stats().OpenConnections)
		c.fetch("/fast")
	})
}

func TestClientConnsHeedTheTemplatesIdleLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := balancer.Config{Conns: balancer.ConnConfig{ClientConns: balancer.On}}
		c := newCaller(t, 1, backstaytest.FleetConfig{Network: backstaytest.NewNetwork(), Handler: http.HandlerFunc(drip)}, cfg, func(tr *http.Transport) {
			tr.MaxIdleConnsPerHost, tr.IdleConnTimeout = 2, 30*time.Second
		})
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { c.fetch("/") })
		}
		wg.Wait()
		synctest.Wait()
		require.Equal(t, 2, c.fleet.Stats().OpenConnections)
		for range 10 { // both are in use, in turn
			time.Sleep(10 * time.Second)
			c.fetch("/fast")
		}
		require.Equal(t, 2, c.fleet.Stats().OpenConnections)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		require.Zero(t, c.fleet.Stats().OpenConnections)
	})
}

// It is noticed before a request is risked: this one could not be repeated.
func TestClientConnThatTheServerHasClosedIsNotUsed(t *testing.T) {
	virtually(t, 1, nil, balancer.Config{Conns: balancer.ConnConfig{ClientConns: balancer.On}}, func(t *testing.T, c *caller) {
		for range 5 {
			c.fleet.Server(0).Kill()
			c.fleet.Server(0).Restart()
			synctest.Wait()
			require.NoError(t, c.try(c.request(t.Context(), http.MethodPost, "/", once("hello"))))
		}
	})
}

func TestTraceThatPanicsDoesNotKeepTheClientConn(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: p}, balancer.Config{Conns: balancer.ConnConfig{Max: 1, ClientConns: balancer.On}}, nil)
		require.NoError(t, c.try(c.request(t.Context(), http.MethodGet, "/", nil)))
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { panic("oops") }})
		require.PanicsWithValue(t, "oops", func() { _ = c.try(c.request(ctx, http.MethodGet, "/", nil)) })
		require.NoError(t, c.try(c.request(t.Context(), http.MethodGet, "/", nil)))
		require.Equal(t, 1, c.fleet.Stats().OpenConnections)
		require.Zero(t, c.InFlight())
	})
}

// hangsUp is a server that closes each connection at its second request.
func hangsUp(t *testing.T) (addr string, requests *atomic.Int32) {
	t.Helper()
	requests = new(atomic.Int32)
	var mu sync.Mutex
	before := make(map[string]bool)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		mu.Lock()
		again := before[r.RemoteAddr]
		before[r.RemoteAddr] = true
		mu.Unlock()
		if again {
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String(), requests
}

func TestClientConnThatEndsUnderACallIsReplacedWhereNetHTTPWould(t *testing.T) {
	for name, test := range map[string]struct {
		method string
		key    bool
		well   bool
	}{
		"GET":             {method: http.MethodGet, well: true},
		"POST":            {method: http.MethodPost},
		"POST with a key": {method: http.MethodPost, key: true, well: true},
	} {
		t.Run(name, func(t *testing.T) {
			addr, requests := hangsUp(t)
			b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{Addr: addr}), unhurried(balancer.Config{Conns: balancer.ConnConfig{ClientConns: balancer.On}}))
			require.NoError(t, err)
			defer b.Close()
			rt := b.Layer(&http.Transport{})
			call := func() error {
				req, err := http.NewRequestWithContext(t.Context(), test.method, "http://orders/", strings.NewReader("hello"))
				require.NoError(t, err)
				if test.key {
					req.Header.Set("Idempotency-Key", "x")
				}
				resp, err := rt.RoundTrip(req)
				if err == nil {
					read(t, resp)
				}
				return err
			}
			require.NoError(t, call())
			err = call()
			if test.well {
				require.NoError(t, err)
				require.EqualValues(t, 3, requests.Load())
				return
			}
			require.ErrorIs(t, err, io.EOF)
			require.False(t, outcome.NotSent(err))
			require.EqualValues(t, 2, requests.Load())
		})
	}
}

func TestClientConnsFollowTheirNodesAddress(t *testing.T) {
	backstaytest.CheckLeaks(t)
	server := func(name string) (*httptest.Server, string) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }))
		t.Cleanup(s.Close)
		return s, s.Listener.Addr().String()
	}
	_, before := server("before")
	_, after := server("after")
	f := newFeed(discovery.Endpoint{ID: "a", Addr: before})
	b, err := balancer.New("orders", f, unhurried(balancer.Config{Conns: balancer.ConnConfig{ClientConns: balancer.On}}))
	require.NoError(t, err)
	defer b.Close()
	rt := b.Layer(&http.Transport{})
	fetch := func() string {
		resp, err := getFrom(t, rt, "http://orders/")
		require.NoError(t, err)
		return read(t, resp)
	}
	require.Equal(t, "before", fetch())
	f.yield(discovery.Endpoint{ID: "a", Addr: after})
	eventually(t, func() bool { return fetch() == "after" }, "calls go where the node was")
	eventually(t, func() bool { return b.Snapshot().Nodes[0].Conns == 1 }, "the old connection stays open")
}

// golang/go#80680: net/http calls the state hook from within Reserve and Release.
func TestClientConnsUnderStress(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		conns := balancer.ConnConfig{ClientConns: balancer.On, Max: 6, MaxRequests: 20, Min: 2, HTTP2Conns: 2}
		c := newCaller(t, 2, backstaytest.FleetConfig{Protocol: p, Handler: echo}, balancer.Config{Conns: conns}, nil)
		var wg sync.WaitGroup
		stop := time.Now().Add(200 * time.Millisecond)
		var answers atomic.Int64
		for range 24 {
			wg.Go(func() {
				for time.Now().Before(stop) || answers.Load() == 0 {
					ctx, cancel := t.Context(), context.CancelFunc(func() {})
					if rand.IntN(3) == 0 {
						ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(2000))*time.Microsecond)
					}
					resp, err := c.rt.RoundTrip(c.request(ctx, http.MethodPost, "/", strings.NewReader("hello")))
					switch {
					case err == nil && rand.IntN(3) == 0:
						_ = resp.Body.Close()
					case err == nil:
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
						answers.Add(1)
					case ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded):
						t.Error(err)
					}
					cancel()
				}
			})
		}
		wg.Go(func() {
			for time.Now().Before(stop) {
				c.rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
				<-time.After(5 * time.Millisecond)
			}
		})
		wg.Wait()
		require.Positive(t, answers.Load())
		c.settled()
		require.NoError(t, c.Close())
		eventually(t, func() bool { return c.fleet.Stats().OpenConnections == 0 }, "connections are left")
	})
}

func TestClientConnsAllocateNoMoreThanNetHTTPsPool(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.H2C} {
		t.Run(p.String(), func(t *testing.T) {
			count := func(conns balancer.ConnConfig) float64 {
				c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: p}, balancer.Config{Conns: conns}, nil)
				req := c.request(t.Context(), http.MethodGet, "/", nil)
				return testing.AllocsPerRun(200, func() {
					if err := c.try(req); err != nil {
						t.Fatal(err)
					}
				})
			}
			pool, own := count(balancer.ConnConfig{ClientConns: balancer.Off}), count(balancer.ConnConfig{ClientConns: balancer.On})
			t.Logf("%.0f with net/http's pool, %.0f with ours", pool, own)
			require.LessOrEqual(t, own, pool)
		})
	}
}
