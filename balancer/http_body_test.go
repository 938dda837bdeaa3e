package balancer_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// However an exchange ends, its lease is given back, once, and the node's breaker
// hears of what was the node's fault.

// endings answers each path in a way of its own.
func endings(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/empty":
		w.WriteHeader(http.StatusNoContent)
	case "/trailers":
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "hello")
		w.Header().Set("X-Sum", "42")
	case "/endless":
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1024)); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
	case "/hang":
		<-r.Context().Done()
	case "/begin":
		_, _ = io.WriteString(w, "hello")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case "/broken":
		_, _ = io.WriteString(w, "hello")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "/abort":
		panic(http.ErrAbortHandler)
	case "/early":
		w.WriteHeader(http.StatusServiceUnavailable)
	case "/informational":
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "hello")
	default:
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "hello")
	}
}

func TestEveryEndOfAnExchangeGivesTheLeaseBack(t *testing.T) {
	type ending struct {
		name, method, path string
		body               func() io.Reader
		failures           int64
		end                func(t *testing.T, resp *http.Response, err error, cancel func())
	}
	readAll := func(t *testing.T, resp *http.Response, err error, _ func()) {
		require.NoError(t, err)
		read(t, resp)
	}
	cases := []ending{
		{"end of the body", "GET", "/", nil, 0, readAll},
		{"end without Close", "GET", "/", nil, 0, func(t *testing.T, resp *http.Response, err error, _ func()) {
			require.NoError(t, err)
			_, err = io.ReadAll(resp.Body)
			require.NoError(t, err)
		}},
		{"Close without reading", "GET", "/", nil, 0, func(t *testing.T, resp *http.Response, err error, _ func()) {
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.NoError(t, resp.Body.Close())
		}},
		{"Close in the middle", "GET", "/endless", nil, 0, func(t *testing.T, resp *http.Response, err error, _ func()) {
			require.NoError(t, err)
			_, err = io.ReadFull(resp.Body, make([]byte, 2000))
			require.NoError(t, err)
			_ = resp.Body.Close()
		}},
		{"HEAD", "HEAD", "/", nil, 0, readAll},
		{"no content", "GET", "/empty", nil, 0, readAll},
		{"trailers", "GET", "/trailers", nil, 0, func(t *testing.T, resp *http.Response, err error, _ func()) {
			require.NoError(t, err)
			require.Equal(t, "hello", read(t, resp))
			require.Equal(t, "42", resp.Trailer.Get("X-Sum"))
		}},
		{"after an informational response", "GET", "/informational", nil, 0, readAll},
		{"an upload", "PUT", "/", func() io.Reader { return strings.NewReader(strings.Repeat("x", 1<<20)) }, 0, readAll},
		{"a body that breaks", "GET", "/broken", nil, 1, func(t *testing.T, resp *http.Response, err error, _ func()) {
			require.NoError(t, err)
			_, err = io.ReadAll(resp.Body)
			require.Error(t, err)
			require.NoError(t, resp.Body.Close())
		}},
		{"an error before the headers", "POST", "/abort", nil, 1, func(t *testing.T, resp *http.Response, err error, _ func()) {
			require.Error(t, err)
			require.Nil(t, resp)
		}},
		{"a cancel before the headers", "GET", "/hang", nil, 0, func(t *testing.T, resp *http.Response, err error, cancel func()) {
			require.ErrorIs(t, err, context.Canceled)
			require.Nil(t, resp)
		}},
		{"a cancel in the body", "GET", "/begin", nil, 0, func(t *testing.T, resp *http.Response, err error, cancel func()) {
			require.NoError(t, err)
			_, err = io.ReadFull(resp.Body, make([]byte, 5))
			require.NoError(t, err)
			cancel()
			_, err = io.ReadAll(resp.Body)
			require.ErrorIs(t, err, context.Canceled)
		}},
		{"a cancel in the upload", "POST", "/hang", func() io.Reader { return endless{} }, 0, func(t *testing.T, resp *http.Response, err error, cancel func()) {
			require.ErrorIs(t, err, context.Canceled)
			require.Nil(t, resp)
		}},
		{"an upload whose reader fails", "POST", "/", func() io.Reader { return io.MultiReader(strings.NewReader("x"), broken{}) }, 0, func(t *testing.T, resp *http.Response, err error, _ func()) {
			require.ErrorIs(t, err, errDown)
			require.Nil(t, resp)
		}},
		{"an answer while uploading", "POST", "/early", func() io.Reader { return endless{} }, 1, func(t *testing.T, resp *http.Response, err error, _ func()) {
			require.NoError(t, err)
			require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}},
	}
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		for _, e := range cases {
			t.Run(e.name, func(t *testing.T) {
				c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: p, Handler: http.HandlerFunc(endings)}, balancer.Config{}, nil)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var body io.Reader
				if e.body != nil {
					body = e.body()
				}
				if strings.HasPrefix(e.name, "a cancel before") || strings.HasPrefix(e.name, "a cancel in the upload") {
					go func() {
						eventually(t, func() bool { return c.fleet.Stats().InFlight == 1 }, "the request has not arrived")
						require.Equal(t, 1, c.Nodes()[0].InFlight())
						require.Equal(t, 1, c.Nodes()[0].Awaiting())
						cancel()
					}()
				}
				resp, err := c.rt.RoundTrip(c.request(ctx, e.method, e.path, body))
				e.end(t, resp, err, cancel)
				c.settled()
				require.Equal(t, e.failures, c.failures())
			})
		}
	})
}

