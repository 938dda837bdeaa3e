package limit_test

import (
	"bufio"
	"context"
	"errors"
	"io"
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

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/limit"
)

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func ok(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("body")), Request: req}, nil
}

func get(t testing.TB, ctx context.Context) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/v1/items", nil)
	require.NoError(t, err)
	return req
}

// closing notes how often it was closed.
type closing struct {
	io.Reader
	closed atomic.Int64
}

func (c *closing) Close() error { c.closed.Add(1); return nil }

// layers are the package's, each with nothing left to give.
func layers(t *testing.T) map[string]func(http.RoundTripper) http.RoundTripper {
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1})
	fill(t, c)
	r := newRate(t, limit.RateConfig{Limit: 0.001})
	require.NoError(t, r.Allow(time.Time{}))
	g := newRates(t, limit.RateGroupConfig{RateConfig: limit.RateConfig{Limit: 0.001}})
	require.NoError(t, g.Get("orders").Allow(time.Time{}))
	return map[string]func(http.RoundTripper) http.RoundTripper{
		"concurrency": c.Layer, "rate": r.Layer, "rates": g.Layer,
	}
}

func TestLayersRefuseAndCloseTheRequestsBody(t *testing.T) {
	for name, layer := range layers(t) {
		t.Run(name, func(t *testing.T) {
			rt := layer(tripper(func(*http.Request) (*http.Response, error) { panic("not called") }))
			body := &closing{Reader: strings.NewReader("hello")}
			ctx, log := call.WithLog(t.Context())
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://orders/", body)
			require.NoError(t, err)
			resp, err := rt.RoundTrip(req)
			require.Nil(t, resp)
			require.True(t, errors.Is(err, limit.ErrFull) || errors.Is(err, limit.ErrLimited))
			require.EqualValues(t, 1, body.closed.Load())
			require.Same(t, body, req.Body, "the request is as it was")

			record := log.Calls()[0]
			require.Equal(t, err, record.Err)
			require.Empty(t, record.Attempts)
			require.Equal(t, []call.Refusal{{By: strings.TrimSuffix(name, "s"), Err: err}}, record.Refusals)

			cancelled, cancel := context.WithCancel(t.Context())
			cancel()
			body = &closing{Reader: strings.NewReader("hello")}
			req, err = http.NewRequestWithContext(cancelled, http.MethodPost, "http://orders/", body)
			require.NoError(t, err)
			_, err = rt.RoundTrip(req)
			require.ErrorIs(t, err, context.Canceled)
			require.EqualValues(t, 1, body.closed.Load())
		})
	}
}

func TestLayersHandTheCallersRequestOnUntouched(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{})
	r := newRate(t, limit.RateConfig{Limit: -1})
	for _, layer := range []func(http.RoundTripper) http.RoundTripper{c.Layer, r.Layer} {
		req := get(t, t.Context())
		_, err := layer(tripper(func(got *http.Request) (*http.Response, error) {
			require.Same(t, req, got)
			return ok(got)
		})).RoundTrip(req)
		require.NoError(t, err)
	}
}

func TestLayersPassOnWhatTheyAreNotConcernedWith(t *testing.T) {
	for name, layer := range layers(t) {
		t.Run(name, func(t *testing.T) {
			next := &idle{tripper: ok}
			rt := layer(next)
			(&http.Client{Transport: rt}).CloseIdleConnections()
			require.Equal(t, 1, next.closed)
			require.Same(t, next, rt.(interface{ Unwrap() http.RoundTripper }).Unwrap())
			require.Same(t, http.DefaultTransport, layer(nil).(interface{ Unwrap() http.RoundTripper }).Unwrap())
		})
	}
}

type idle struct {
	tripper
	closed int
}

func (i *idle) CloseIdleConnections() { i.closed++ }

func TestACallIsUnderWayUntilItsBodyEnds(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1})
	rt := c.Layer(tripper(ok))
	for name, end := range map[string]func(io.ReadCloser){
		"read to the end": func(b io.ReadCloser) { _, _ = io.ReadAll(b) },
		"closed":          func(b io.ReadCloser) { b.Close() },
		"both":            func(b io.ReadCloser) { _, _ = io.ReadAll(b); b.Close(); b.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := rt.RoundTrip(get(t, t.Context()))
			require.NoError(t, err)
			require.Equal(t, 1, c.InFlight())
			_, err = rt.RoundTrip(get(t, t.Context()))
			require.ErrorIs(t, err, limit.ErrFull)
			end(resp.Body)
			require.Zero(t, c.InFlight())
		})
	}
}

func TestACallMayEndWithItsHeaders(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, UntilHeaders: limit.On})
	resp, err := c.Layer(tripper(ok)).RoundTrip(get(t, t.Context()))
	require.NoError(t, err)
	require.Zero(t, c.InFlight())
	_, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Zero(t, c.InFlight())
}

func TestOffIsNotUntilHeaders(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, UntilHeaders: limit.Off})
	resp, err := c.Layer(tripper(ok)).RoundTrip(get(t, t.Context()))
	require.NoError(t, err)
	require.Equal(t, 1, c.InFlight())
	require.NoError(t, resp.Body.Close())
	require.Zero(t, c.InFlight())
}

