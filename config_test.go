package backstay_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

func TestNewWithNilIsEveryDefault(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	c := newClient(t, nil)
	status, body := get(t, c, fleet.Server(0).URL())
	require.Equal(t, 200, status)
	require.Equal(t, "ok\n", body)
	require.NoError(t, c.Ready(t.Context()), "of no services at all")
}

func TestClientsTransportIsTheClient(t *testing.T) {
	c := newClient(t, nil)
	require.Same(t, c, c.Transport)
	require.Zero(t, c.Timeout)
}

func TestConfigIsReadFromJSON(t *testing.T) {
	const text = `{
		"default": {
			"timeout": "3s", "attemptTimeout": "1.5s", "connectTimeout": "-1ns", "observe": true,
			"retry": {"maxAttempts": 5, "backoff": {"base": "10ms", "max": "1m0s"}, "statuses": [500]},
			"breaker": {"failureRate": 0.25, "window": "20s"}, "budget": {"ratio": 0.1, "perSecond": 5}
		},
		"services": {
			"orders": {"endpoints": [{"addr": "10.0.0.1:80", "zone": "a", "weight": 2}, "10.0.0.2:80"], "observe": false, "h2c": true},
			"users:8080": {"nodeConcurrency": 100, "slowStart": "30s", "panicThreshold": 0.3, "drainTimeout": "1m0s"}
		},
		"routes": {
			"GET /v1/items/{id}": {"cacheTTL": "10s", "rate": {"limit": 100, "burst": 10, "maxWait": "50ms"}},
			"POST orders/poll": {"latencyNeutral": true, "concurrency": {"max": 3, "queue": 9}}
		},
		"idleTimeout": "1h0m0s", "maxIdleServices": 10
	}`
	want := backstay.Config{
		Default: backstay.Service{
			Timeout: 3 * time.Second, AttemptTimeout: 1500 * time.Millisecond, ConnectTimeout: -1, Observe: backstay.On,
			Retry:   retry.Config{MaxAttempts: 5, Backoff: retry.Backoff{Base: 10 * time.Millisecond, Max: time.Minute}, Statuses: []int{500}},
			Breaker: breaker.Config{FailureRate: .25, Window: 20 * time.Second},
			Budget:  retry.BudgetConfig{Ratio: .1, PerSecond: 5},
		},
		Services: map[string]backstay.Service{
			"orders": {
				Endpoints: []discovery.Endpoint{{Addr: "10.0.0.1:80", Zone: "a", Weight: 2}, {Addr: "10.0.0.2:80"}}, Observe: backstay.Off, H2C: backstay.On,
			},
			"users:8080": {NodeConcurrency: 100, SlowStart: 30 * time.Second, PanicThreshold: .3, DrainTimeout: time.Minute},
		},
		Routes: map[string]backstay.Route{
			"GET /v1/items/{id}": {CacheTTL: 10 * time.Second, Rate: limit.RateConfig{Limit: 100, Burst: 10, MaxWait: 50 * time.Millisecond}},
			"POST orders/poll":   {LatencyNeutral: backstay.On, Concurrency: limit.ConcurrencyConfig{Max: 3, Queue: 9}},
		},
		IdleTimeout: time.Hour, MaxIdleServices: 10,
	}
	var got backstay.Config
	require.NoError(t, json.Unmarshal([]byte(text), &got))
	require.Equal(t, want, got)

	// As a part of a program's own config, too.
	var program struct{ Clients *backstay.Config }
	require.NoError(t, json.NewDecoder(strings.NewReader(`{"clients": `+text+`}`)).Decode(&program))
	require.Equal(t, &want, program.Clients)

	written, err := json.Marshal(want)
	require.NoError(t, err)
	written = bytes.ReplaceAll(written, []byte(`{"addr":"10.0.0.2:80"}`), []byte(`"10.0.0.2:80"`)) // the same
	require.JSONEq(t, text, string(written))
}

