package backstay_test

import (
	"context"
	"net/http"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// routed returns a client with an empty route for each pattern.
func routed(t *testing.T, base http.RoundTripper, patterns ...string) *backstay.Client {
	t.Helper()
	routes := make(map[string]backstay.Route)
	for _, p := range patterns {
		routes[p] = backstay.Route{}
	}
	return newClient(t, &backstay.Config{Base: base, Default: backstay.Service{Resolver: itself}, Routes: routes})
}

func TestRequestsFindTheirRoute(t *testing.T) {
	const (
		items    = "GET /v1/items"
		item     = "GET /v1/items/{id}"
		anything = "/v1/items/{id}"
		below    = "/files/"
		orders   = "POST orders/v1/items"
		root     = "/{$}"
		rest     = "GET /rest/{path...}"
		v6       = "GET [::1]/six"
	)
	c := routed(t, always(200), items, item, anything, below, orders, root, rest, v6)
	for _, test := range []struct{ method, url, want string }{
		{"GET", "http://orders/v1/items", items},
		{"GET", "http://users:8080/v1/items?page=2", items},
		{"HEAD", "http://orders/v1/items", items}, // as ServeMux has it
		{"", "http://orders/v1/items", items},     // net/http: means GET
		{"PUT", "http://orders/v1/items", ""},
		{"GET", "http://orders/v1/items/7", item},
		{"GET", "http://orders/v1/items/a%2Fb", item},
		{"DELETE", "http://orders/v1/items/7", anything},
		{"GET", "http://orders/v1/items/7/lines", ""},
		{"GET", "http://orders/files/a/b/c", below},
		{"POST", "http://orders/v1/items", orders},
		{"POST", "http://ORDERS:80/v1/items", orders},
		{"POST", "http://orders:8080/v1/items", orders},
		{"POST", "http://users/v1/items", ""},
		{"POST", "http://orders.example/v1/items", ""},
		{"GET", "http://orders", root}, // net/http: sends "/"
		{"GET", "http://orders?q=1", root},
		{"GET", "http://orders/", root},
		{"GET", "http://orders/rest/", rest},
		{"GET", "http://[::1]/six", v6},
		{"GET", "http://[::1]:8080/six", v6},
		{"OPTIONS", "http://orders/nothing", ""},
	} {
		t.Run(test.method+" "+test.url, func(t *testing.T) {
			u, err := url.Parse(test.url)
			require.NoError(t, err)
			ctx, log := call.WithLog(t.Context())
			req := (&http.Request{Method: test.method, URL: u, Header: make(http.Header)}).WithContext(ctx)
			resp, err := c.RoundTrip(req)
			require.NoError(t, err)
			read(t, resp)
			require.Equal(t, test.want, log.Calls()[0].Route)
		})
	}
}

// ServeMux answers such requests itself, with redirects and errors. They must go
// out as they are: what a path means is the server's business.
func TestPathsThatAServeMuxWouldCleanAreSentAsTheyAre(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(r.RequestURI)) }),
	})
	c := fleetClient(t, fleet, func(cfg *backstay.Config, _ *backstay.Service) {
		cfg.Routes = map[string]backstay.Route{"/": {}, "/tree/": {}, "POST /only": {}}
	})
	for _, path := range []string{
		"//a", "/a//b", "/a/../b", "/a/./b", "/a/", "/tree", "/tree/../x", "/only", "/%2e%2e/a", "/a%2F..%2Fb", "/a?x=//&y=/../", "/*",
	} {
		t.Run(path, func(t *testing.T) {
			status, uri := get(t, c, fleet.URL()+path)
			require.Equal(t, 200, status)
			require.Equal(t, path, uri)
		})
	}
	t.Run("OPTIONS *", func(t *testing.T) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, fleet.URL(), nil)
		require.NoError(t, err)
		req.URL.Path = "*"
		resp, err := c.RoundTrip(req)
		require.NoError(t, err)
		read(t, resp) // net/http's server answers it by itself
	})
	t.Run("opaque", func(t *testing.T) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fleet.URL(), nil)
		require.NoError(t, err)
		req.URL.Opaque = "//orders.test/a%2Fb//c"
		ctx, log := call.WithLog(t.Context())
		resp, err := c.RoundTrip(req.WithContext(ctx))
		require.NoError(t, err)
		status, uri := read(t, resp)
		require.Equal(t, 200, status)
		require.Contains(t, uri, "/a%2Fb//c")
		require.Empty(t, log.Calls()[0].Route, "nobody knows its path")
	})
}

