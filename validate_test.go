package backstay_test

import (
	"context"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/cache"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// mistakes are settings that every service can get wrong, and what the error
// says after its place.
var mistakes = []struct {
	name  string
	spoil func(*backstay.Service)
	want  string
}{
	{"breaker failure rate", func(s *backstay.Service) { s.Breaker.FailureRate = 1.5 }, ".Breaker: breaker: FailureRate is 1.5, want <= 1"},
	{"breaker failure rate NaN", func(s *backstay.Service) { s.Breaker.FailureRate = math.NaN() }, ".Breaker: breaker: FailureRate is NaN, want <= 1"},
	{"breaker window", func(s *backstay.Service) { s.Breaker.Window = -time.Second }, ".Breaker: breaker: Window is -1s, want >= 10ns and < 36 years"},
	{"breaker slow rate", func(s *backstay.Service) { s.Breaker.SlowTime, s.Breaker.SlowRate = 1, 1.1 }, ".Breaker: breaker: SlowRate is 1.1, want <= 1"},
	{"breaker slow time", func(s *backstay.Service) { s.Breaker.SlowRate = .5 }, ".Breaker: breaker: SlowTime is 0s, want > 0 where SlowRate is set"},
	{"breaker open time", func(s *backstay.Service) { s.Breaker.OpenTime = -1 }, ".Breaker: breaker: OpenTime is -1ns, want > 0"},
	{"breaker max open time", func(s *backstay.Service) { s.Breaker.OpenTime, s.Breaker.MaxOpenTime = 2*time.Second, time.Second }, ".Breaker: breaker: MaxOpenTime is 1s, want >= OpenTime (2s) and < 36 years"},
	{"breaker jitter", func(s *backstay.Service) { s.Breaker.Jitter = 1 }, ".Breaker: breaker: Jitter is 1, want < 1"},
	{"breaker probes", func(s *backstay.Service) { s.Breaker.Probes = -1 }, ".Breaker: breaker: Probes is -1, want >= 1"},
	{"breaker probe timeout", func(s *backstay.Service) { s.Breaker.ProbeTimeout = -1 }, ".Breaker: breaker: ProbeTimeout is -1ns, want > 0 and < 36 years"},
	{"breaker probe interval", func(s *backstay.Service) { s.Breaker.ProbeInterval = math.MaxInt64 }, ".Breaker: breaker: ProbeInterval is 2562047h47m16.854775807s, want < 36 years"},
	{"breaker classifier", func(s *backstay.Service) { s.Breaker.Classifier = outcome.HTTP }, ": Breaker.Classifier is set, want none: the service's Classifier says it"},
	{"panic threshold", func(s *backstay.Service) { s.PanicThreshold = 1.1 }, ": balancer: PanicThreshold is 1.1, want <= 1"},
	{"panic threshold NaN", func(s *backstay.Service) { s.PanicThreshold = math.NaN() }, ": balancer: PanicThreshold is NaN, want <= 1"},
	{"budget ratio", func(s *backstay.Service) { s.Budget.Ratio = 11 }, ".Budget: retry: BudgetConfig.Ratio is 11, want <= 10"},
	{"budget per second", func(s *backstay.Service) { s.Budget.PerSecond = 1e7 }, ".Budget: retry: BudgetConfig.PerSecond is 10000000, want <= 1000000"},
	{"budget window", func(s *backstay.Service) { s.Budget.Window = -time.Second }, ".Budget: retry: BudgetConfig.Window is -1s, want from 10ns to 1000h0m0s"},
	{"cache TTL in the store", func(s *backstay.Service) { s.CacheStore.TTL = time.Second }, ": CacheStore.TTL is 1s, want none: CacheTTL says it"},
	{"cache jitter", func(s *backstay.Service) { s.CacheStore.Jitter = 1 }, ".CacheStore: cache: HTTPConfig.Jitter is 1, want < 1"},
	{"cache entries", func(s *backstay.Service) { s.CacheStore.MaxEntries = -1 }, ".CacheStore: cache: HTTPConfig.MaxEntries is -1, want >= 1"},
	{"cache bytes", func(s *backstay.Service) { s.CacheStore.MaxBytes = -1 }, ".CacheStore: cache: HTTPConfig.MaxBytes is -1, want >= 1"},
	{"cache body", func(s *backstay.Service) { s.CacheStore.MaxBytes, s.CacheStore.MaxBody = 10, 11 }, ".CacheStore: cache: HTTPConfig.MaxBody is 11, want <= MaxBytes (10)"},
	{"endpoint address", func(s *backstay.Service) { s.Endpoints = discovery.Addrs("http://host") }, `.Endpoints[0]: discovery: endpoint "http://host": Addr is "http://host", want host:port`},
	{"endpoint without address", func(s *backstay.Service) { s.Endpoints = make([]discovery.Endpoint, 1) }, `.Endpoints[0]: discovery: endpoint "": Addr is "", want host:port`},
	{"endpoint port", func(s *backstay.Service) { s.Endpoints = discovery.Addrs("host:0") }, `.Endpoints[0]: discovery: endpoint "host:0": Addr is "host:0", want host:port`},
	{"endpoint fallback", func(s *backstay.Service) { s.Endpoints = []discovery.Endpoint{{Addr: "a", Fallback: []string{"b:c"}}} }, `.Endpoints[0]: discovery: endpoint "a": Fallback[0] is "b:c", want host:port`},
	{"endpoint weight", func(s *backstay.Service) { s.Endpoints = []discovery.Endpoint{{Addr: "a", Weight: math.Inf(1)}} }, `.Endpoints[0]: discovery: endpoint "a": Weight is +Inf, want a finite number >= 0`},
	{"endpoint priority", func(s *backstay.Service) { s.Endpoints = []discovery.Endpoint{{Addr: "a", Priority: -1}} }, `.Endpoints[0]: discovery: endpoint "a": Priority is -1, want a number >= 0`},
	{"endpoint twice", func(s *backstay.Service) { s.Endpoints = discovery.Addrs("a", "b", "a") }, `.Endpoints[2]: "a" is Endpoints[0] already, want each once`},
	{"no endpoints", func(s *backstay.Service) { s.Endpoints = []discovery.Endpoint{} }, ": Endpoints is empty, want at least one, or nil to have them looked up"},
	{"endpoints and resolver", func(s *backstay.Service) { s.Endpoints, s.Resolver = discovery.Addrs("a"), itself }, ": Endpoints and Resolver are both set, want one of them"},
	{"layer", func(s *backstay.Service) { s.PerAttempt = make([]func(http.RoundTripper) http.RoundTripper, 1) }, ": PerAttempt[0] is nil, want a layer"},
	{"hash key", func(s *backstay.Service) { s.HashKey.Query = "user" }, ": balancer: HashKey is {Header: Cookie: Query:user}, want a Policy that goes by keys, such as Rendezvous; have the default one"},
	{"bound", func(s *backstay.Service) { s.Policy = balancer.Maglev{Bound: .5} }, ": balancer: Maglev.Bound is 0.5, want a finite number >= 1, or below 0 for no bound"},
	{"h2c", func(s *backstay.Service) { s.H2C = 7 }, ": H2C is 7, want On or Off"},
	{"observe", func(s *backstay.Service) { s.Observe = 7 }, ": Observe is 7, want On or Off"},
}

// routeMistakes are those that routes can make as well.
var routeMistakes = []struct {
	name  string
	spoil func(*backstay.Route)
	want  string
}{
	{"attempt timeout", func(r *backstay.Route) { r.Timeout, r.AttemptTimeout = time.Second, 2*time.Second }, ": AttemptTimeout is 2s, want <= Timeout (1s)"},
	{"retry wait", func(r *backstay.Route) { r.Retry.Backoff = retry.Backoff{Base: time.Second, Max: time.Millisecond} }, ".Retry: retry: Backoff.Max is 1ms, want >= Backoff.Base (1s)"},
	{"longest retry wait", func(r *backstay.Route) { r.Retry.Backoff.Max = -1 }, ".Retry: retry: Backoff.Max is -1ns, want > 0"},
	{"throttled wait", func(r *backstay.Route) { r.Retry.Backoff.ThrottledBase = time.Minute }, ".Retry: retry: Backoff.Max is 2s, want >= Backoff.ThrottledBase (1m0s)"},
	{"retry wait for longer than the call", func(r *backstay.Route) { r.Timeout, r.Retry.Backoff.Base = time.Second, time.Second }, ".Retry: retry: Backoff.Base is 1s, want less than Timeout (1s)"},
	{"hedge after the attempt", func(r *backstay.Route) { r.AttemptTimeout, r.Retry.Hedge.Delay = time.Second, time.Second }, ".Retry: retry: Hedge.Delay is 1s, want less than AttemptTimeout (1s), which would be first"},
	{"hedge after the attempt by default", func(r *backstay.Route) { r.Retry.Hedge.Delay = time.Minute }, ".Retry: retry: Hedge.Delay is 1m0s, want less than AttemptTimeout (10s), which would be first"},
	{"hedges after the call", func(r *backstay.Route) {
		r.Timeout, r.Retry.Hedge = time.Second, retry.HedgeConfig{Delay: time.Second / 2, MaxHedges: 2}
	}, ".Retry: retry: Hedge.Delay is 500ms, want less than Timeout (1s) with all 2 hedges together"},
	{"retry status", func(r *backstay.Route) { r.Retry.Statuses = []int{500, 200} }, ".Retry: retry: Statuses is 200, want from 400 to 599"},
	{"retry timeout", func(r *backstay.Route) { r.Retry.Timeout = time.Second }, ": Retry.Timeout is set, want none: Timeout says it"},
	{"retry attempt timeout", func(r *backstay.Route) { r.Retry.AttemptTimeout = -1 }, ": Retry.AttemptTimeout is set, want none: AttemptTimeout says it"},
	{"retry budget", func(r *backstay.Route) { r.Retry.Budget, _ = retry.NewBudget(nil) }, ": Retry.Budget is set, want none: the service's Budget says it"},
	{"retry classifier", func(r *backstay.Route) { r.Retry.Classifier = outcome.HTTP }, ": Retry.Classifier is set, want none: the service's Classifier says it"},
	{"retry observer", func(r *backstay.Route) { r.Retry.Observer = new(backstaytest.Recorder) }, ": Retry.Observer is set, want none: the client's Observer says it"},
	{"cache TTL", func(r *backstay.Route) { r.CacheTTL = time.Microsecond }, ": CacheTTL is 1µs, want >= 1ms"},
	{"rate", func(r *backstay.Route) { r.Rate.Limit = math.NaN() }, ".Rate: limit: Limit is NaN, want > 0, or negative for no limit"},
	{"burst", func(r *backstay.Route) { r.Rate.Limit, r.Rate.Burst = 1, -1 }, ".Rate: limit: Burst is -1, want >= 1"},
	{"burst without rate", func(r *backstay.Route) { r.Rate.Burst = 1 }, ".Rate: limit: Limit is 0, want > 0, or negative for no limit"},
	{"rate wait without rate", func(r *backstay.Route) { r.Rate.MaxWait = 1 }, ".Rate: limit: Limit is 0, want > 0, or negative for no limit"},
	{"infinite rate", func(r *backstay.Route) { r.Rate.Limit = math.Inf(1) }, ".Rate: limit: Limit is +Inf, want a finite number, negative for no limit"},
	{"deadline without rate", func(r *backstay.Route) { r.Rate.AsDeadline = backstay.On }, ".Rate: limit: Limit is 0, want > 0, or negative for no limit"},
	{"until headers", func(r *backstay.Route) { r.Concurrency.Max, r.Concurrency.UntilHeaders = 1, 3 }, ".Concurrency: limit: UntilHeaders is 3, want On or Off"},
	{"buffer body", func(r *backstay.Route) { r.Retry.BufferBody = 3 }, ".Retry: retry: BufferBody is 3, want On or Off"},
	{"queue without limit", func(r *backstay.Route) { r.Concurrency.Queue = 1 }, ": Concurrency.Max is 0, want it set where another field of Concurrency is"},
	{"latency neutral", func(r *backstay.Route) { r.LatencyNeutral = 7 }, ": LatencyNeutral is 7, want On or Off"},
}

func requireInvalid(t *testing.T, cfg *backstay.Config, want ...string) {
	t.Helper()
	c, err := backstay.New(cfg)
	require.Nil(t, c)
	require.Error(t, err)
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, len(want), "%v", err)
	for i, w := range want {
		require.True(t, strings.HasPrefix(lines[i], w), "%s\nwant %s", lines[i], w)
	}
}

