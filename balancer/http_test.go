package balancer_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// echo answers with what it got.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	name := ""
	if r.TLS != nil {
		name = r.TLS.ServerName
	}
	fmt.Fprintf(w, "%s %s %s host=%s tls=%s tag=%s body=%s", r.Proto, r.Method, r.URL, r.Host, name, r.Header.Get("X-Tag"), body)
})

// The certificates are good for the service's name only, and the endpoints are
// addresses.
func TestRequestsGoToNodesUnderTheServicesName(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		c := newCaller(t, 3, backstaytest.FleetConfig{Protocol: p, Handler: echo}, balancer.Config{Policy: balancer.RoundRobin{}}, nil)
		proto, name := "HTTP/2.0", ""
		switch p {
		case backstaytest.HTTP1:
			proto = "HTTP/1.1"
		case backstaytest.HTTP2:
			name = "orders.test"
		default:
		}
		seen := make(map[string]int)
		for range 30 {
			req := c.request(t.Context(), http.MethodPost, "/a/b?c=d", strings.NewReader("hello"))
			req.Header.Set("X-Tag", "t")
			resp, err := c.rt.RoundTrip(req)
			require.NoError(t, err)
			require.Same(t, req, resp.Request)
			seen[resp.Header.Get(backstaytest.InstanceHeader)]++
			require.Equal(t, proto+" POST /a/b?c=d host=orders.test tls="+name+" tag=t body=hello", read(t, resp))
		}
		require.Equal(t, map[string]int{"s0": 10, "s1": 10, "s2": 10}, seen)
		c.settled()
	})
}

func TestRequestIsNotModified(t *testing.T) {
	for name, next := range map[string]http.RoundTripper{
		"over a transport": nil, // the fleet's
		"over another":     roundTrip(func(req *http.Request) (*http.Response, error) { return answer(req, 200, text("ok")), nil }),
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaller(t, 1, backstaytest.FleetConfig{}, balancer.Config{}, nil)
			rt := c.rt
			if next != nil {
				rt = c.Layer(next)
			}
			for _, logged := range []bool{false, true} {
				ctx := t.Context()
				if logged {
					ctx, _ = call.WithLog(ctx)
				}
				body := &watchedBody{Reader: strings.NewReader("hello")}
				req := c.request(ctx, http.MethodPut, "/x?y=z", nil)
				req.Body, req.ContentLength = body, 5
				req.GetBody = func() (io.ReadCloser, error) { return text("hello"), nil }
				req.Header.Set("X-Tag", "t")
				before, u, header := *req, *req.URL, req.Header.Clone()
				resp, err := rt.RoundTrip(req)
				require.NoError(t, err)
				require.Same(t, req, resp.Request)
				read(t, resp)
				require.Equal(t, u, *req.URL)
				require.Same(t, before.URL, req.URL)
				require.Equal(t, before.Host, req.Host)
				require.Equal(t, header, req.Header)
				require.Same(t, body, req.Body)
				require.Equal(t, ctx, req.Context())
				require.EqualValues(t, 5, req.ContentLength)
			}
		})
	}
}

func TestHostHeaderOfTheRequestWins(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: p, Handler: echo}, balancer.Config{}, nil)
		req := c.request(t.Context(), http.MethodGet, "/", nil)
		req.Host = "tenant.test"
		resp, err := c.rt.RoundTrip(req)
		require.NoError(t, err)
		require.Contains(t, read(t, resp), "host=tenant.test")
	})
}

func TestOverAnotherRoundTripperTheURLIsRewritten(t *testing.T) {
	for _, c := range []struct{ addr, url, wantURL, wantHost string }{
		{"10.0.0.1:8080", "http://orders/x?y=z", "http://10.0.0.1:8080/x?y=z", "orders"},
		{"10.0.0.1:8080", "http://user:pass@orders:99/x#frag", "http://user:pass@10.0.0.1:8080/x#frag", "orders:99"},
		{"10.0.0.1", "http://orders:99/", "http://10.0.0.1:99/", "orders:99"},
		{"::1", "http://orders/", "http://[::1]:80/", "orders"},
		{"[::1]:8080", "http://orders/", "http://[::1]:8080/", "orders"},
		{"node.test:80", "http://orders/", "http://node.test:80/", "orders"},
	} {
		t.Run(c.addr+" "+c.url, func(t *testing.T) {
			b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{Addr: c.addr}), nil)
			require.NoError(t, err)
			defer b.Close()
			var got *http.Request
			rt := b.Layer(roundTrip(func(req *http.Request) (*http.Response, error) {
				got = req
				return answer(req, 200, text("ok")), nil
			}))
			resp, err := getFrom(t, rt, c.url)
			require.NoError(t, err)
			read(t, resp)
			require.Equal(t, c.wantURL, got.URL.String())
			require.Equal(t, c.wantHost, got.Host)
			require.Equal(t, c.url, resp.Request.URL.String())
		})
	}
}

