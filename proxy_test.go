package backstay_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/discovery"
)

// Where a proxy applies, the service is one node under its own name, and nobody
// looks the name up here: the proxy does.
func TestServiceBehindAProxyIsOneNodeUnderItsOwnName(t *testing.T) {
	backstaytest.CheckLeaks(t)
	proxy := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "asked for "+r.URL.String()) }),
	}).Server(0)
	to, err := url.Parse(proxy.URL())
	require.NoError(t, err)
	base := proxy.Transport()
	base.Proxy = func(r *http.Request) (*url.URL, error) {
		if r.URL.Hostname() == "direct.test" {
			return nil, nil //nolint:nilnil // http.Transport's contract
		}
		return to, nil
	}
	direct := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Service: "direct.test"})
	lookedUp := &counted{Resolver: direct.Resolver()}
	c := newClient(t, &backstay.Config{Base: base, Default: backstay.Service{Resolver: lookedUp}})
	for range 3 {
		_, body := get(t, c, "http://orders.test/x?y=1")
		require.Equal(t, "asked for http://orders.test/x?y=1", body)
	}
	require.Equal(t, "orders.test", logged(t, c, "http://orders.test").Attempts[0].Node)
	_, ever := lookedUp.watches()
	require.Zero(t, ever)
	_, body := get(t, c, "http://direct.test")
	require.Equal(t, "ok\n", body)
}

func TestShutdownWaitsForABodyThroughAProxy(t *testing.T) {
	h, end := streaming()
	proxy := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Handler: h}).Server(0)
	to, err := url.Parse(proxy.URL())
	require.NoError(t, err)
	base := proxy.Transport()
	base.Proxy = http.ProxyURL(to)
	c := newClient(t, &backstay.Config{Base: base})
	resp := slowBody(t, c, "http://orders.test")
	begin := time.Now()
	time.AfterFunc(300*time.Millisecond, end)
	rest := restOf(resp)
	require.NoError(t, c.Shutdown(t.Context()))
	require.GreaterOrEqual(t, time.Since(begin), 300*time.Millisecond)
	require.Equal(t, "end", <-rest)
}

// A template's own dialer makes the connections of every node, and finds the
// node's address in its hands.
func TestTemplatesDialerConnectsToEveryNode(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 3, nil)
	var dials atomic.Int64
	base := fleet.Transport()
	base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	c := newClient(t, &backstay.Config{Base: base, Services: map[string]backstay.Service{
		"orders.test": {Resolver: discovery.Static(fleet.Endpoints()...)},
	}})
	for range 60 {
		get(t, c, fleet.URL())
	}
	// net/http gives a connection up whose writer has not said within 50 ms that it is done.
	require.LessOrEqual(t, dials.Load(), int64(6))
	require.Equal(t, 60, fleet.Stats().Requests)
	require.EqualValues(t, dials.Load(), fleet.Stats().Connections)
}
