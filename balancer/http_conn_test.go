package balancer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/outcome"
)

func TestConnConfigIsValidated(t *testing.T) {
	require.EqualError(t, balancer.Config{Conns: balancer.ConnConfig{Min: 3, Max: 2, HTTP2Conns: 4, PingTimeout: -1}}.Validate(),
		`balancer: Conns.Min is 3, want <= Conns.Max (2)
balancer: Conns.HTTP2Conns is 4, want <= Conns.Max (2)
balancer: Conns.PingTimeout is -1ns, want >= 0`)
	require.EqualError(t, balancer.Config{Conns: balancer.ConnConfig{HTTP2Conns: -1}}.Validate(), `balancer: Conns.HTTP2Conns is -1, want >= 0`)
	require.NoError(t, balancer.Config{Conns: balancer.ConnConfig{
		Min: -1, Max: -1, MaxAge: -1, MaxRequests: -1, PingInterval: -1, FallbackDelay: -1,
	}}.Validate())
	require.NoError(t, balancer.Config{Conns: balancer.ConnConfig{Min: 2, Max: 2, HTTP2Conns: 2}}.Validate())
}

func TestMaxBoundsANodesConnections(t *testing.T) {
	virtually(t, 1, drip, balancer.Config{AttemptTimeout: -1, Conns: balancer.ConnConfig{Max: 3}}, func(t *testing.T, c *caller) {
		start := time.Now()
		var wg sync.WaitGroup
		for range 9 {
			wg.Go(func() { c.fetch("/") })
		}
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, 3, c.fleet.Stats().OpenConnections)
		wg.Wait()
		require.Equal(t, 30*time.Second, time.Since(start))
		require.Equal(t, 3, c.fleet.Stats().Connections)
	})
}

func TestConnectionPastItsAgeFinishesWhatItHasAndTakesOneMoreCall(t *testing.T) {
	virtually(t, 1, drip, balancer.Config{Conns: balancer.ConnConfig{MaxAge: 5 * time.Second}}, func(t *testing.T, c *caller) {
		busy := c.get("/") // for ten seconds
		time.Sleep(6 * time.Second)
		c.fetch("/fast")
		require.Equal(t, 2, c.fleet.Stats().Connections)
		require.Equal(t, 2, c.fleet.Stats().OpenConnections)
		require.Equal(t, strings.Repeat("line\n", 10), read(t, busy))
		synctest.Wait()
		c.fetch("/fast")
		synctest.Wait()
		require.Equal(t, 1, c.fleet.Stats().OpenConnections, "and is closed after the next")
		require.Equal(t, 2, c.fleet.Stats().Connections)
	})
}

// Whoever gets no call at all is closed, too.
func TestConnectionThatIsIdleForTheWholeOfItsAgeIsClosed(t *testing.T) {
	const n = 40 // so many that they do not all draw an age of the same half
	virtually(t, n, drip, balancer.Config{Policy: balancer.RoundRobin{}, Conns: balancer.ConnConfig{MaxAge: 20 * time.Second}}, func(t *testing.T, c *caller) {
		for range n {
			c.fetch("/fast")
		}
		time.Sleep(16*time.Second - 1)
		synctest.Wait()
		require.Equal(t, n, c.fleet.Stats().OpenConnections)
		time.Sleep(4 * time.Second)
		synctest.Wait()
		require.Less(t, c.fleet.Stats().OpenConnections, n, "not all at once")
		require.Positive(t, c.fleet.Stats().OpenConnections)
		time.Sleep(4*time.Second + 1)
		synctest.Wait()
		require.Zero(t, c.fleet.Stats().OpenConnections)
		for range n {
			c.fetch("/fast")
		}
	})
}

// What counts connections is in a bubble: net/http gives one up whose write has not been
// reported to it 50 ms after the answer, as may happen on a busy machine.
func TestConnectionTakesSoManyCallsAndNoMore(t *testing.T) {
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.H2C} {
		t.Run(p.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				count := newCounting(0)
				fleet := backstaytest.FleetConfig{Protocol: p, Handler: count, Network: backstaytest.NewNetwork()}
				c := newCaller(t, 1, fleet, balancer.Config{Conns: balancer.ConnConfig{MaxRequests: 10}}, nil)
				for range 200 {
					c.fetch("/")
				}
				synctest.Wait()
				require.LessOrEqual(t, c.fleet.Stats().OpenConnections, 1, "the old ones stay open")
				require.Len(t, count.calls, c.fleet.Stats().Connections)
				fewer := 0
				for conn, n := range count.calls {
					require.LessOrEqual(t, n, 12, conn)
					if n < 8 {
						fewer++
					}
				}
				require.LessOrEqual(t, fewer, 1, "nor fewer, but for the last one: %v", count.calls)
			})
		})
	}
}

// once is a body that cannot be had again: net/http must not need to.
func once(s string) io.Reader { return struct{ io.Reader }{strings.NewReader(s)} }