func TestURLsThatCannotBeSentAreRefused(t *testing.T) {
	_, over := over(t, 1, nil, func(*http.Request) (*http.Response, error) { panic("not to be called") })
	b := newStatic(t, 1, nil)
	template := b.Layer(new(http.Transport))
	for name, c := range map[string]struct {
		rt   http.RoundTripper
		url  *url.URL
		want string
	}{
		"none":              {template, nil, `balancer: URL "": is nil, want one with a scheme and a host`},
		"no scheme":         {template, &url.URL{Host: "orders", Path: "/x"}, `balancer: URL "//orders/x": scheme is "", want http or https`},
		"another scheme":    {template, &url.URL{Scheme: "ftp", Host: "orders"}, `balancer: URL "ftp://orders": scheme is "ftp", want http or https`},
		"no host":           {template, &url.URL{Scheme: "http", Path: "/x"}, `balancer: URL "http:///x": host is "", want the service's name`},
		"https over others": {over, &url.URL{Scheme: "https", Host: "orders", RawQuery: "secret=1", User: url.UserPassword("u", "p")}, `balancer: URL "https://orders": https needs an *http.Transport below, to check the certificate's name; have balancer_test.roundTrip: let it wrap the balancer instead, in a Client by Service.PerAttempt`},
	} {
		t.Run(name, func(t *testing.T) {
			body := &watchedBody{Reader: strings.NewReader("hello")}
			resp, err := c.rt.RoundTrip(&http.Request{Method: http.MethodPost, URL: c.url, Body: body, Header: make(http.Header)})
			require.Nil(t, resp)
			require.EqualError(t, err, c.want)
			var e *balancer.URLError
			require.ErrorAs(t, err, &e)
			require.True(t, outcome.Refused(err))
			require.True(t, outcome.NotSent(err))
			require.Equal(t, 1, body.closed)
		})
	}
	require.Zero(t, b.Nodes()[0].InFlight())
}

func TestRefusedRequestIsClosedAndTyped(t *testing.T) {
	b := newStatic(t, 2, nil)
	rt := b.Layer(new(http.Transport))
	for _, n := range b.Nodes() {
		n.Breaker().ForceOpen()
	}
	ctx, log := call.WithLog(t.Context())
	body := &watchedBody{Reader: strings.NewReader("hello")}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://orders/", body)
	require.NoError(t, err)
	resp, err := rt.RoundTrip(req)
	require.Nil(t, resp)
	require.True(t, outcome.Refused(err))
	require.Equal(t, 1, body.closed)
	require.Equal(t, outcome.Neutral, outcome.HTTP(req, nil, err).Class)
	require.Contains(t, log.String(), "breaker")
}

// A dead service of many nodes should cost its callers nothing.
func TestDeadServiceIsAskedOnce(t *testing.T) {
	const n = 50
	b := newStatic(t, n, nil)
	rt := b.Layer(new(http.Transport))
	for _, node := range b.Nodes() {
		for node.Breaker().Ready(time.Now()) {
			l, err := node.Breaker().Acquire(time.Time{})
			require.NoError(t, err)
			l.Done(time.Time{}, failure)
		}
	}
	ctx, log := call.WithLog(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
	require.NoError(t, err)
	_, err = rt.RoundTrip(req)
	require.Error(t, err)
	require.Len(t, log.Calls(), 1)
	require.Len(t, log.Calls()[0].Refusals, 1)
}

// Several attempts of one call are told apart by the call's frame.
func TestNextAttemptGoesElsewhere(t *testing.T) {
	b, rt := over(t, 3, nil, func(req *http.Request) (*http.Response, error) { return answer(req, 503, text("")), nil })
	ctx, frame := call.Push(t.Context(), call.ChainOf(rt), call.Info{Service: "orders"})
	for range 3 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
		require.NoError(t, err)
		resp, err := rt.RoundTrip(req)
		require.NoError(t, err)
		o, known := frame.Outcome(resp, nil)
		require.True(t, known, "outer layers need not judge again")
		require.Equal(t, outcome.Failure, o.Class)
		read(t, resp)
	}
	tried := frame.TriedNodes()
	slices.SortFunc(tried, func(a, b any) int { return strings.Compare(a.(*balancer.Node).Key(), b.(*balancer.Node).Key()) })
	require.Equal(t, []any{b.Nodes()[0], b.Nodes()[1], b.Nodes()[2]}, tried)
}