func TestServicesMistakesAreNamedWithTheirPlace(t *testing.T) {
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			var s backstay.Service
			m.spoil(&s)
			requireInvalid(t, &backstay.Config{Default: s}, "backstay: Default"+m.want)
			requireInvalid(t, &backstay.Config{Services: map[string]backstay.Service{"orders:8080": s, "fine": {}}},
				`backstay: Services["orders:8080"]`+m.want)
		})
	}
}

func TestRoutesMistakesAreNamedWithTheirPlace(t *testing.T) {
	for _, m := range routeMistakes {
		t.Run(m.name, func(t *testing.T) {
			var r backstay.Route
			m.spoil(&r)
			s := backstay.Service{
				Timeout: r.Timeout, AttemptTimeout: r.AttemptTimeout, Retry: r.Retry, CacheTTL: r.CacheTTL,
				Rate: r.Rate, Concurrency: r.Concurrency, LatencyNeutral: r.LatencyNeutral,
			}
			requireInvalid(t, &backstay.Config{Default: s}, "backstay: Default"+m.want)
			requireInvalid(t, &backstay.Config{Services: map[string]backstay.Service{"orders": s}}, `backstay: Services["orders"]`+m.want)
			requireInvalid(t, &backstay.Config{
				Services: map[string]backstay.Service{"orders": {}},
				Routes:   map[string]backstay.Route{"GET /x": r, "/y": {}},
			}, `backstay: Routes["GET /x"]`+m.want)
		})
	}
}