func TestRoutesHaveSettingsOfTheirOwn(t *testing.T) {
	t.Run("attempt timeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
			fleet.Server(0).Stall()
			c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
				s.Retry, s.AttemptTimeout = once(), 5*time.Second
				cfg.Routes = map[string]backstay.Route{"/quick": {AttemptTimeout: time.Second}, "/poll": {AttemptTimeout: -1}}
			})
			for path, want := range map[string]time.Duration{"/quick": time.Second, "/other": 5 * time.Second, "/poll": time.Hour} {
				ctx, stop := context.WithTimeout(t.Context(), time.Hour)
				begin := time.Now()
				require.Error(t, try(ctx, c, fleet.URL()+path))
				require.Equal(t, want, time.Since(begin), path)
				stop()
			}
		})
	})
	t.Run("call timeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
			fleet.Server(0).Stall()
			c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
				s.Timeout = 3 * time.Second
				cfg.Routes = map[string]backstay.Route{"/quick": {Timeout: time.Second}, "/slow": {Timeout: -1, AttemptTimeout: time.Minute, Retry: once()}}
			})
			for path, want := range map[string]time.Duration{"/quick": time.Second, "/other": 3 * time.Second, "/slow": time.Minute} {
				begin := time.Now()
				require.ErrorIs(t, try(t.Context(), c, fleet.URL()+path), outcomeOf(want))
				require.Equal(t, want, time.Since(begin), path)
			}
		})
	})
	t.Run("retry", func(t *testing.T) {
		base := &recording{next: always(503)}
		c := newClient(t, &backstay.Config{
			Base: base,
			Default: backstay.Service{Resolver: itself, Retry: retry.Config{
				MaxAttempts: 2, Backoff: retry.Backoff{Base: -1}, Statuses: []int{500},
			}},
			Routes: map[string]backstay.Route{"/four": {Retry: retry.Config{MaxAttempts: 4}}, "/one": {Retry: once()}},
		})
		for path, want := range map[string]int{"/four": 4, "/one": 1, "/other": 2} {
			before := len(base.requests())
			status, _ := get(t, c, "http://orders"+path)
			require.Equal(t, 503, status, "the last response")
			require.Equal(t, want, len(base.requests())-before, path)
		}
	})
	t.Run("rate", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newClient(t, &backstay.Config{
				Base:    always(200),
				Default: backstay.Service{Resolver: itself, Rate: limit.RateConfig{Limit: 4}},
				Routes: map[string]backstay.Route{
					"/own": {Rate: limit.RateConfig{Limit: 2, Burst: 2}}, "/free": {Rate: limit.RateConfig{Limit: -1}}, "/shared": {},
				},
			})
			admitted := func(path string) (n int) {
				for range 10 {
					err := try(t.Context(), c, "http://orders"+path)
					if err == nil {
						n++
						continue
					}
					require.ErrorIs(t, err, limit.ErrLimited)
					require.True(t, backstay.Refused(err))
					after, ok := backstay.RetryAfter(err)
					require.True(t, ok)
					require.Positive(t, after)
				}
				return n
			}
			require.Equal(t, 2, admitted("/own"))
			require.Equal(t, 10, admitted("/free"))
			require.Equal(t, 4, admitted("/shared"))
			require.Equal(t, 0, admitted("/other"), "the service's, which a route without its own shares")
		})
	})
	t.Run("concurrency", func(t *testing.T) {
		h, end := streaming()
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Handler: h})
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			s.Concurrency.Max = 2
			cfg.Routes = map[string]backstay.Route{
				"/own": {Concurrency: limit.ConcurrencyConfig{Max: 1}}, "/free": {Concurrency: limit.ConcurrencyConfig{Max: -1}},
			}
		})
		defer end()
		for path, want := range map[string]int{"/own": 1, "/free": 5, "/other": 2} {
			admitted := 0
			for range 5 {
				resp, err := c.Get(fleet.URL() + path)
				if err != nil {
					require.ErrorIs(t, err, limit.ErrFull)
					continue
				}
				admitted++
				defer func() { _ = resp.Body.Close() }()
			}
			require.Equal(t, want, admitted, path)
		}
	})
	t.Run("cache", func(t *testing.T) {
		base := &recording{next: always(200)}
		c := newClient(t, &backstay.Config{
			Base:    base,
			Default: backstay.Service{Resolver: itself, CacheTTL: time.Minute},
			Routes:  map[string]backstay.Route{"/fresh": {CacheTTL: -1}},
		})
		for path, want := range map[string]int{"/fresh": 3, "/cached": 1} {
			before := len(base.requests())
			for range 3 {
				get(t, c, "http://orders"+path)
			}
			require.Equal(t, want, len(base.requests())-before, path)
		}
	})
}