func TestRefusalIsNoAttempt(t *testing.T) {
	b, rt := over(t, 3, &balancer.Config{Policy: policies(1)["first of all"], MaxConcurrency: 1}, func(req *http.Request) (*http.Response, error) {
		return answer(req, 200, text("ok")), nil
	})
	held, err := b.Acquire(t.Context(), balancer.Call{})
	require.NoError(t, err)
	ctx, log := call.WithLog(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
	require.NoError(t, err)
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	read(t, resp)
	attempts := log.Calls()[0].Attempts
	require.Len(t, attempts, 1)
	require.Len(t, attempts[0].Refusals, 1)
	require.Equal(t, addr(0), attempts[0].Refusals[0].Node)
	require.Equal(t, "concurrency", attempts[0].Refusals[0].By)
	held.Done(time.Time{}, success)
}

func TestConnectionsAreKept(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		release := make(chan struct{})
		c := newCaller(t, 2, backstaytest.FleetConfig{Protocol: p, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				<-release
			}
			fmt.Fprint(w, "ok")
		})}, balancer.Config{Policy: balancer.RoundRobin{}}, nil)
		for range 20 {
			c.fetch("/")
		}
		for _, s := range c.fleet.Servers() {
			if p != backstaytest.H2C { // where net/http itself may dial again for the second call
				require.Equal(t, 1, s.Stats().Connections, "for calls that follow each other")
			}
		}
		connections := c.fleet.Stats().Connections
		const peak = 20
		for range 5 {
			var wg sync.WaitGroup
			for range peak {
				wg.Go(func() { c.fetch("/wait") })
			}
			eventually(t, func() bool { return c.fleet.Stats().InFlight == peak }, "not all have arrived")
			for range peak {
				release <- struct{}{}
			}
			wg.Wait()
			c.settled()
		}
		if p == backstaytest.HTTP1 {
			require.LessOrEqual(t, c.fleet.Stats().Connections, peak+2, "no more than were needed at once, and all are kept")
		} else {
			require.Equal(t, connections, c.fleet.Stats().Connections)
		}
	})
}

func TestTraceSeesTheConnection(t *testing.T) {
	c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: backstaytest.HTTP2}, balancer.Config{}, nil)
	var got []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GetConn:              func(hostPort string) { got = append(got, "get "+hostPort) },
		GotConn:              func(info httptrace.GotConnInfo) { got = append(got, "got "+info.Conn.RemoteAddr().String()) },
		GotFirstResponseByte: func() { got = append(got, "first byte") },
	})
	resp, err := c.rt.RoundTrip(c.request(ctx, http.MethodGet, "/", nil))
	require.NoError(t, err)
	read(t, resp)
	require.Equal(t, []string{"get orders.test:443", "got " + c.fleet.Server(0).Addr, "first byte"}, got)
}

func TestUnixSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	server := &http.Server{Handler: echo}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{Addr: "unix:" + path}), unhurried(balancer.Config{}))
	require.NoError(t, err)
	defer b.Close()
	resp, err := getFrom(t, b.Layer(new(http.Transport)), "http://orders/x")
	require.NoError(t, err)
	require.Contains(t, read(t, resp), "host=orders ")

	_, err = getFrom(t, b.Layer(roundTrip(func(*http.Request) (*http.Response, error) { panic("not to be called") })), "http://orders/x")
	var e *balancer.URLError
	require.ErrorAs(t, err, &e, "nobody else could dial it")
	require.Zero(t, b.Nodes()[0].InFlight())
}

func TestClientAboveFollowsRedirects(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		c := newCaller(t, 2, backstaytest.FleetConfig{Protocol: p, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/from" {
				http.Redirect(w, r, "/to", http.StatusTemporaryRedirect)
				return
			}
			echo(w, r)
		})}, balancer.Config{}, nil)
		resp, err := (&http.Client{Transport: c.rt}).Post(c.fleet.URL()+"/from", "text/plain", strings.NewReader("hello"))
		require.NoError(t, err)
		require.Equal(t, "/to", resp.Request.URL.Path)
		require.Equal(t, "orders.test", resp.Request.URL.Host)
		require.Contains(t, read(t, resp), "body=hello")
		c.settled()
	})
}

func TestCallWaitsForNodesWithinItsContext(t *testing.T) {
	b, err := balancer.New("orders", newFeed(), nil)
	require.NoError(t, err)
	defer b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	body := &watchedBody{Reader: strings.NewReader("hello")}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://orders/", body)
	require.NoError(t, err)
	_, err = b.Layer(nil).RoundTrip(req)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, body.closed)
	require.Equal(t, outcome.Neutral, outcome.HTTP(req, nil, err).Class)
}