func TestBreakersWindowMustHoldAnOutage(t *testing.T) {
	s := backstay.Service{Breaker: breaker.Config{Window: 10 * time.Second}, AttemptTimeout: 6 * time.Second}
	requireInvalid(t, &backstay.Config{Default: s}, "backstay: Default: Breaker.Window is 10s, want >= 2 x AttemptTimeout (12s)")
	s.LatencyNeutral = backstay.On // long polls are long, and no outage
	newClient(t, &backstay.Config{Default: s})
}

func TestAttemptTimeoutWithoutAWindowIsNeverRefused(t *testing.T) {
	for _, long := range []time.Duration{5 * time.Second, time.Minute, math.MaxInt64} {
		for _, cfg := range []backstay.Config{
			{Default: backstay.Service{AttemptTimeout: long}},
			{Routes: map[string]backstay.Route{"/x": {AttemptTimeout: long}}},
		} {
			cfg.Services = map[string]backstay.Service{"orders": {Resolver: itself}}
			newClient(t, &cfg)
		}
	}
}

func TestSettingsThatDoNotGoTogetherAreFoundWhereverTheyMeet(t *testing.T) {
	short, long := backstay.Service{Timeout: time.Second}, backstay.Service{AttemptTimeout: 2 * time.Second}
	const want = ": AttemptTimeout is 2s, want <= Timeout (1s)"
	requireInvalid(t, &backstay.Config{Default: short, Services: map[string]backstay.Service{"orders": long}},
		`backstay: Services["orders"]`+want)
	requireInvalid(t, &backstay.Config{Default: short, Routes: map[string]backstay.Route{"/x": {AttemptTimeout: 2 * time.Second}}},
		`backstay: Routes["/x"]`+want)
	requireInvalid(t, &backstay.Config{
		Services: map[string]backstay.Service{"orders": short, "users": {}},
		Routes:   map[string]backstay.Route{"/x": {AttemptTimeout: 2 * time.Second}},
	}, `backstay: Services["orders"] with Routes["/x"]`+want)
	requireInvalid(t, &backstay.Config{
		Services: map[string]backstay.Service{"orders:8080": short, "users": short},
		Routes:   map[string]backstay.Route{"GET orders/x": {AttemptTimeout: 2 * time.Second}},
	}, `backstay: Services["orders:8080"] with Routes["GET orders/x"]`+want)
}

