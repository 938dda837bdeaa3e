package balancer_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// trustTestServers makes the system trust the certificate of httptest's servers,
// so that templates need no TLS configuration for it: having one changes what
// net/http speaks.
var trustTestServers = sync.OnceFunc(func() {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	x509.SetFallbackRoots(pool)
})

// HTTP/2 is spoken where the template would have spoken it, and nowhere else.
func TestProtocolIsTheTemplates(t *testing.T) {
	t.Setenv("GODEBUG", "x509usefallbackroots=1")
	trustTestServers()
	backstaytest.CheckLeaks(t)
	server := httptest.NewUnstartedServer(echo)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	proto := func(rt http.RoundTripper, url string) string {
		resp, err := getFrom(t, rt, url)
		require.NoError(t, err)
		return strings.Fields(read(t, resp))[0]
	}
	used := func(tr *http.Transport) *http.Transport {
		proto(tr, server.URL)
		tr.CloseIdleConnections()
		return tr
	}
	dialer := new(net.Dialer).DialContext
	off := map[string]func(string, *tls.Conn) http.RoundTripper{}
	protocols := func(one, two bool) *http.Protocols {
		p := new(http.Protocols)
		p.SetHTTP1(one)
		p.SetHTTP2(two)
		return p
	}
	for name, c := range map[string]struct {
		template func() *http.Transport
		want     string
	}{
		"plain":       {func() *http.Transport { return new(http.Transport) }, "HTTP/2.0"},
		"the default": {http.DefaultTransport.(*http.Transport).Clone, "HTTP/2.0"},
		"with TLS":    {func() *http.Transport { return &http.Transport{TLSClientConfig: new(tls.Config)} }, "HTTP/1.1"},
		"with TLS, forced": {func() *http.Transport {
			return &http.Transport{TLSClientConfig: new(tls.Config), ForceAttemptHTTP2: true}
		}, "HTTP/2.0"},
		"a dialer":          {func() *http.Transport { return &http.Transport{DialContext: dialer} }, "HTTP/1.1"},
		"a dialer, forced":  {func() *http.Transport { return &http.Transport{DialContext: dialer, ForceAttemptHTTP2: true} }, "HTTP/2.0"},
		"a dialer, used":    {func() *http.Transport { return used(&http.Transport{DialContext: dialer}) }, "HTTP/1.1"},
		"plain, used":       {func() *http.Transport { return used(new(http.Transport)) }, "HTTP/2.0"},
		"the default, used": {func() *http.Transport { return used(http.DefaultTransport.(*http.Transport).Clone()) }, "HTTP/2.0"},
		"off":               {func() *http.Transport { return &http.Transport{TLSNextProto: off} }, "HTTP/1.1"},
		"off, forced":       {func() *http.Transport { return &http.Transport{TLSNextProto: off, ForceAttemptHTTP2: true} }, "HTTP/1.1"},
		"off, used":         {func() *http.Transport { return used(&http.Transport{TLSNextProto: off}) }, "HTTP/1.1"},
		"protocols: both":   {func() *http.Transport { return &http.Transport{Protocols: protocols(true, true)} }, "HTTP/2.0"},
		"protocols: 1": {func() *http.Transport {
			return &http.Transport{Protocols: protocols(true, false), ForceAttemptHTTP2: true}
		}, "HTTP/1.1"},
		"protocols: 2":       {func() *http.Transport { return &http.Transport{Protocols: protocols(false, true), DialContext: dialer} }, "HTTP/2.0"},
		"x/net/http2":        {func() *http.Transport { return byXNet(t, new(http.Transport)) }, "HTTP/2.0"},
		"x/net/http2, TLS":   {func() *http.Transport { return byXNet(t, &http.Transport{TLSClientConfig: new(tls.Config)}) }, "HTTP/2.0"},
		"x/net/http2, dials": {func() *http.Transport { return byXNet(t, &http.Transport{DialContext: dialer}) }, "HTTP/2.0"},
		"x/net/http2, used":  {func() *http.Transport { return used(byXNet(t, new(http.Transport))) }, "HTTP/2.0"},
	} {
		t.Run(name, func(t *testing.T) {
			direct := c.template()
			require.Equal(t, c.want, proto(direct, server.URL), "without a balancer")
			direct.CloseIdleConnections()

			for _, ahead := range []int{0, 2} {
				cfg := balancer.Config{Conns: balancer.ConnConfig{Min: ahead}}
				b, err := balancer.New("example.com", discovery.Static(discovery.Endpoint{Addr: server.Listener.Addr().String()}), unhurried(cfg))
				require.NoError(t, err)
				defer b.Close()
				rt := b.Layer(c.template())
				require.Equal(t, c.want, proto(rt, "https://example.com"))
				require.Len(t, b.Nodes(), 1)
				require.Equal(t, 0, b.Nodes()[0].InFlight())
				_, known := b.Nodes()[0].Latency(time.Now())
				require.True(t, known, "it went by the node")
			}
		})
	}
}