func TestWrongJSONIsRefusedAsAWholeAndNamed(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"unknown field", `{"default": {"timout": "1s"}}`, "config: default.timout is unknown, want one of endpoints, "},
		{"unknown field of a part", `{"services": {"orders": {"retry": {"attempts": 2}}}}`, "config: services.orders.retry.attempts is unknown, want one of name, maxAttempts, "},
		{"field that has no JSON", `{"default": {"policy": "p2c"}}`, "config: default.policy is not for JSON, set Policy in Go"},
		{"other case", `{"Default": {}}`, "config: Default is unknown, want one of default, services, routes, "},
		{"number for a duration", `{"default": {"timeout": 1}}`, `config: default.timeout is 1, want a duration such as "250ms"`},
		{"no duration", `{"routes": {"/x": {"cacheTTL": "soon"}}}`, `config: routes["/x"].cacheTTL is "soon", want a duration such as "250ms"`},
		{"switch as a number", `{"default": {"h2c": 1}}`, `config: default.h2c is 1: want true or false`},
		{"number for an endpoint", `{"default": {"endpoints": [7]}}`, `config: default.endpoints[0] is 7: want a string or an object`},
		{"unknown field of an endpoint", `{"default": {"endpoints": [{"adr": "a"}]}}`, `unknown field "adr"`},
		{"switch", `{"default": {"h2c": "yes"}}`, `config: default.h2c is "yes": want true or false`},
		{"list for an object", `{"services": []}`, "config: services is [], want an object"},
		{"twice", `{"idleTimeout": "1s", "idleTimeout": "2s"}`, "config: idleTimeout is given twice, want it once"},
		{"text", `{"default": `, "unexpected end of JSON input"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := backstay.Config{MaxIdleServices: 7}
			require.ErrorContains(t, json.Unmarshal([]byte(test.text), &got), test.want)
			require.Equal(t, backstay.Config{MaxIdleServices: 7}, got)
		})
	}
	var c backstay.Config
	err := json.Unmarshal([]byte(`{"default": {"timeout": 1, "slowStart": 2}, "base": {}}`), &c)
	require.Len(t, strings.Split(err.Error(), "\n"), 3, "every problem")
}

func TestSwitchIsTrueFalseOrLeftOut(t *testing.T) {
	for s, text := range map[backstay.Switch]string{
		backstay.Inherit: `{}`, backstay.On: `{"default":{"h2c":true}}`, backstay.Off: `{"default":{"h2c":false}}`,
	} {
		got, err := json.Marshal(backstay.Config{Default: backstay.Service{H2C: s}})
		require.NoError(t, err)
		require.Equal(t, text, string(got))
		var c backstay.Config
		require.NoError(t, json.Unmarshal(got, &c))
		require.Equal(t, s, c.Default.H2C)
	}
	var c backstay.Config
	require.NoError(t, json.Unmarshal([]byte(`{"default": {"h2c": null, "observe": null}}`), &c))
	require.Zero(t, c)
}

func TestConfigIsNeverWrittenToAndServesManyClients(t *testing.T) {
	own := &backstay.Config{
		Base: always(200),
		Default: backstay.Service{
			Resolver: itself, Retry: retry.Config{Statuses: []int{500}},
			PerAttempt: []func(http.RoundTripper) http.RoundTripper{signing(func(*http.Request) string { return "" })},
		},
		Services: map[string]backstay.Service{"orders": {Endpoints: discovery.Addrs("10.0.0.1:80")}, "users": {}},
		Routes:   map[string]backstay.Route{"GET orders/x": {CacheTTL: time.Minute}, "/y": {}},
	}
	shape := func() string { text, err := json.Marshal(own); require.NoError(t, err); return string(text) }
	before := shape()
	for range 2 {
		c := newClient(t, own)
		get(t, c, "http://orders/x")
		get(t, c, "http://stranger/y")
	}
	require.Equal(t, before, shape())
	require.Zero(t, own.IdleTimeout)
	require.Zero(t, own.MaxIdleServices)
}