// outcomeOf is the kind of timeout that a wait of this length stands for.
func outcomeOf(d time.Duration) error {
	if d == time.Minute {
		return outcome.ErrAttemptTimeout
	}
	return outcome.ErrCallTimeout
}

func TestRouteOfOneServiceIsNoConcernOfAnother(t *testing.T) {
	// The route's first wait alone would be longer than users' longest.
	c, err := backstay.New(&backstay.Config{
		Base: always(200),
		Services: map[string]backstay.Service{
			"orders": {Resolver: itself},
			"users":  {Resolver: itself, Retry: retry.Config{Backoff: retry.Backoff{Max: 100 * time.Millisecond}}},
		},
		Routes: map[string]backstay.Route{"orders/x": {Retry: retry.Config{Backoff: retry.Backoff{Base: time.Second}}}},
	})
	require.NoError(t, err)
	require.NoError(t, c.Close())
}

func TestUnsafeCallOnOneRouteInvalidatesWhatAnotherHasCached(t *testing.T) {
	base := &recording{next: always(200)}
	c := newClient(t, &backstay.Config{
		Base:    base,
		Default: backstay.Service{Resolver: itself},
		Routes: map[string]backstay.Route{
			"GET /items/{id}": {CacheTTL: time.Hour}, "PUT /items/{id}": {Retry: once()},
		},
	})
	fetches := func(method string) int {
		before := len(base.requests())
		resp, err := send(t, t.Context(), c, method, "http://orders/items/7", "")
		require.NoError(t, err)
		read(t, resp)
		return len(base.requests()) - before
	}
	require.Equal(t, 1, fetches("GET"))
	require.Equal(t, 0, fetches("GET"))
	require.Equal(t, 1, fetches("PUT"))
	require.Equal(t, 1, fetches("GET"), "not what was cached before the PUT")
	require.Equal(t, 0, fetches("GET"))
	require.Equal(t, 1, fetches("DELETE"), "by no route at all")
	require.Equal(t, 1, fetches("GET"))
}

func TestCachesOfTwoServicesAreApart(t *testing.T) {
	base := &recording{next: always(200)}
	c := newClient(t, &backstay.Config{Base: base, Default: backstay.Service{Resolver: itself, CacheTTL: time.Hour}})
	for range 2 {
		get(t, c, "http://a/x")
		get(t, c, "http://b/x")
		get(t, c, "http://a:8080/x")
	}
	require.Equal(t, []string{"a:80", "b:80", "a:8080"}, base.hosts())
}

// A ServeMux would redirect them, and serve what comes then by this pattern.
func TestPathsThatAreNotCleanHaveTheRouteOfTheirCleanForm(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	c := fleetClient(t, fleet, func(cfg *backstay.Config, _ *backstay.Service) {
		cfg.Routes = map[string]backstay.Route{"/v1/": {}, "GET /tree/": {}, "/exact": {}}
	})
	for path, want := range map[string]string{
		"/v1/x": "/v1/", "/v1//x": "/v1/", "/v1/a/../x": "/v1/", "/other/../v1/x": "/v1/", "/v1": "/v1/", "/v1/../other": "",
		"/tree": "GET /tree/", "/./exact": "/exact", "/other//x": "",
	} {
		require.Equal(t, want, logged(t, c, fleet.URL()+path).Route, path)
	}
}
