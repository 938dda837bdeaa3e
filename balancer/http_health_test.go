package balancer_test

import (
	"cmp"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// checkOnce has a server on loopback checked, and returns why it is not healthy,
// or "".
func checkOnce(t *testing.T, h http.Handler, health balancer.HealthConfig, next http.RoundTripper) string {
	t.Helper()
	backstaytest.CheckLeaks(t)
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	rec := new(backstaytest.Recorder)
	health.InitialUnhealthy = balancer.On
	health.Timeout = cmp.Or(health.Timeout, time.Minute)
	health.UnhealthyInterval = 20 * time.Millisecond
	b, err := balancer.New("orders:80", discovery.Static(discovery.Endpoint{ID: "a", Addr: server.Listener.Addr().String()}),
		unhurried(balancer.Config{Health: health, Observer: rec}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	require.NoError(t, b.Ready(t.Context()))
	const none = "health check: none yet"
	require.Equal(t, none, b.Snapshot().Nodes[0].Reason, "before there is a layer")
	b.Layer(next)
	require.Eventually(t, func() bool { return b.Snapshot().Nodes[0].Reason != none }, time.Minute, time.Millisecond)
	n := b.Snapshot().Nodes[0]
	require.Equal(t, n.Reason == "", n.State == balancer.Eligible)
	require.Zero(t, n.Answered)
	require.Zero(t, n.InFlight)
	require.Zero(t, n.Latency)
	require.Zero(t, n.Breaker.Calls)
	return n.Reason
}

func freshTransport() http.RoundTripper { return &http.Transport{} }

// rewritten is a RoundTripper that is no *http.Transport.
func rewritten() http.RoundTripper {
	return struct{ http.RoundTripper }{&http.Transport{DisableKeepAlives: true}}
}

func TestHTTPCheckLooksAtStatusAndBody(t *testing.T) {
	mux := http.NewServeMux()
	answer := func(path string, status int, body string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		})
	}
	answer("/ok", 200, "I am fine")
	answer("/accepted", 299, "")
	answer("/gone", 404, "fine")
	answer("/down", 503, "fine")
	answer("/long", 200, strings.Repeat(".", 8<<10)+"fine")
	mux.Handle("/moved", http.RedirectHandler("/ok", http.StatusMovedPermanently))
	mux.HandleFunc("/broken", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/asked", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead || r.Host != "health.internal" || r.Header.Get("X-Probe") != "yes" || r.URL.RawQuery != "deep=1" {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	mux.HandleFunc("/name", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host) })
	for _, tt := range []struct {
		name   string
		health balancer.HealthConfig
		want   string
	}{
		{"200", balancer.HealthConfig{Path: "/ok"}, ""},
		{"299", balancer.HealthConfig{Path: "/accepted"}, ""},
		{"404", balancer.HealthConfig{Path: "/gone"}, "health check: status 404"},
		{"404 that is meant", balancer.HealthConfig{Path: "/gone", Status: []balancer.StatusRange{{200, 204}, {404, 404}}}, ""},
		{"200 that is not meant", balancer.HealthConfig{Path: "/ok", Status: []balancer.StatusRange{{204, 204}}}, "health check: status 200"},
		{"503", balancer.HealthConfig{Path: "/down", Body: "fine"}, "health check: status 503"},
		{"redirect", balancer.HealthConfig{Path: "/moved"}, `health check: status 301, a redirect to "/ok", which is not followed`},
		{"redirect that is meant", balancer.HealthConfig{Path: "/moved", Status: []balancer.StatusRange{{301, 301}}}, ""},
		{"body", balancer.HealthConfig{Path: "/ok", Body: "fine"}, ""},
		{"body without it", balancer.HealthConfig{Path: "/ok", Body: "well"}, `health check: the first 9 bytes of the body are without "well"`},
		{"body too late", balancer.HealthConfig{Path: "/long", Body: "fine"}, `health check: the first 4096 bytes of the body are without "fine"`},
		{"broken", balancer.HealthConfig{Path: "/broken"}, "health check: EOF"},
		{"slow", balancer.HealthConfig{Path: "/slow", Timeout: 50 * time.Millisecond}, "health check: no answer within 50ms"},
		{"request", balancer.HealthConfig{
			Path: "/asked?deep=1", Method: "HEAD", Host: "health.internal", Header: map[string]string{"X-Probe": "yes"},
		}, ""},
		{"host", balancer.HealthConfig{Path: "/name", Body: "orders"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, checkOnce(t, mux, tt.health, freshTransport()))
		})
		t.Run(tt.name+", rewritten", func(t *testing.T) {
			require.Equal(t, tt.want, checkOnce(t, mux, tt.health, rewritten()))
		})
	}
}

func TestHTTPCheckAtAnotherPort(t *testing.T) {
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	admin := httptest.NewServer(ok)
	defer admin.Close()
	u, err := url.Parse(admin.URL)
	require.NoError(t, err)
	port, err := strconv.Atoi(u.Port())
	require.NoError(t, err)
	down := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	require.Empty(t, checkOnce(t, down, balancer.HealthConfig{Path: "/", Port: port}, freshTransport()))
	require.Empty(t, checkOnce(t, down, balancer.HealthConfig{Path: "/", Port: port}, rewritten()))
}

func TestHTTPCheckGoesOverTheNodesOwnConnections(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		health := balancer.HealthConfig{Path: "/", Interval: 10 * time.Millisecond, InitialUnhealthy: balancer.On}
		if p == backstaytest.HTTP2 {
			health.Scheme = "https"
		}
		c := newCaller(t, 3, backstaytest.FleetConfig{Protocol: p}, balancer.Config{Health: health}, nil)
		require.Eventually(t, func() bool {
			for _, n := range c.Snapshot().Nodes {
				if n.State != balancer.Eligible || n.Conns == 0 {
					return false
				}
			}
			return true
		}, time.Minute, time.Millisecond)
		for _, n := range c.Snapshot().Nodes {
			require.Zero(t, n.Answered)
		}
		for range 30 {
			read(t, c.get("/"))
		}
		require.NoError(t, c.Close())
	})
}