func TestConfigMayBeChangedOnceTheClientIsMade(t *testing.T) {
	base := &recording{next: always(500)}
	cfg := &backstay.Config{
		Base: base,
		Default: backstay.Service{
			Endpoints: []discovery.Endpoint{{
				Addr: "10.0.0.1:80", Fallback: []string{"10.0.0.2:80"}, Metadata: map[string]string{"rack": "7"},
			}},
			Retry:      retry.Config{MaxAttempts: 2, Statuses: []int{500}, Backoff: retry.Backoff{Base: -1}},
			PerAttempt: []func(http.RoundTripper) http.RoundTripper{signing(func(*http.Request) string { return "" })},
		},
		Services: map[string]backstay.Service{},
		Routes:   map[string]backstay.Route{"/x": {Retry: retry.Config{Statuses: []int{500}}}},
	}
	c := newClient(t, cfg)
	cfg.Default.Endpoints[0].Addr = "10.0.0.2:80"
	cfg.Default.Endpoints[0].Fallback[0] = "10.0.0.3:80"
	cfg.Default.Endpoints[0].Metadata["rack"] = "8"
	cfg.Default.Retry.Statuses[0] = 404
	cfg.Default.PerAttempt[0] = nil
	cfg.Routes["/x"].Retry.Statuses[0] = 404
	cfg.Services["late"] = backstay.Service{Endpoints: discovery.Addrs("10.0.0.3:80")}
	delete(cfg.Routes, "/x")
	for _, url := range []string{"http://late/", "http://late/x"} { // built only now
		before := len(base.hosts())
		get(t, c, url)
		require.Equal(t, []string{"10.0.0.1:80", "10.0.0.1:80"}, base.hosts()[before:])
	}
	node := c.Balancer("late").Nodes()[0].Endpoint()
	require.Equal(t, []string{"10.0.0.2:80"}, node.Fallback)
	require.Equal(t, map[string]string{"rack": "7"}, node.Metadata)
}

func TestServicesOwnEndpointsAndResolverReplaceTheDefaults(t *testing.T) {
	for name, test := range map[string]struct {
		standard, own backstay.Service
		want          string
	}{
		"endpoints over a resolver": {backstay.Service{Resolver: oneNode("10.0.0.1:80")}, backstay.Service{Endpoints: discovery.Addrs("10.0.0.2:80")}, "10.0.0.2:80"},
		"a resolver over endpoints": {backstay.Service{Endpoints: discovery.Addrs("10.0.0.1:80")}, backstay.Service{Resolver: oneNode("10.0.0.2:80")}, "10.0.0.2:80"},
		"endpoints over endpoints":  {backstay.Service{Endpoints: discovery.Addrs("10.0.0.1:80")}, backstay.Service{Endpoints: discovery.Addrs("10.0.0.2:80")}, "10.0.0.2:80"},
		"the default's":             {backstay.Service{Endpoints: discovery.Addrs("10.0.0.1:80")}, backstay.Service{}, "10.0.0.1:80"},
	} {
		t.Run(name, func(t *testing.T) {
			base := &recording{next: always(200)}
			c := newClient(t, &backstay.Config{Base: base, Default: test.standard, Services: map[string]backstay.Service{"orders": test.own}})
			get(t, c, "http://orders")
			require.Equal(t, []string{test.want}, base.hosts())
		})
	}
}

// Settings go from the service to the route field by field, also within a part.
// A key that a service inherits is for its policy only if that goes by keys; one of its
// own would be a mistake.
func TestInheritedHashKeyIsForPoliciesThatHash(t *testing.T) {
	cfg := backstay.Config{
		Default:  backstay.Service{Policy: balancer.Rendezvous{}, HashKey: balancer.HashKey{Header: "X-User"}},
		Services: map[string]backstay.Service{"even": {Policy: balancer.RoundRobin{}}, "hashed": {Policy: balancer.Maglev{}}},
	}
	newClient(t, &cfg)
	cfg.Services["even"] = backstay.Service{Policy: balancer.RoundRobin{}, HashKey: balancer.HashKey{Header: "X-User"}}
	_, err := backstay.New(&cfg)
	require.ErrorContains(t, err, `Services["even"]: balancer: HashKey is {Header:X-User Cookie: Query:}, want a Policy that goes by keys`)
}

func TestRouteInheritsWithinAPart(t *testing.T) {
	base := &recording{next: always(500)}
	c := newClient(t, &backstay.Config{
		Base: base,
		Default: backstay.Service{Resolver: itself, Retry: retry.Config{
			Statuses: []int{500}, Backoff: retry.Backoff{Base: -1},
		}},
		Services: map[string]backstay.Service{"orders": {Retry: retry.Config{MaxAttempts: 2}}},
		Routes:   map[string]backstay.Route{"/four": {Retry: retry.Config{MaxAttempts: 4}}, "/none": {Retry: retry.Config{Statuses: []int{}}}},
	})
	for url, want := range map[string]int{
		"http://orders/": 2, "http://orders/four": 4, "http://users/four": 4, "http://users/": 3, "http://orders/none": 1,
	} {
		before := len(base.hosts())
		get(t, c, url)
		require.Equal(t, want, len(base.hosts())-before, url)
	}
}

