package backstay_test

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
)

func TestURLsHostNamesTheService(t *testing.T) {
	for url, want := range map[string]string{
		"http://orders/x":                "orders",
		"http://ORDERS/x":                "orders",
		"http://Orders.Example.COM/x":    "orders.example.com",
		"http://orders:80/x":             "orders",
		"http://orders:/x":               "orders",
		"http://orders:443/x":            "orders:443",
		"http://ORDERS:8080/x":           "orders:8080",
		"http://user:secret@orders/x":    "orders",
		"http://127.0.0.1/x":             "127.0.0.1",
		"http://127.0.0.1:9/x":           "127.0.0.1:9",
		"http://[::1]/x":                 "[::1]",
		"http://[::1]:80/x":              "[::1]",
		"http://[2001:DB8::1]:8080/x":    "[2001:db8::1]:8080",
		"http://localhost:8080/x":        "localhost:8080",
		"http://xn--bcher-kva.example/x": "xn--bcher-kva.example",
		"http://bücher.example/x":        "xn--bcher-kva.example",
		"http://BÜCHER.example:8080/x":   "xn--bcher-kva.example:8080",
	} {
		t.Run(url, func(t *testing.T) {
			c := newClient(t, &backstay.Config{Base: always(200), Default: backstay.Service{Resolver: itself}})
			for range 2 { // found, and known
				require.Equal(t, want, logged(t, c, url).Service)
			}
		})
	}
}

func TestHTTPSServiceHasNoPortOfTheScheme(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Protocol: backstaytest.HTTP1TLS})
	c := fleetClient(t, fleet, nil)
	for _, url := range []string{"https://orders.test/x", "https://orders.test:443/x", "https://Orders.Test/x"} {
		require.Equal(t, "orders.test", logged(t, c, url).Service)
	}
	require.Equal(t, 3, fleet.Stats().Requests)
}

func TestSpellingsOfANameShareOneService(t *testing.T) {
	resolver := &counted{Resolver: oneNode("10.0.0.1:80")}
	c := newClient(t, &backstay.Config{Base: always(200), Default: backstay.Service{Resolver: resolver}})
	for _, host := range []string{"orders.test", "ORDERS.test", "Orders.Test:80", "orders.test:80", "orders.test:"} {
		get(t, c, "http://"+host)
	}
	_, ever := resolver.watches()
	require.Equal(t, 1, ever)
}

func TestSettingsAreLookedUpByHostWithPortBeforeHost(t *testing.T) {
	for _, test := range []struct{ host, goesTo string }{
		{"orders", "10.0.0.1:1"},
		{"ORDERS:80", "10.0.0.1:1"},
		{"orders:8080", "10.0.0.2:1"},
		{"orders:9090", "10.0.0.1:1"},
		{"[::1]", "10.0.0.3:1"},
		{"[::1]:8080", "10.0.0.4:1"},
		{"[::1]:9090", "10.0.0.3:1"},
		{"users", "10.0.0.9:1"},
		{"users:8080", "10.0.0.9:1"},
		{"orders.example", "10.0.0.9:1"},
	} {
		t.Run(test.host, func(t *testing.T) {
			base := &recording{next: always(200)}
			c := newClient(t, &backstay.Config{
				Base:    base,
				Default: backstay.Service{Resolver: oneNode("10.0.0.9:1")},
				Services: map[string]backstay.Service{
					"orders":      {Resolver: oneNode("10.0.0.1:1")},
					"orders:8080": {Resolver: oneNode("10.0.0.2:1")},
					"[::1]":       {Resolver: oneNode("10.0.0.3:1")},
					"[::1]:8080":  {Resolver: oneNode("10.0.0.4:1")},
				},
			})
			get(t, c, "http://"+test.host+"/x")
			require.Equal(t, []string{test.goesTo}, base.hosts())
		})
	}
}

func TestRequestKeepsItsHostAndURLWhateverNodeItGoesTo(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(r.Host)) }),
	})
	c := fleetClient(t, fleet, nil)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fleet.URL()+"/x", nil)
	require.NoError(t, err)
	resp, err := c.RoundTrip(req)
	require.NoError(t, err)
	require.Same(t, req, resp.Request)
	_, host := read(t, resp)
	require.Equal(t, "orders.test", host)
	require.Equal(t, "http://orders.test/x", req.URL.String())
	require.Empty(t, resp.Header.Get("Via"))

	req.Host = "virtual.example"
	resp, err = c.RoundTrip(req)
	require.NoError(t, err)
	_, host = read(t, resp)
	require.Equal(t, "virtual.example", host)
}