func TestReplacingConnectionsLosesNoCall(t *testing.T) {
	for name, conns := range map[string]balancer.ConnConfig{
		"by age":             {MaxAge: 5 * time.Millisecond},
		"by calls":           {MaxRequests: 3},
		"with some in stock": {MaxAge: 20 * time.Millisecond, Min: 4},
		"over several":       {MaxRequests: 5, HTTP2Conns: 3},
	} {
		t.Run(name, func(t *testing.T) {
			overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
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

func TestCallsAreSpreadOverSeveralHTTP2Connections(t *testing.T) {
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP2, backstaytest.H2C} {
		t.Run(p.String(), func(t *testing.T) {
			backstaytest.CheckLeaks(t)
			var mu sync.Mutex
			calls := make(map[string]int)
			count := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				calls[r.RemoteAddr]++
			})
			c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: p, Handler: count}, balancer.Config{Conns: balancer.ConnConfig{HTTP2Conns: 3}}, nil)
			for range 300 {
				c.fetch("/")
			}
			mu.Lock()
			defer mu.Unlock()
			require.GreaterOrEqual(t, len(calls), 3)
			for conn, n := range calls {
				require.LessOrEqual(t, n, 100, conn)
			}
		})
	}
}

func TestSeveralConnectionsAreForHTTP2Only(t *testing.T) {
	virtually(t, 1, nil, balancer.Config{Conns: balancer.ConnConfig{HTTP2Conns: 3}}, func(t *testing.T, c *caller) {
		for range 30 {
			c.fetch("/")
		}
		require.Equal(t, 1, c.fleet.Stats().Connections)
	})
}

// The connection to a peer that is gone without a word would be used for minutes:
// golang/go#36026.
func TestDeadHTTP2PeerIsNoticedByPing(t *testing.T) {
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP2, backstaytest.H2C} {
		t.Run(p.String(), func(t *testing.T) {
			backstaytest.CheckLeaks(t)
			cfg := balancer.Config{
				AttemptTimeout: -1, ConnectTimeout: -1, Policy: balancer.RoundRobin{},
				Conns: balancer.ConnConfig{PingInterval: 50 * time.Millisecond, PingTimeout: 500 * time.Millisecond},
			}
			c := newCaller(t, 2, backstaytest.FleetConfig{Protocol: p}, cfg, nil)
			for range 4 {
				c.fetch("/")
			}
			dead := c.fleet.Server(0)
			dead.Freeze()
			defer dead.Thaw()
			var failed atomic.Int32
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					resp, err := c.rt.RoundTrip(c.request(t.Context(), http.MethodGet, "/", nil))
					if err != nil {
						failed.Add(1)
						return
					}
					read(t, resp)
				})
			}
			wg.Wait() // without the ping, for ever
			require.EqualValues(t, 2, failed.Load())
			require.EqualValues(t, 2, c.failures())
		})
	}
}

func TestPingIsTheTemplatesWhereItSaysSo(t *testing.T) {
	for name, test := range map[string]struct {
		conns    balancer.ConnConfig
		template *http.HTTP2Config
		ends     bool
	}{
		"off":                     {balancer.ConnConfig{PingInterval: -1}, nil, false},
		"by the template":         {balancer.ConnConfig{PingInterval: -1}, &http.HTTP2Config{SendPingTimeout: 50 * time.Millisecond, PingTimeout: 50 * time.Millisecond}, true},
		"the template's is later": {balancer.ConnConfig{PingInterval: 50 * time.Millisecond, PingTimeout: 50 * time.Millisecond}, &http.HTTP2Config{SendPingTimeout: time.Hour}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: backstaytest.H2C}, balancer.Config{AttemptTimeout: -1, Conns: test.conns}, func(tr *http.Transport) { tr.HTTP2 = test.template })
			c.fetch("/")
			c.fleet.Server(0).Freeze()
			defer c.fleet.Server(0).Thaw()
			patience := 300 * time.Millisecond
			if test.ends {
				patience = time.Minute
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := c.rt.RoundTrip(c.request(ctx, http.MethodGet, "/", nil))
			require.Error(t, err)
			require.Equal(t, test.ends, ctx.Err() == nil, err)
		})
	}
}

// crowdOf makes 16 callers call until stop, GET and POST in turn.
func (c *caller) crowdOf(call func(req *http.Request) error) (more, stop func()) {
	var calls atomic.Int64
	var wg sync.WaitGroup
	done := make(chan struct{})
	for i := range 16 {
		method := []string{http.MethodGet, http.MethodPost}[i%2]
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := call(c.request(c.t.Context(), method, "/", strings.NewReader("hello"))); err != nil {
					c.t.Error(err)
					return
				}
				calls.Add(1)
			}
		})
	}
	more = func() {
		before := calls.Load()
		eventually(c.t, func() bool { return calls.Load() > before+100 || c.t.Failed() }, "calls do not go on")
	}
	return more, sync.OnceFunc(func() { close(done); wg.Wait() })
}