// endless is a request's body that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// broken is a request's body that cannot be read.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errDown }

func TestBodyBeingReadIsInFlightButDoesNotWait(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: p, Handler: http.HandlerFunc(endings)}, balancer.Config{}, nil)
		resp := c.get("/begin")
		require.Equal(t, 1, c.Nodes()[0].InFlight())
		require.Zero(t, c.Nodes()[0].Awaiting())
		_, known := c.Nodes()[0].Latency(time.Now())
		require.True(t, known)
		_ = resp.Body.Close()
		c.settled()
	})
}

// upgrade switches protocols and answers each line with itself until its end.
func upgrade(w http.ResponseWriter, _ *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	_ = rw.Flush()
	for {
		line, err := rw.ReadString('\n')
		if err != nil {
			_, _ = rw.WriteString("bye\n")
			_ = rw.Flush()
			return
		}
		_, _ = rw.WriteString(line)
		_ = rw.Flush()
	}
}

func TestUpgradedConnectionIsTheCallers(t *testing.T) {
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.HTTP1TLS} {
		synctest.Test(t, func(t *testing.T) {
			c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: p, Handler: http.HandlerFunc(upgrade), Network: backstaytest.NewNetwork()},
				balancer.Config{AttemptTimeout: 50 * time.Millisecond}, nil)
			req := c.request(t.Context(), http.MethodGet, "/", nil)
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "echo")
			resp, err := c.rt.RoundTrip(req)
			require.NoError(t, err)
			require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
			require.Equal(t, 1, c.Nodes()[0].InFlight())
			require.Zero(t, c.Nodes()[0].Awaiting())
			rw, ok := resp.Body.(io.ReadWriteCloser)
			require.True(t, ok)
			reader := bufio.NewReader(rw)
			for i := range 3 {
				time.Sleep(30 * time.Millisecond) // longer, together, than an attempt may take
				_, err = fmt.Fprintf(rw, "line %d\n", i)
				require.NoError(t, err)
				line, err := reader.ReadString('\n')
				require.NoError(t, err)
				require.Equal(t, fmt.Sprintf("line %d\n", i), line)
			}
			half, ok := resp.Body.(interface{ CloseWrite() error })
			require.True(t, ok)
			require.NoError(t, half.CloseWrite(), "as without a balancer")
			line, err := reader.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "bye\n", line)
			require.NoError(t, rw.Close())
			c.settled()
			require.Zero(t, c.failures())
		})
	}
}