func byXNet(t *testing.T, tr *http.Transport) *http.Transport {
	t.Helper()
	require.NoError(t, http2.ConfigureTransport(tr)) //nolint:staticcheck // deprecated, and in use
	return tr
}

// x/net/http2's hook pools connections by the URL's host, which is the same for
// all nodes.
func TestNodesDoNotShareConnectionsOfXNetHTTP2(t *testing.T) {
	c := newCaller(t, 3, backstaytest.FleetConfig{Protocol: backstaytest.HTTP2}, balancer.Config{Policy: balancer.RoundRobin{}}, func(tr *http.Transport) {
		tr.Protocols = nil
		byXNet(t, tr)
	})
	for range 30 {
		require.Equal(t, 2, func() int { resp := c.get("/"); defer resp.Body.Close(); return resp.ProtoMajor }())
	}
	for _, s := range c.fleet.Servers() {
		require.Equal(t, 10, s.Stats().Requests)
		require.Equal(t, 1, s.Stats().Connections)
	}
}

func TestDialerGetsTheNodesAddress(t *testing.T) {
	for name, set := range map[string]func(tr *http.Transport, note func(network, addr string)){
		"DialContext": func(tr *http.Transport, note func(network, addr string)) {
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				note(network, addr)
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
		},
		"Dial": func(tr *http.Transport, note func(network, addr string)) {
			tr.Dial = func(network, addr string) (net.Conn, error) { //nolint:staticcheck // it is still in use
				note(network, addr)
				return net.Dial(network, addr)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			dialed := make(map[string]int)
			c := newCaller(t, 2, backstaytest.FleetConfig{Protocol: backstaytest.HTTP2}, balancer.Config{Policy: balancer.RoundRobin{}}, func(tr *http.Transport) {
				set(tr, func(network, addr string) {
					mu.Lock()
					defer mu.Unlock()
					dialed[network+" "+addr]++
				})
			})
			for range 10 {
				c.fetch("/")
			}
			require.Equal(t, map[string]int{"tcp " + c.fleet.Server(0).Addr: 1, "tcp " + c.fleet.Server(1).Addr: 1}, dialed)
		})
	}
}

func TestPortIsTheURLsWhereTheEndpointHasNone(t *testing.T) {
	for url, want := range map[string]string{
		"http://orders/": "10.0.0.1:80", "https://orders/": "10.0.0.1:443", "http://orders:8080/": "10.0.0.1:8080", "https://orders:8443/": "10.0.0.1:8443",
	} {
		b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{Addr: "10.0.0.1"}), nil)
		require.NoError(t, err)
		var got string
		_, err = getFrom(t, b.Layer(&http.Transport{DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			got = addr
			return nil, errDown
		}}), url)
		require.ErrorIs(t, err, errDown)
		require.Equal(t, want, got, url)
		require.NoError(t, b.Close())
	}
}