// What was said for fewer calls counts.
func TestAShorterTimeoutBoundsTheAttemptTimeoutOfAWiderScope(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := roundTripper(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		})
		c := newClient(t, &backstay.Config{
			Base:    hangs,
			Default: backstay.Service{AttemptTimeout: 5 * time.Second, Endpoints: discovery.Addrs("10.0.0.1:80")},
			Services: map[string]backstay.Service{
				"orders": {}, "users": {Timeout: 2 * time.Second},
			},
			Routes: map[string]backstay.Route{"POST orders/x": {Timeout: time.Second}},
		})
		for url, want := range map[string]time.Duration{
			"http://orders/x": time.Second, "http://orders/y": 5 * time.Second, "http://users/x": 2 * time.Second,
		} {
			begin := time.Now()
			_, err := c.Post(url, "", nil)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, want, time.Since(begin), url)
		}
	})
}

func TestAllProblemsAreReportedAndEachOnce(t *testing.T) {
	bad := backstay.Service{PanicThreshold: 2}
	requireInvalid(t, &backstay.Config{
		Default:  backstay.Service{Budget: retry.BudgetConfig{Ratio: 11}},
		Services: map[string]backstay.Service{"Orders": bad, "Users": bad, "fine": {}},
		Routes: map[string]backstay.Route{
			"/x": {Concurrency: limit.ConcurrencyConfig{Max: 1, UntilHeaders: 7}}, "/y": {CacheTTL: 1}, "no slash": {},
		},
	},
		"backstay: Default.Budget: retry: BudgetConfig.Ratio is 11",
		`backstay: Routes["/x"].Concurrency: limit: UntilHeaders is 7`,
		`backstay: Routes["/y"]: CacheTTL is 1ns`,
		`backstay: Services["Orders"]: want a host in lower case`,
		`backstay: Services["Orders"]: balancer: PanicThreshold is 2`,
		`backstay: Services["Users"]: want a host in lower case`,
		`backstay: Services["Users"]: balancer: PanicThreshold is 2`,
		`backstay: Routes["no slash"]: parsing "no slash"`,
	)
}