func TestPanicInTheTransportReleasesTheLease(t *testing.T) {
	b, rt := over(t, 1, nil, func(*http.Request) (*http.Response, error) { panic(errDown) })
	for range 3 {
		require.PanicsWithValue(t, errDown, func() { _, _ = getFrom(t, rt, "http://orders/") })
		idle(t, b.Nodes())
	}
	require.EqualValues(t, 3, b.Nodes()[0].Breaker().Snapshot(time.Now()).Failures, "and counts as a failure")
}

func TestGoexitInTheTransportReleasesTheLease(t *testing.T) {
	b, rt := over(t, 1, nil, func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil })
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = getFrom(t, rt, "http://orders/") })
	wg.Wait()
	idle(t, b.Nodes())
}

func TestTransportThatReturnsNothingIsAFailure(t *testing.T) {
	b, rt := over(t, 1, nil, func(*http.Request) (*http.Response, error) { return nil, nil })
	resp, err := getFrom(t, rt, "http://orders/")
	require.Nil(t, resp)
	require.Error(t, err)
	idle(t, b.Nodes())
	require.EqualValues(t, 1, b.Nodes()[0].Breaker().Snapshot(time.Now()).Failures)
}

func TestResponsesWithoutABodyAreOverAtOnce(t *testing.T) {
	for name, body := range map[string]io.ReadCloser{"nil": nil, "http.NoBody": http.NoBody} {
		b, rt := over(t, 1, nil, func(req *http.Request) (*http.Response, error) { return answer(req, 200, body), nil })
		resp, err := getFrom(t, rt, "http://orders/")
		require.NoError(t, err)
		require.Equal(t, body, resp.Body, name)
		idle(t, b.Nodes())
	}
}

// What is known only when the body is read is counted once, and told as it is.
func TestBrokenBodiesOpenTheBreaker(t *testing.T) {
	b, rt := over(t, 2, exact(balancer.Config{Policy: policies(1)["first of all"]}), func(req *http.Request) (*http.Response, error) {
		if req.URL.Host == addr(0) {
			return answer(req, 200, io.NopCloser(io.MultiReader(strings.NewReader("hel"), unexpected{}))), nil
		}
		return answer(req, 200, text("hello")), nil
	})
	whole := 0
	for range 40 {
		resp, err := getFrom(t, rt, "http://orders/")
		require.NoError(t, err)
		data, err := io.ReadAll(resp.Body)
		if err == nil {
			whole++
			require.Equal(t, "hello", string(data))
			continue
		}
		require.Equal(t, io.ErrUnexpectedEOF, err)
		require.Equal(t, "hel", string(data))
		_, err = resp.Body.Read(make([]byte, 1))
		require.Error(t, err)
		require.NoError(t, resp.Body.Close())
	}
	require.Equal(t, 20, whole, "twenty failures are enough")
	idle(t, b.Nodes())
}

type unexpected struct{}

func (unexpected) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestFailingAnswersOpenTheBreakerAndOthersDoNot(t *testing.T) {
	for status, opens := range map[int]bool{200: false, 304: false, 404: false, 429: false, 500: true, 501: false, 503: true} {
		b, rt := over(t, 1, nil, func(req *http.Request) (*http.Response, error) { return answer(req, status, text("")), nil })
		for range 20 {
			resp, err := getFrom(t, rt, "http://orders/")
			require.NoError(t, err, "a response is a response")
			require.Equal(t, status, resp.StatusCode)
			read(t, resp)
		}
		require.Equal(t, !opens, b.Nodes()[0].Breaker().Ready(time.Now()), "%d", status)
	}
}