func TestServerNameOfTheEndpoint(t *testing.T) {
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP1TLS, backstaytest.HTTP2} {
		t.Run(p.String(), func(t *testing.T) {
			fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Protocol: p, Handler: echo})
			for _, name := range []string{"", fleet.Service} {
				e := fleet.Server(0).Endpoint()
				e.ServerName = name
				b, err := balancer.New("other", discovery.Static(e), unhurried(balancer.Config{}))
				require.NoError(t, err)
				template := fleet.Transport()
				resp, err := getFrom(t, b.Layer(template), "https://other/")
				if name == "" {
					var hostname x509.HostnameError
					require.ErrorAs(t, err, &hostname, "the certificate is not good for the service's name")
					o := outcome.HTTP(nil, nil, err)
					require.Equal(t, outcome.Failure, o.Class)
					require.Equal(t, outcome.Elsewhere, o.Retry)
					require.EqualValues(t, 1, b.Nodes()[0].Breaker().Snapshot(time.Now()).Failures)
				} else {
					require.NoError(t, err)
					require.Contains(t, read(t, resp), "host=other tls=orders.test")
					require.Empty(t, template.TLSClientConfig.ServerName, "the template is not changed")
				}
				require.NoError(t, b.Close())
			}
		})
	}
}

func TestTemplateIsLeftAlone(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, nil)
	for name, next := range map[string]http.RoundTripper{"the default": nil, "a transport": fleet.Transport()} {
		t.Run(name, func(t *testing.T) {
			tr, _ := next.(*http.Transport)
			if tr == nil {
				tr = http.DefaultTransport.(*http.Transport)
			}
			tr.Clone() // prepares it for use, as any use does
			type fields struct {
				dial, proxy     bool
				idle, idleHost  int
				force           bool
				protos          int
				protocols, conf any
			}
			look := func() fields {
				return fields{
					tr.DialContext != nil, tr.Proxy != nil, tr.MaxIdleConns, tr.MaxIdleConnsPerHost,
					tr.ForceAttemptHTTP2, len(tr.TLSNextProto), tr.Protocols, tr.TLSClientConfig,
				}
			}
			before := look()
			b, err := balancer.New(fleet.Service, fleet.Resolver(), unhurried(balancer.Config{}))
			require.NoError(t, err)
			defer b.Close()
			rt := b.Layer(next)
			for range 10 {
				resp, err := getFrom(t, rt, fleet.URL())
				require.NoError(t, err)
				read(t, resp)
			}
			require.Equal(t, before, look())
		})
	}
}

// Closing a balancer must not close what others have open.
func TestCloseLeavesTheTemplatesOwnConnections(t *testing.T) {
	c := newCaller(t, 1, backstaytest.FleetConfig{}, balancer.Config{}, nil)
	own := c.fleet.Server(0).Client()
	get := func() {
		resp, err := own.Get(c.fleet.Server(0).URL())
		require.NoError(t, err)
		read(t, resp)
	}
	get()
	rt := c.Layer(own.Transport)
	resp, err := getFrom(t, rt, c.fleet.URL())
	require.NoError(t, err)
	read(t, resp)
	require.NoError(t, c.Close())
	before := c.fleet.Stats().Connections
	get()
	require.Equal(t, before, c.fleet.Stats().Connections)
}