// A route without a burst of its own has that of its own limit.
func TestRouteWithItsOwnRateHasItsOwnBurst(t *testing.T) {
	passing := func(t *testing.T, c *backstay.Client, url string) (n int) {
		for range 100 {
			if try(t.Context(), c, url) == nil {
				n++
			}
		}
		return n
	}
	synctest.Test(t, func(t *testing.T) {
		burst := limit.RateConfig{Limit: 20, Burst: 50, MaxWait: 1}
		c := newClient(t, &backstay.Config{
			Base: always(200),
			Default: backstay.Service{
				Endpoints: discovery.Addrs("10.0.0.1:80"), Rate: burst, Concurrency: limit.ConcurrencyConfig{Max: 9, Queue: 3},
			},
			Services: map[string]backstay.Service{"own": {Rate: limit.RateConfig{Limit: 7}}},
			Routes: map[string]backstay.Route{
				"/slow":   {Rate: limit.RateConfig{Limit: 5}},
				"/bursty": {Rate: limit.RateConfig{Limit: 5, Burst: 8}},
				"/wide":   {Rate: limit.RateConfig{Burst: 60}},
			},
		})
		for url, want := range map[string]int{
			"http://orders/": 50, "http://orders/slow": 5, "http://orders/bursty": 8, "http://orders/wide": 60,
			"http://own/": 7, "http://own/slow": 5, "http://own/wide": 60,
		} {
			require.Equal(t, want, passing(t, c, url), url)
		}
	})
}

// A setting that a route must be able to switch back is no bool.
func TestNoInheritedSettingIsABool(t *testing.T) {
	var check func(path string, of reflect.Type)
	check = func(path string, of reflect.Type) {
		require.NotEqual(t, reflect.Bool, of.Kind(), path)
		if of.Kind() == reflect.Struct {
			for f := range of.Fields() {
				check(path+"."+f.Name, f.Type)
			}
		}
	}
	check("Service", reflect.TypeFor[backstay.Service]())
}

func TestRouteSwitchesOffTheRetryOfWhatIsNotIdempotent(t *testing.T) {
	for text, want := range map[string]int{`{}`: 3, `{"retryNonIdempotent": false}`: 1} {
		var cfg backstay.Config
		require.NoError(t, json.Unmarshal([]byte(`{
			"services": {"orders": {"endpoints": ["10.0.0.1:80"], "retry": {"retryNonIdempotent": true, "backoff": {"base": "-1ns"}}}},
			"routes": {"POST orders/pay": {"retry": `+text+`}}
		}`), &cfg))
		base := &recording{next: always(503)}
		cfg.Base = base
		resp, err := newClient(t, &cfg).Post("http://orders/pay", "text/plain", strings.NewReader("100 EUR"))
		require.NoError(t, err)
		read(t, resp)
		require.Len(t, base.requests(), want, text)
	}
}

func TestRouteSwitchesOffTheQueueOfItsService(t *testing.T) {
	for queue, want := range map[int]error{0: outcome.ErrCallTimeout, -1: limit.ErrFull} {
		synctest.Test(t, func(t *testing.T) {
			fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
			fleet.Server(0).Stall()
			c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
				s.Timeout = time.Second
				s.Concurrency = limit.ConcurrencyConfig{Max: 10, Queue: 5, MaxWait: -1}
				cfg.Routes = map[string]backstay.Route{"/pay": {Concurrency: limit.ConcurrencyConfig{Max: 1, Queue: queue}}}
			})
			first := make(chan error)
			go func() { first <- try(t.Context(), c, fleet.URL()+"/pay") }()
			synctest.Wait()
			require.ErrorIs(t, try(t.Context(), c, fleet.URL()+"/pay"), want)
			require.Error(t, <-first)
		})
	}
}