func TestWhatFailsAfterThePermitReturnsIt(t *testing.T) {
	for name, next := range map[string]tripper{
		"error":    func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF },
		"panic":    func(*http.Request) (*http.Response, error) { panic("boom") },
		"goexit":   func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil },
		"nil body": func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: 204}, nil },
		"no body": func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 204, Body: http.NoBody}, nil
		},
		"nothing at all": func(*http.Request) (*http.Response, error) { return nil, nil },
		"broken body": func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(io.LimitReader(broken{}, 1))}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1})
			rt := c.Layer(next)
			var wg sync.WaitGroup
			wg.Go(func() {
				defer func() { _ = recover() }()
				if resp, err := rt.RoundTrip(get(t, t.Context())); err == nil && resp != nil && resp.Body != nil {
					_, _ = io.ReadAll(resp.Body)
				}
			})
			wg.Wait()
			require.Zero(t, c.InFlight())
		})
	}
	t.Run("another limit inside", func(t *testing.T) {
		outer := newConcurrency(t, limit.ConcurrencyConfig{Max: 1})
		for name, inner := range layers(t) {
			_, err := outer.Layer(inner(tripper(ok))).RoundTrip(get(t, t.Context()))
			require.Error(t, err, name)
			require.Zero(t, outer.InFlight())
		}
	})
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestRequestsWaitInTheQueueOfTheLayer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 10, MaxWait: -1})
		rt := c.Layer(tripper(func(req *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return ok(req)
		}))
		start := time.Now()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				resp, err := rt.RoundTrip(get(t, t.Context()))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.ReadAll(resp.Body)
			})
		}
		wg.Wait()
		require.Equal(t, 5*time.Second, time.Since(start))
		require.Zero(t, c.InFlight())
	})
}

func TestRequestsWaitForTheirTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRate(t, limit.RateConfig{Limit: 1, MaxWait: -1})
		rt := r.Layer(tripper(ok))
		start := time.Now()
		for range 5 {
			_, err := rt.RoundTrip(get(t, t.Context()))
			require.NoError(t, err)
		}
		require.InDelta(t, 4*time.Second, time.Since(start), float64(time.Microsecond))
	})
}

func TestWaitingHonoursTheRequestsOwnCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 1, MaxWait: -1})
		fill(t, c)
		r := newRate(t, limit.RateConfig{Limit: 0.0001, MaxWait: -1})
		require.NoError(t, r.Allow(time.Time{}))
		for _, layer := range []func(http.RoundTripper) http.RoundTripper{c.Layer, r.Layer} {
			req := get(t, t.Context())
			cancel := make(chan struct{})
			req.Cancel = cancel //nolint:staticcheck // deprecated, but not gone
			time.AfterFunc(time.Millisecond, func() { close(cancel) })
			start := time.Now()
			_, err := layer(tripper(ok)).RoundTrip(req)
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, time.Millisecond, time.Since(start))
		}
		require.Zero(t, c.Waiting())
	})
}

func TestAnUpgradedConnectionIsUnderWayUntilItIsClosed(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		_, _ = io.Copy(conn, rw) // until the client closes its half
	}))
	defer server.Close()
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
	require.NoError(t, err)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := c.Layer(nil).RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	conn, ok := resp.Body.(io.ReadWriteCloser)
	require.True(t, ok, "it can still be written to")
	_, err = io.WriteString(conn, "hello\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello\n", line)

	require.NoError(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	_, err = io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, 1, c.InFlight(), "only Close ends it")
	require.NoError(t, conn.Close())
	require.Zero(t, c.InFlight())
}

func TestAnUpgradedConnectionThatCannotCloseHalfSaysSo(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1})
	client, server := net.Pipe()
	defer server.Close()
	resp, err := c.Layer(tripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: client}, nil
	})).RoundTrip(get(t, t.Context()))
	require.NoError(t, err)
	require.ErrorIs(t, resp.Body.(interface{ CloseWrite() error }).CloseWrite(), http.ErrNotSupported)
	resp.Body.Close()
	require.Zero(t, c.InFlight())
}

func TestTrailersStillWork(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "Sum")
		_, _ = io.WriteString(w, "hello")
		w.Header().Set("Sum", "42")
	}))
	defer server.Close()
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1})
	client := &http.Client{Transport: c.Layer(server.Client().Transport)}
	resp, err := client.Get(server.URL)
	require.NoError(t, err)
	_, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, "42", resp.Trailer.Get("Sum"))
	require.Zero(t, c.InFlight())
}

func TestGroupsLayerKeysByHostInLowerCase(t *testing.T) {
	g := newRates(t, limit.RateGroupConfig{RateConfig: limit.RateConfig{Limit: 0.001}})
	rt := g.Layer(tripper(ok))
	for _, host := range []string{"Orders", "stock"} {
		req := get(t, t.Context())
		req.URL.Host = host
		_, err := rt.RoundTrip(req)
		require.NoError(t, err)
	}
	_, err := rt.RoundTrip(get(t, t.Context()))
	require.ErrorContains(t, err, "for orders,")
	req := get(t, t.Context())
	req.URL = nil
	_, err = rt.RoundTrip(req)
	require.NoError(t, err, "what is wrong with it is the transport's to say")

	byPath := g.LayerBy(func(req *http.Request) string { return req.URL.Path })(tripper(ok))
	_, err = byPath.RoundTrip(get(t, t.Context()))
	require.NoError(t, err)
}

func TestALimitAloneLogsItsCalls(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{})
	ctx, log := call.WithLog(t.Context())
	_, err := c.Layer(tripper(ok)).RoundTrip(get(t, ctx))
	require.NoError(t, err)
	require.Len(t, log.Calls(), 1)
	require.Equal(t, 200, log.Calls()[0].Status)
}

func TestTheLayerAllocatesTheBodyOnly(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{})
	resp, payload := &http.Response{StatusCode: 200}, io.NopCloser(broken{})
	rt := c.Layer(tripper(func(*http.Request) (*http.Response, error) { resp.Body = payload; return resp, nil }))
	req := get(t, t.Context())
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Error(err)
		}
		resp.Body.Close()
	}), 1.0)
}