func TestNamesThatNoURLsHostCanBeAreRefused(t *testing.T) {
	for _, name := range []string{
		"", " ", "Orders", "ORDERS:8080", "orders:80", "orders:", "orders:http", "orders/", "orders/v1", "http://orders",
		"user@orders", "user:secret@orders", "orders?x", "orders#x", "a b", "a\nb", "%6f", "::1", "[::1", "[::1]:80", "bücher.example", ":8080",
	} {
		t.Run(name, func(t *testing.T) {
			requireInvalid(t, &backstay.Config{Services: map[string]backstay.Service{name: {}}}, "backstay: Services[")
		})
	}
	for _, name := range []string{
		"orders", "orders:8080", "orders:443", "orders.example.com", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080",
		"localhost", "under_score", "xn--bcher-kva.example", "orders.",
	} {
		t.Run(name, func(t *testing.T) {
			newClient(t, &backstay.Config{Services: map[string]backstay.Service{name: {Resolver: itself}}})
		})
	}
}

func TestMistakesOfAResolverAreErrors(t *testing.T) {
	bad := discovery.Merge(discovery.DNS(&discovery.DNSConfig{Server: "a:b:c"}))
	requireInvalid(t, &backstay.Config{Services: map[string]backstay.Service{"orders": {Resolver: bad}}},
		`backstay: Services["orders"].Resolver: discovery: Server is "a:b:c", want host:port or host`)
	_, err := balancer.New("orders", bad, &balancer.Config{PanicThreshold: 2})
	require.ErrorContains(t, err, `discovery: Server is "a:b:c"`)
	require.ErrorContains(t, err, "PanicThreshold is 2")
}