// try sends a request and reads the answer.
func (c *caller) try(req *http.Request) error {
	resp, err := c.rt.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// shutDown ends a server in good order. Its listener may be closed by the server
// and by what serves it, too.
func shutDown(t *testing.T, s *backstaytest.Server) {
	t.Helper()
	if err := s.Shutdown(t.Context()); !errors.Is(err, net.ErrClosed) {
		require.NoError(t, err)
	}
}

// What goes in good order, first from the list and then from the net, takes
// nothing with it.
func TestServersThatLeaveInGoodOrderLoseNoCall(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		c := newCaller(t, 4, backstaytest.FleetConfig{Protocol: p, Handler: echo}, balancer.Config{}, nil)
		more, stop := c.crowdOf(func(req *http.Request) error {
			req.GetBody = nil // net/http cannot help
			return c.try(req)
		})
		defer stop()
		for i := range 3 {
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

// Servers that shut down while they are still listed: what is lost is either
// known not to have been sent, and is sent elsewhere, or may be repeated.
func TestServersThatShutDownLoseNoCallThatMayBeRepeated(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		c := newCaller(t, 4, backstaytest.FleetConfig{Protocol: p, Handler: echo}, balancer.Config{}, nil)
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

// The server has ended the connection while nobody looked. Where that is noticed
// before a byte is written, nothing was sent, whatever the method.
func TestConnectionThatEndedBeforeTheFirstByteHasSentNothing(t *testing.T) {
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.H2C} {
		synctest.Test(t, func(t *testing.T) {
			var broken atomic.Bool
			c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: p, Network: backstaytest.NewNetwork()}, balancer.Config{}, func(tr *http.Transport) {
				dial := tr.DialContext
				tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
					nc, err := dial(ctx, network, addr)
					return &unwritable{nc, &broken}, err
				}
			})
			c.fetch("/")
			synctest.Wait() // else what net/http has to do after it may find the connection broken first
			broken.Store(true)
			requests := c.fleet.Stats().Requests
			req := c.request(t.Context(), http.MethodPost, "/", once("hello"))
			_, err := c.rt.RoundTrip(req)
			if !errors.Is(err, net.ErrClosed) { // after the write has failed net/http reports one or the other
				require.ErrorIs(t, err, syscall.EPIPE)
			}
			require.True(t, outcome.NotSent(err))
			require.Equal(t, outcome.Always, outcome.HTTP(req, nil, err).Retry)
			require.Equal(t, requests, c.fleet.Stats().Requests)
			require.EqualValues(t, 1, c.failures())
		})
	}
}

// unwritable is a connection that breaks at a write.
type unwritable struct {
	net.Conn
	broken *atomic.Bool
}

func (u *unwritable) Write(p []byte) (int, error) {
	if u.broken.Load() {
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}
	}
	return u.Conn.Write(p)
}

// Nobody counts what another RoundTripper writes.
func TestWhatAnotherRoundTripperFailedToWriteMayHaveBeenSent(t *testing.T) {
	_, rt := over(t, 1, nil, func(*http.Request) (*http.Response, error) {
		return nil, &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}
	})
	_, err := getFrom(t, rt, "http://orders/")
	require.ErrorIs(t, err, syscall.EPIPE)
	require.False(t, outcome.NotSent(err))
}

// Some of the request went out, and who knows what came of it.
func TestConnectionThatBreaksAfterTheFirstByteMayHaveSentIt(t *testing.T) {
	var left atomic.Int32
	left.Store(1 << 10)
	c := newCaller(t, 1, backstaytest.FleetConfig{}, balancer.Config{}, func(tr *http.Transport) {
		tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, network, addr)
			return &writes{nc, &left}, err
		}
	})
	c.fetch("/")
	left.Store(1)
	req := c.request(t.Context(), http.MethodPost, "/", once(strings.Repeat("hello", 10_000)))
	_, err := c.rt.RoundTrip(req)
	require.ErrorIs(t, err, syscall.EPIPE)
	require.False(t, outcome.NotSent(err))
}

// writes is a connection that breaks after so many writes.
type writes struct {
	net.Conn
	left *atomic.Int32
}

func (w *writes) Write(p []byte) (int, error) {
	if w.left.Add(-1) < 0 {
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}
	}
	return w.Conn.Write(p)
}

func TestConnectionsCostNothingPerCallUnlessAsked(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	count := func(conns balancer.ConnConfig) float64 {
		c := newCaller(t, 1, backstaytest.FleetConfig{}, balancer.Config{Conns: conns}, func(tr *http.Transport) {
			tr.DialContext = (&net.Dialer{}).DialContext
		})
		req := c.request(t.Context(), http.MethodGet, "/", nil)
		return testing.AllocsPerRun(200, func() {
			resp, err := c.rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		})
	}
	plain := count(balancer.ConnConfig{})
	require.InDelta(t, plain, count(balancer.ConnConfig{MaxAge: time.Hour, Min: 2}), 1)
}