func TestAddressesAndLocalhostAreServicesOfOneNodeWithoutALookUp(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	address, err := url.Parse(fleet.Server(0).URL())
	require.NoError(t, err)
	c := newClient(t, nil) // the resolver is DNS
	for _, host := range []string{"127.0.0.1", "localhost", "LocalHost"} {
		r := logged(t, c, "http://"+host+":"+address.Port())
		require.Equal(t, 200, r.Status)
		require.Equal(t, "127.0.0.1:"+address.Port(), r.Attempts[0].Addr)
	}
}

// What is known of a host's nodes belongs to one resolver watch per service, and
// a service that is not listed has none.
func TestServicesNotListedAreLookedUpOnDemand(t *testing.T) {
	resolver := &counted{Resolver: oneNode("10.0.0.1:80")}
	c := newClient(t, &backstay.Config{
		Base: always(200), Default: backstay.Service{Resolver: resolver},
		Services: map[string]backstay.Service{"listed": {}},
	})
	require.NoError(t, c.Ready(t.Context()))
	open, ever := resolver.watches()
	require.Equal(t, []int{1, 1}, []int{open, ever}, "the listed service's")

	for range 3 {
		get(t, c, "http://orders/x")
		get(t, c, "http://users/x")
	}
	eventually(t, func() bool { open, _ := resolver.watches(); return open == 1 }, "look-ups on demand end")
	_, ever = resolver.watches()
	require.Equal(t, 3, ever, "one for each service, however many calls")
}

func TestListedServicesAreLookedUpFromTheBeginning(t *testing.T) {
	asked := make(chan string, 2)
	resolver := discovery.ResolverFunc(func(ctx context.Context, service string) iter.Seq2[discovery.Set, error] {
		asked <- service
		return itself.Watch(ctx, service)
	})
	newClient(t, &backstay.Config{Services: map[string]backstay.Service{"orders": {Resolver: resolver}}})
	require.Equal(t, "orders", <-asked)
}

// Frames hold what the innermost call is about, so the service in the log is
// that of each call, and not of the context's first.
func TestEachServiceOfALogIsItsOwn(t *testing.T) {
	c := newClient(t, &backstay.Config{Base: always(200), Default: backstay.Service{Resolver: itself}})
	ctx, log := call.WithLog(t.Context())
	for _, host := range []string{"a", "b:1"} {
		resp, err := send(t, ctx, c, http.MethodGet, "http://"+host+"/x?secret=1", "")
		require.NoError(t, err)
		read(t, resp)
	}
	calls := log.Calls()
	require.Equal(t, []string{"a", "b:1"}, []string{calls[0].Service, calls[1].Service})
	require.NotContains(t, log.String(), "secret")
}

func TestServiceMayHaveABaseOfItsOwn(t *testing.T) {
	c := newClient(t, &backstay.Config{
		Base: always(200),
		Services: map[string]backstay.Service{
			"orders": {Resolver: itself, Base: always(404)}, "users": {Resolver: itself},
		},
	})
	status, _ := get(t, c, "http://orders")
	require.Equal(t, 404, status)
	status, _ = get(t, c, "http://users")
	require.Equal(t, 200, status)
}

func TestBalancerOfAServiceIsThereToLookAtAndIntervene(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, nil)
	c := fleetClient(t, fleet, nil)
	require.Nil(t, c.Balancer("nobody"))
	require.NoError(t, c.Ready(t.Context()))
	b := c.Balancer(fleet.Service)
	nodes := b.Nodes()
	require.Len(t, nodes, 2)
	require.NoError(t, b.Eject(nodes[0].Key(), time.Minute))
	for range 10 {
		require.Equal(t, nodes[1].Key(), logged(t, c, fleet.URL()).Attempts[0].Node)
	}
	for _, n := range nodes {
		n.Breaker().ForceOpen()
	}
	_, err := c.Get(fleet.URL())
	require.ErrorIs(t, err, breaker.ErrOpen)
}

func TestLogOfACallThatFoundNoNodeShowsNoAttempt(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	fleet.FailDiscovery(errors.New("registry down"))
	c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) { s.Retry = once() })
	ctx, log := call.WithLog(t.Context())
	require.Error(t, try(ctx, c, fleet.URL()))
	r := log.Calls()[0]
	require.Empty(t, r.Attempts)
	require.Len(t, r.Refusals, 1)
	require.ErrorContains(t, r.Refusals[0].Err, "registry down")
	require.Regexp(t, `^GET \S+: failed in \S+: balancer: service .*registry down; no node$`, log.String())
}
