package balancer_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http/httpproxy"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
)

// proxy is a forward proxy that knows one server under every name.
type proxy struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	p := new(proxy)
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.seen = append(p.seen, r.Method+" "+r.URL.Host)
		p.mu.Unlock()
		if r.Method != http.MethodConnect {
			fmt.Fprint(w, "by proxy for "+r.URL.String())
			return
		}
		out, err := net.Dial("tcp", target)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		in, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = rw.WriteString("HTTP/1.1 200 OK\r\n\r\n")
		_ = rw.Flush()
		go func() { defer out.Close(); _, _ = io.Copy(out, rw) }()
		defer in.Close()
		_, _ = io.Copy(in, out)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *proxy) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.seen...)
}

func TestProxyOfTheTemplateIsUsed(t *testing.T) {
	for _, protocol := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.HTTP2} {
		t.Run(protocol.String(), func(t *testing.T) {
			backstaytest.CheckLeaks(t)
			fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Protocol: protocol, Handler: echo})
			p := newProxy(t, fleet.Server(0).Addr)
			template := fleet.Transport()
			defer template.CloseIdleConnections()
			u, err := url.Parse(p.URL)
			require.NoError(t, err)
			template.Proxy = http.ProxyURL(u)
			b, err := balancer.New(fleet.Service, newFeed(), unhurried(balancer.Config{})) // no nodes are known, and none are needed
			require.NoError(t, err)
			defer b.Close()
			rt := b.Layer(template)
			for range 3 {
				resp, err := getFrom(t, rt, fleet.URL()+"/x")
				require.NoError(t, err)
				body := read(t, resp)
				if protocol == backstaytest.HTTP1 {
					require.Equal(t, "by proxy for http://orders.test/x", body)
				} else {
					require.Contains(t, body, "host=orders.test tls=orders.test")
				}
			}
			if protocol == backstaytest.HTTP1 {
				require.Equal(t, []string{"GET orders.test", "GET orders.test", "GET orders.test"}, p.requests())
			} else {
				require.Equal(t, []string{"CONNECT orders.test:443"}, p.requests())
			}
			require.Empty(t, b.Nodes())
		})
	}
}

func TestProxyIsAskedForEachRequest(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Handler: echo})
	p := newProxy(t, "")
	template := fleet.Transport()
	template.Proxy = func(req *http.Request) (*url.URL, error) {
		switch req.Header.Get("X-Tag") {
		case "proxy":
			return url.Parse(p.URL)
		case "fail":
			return nil, errDown
		}
		return nil, nil
	}
	b, err := balancer.New(fleet.Service, fleet.Resolver(), unhurried(balancer.Config{}))
	require.NoError(t, err)
	defer b.Close()
	rt := b.Layer(template)
	get := func(tag string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fleet.URL(), nil)
		require.NoError(t, err)
		req.Header.Set("X-Tag", tag)
		return rt.RoundTrip(req)
	}
	for _, tag := range []string{"proxy", "", "proxy", ""} {
		resp, err := get(tag)
		require.NoError(t, err)
		require.Equal(t, tag == "proxy", strings.HasPrefix(read(t, resp), "by proxy"))
	}
	_, err = get("fail")
	require.ErrorIs(t, err, errDown)
	require.Len(t, p.requests(), 2)
	idle(t, b.Nodes())
}

func TestHostsThatNeedNoProxyGoToNodes(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Handler: echo})
	p := newProxy(t, "")
	proxyOf := (&httpproxy.Config{HTTPProxy: p.URL, NoProxy: "orders.test,.internal"}).ProxyFunc()
	template := fleet.Transport()
	template.Proxy = func(req *http.Request) (*url.URL, error) { return proxyOf(req.URL) }
	b, err := balancer.New(fleet.Service, fleet.Resolver(), unhurried(balancer.Config{}))
	require.NoError(t, err)
	defer b.Close()
	rt := b.Layer(template)
	for host, proxied := range map[string]bool{"orders.test": false, "a.internal": false, "other.test": true} {
		resp, err := getFrom(t, rt, "http://"+host)
		require.NoError(t, err)
		require.Equal(t, proxied, strings.HasPrefix(read(t, resp), "by proxy"), host)
	}
	require.Equal(t, []string{"GET other.test"}, p.requests())
}

// The environment is read once in a process, so this one starts another.
func TestProxyOfTheEnvironment(t *testing.T) {
	if service := os.Getenv("BALANCER_TEST_PROXIED"); service != "" {
		b, err := balancer.New("orders.test", discovery.Static(discovery.Endpoint{Addr: service}), unhurried(balancer.Config{}))
		require.NoError(t, err)
		defer b.Close()
		rt := b.Layer(nil)
		for range 2 {
			for _, host := range []string{"orders.test", "near.test"} {
				resp, err := getFrom(t, rt, "http://"+host+"/x")
				require.NoError(t, err)
				fmt.Printf("got: %s %s\n", host, read(t, resp))
			}
		}
		return
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "by node") }))
	defer server.Close()
	p := newProxy(t, "")
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyOfTheEnvironment$")
	child.Env = append(os.Environ(),
		"BALANCER_TEST_PROXIED="+server.Listener.Addr().String(), "HTTP_PROXY="+p.URL, "NO_PROXY=near.test", "REQUEST_METHOD=")
	out, err := child.CombinedOutput()
	require.NoError(t, err, "%s", out)
	want := "got: orders.test by proxy for http://orders.test/x\ngot: near.test by node\n"
	require.True(t, strings.HasPrefix(string(out), want+want), "%s", out)
	require.Equal(t, []string{"GET orders.test", "GET orders.test"}, p.requests())
}

func TestProxyThatIsDownOpensTheServicesBreaker(t *testing.T) {
	b, err := balancer.New("orders", newFeed(), nil)
	require.NoError(t, err)
	defer b.Close()
	rt := b.Layer(&http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: "127.0.0.1:1"}),
		DialContext:     nil,
		IdleConnTimeout: time.Second,
	})
	var op *net.OpError
	for range 20 {
		_, err := getFrom(t, rt, "http://orders/")
		require.ErrorAs(t, err, &op)
	}
	_, err = getFrom(t, rt, "http://orders/")
	var open *breaker.OpenError
	require.ErrorAs(t, err, &open)
	require.Equal(t, "orders", open.Key)
}