// An answer is the node's, even if the caller has gone by then.
func TestRealFailureCountsThoughTheCallerHasGone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b, rt := over(t, 1, nil, func(req *http.Request) (*http.Response, error) {
		cancel()
		return answer(req, 500, text("")), nil
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
	require.NoError(t, err)
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	_ = resp.Body.Close()
	require.EqualValues(t, 1, b.Nodes()[0].Breaker().Snapshot(time.Now()).Failures)
}

func TestClassifierDecides(t *testing.T) {
	b, err := balancer.New("orders", discovery.Static(endpoints(1)...), &balancer.Config{
		Classifier: func(_ *http.Request, resp *http.Response, err error) outcome.Outcome {
			if err != nil || resp.Header.Get("X-Bad") != "" {
				return failure
			}
			return success
		},
	})
	require.NoError(t, err)
	defer b.Close()
	rt := b.Layer(roundTrip(func(req *http.Request) (*http.Response, error) {
		if req.URL.Path == "/error" {
			return nil, errors.New("any")
		}
		resp := answer(req, 500, text(""))
		if req.URL.Path == "/bad" {
			resp.StatusCode = 200
			resp.Header.Set("X-Bad", "1")
		}
		return resp, nil
	}))
	for path, failures := range map[string]int64{"/": 0, "/bad": 1, "/error": 1} {
		before := int64(0)
		if nodes := b.Nodes(); len(nodes) > 0 {
			before = nodes[0].Breaker().Snapshot(time.Now()).Failures
		}
		if resp, err := getFrom(t, rt, "http://orders"+path); err == nil {
			read(t, resp)
		}
		require.Equal(t, before+failures, b.Nodes()[0].Breaker().Snapshot(time.Now()).Failures, path)
	}
}

// The place of a half-open node's probe must not be lost with the goroutine.
func TestProbeThatPanicsOrExitsLeavesItsPlace(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(errDown) }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			virtually(t, 1, nil, balancer.Config{}, func(t *testing.T, c *caller) {
				ends := true
				rt := c.Layer(roundTrip(func(req *http.Request) (*http.Response, error) {
					if ends {
						end()
					}
					return answer(req, 200, text("ok")), nil
				}))
				node := c.Nodes()[0]
				halfOpen(t, node)
				var wg sync.WaitGroup
				wg.Go(func() {
					defer func() { _ = recover() }()
					_, _ = getFrom(t, rt, c.fleet.URL())
				})
				wg.Wait()
				require.Equal(t, breaker.Open, node.Breaker().State())
				ends = false
				time.Sleep(time.Minute) // in the bubble: the breaker's open time
				for range 3 {
					resp, err := getFrom(t, rt, c.fleet.URL())
					require.NoError(t, err)
					read(t, resp)
				}
				require.Equal(t, breaker.Closed, node.Breaker().State())
				idle(t, c.Nodes())
			})
		})
	}
}

func TestRetryAfterKeepsOthersAway(t *testing.T) {
	asked := make(map[string]int)
	busy := false
	_, rt := over(t, 2, nil, func(req *http.Request) (*http.Response, error) {
		asked[req.URL.Host]++
		resp := answer(req, 200, text(""))
		if busy && req.URL.Host == addr(0) {
			resp.StatusCode = http.StatusTooManyRequests
			resp.Header.Set("Retry-After", "60")
		}
		return resp, nil
	})
	for range 200 {
		resp, err := getFrom(t, rt, "http://orders/")
		require.NoError(t, err)
		read(t, resp)
		if len(asked) == 2 && !busy { // both are known
			busy = true
			clear(asked)
		}
	}
	require.True(t, busy)
	require.LessOrEqual(t, asked[addr(0)], 1)
}

func TestFrameKnowsWhetherThereIsAnotherNode(t *testing.T) {
	for n, others := range map[int]bool{1: false, 2: true} {
		_, rt := over(t, n, nil, func(*http.Request) (*http.Response, error) { return nil, errReset })
		ctx, frame := call.Push(t.Context(), call.ChainOf(rt), call.Info{Service: "orders"})
		for range n {
			require.False(t, frame.Others() && n == 1)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
			require.NoError(t, err)
			_, err = rt.RoundTrip(req)
			require.ErrorIs(t, err, errReset)
			require.Equal(t, others && frame.Attempts() < n, frame.Others(), "%d nodes, %d attempts", n, frame.Attempts())
		}
	}
}