// Where nodes cannot be told apart the service is one node under its own name.
func TestOpaqueTemplatesMakeTheServiceOneNode(t *testing.T) {
	server := httptest.NewTLSServer(echo)
	defer server.Close()
	plain := httptest.NewServer(echo)
	defer plain.Close()
	dialTLS := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(ctx, network, server.Listener.Addr().String())
	}
	fake := roundTrip(func(req *http.Request) (*http.Response, error) {
		return answer(req, 200, text("registered "+req.URL.Host)), nil
	})
	for name, c := range map[string]struct {
		template func() *http.Transport
		url      string
		want     string
		opaque   bool
	}{
		"DialTLSContext": {func() *http.Transport { return &http.Transport{DialTLSContext: dialTLS} }, "https://orders/", "host=orders tls=", true},
		"DialTLS": {func() *http.Transport {
			return &http.Transport{DialTLS: func(network, addr string) (net.Conn, error) { //nolint:staticcheck // it is still in use
				return dialTLS(context.Background(), network, addr)
			}}
		}, "https://orders/", "host=orders tls=", true},
		"a protocol for https": {func() *http.Transport {
			tr := &http.Transport{TLSNextProto: make(map[string]func(string, *tls.Conn) http.RoundTripper)}
			tr.RegisterProtocol("https", fake)
			return tr
		}, "https://orders/", "registered orders", true},
		"a protocol for http": {func() *http.Transport {
			tr := new(http.Transport)
			tr.RegisterProtocol("http", fake)
			return tr
		}, "http://orders/", "registered orders", true},
		"a protocol for files": {func() *http.Transport {
			tr := new(http.Transport)
			tr.RegisterProtocol("file", http.NewFileTransport(http.Dir(".")))
			return tr
		}, "http://orders/", "host=orders", false},
	} {
		for _, onDemand := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				backstaytest.CheckLeaks(t)
				var r discovery.Resolver = newFeed() // which never answers
				if !c.opaque {
					r = discovery.Static(discovery.Endpoint{Addr: plain.Listener.Addr().String()})
				}
				b, err := balancer.New("orders", r, unhurried(balancer.Config{OnDemand: onDemand, Breaker: exact(balancer.Config{}).Breaker}))
				require.NoError(t, err)
				defer b.Close()
				template := c.template()
				defer template.CloseIdleConnections()
				rt := b.Layer(template)
				for range 3 {
					resp, err := getFrom(t, rt, c.url)
					require.NoError(t, err)
					require.Contains(t, read(t, resp), c.want)
				}
				require.Equal(t, c.opaque, len(b.Nodes()) == 0)
			})
		}
	}
}

func TestOpaqueServiceHasItsBreakerAndItsLimits(t *testing.T) {
	fail := true
	template := new(http.Transport)
	template.RegisterProtocol("http", roundTrip(func(req *http.Request) (*http.Response, error) {
		if fail {
			return nil, errDown
		}
		return answer(req, 200, text("ok")), nil
	}))
	inBubble(t, nil, nil, func(t *testing.T, r *rig) {
		rt := r.Layer(template)
		for range 20 {
			_, err := getFrom(t, rt, "http://orders/")
			require.ErrorIs(t, err, errDown)
		}
		fail = false
		_, err := getFrom(t, rt, "http://orders/")
		require.True(t, outcome.Refused(err))
		time.Sleep(5 * time.Second) // in the bubble: the breaker's open time
		for range 10 {
			resp, err := getFrom(t, rt, "http://orders/")
			require.NoError(t, err)
			read(t, resp)
		}
		require.NoError(t, r.Close())
		_, err = getFrom(t, rt, "http://orders/")
		require.ErrorIs(t, err, balancer.ErrClosed)
	})
}

// The service's name need not be one that could be dialed.
func TestOpaqueServiceOfAnyName(t *testing.T) {
	template := new(http.Transport)
	template.RegisterProtocol("http", roundTrip(func(req *http.Request) (*http.Response, error) { return answer(req, 200, text("ok")), nil }))
	for _, service := range []string{"Orders of the EU", "eu/orders", "orders:http", "orders:99999"} {
		b, err := balancer.New(service, newFeed(), nil)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
		require.NoError(t, err)
		resp, err := b.Layer(template).RoundTrip(req)
		require.NoError(t, err, service)
		read(t, resp)
		cancel()
		require.NoError(t, b.Close())
	}
}

func TestUploadsUseTheConnectionsReadFrom(t *testing.T) {
	var sent bytes.Buffer
	c := newCaller(t, 1, backstaytest.FleetConfig{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(&sent, r.Body)
	})}, balancer.Config{}, nil)
	want := strings.Repeat("hello ", 100_000)
	resp, err := c.rt.RoundTrip(c.request(t.Context(), http.MethodPut, "/", strings.NewReader(want)))
	require.NoError(t, err)
	read(t, resp)
	require.Equal(t, want, sent.String())
}