// The calls of an outage end an attempt timeout late: a window that is not set
// holds enough of them, nearly as far apart as that.
func TestBreakersWindowIsByDefaultLongEnoughForTheAttemptTimeout(t *testing.T) {
	long := backstay.Route{AttemptTimeout: time.Minute}
	for name, test := range map[string]struct {
		service backstay.Service
		route   backstay.Route
		opens   bool
	}{
		"default":               {},
		"the service's":         {service: backstay.Service{AttemptTimeout: time.Minute}, opens: true},
		"a route's":             {route: long, opens: true},
		"latency neutral route": {route: backstay.Route{AttemptTimeout: time.Minute, LatencyNeutral: backstay.On}},
		"given":                 {service: backstay.Service{Breaker: breaker.Config{Window: 3 * time.Minute}}, route: long, opens: true},
		"given and short":       {service: backstay.Service{AttemptTimeout: time.Second, Breaker: breaker.Config{Window: 2 * time.Second}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rec := new(backstaytest.Recorder)
				test.service.Endpoints, test.service.Retry = discovery.Addrs("10.0.0.1:80"), once()
				c := newClient(t, &backstay.Config{
					Base: always(503), Observer: rec, Default: test.service, Routes: map[string]backstay.Route{"/export": test.route},
				})
				for range 20 { // what a breaker needs to tell
					get(t, c, "http://orders/")
					time.Sleep(5 * time.Second)
				}
				require.Equal(t, test.opens, len(backstaytest.EventsOf[breaker.StateChanged](rec)) > 0)
			})
		})
	}
}

func TestSwitchCanSwitchOffWhatAWiderScopeHasOn(t *testing.T) {
	base := &recording{next: always(503)}
	c := newClient(t, &backstay.Config{
		Base:     base,
		Default:  backstay.Service{Resolver: itself, Observe: backstay.On, Retry: retry.Config{Backoff: retry.Backoff{Base: -1}}},
		Services: map[string]backstay.Service{"orders": {Observe: backstay.Off}, "users": {}},
	})
	for host, want := range map[string]int{"orders": 3, "users": 1, "others": 1} {
		before := len(base.hosts())
		get(t, c, "http://"+host)
		require.Equal(t, want, len(base.hosts())-before, host)
	}
}

func TestAttemptTimeoutIsAtMostTheCallsUnlessItIsGiven(t *testing.T) {
	for _, test := range []struct {
		name    string
		service backstay.Service
		want    time.Duration
		kind    error
	}{
		{"default", backstay.Service{}, 10 * time.Second, outcome.ErrAttemptTimeout},
		{"longer call", backstay.Service{Timeout: time.Minute}, 10 * time.Second, outcome.ErrAttemptTimeout},
		{"shorter call", backstay.Service{Timeout: time.Second}, time.Second, outcome.ErrCallTimeout},
		{"given", backstay.Service{AttemptTimeout: 2 * time.Second}, 2 * time.Second, outcome.ErrAttemptTimeout},
		{"off", backstay.Service{AttemptTimeout: -1, Timeout: time.Hour}, time.Hour, outcome.ErrCallTimeout},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
				fleet.Server(0).Stall()
				c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
					*s = test.service
					s.Resolver, s.Retry = fleet.Resolver(), once()
				})
				begin := time.Now()
				require.ErrorIs(t, try(t.Context(), c, fleet.URL()), test.kind)
				require.Equal(t, test.want, time.Since(begin))
			})
		})
	}
}

// What JSON cannot hold has no name in it, and everything else does.
func TestFieldsWithoutJSONAreFunctionsAndInterfaces(t *testing.T) {
	var check func(t *testing.T, path string, of reflect.Type)
	check = func(t *testing.T, path string, of reflect.Type) {
		for f := range of.Fields() {
			kind := f.Type.Kind()
			if kind == reflect.Slice || kind == reflect.Map || kind == reflect.Pointer {
				kind = f.Type.Elem().Kind()
			}
			tag := f.Tag.Get("json")
			if kind == reflect.Func || kind == reflect.Interface || f.Type == reflect.TypeFor[*retry.Budget]() {
				require.Equal(t, "-", tag, path+f.Name)
				continue
			}
			require.NotEmpty(t, tag, path+f.Name)
			require.NotEqual(t, "-", tag, path+f.Name)
			if f.Type.Kind() == reflect.Struct {
				check(t, path+f.Name+".", f.Type)
			}
		}
	}
	check(t, "Config.", reflect.TypeFor[backstay.Config]())
	check(t, "Service.", reflect.TypeFor[backstay.Service]())
	check(t, "Route.", reflect.TypeFor[backstay.Route]())
}