// Where the checks are not told what the service speaks, the calls tell them.
func TestHTTPCheckSpeaksWhatTheCallsDo(t *testing.T) {
	backstaytest.CheckLeaks(t)
	health := balancer.HealthConfig{Path: "/", Interval: 10 * time.Millisecond, Healthy: 1000}
	c := newCaller(t, 3, backstaytest.FleetConfig{Protocol: backstaytest.HTTP2}, balancer.Config{Health: health}, nil)
	states := func(want balancer.NodeState) bool {
		for _, n := range c.Snapshot().Nodes {
			if n.State != want {
				return false
			}
		}
		return true
	}
	require.Eventually(t, func() bool { return states(balancer.Unhealthy) }, time.Minute, time.Millisecond, "without TLS there is no answer")
	c.fetch("/")
	require.Eventually(t, func() bool { return states(balancer.Eligible) }, time.Minute, time.Millisecond, "what was found out before counts no more")
}

func TestHTTPCheckOfThePort443SpeaksHTTPS(t *testing.T) {
	for name, test := range map[string]struct{ service, addr, want string }{
		"the service's": {"orders:443", "10.0.0.1:8443", "https"},
		"the node's":    {"orders", "10.0.0.1:443", "https"},
		"another":       {"orders", "10.0.0.1:8443", "http"},
	} {
		synctest.Test(t, func(t *testing.T) {
			health := balancer.HealthConfig{Path: "/", InitialUnhealthy: balancer.On}
			b, err := balancer.New(test.service, discovery.Static(discovery.Endpoint{Addr: test.addr}), &balancer.Config{Health: health})
			require.NoError(t, err)
			defer b.Close()
			var schemes []string
			b.Layer(roundTrip(func(req *http.Request) (*http.Response, error) {
				schemes = append(schemes, req.URL.Scheme)
				return answer(req, http.StatusOK, http.NoBody), nil
			}))
			time.Sleep(time.Second)
			synctest.Wait()
			if test.want == "https" { // which that cannot be asked for
				require.Contains(t, b.Snapshot().Nodes[0].Reason, "https needs an *http.Transport below", name)
				require.Empty(t, schemes)
			} else {
				require.Equal(t, []string{"http"}, schemes, name)
			}
		})
	}
}

func TestHTTPCheckKeepsItsConnectionWhateverTheBody(t *testing.T) {
	backstaytest.CheckLeaks(t)
	var checks atomic.Int32
	long := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		checks.Add(1)
		_, _ = io.WriteString(w, strings.Repeat(".", 60<<10))
	})
	health := balancer.HealthConfig{Path: "/", Interval: 10 * time.Millisecond}
	c := newCaller(t, 1, backstaytest.FleetConfig{Handler: long}, balancer.Config{Health: health}, nil)
	require.Eventually(t, func() bool { return checks.Load() > 10 }, time.Minute, time.Millisecond)
	require.Equal(t, 1, c.fleet.Stats().Connections)
}

// The nodes can be reached by the template's dialer only.
func TestTCPCheckDialsAsTheCallsDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int32
		cfg := balancer.Config{
			Health: balancer.HealthConfig{TCP: balancer.On, Healthy: 1000},
			Dial: func(context.Context, string, string) (net.Conn, error) {
				dials.Add(1)
				return nil, errDown
			},
		}
		c := newCaller(t, 3, backstaytest.FleetConfig{Network: backstaytest.NewNetwork()}, cfg, nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, n := range c.Snapshot().Nodes {
			require.Equal(t, balancer.Eligible, n.State)
		}
		require.LessOrEqual(t, dials.Load(), int32(3), "but for before there was a layer")
		c.fleet.Server(0).Kill()
		time.Sleep(time.Minute)
		require.Equal(t, balancer.Unhealthy, c.Snapshot().Nodes[0].State)
	})
}

// A transport that cannot be had per node leads to the service as a whole: there
// is nothing to check.
func TestHTTPCheckIsNotMadeWhereNodesCannotBeToldApart(t *testing.T) {
	var checks atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			checks.Add(1)
		}
	}))
	defer server.Close()
	addr := server.Listener.Addr().String()
	health := balancer.HealthConfig{Path: "/healthz", Interval: 10 * time.Millisecond}
	b, err := balancer.New(addr, discovery.Static(discovery.Endpoint{Addr: addr}), unhurried(balancer.Config{Health: health}))
	require.NoError(t, err)
	defer b.Close()
	rt := b.Layer(&http.Transport{DialTLSContext: new(net.Dialer).DialContext, DisableKeepAlives: true})
	for range 20 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/", nil)
		require.NoError(t, err)
		resp, err := rt.RoundTrip(req)
		require.NoError(t, err)
		read(t, resp)
	}
	require.Zero(t, checks.Load())
	// The first layer that can tell them apart is the one.
	b.Layer(&http.Transport{})
	require.Eventually(t, func() bool { return checks.Load() > 3 }, time.Minute, time.Millisecond)
}