func TestNilTransportsAreErrors(t *testing.T) {
	var none *http.Transport
	requireInvalid(t, &backstay.Config{Base: none, Services: map[string]backstay.Service{"orders": {}}},
		"backstay: Config: Base is a nil *http.Transport")
	requireInvalid(t, &backstay.Config{Services: map[string]backstay.Service{"orders": {Base: none}, "users": {}}},
		`backstay: Services["orders"]: Base is a nil *http.Transport`)
}

func TestPatternsThatServeMuxWouldPanicOnAreErrors(t *testing.T) {
	for _, pattern := range []string{"", "GET", "v1/{id", "GET  ", "G(ET /x", "/{id}/{id}", "/{...}", "/a{b}", "/{$}x"} {
		t.Run(pattern, func(t *testing.T) {
			requireInvalid(t, &backstay.Config{Routes: map[string]backstay.Route{pattern: {}}}, "backstay: Routes[")
		})
	}
	t.Run("conflict", func(t *testing.T) {
		_, err := backstay.New(&backstay.Config{Routes: map[string]backstay.Route{"/{a}/x": {}, "/x/{b}": {}}})
		require.ErrorContains(t, err, `Routes["/{a}/x"]: pattern "/{a}/x" conflicts with pattern "/x/{b}":`+"\n")
	})
	t.Run("method that no request has", func(t *testing.T) {
		requireInvalid(t, &backstay.Config{Routes: map[string]backstay.Route{"get orders/x": {}, "Post /x": {}}},
			`backstay: Routes["Post /x"]: method is "Post", want it in upper case`,
			`backstay: Routes["get orders/x"]: method is "get", want it in upper case`)
		newClient(t, &backstay.Config{Routes: map[string]backstay.Route{"PROPFIND /x": {}, "whatever /y": {}}})
	})
	t.Run("host that no service has", func(t *testing.T) {
		requireInvalid(t, &backstay.Config{Routes: map[string]backstay.Route{"GET Orders/x": {}, "orders:8080/x": {}}},
			`backstay: Routes["GET Orders/x"]: host is "Orders", want it in lower case and without a port`,
			`backstay: Routes["orders:8080/x"]: host is "orders:8080", want it in lower case and without a port`)
	})
}

func TestNegativeNumbersAreOff(t *testing.T) {
	off := backstay.Service{
		Resolver:        itself,
		Breaker:         breaker.Config{FailureRate: -1, MinCalls: -1, Consecutive: -1, SlowTime: -1, SlowRate: -1, MaxOpenTime: -1, Jitter: -1, ProbeInterval: -1, RampUp: -1},
		NodeConcurrency: -1, SlowStart: -1, PanicThreshold: -1, DrainTimeout: -1, ConnectTimeout: -1,
		Budget:     retry.BudgetConfig{Ratio: -1, PerSecond: -1},
		CacheStore: cache.HTTPConfig{Jitter: -1, MaxBody: -1, Coalesce: -1},
		Timeout:    -1, AttemptTimeout: -1,
		Retry: retry.Config{
			MaxAttempts: -1, MaxRetryAfter: -1, BodyLimit: -1, DrainLimit: -1, DrainTime: -1,
			Backoff: retry.Backoff{Base: -1, ThrottledBase: -1},
		},
		CacheTTL:    -1,
		Rate:        limit.RateConfig{Limit: -1, MaxWait: -1},
		Concurrency: limit.ConcurrencyConfig{Max: -1, Queue: -1, MaxWait: -1},
	}
	base := &recording{next: always(503)}
	c := newClient(t, &backstay.Config{
		Base: base, Default: off, IdleTimeout: -1, MaxIdleServices: -1,
		Services: map[string]backstay.Service{"listed": off},
		Routes: map[string]backstay.Route{"/route": {
			Timeout: -1, AttemptTimeout: -1, Retry: off.Retry, CacheTTL: -1, Rate: off.Rate, Concurrency: off.Concurrency,
		}},
	})
	for _, url := range []string{"http://listed/", "http://idle/", "http://idle/route"} {
		for range 50 { // more than the breaker's 20 failures
			status, _ := get(t, c, url)
			require.Equal(t, 503, status)
		}
	}
	require.Len(t, base.requests(), 150, "single attempts, and none was refused")
}
