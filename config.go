package backstay

import (
	"net/http"
	"time"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/cache"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/inherit"
	"github.com/backstay/backstay/internal/jsonconf"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// Config is how a [Client] behaves. The zero value of a field means its default,
// a negative number that what it bounds is off or has no limit. Settings are
// inherited field by field: a Route's from its Service's, a Service's from
// Default, Default's from what the field's comment says.
//
// A Config can be read from JSON; durations are strings such as "250ms", unknown
// names are refused. Fields that are functions or interfaces are not part of it.
type Config struct {
	// Default holds the settings of all services that say nothing else.
	// Default: every field's own.
	Default Service `json:"default,omitzero"`
	// Services holds the settings of services by name: the host in a request's
	// URL, with its port where the URL has one that is not the scheme's. A name
	// with a port comes before one without. Services listed here are looked up
	// from the beginning and never let go. Default: none.
	Services map[string]Service `json:"services,omitempty"`
	// Routes holds settings for some of the calls, by http.ServeMux's patterns:
	// "GET /v1/items/{id}" for every service, "GET orders/v1/items/{id}" for
	// one. Those of gRPC are its full names of methods: "/orders.v1.Orders/Get".
	// A pattern that ends with "/*" stands for all that begins so:
	// "/orders.v1.Orders/*" is "/orders.v1.Orders/". Default: none.
	Routes map[string]Route `json:"routes,omitempty"`
	// Base is what connections are made with. An *http.Transport is a template
	// for each node's own, see [balancer.Balancer.Layer]; another RoundTripper
	// gets requests with the node's address in their URL, http only. What wraps
	// an *http.Transport, for logs or traces, belongs into PerAttempt, or around
	// the client. Default: http.DefaultTransport.
	Base http.RoundTripper `json:"-"`
	// Observer sees all events. Default: none.
	Observer event.Observer `json:"-"`
	// IdleTimeout is when a service that is not listed in Services is let go
	// after its last call. Negative: not before MaxIdleServices asks for it.
	// Default: 5m.
	IdleTimeout time.Duration `json:"idleTimeout,omitempty"`
	// MaxIdleServices is how many services not listed in Services are kept; the
	// one that was used longest ago makes room. Default: 1024.
	MaxIdleServices int `json:"maxIdleServices,omitempty"`
}

// Service is how calls to one service behave. See [Config] for what zero and
// negative values mean.
type Service struct {
	// Resolver finds the endpoints. Default: discovery.DNS(nil); for an IP
	// address and for localhost, that one endpoint.
	Resolver discovery.Resolver `json:"-"`
	// Endpoints are the service's endpoints where they are known, at least one; then
	// no Resolver is asked. Default: none.
	Endpoints []discovery.Endpoint `json:"endpoints,omitempty"`

	// Policy chooses among the nodes. Default: balancer.P2C with PeakEWMA.
	Policy balancer.Policy `json:"-"`
	// Breaker is how each node's breaker behaves; its key in errors and events
	// is "service/node". The calls of an outage end an attempt timeout late, so
	// the Window must be at least twice each AttemptTimeout that is set for the
	// service or its routes, unless they are LatencyNeutral. Default: breaker's
	// defaults, and a Window that is long enough.
	Breaker breaker.Config `json:"breaker,omitzero"`
	// Outliers says when a node that fails is left alone for a time, before its
	// breaker would open. Default: after five failures in a row, see
	// balancer.OutlierConfig.
	Outliers balancer.OutlierConfig `json:"outliers,omitzero"`
	// Health says how nodes are checked while nobody calls them. It holds for
	// services that are listed in Config.Services only. Default: they are not.
	Health balancer.HealthConfig `json:"health,omitzero"`
	// NodeConcurrency is how many calls a node may have at a time; a full node is
	// passed over. Default: no limit.
	NodeConcurrency int `json:"nodeConcurrency,omitempty"`
	// SlowStart is the time over which a new node comes up to its full share.
	// Default: 10s.
	SlowStart time.Duration `json:"slowStart,omitempty"`
	// PanicThreshold is the share of nodes below which ejections are ignored.
	// Default: 0.5.
	PanicThreshold float64 `json:"panicThreshold,omitempty"`
	// FailClosed is On where calls are better refused than sent to nodes that are
	// ejected or unhealthy. Default: Off.
	FailClosed Switch `json:"failClosed,omitempty"`
	// Overprovisioning is how much more than its even part a priority, or a zone,
	// can carry before the next one takes the rest. Default: 1.4.
	Overprovisioning float64 `json:"overprovisioning,omitempty"`
	// Zones says where this process runs, so that calls stay near.
	// Default: zones are ignored.
	Zones balancer.ZoneConfig `json:"zones,omitzero"`
	// Subsets are groups of nodes by their metadata, for Split and
	// [balancer.WithSubset]. Default: none.
	Subsets map[string]balancer.Subset `json:"subsets,omitempty"`
	// HashKey says what of a request is the key, for a Policy that hashes; with
	// another it is an error. Default: nothing but what balancer.WithKey sets.
	HashKey balancer.HashKey `json:"hashKey,omitzero"`
	// Override is On where [balancer.WithNode] is heeded. Default: Off.
	Override Switch `json:"override,omitempty"`
	// DrainTimeout is how long a node that has left may take to finish what it
	// has. Default: 30s.
	DrainTimeout time.Duration `json:"drainTimeout,omitempty"`
	// ConnectTimeout is how long a connection may take to be made. Default: 1s.
	ConnectTimeout time.Duration `json:"connectTimeout,omitempty"`
	// Conns is how connections to each node are kept. Its Min holds for services
	// that are listed in Config.Services only. Default: balancer.ConnConfig's.
	Conns balancer.ConnConfig `json:"conns,omitzero"`
	// H2C is On where the service speaks HTTP/2 without TLS. Default: Off.
	H2C Switch `json:"h2c,omitempty"`

	// Base is what connections to the service are made with, where that is not
	// what all others use: other certificates, another proxy. See Config.Base.
	// Default: Config.Base.
	Base http.RoundTripper `json:"-"`
	// PerAttempt are layers that each attempt passes through, outermost first:
	// authentication, signing, tracing. Default: none.
	PerAttempt []func(http.RoundTripper) http.RoundTripper `json:"-"`
	// Propagate is On where the service may be told how much time a call has left
	// and which attempt of it this is: see package propagate. Default: Off.
	Propagate Switch `json:"propagate,omitempty"`
	// Classifier decides how an attempt ended. Default: outcome.HTTP.
	Classifier outcome.Classifier `json:"-"`
	// Budget bounds the extra attempts of the service's calls. Default:
	// retry.BudgetConfig's defaults.
	Budget retry.BudgetConfig `json:"budget,omitzero"`
	// CacheStore bounds the cache that CacheTTL switches on; its own TTL stays
	// unset. Default: cache.HTTPConfig's defaults.
	CacheStore cache.HTTPConfig `json:"cacheStore,omitzero"`
	// Observe is On to try Backstay out on a service: everything is judged and
	// told to the Observer, but nothing is refused, retried, ejected or answered
	// from the cache. Default: Off.
	Observe Switch `json:"observe,omitempty"`

	// The fields below can be set for a Route as well.

	// Timeout bounds a call: waiting for the first endpoints and for limits, all
	// attempts, the waits between them, and the body. Default: none; the
	// caller's context rules.
	Timeout time.Duration `json:"timeout,omitempty"`
	// AttemptTimeout bounds each attempt, from the request written to the
	// response's headers. Default: 10s, or Timeout if that is less.
	AttemptTimeout time.Duration `json:"attemptTimeout,omitempty"`
	// BodyIdleTimeout is how long reading a response's body may wait for more of
	// it; the time until the caller reads on does not count. Default: none.
	BodyIdleTimeout time.Duration `json:"bodyIdleTimeout,omitempty"`
	// Retry says what is tried again, how often and when. Its timeouts, Budget,
	// Classifier and Observer stay unset: the service and the client have them.
	// Default: retry.Config's defaults.
	Retry retry.Config `json:"retry,omitzero"`
	// CacheTTL is how long the answers to plain GETs may be given out again, see
	// [cache.HTTP]. Default: not at all.
	CacheTTL time.Duration `json:"cacheTTL,omitempty"`
	// Rate bounds how many calls may begin in a second, over all nodes; beyond
	// it calls wait or are refused before anything is done. A Limit leaves the
	// Burst of a wider scope behind. Default: no limit.
	Rate limit.RateConfig `json:"rate,omitzero"`
	// Concurrency bounds how many calls may be under way, over all nodes.
	// Default: no limit.
	Concurrency limit.ConcurrencyConfig `json:"concurrency,omitzero"`
	// LatencyNeutral is On for calls whose latency says nothing about the node:
	// long polls. Default: Off.
	LatencyNeutral Switch `json:"latencyNeutral,omitempty"`
	// Split divides the calls among the service's Subsets. It stands whole.
	// Default: all nodes get them.
	Split balancer.Split `json:"split,omitempty"`
}

// Route is how some of a service's calls behave: those that match a pattern. See
// [Config] for what zero and negative values mean, and [Service] for the fields.
type Route struct {
	// Timeout bounds a call, see Service.Timeout. Default: the service's.
	Timeout time.Duration `json:"timeout,omitempty"`
	// AttemptTimeout bounds each attempt, from the request written to the
	// response's headers. Default: the service's, or Timeout if that is less.
	AttemptTimeout time.Duration `json:"attemptTimeout,omitempty"`
	// BodyIdleTimeout is how long reading a response's body may wait for more of
	// it. Default: the service's.
	BodyIdleTimeout time.Duration `json:"bodyIdleTimeout,omitempty"`
	// Retry says what is tried again, how often and when. Default: the
	// service's.
	Retry retry.Config `json:"retry,omitzero"`
	// CacheTTL is how long the answers to plain GETs may be given out again.
	// Default: the service's.
	CacheTTL time.Duration `json:"cacheTTL,omitempty"`
	// Rate bounds how many of the route's calls may begin in a second. A Limit
	// leaves the service's Burst behind. Default: the service's, which the route
	// then shares.
	Rate limit.RateConfig `json:"rate,omitzero"`
	// Concurrency bounds how many of the route's calls may be under way.
	// Default: the service's, which the route then shares.
	Concurrency limit.ConcurrencyConfig `json:"concurrency,omitzero"`
	// LatencyNeutral is On for calls whose latency says nothing about the node.
	// Default: the service's.
	LatencyNeutral Switch `json:"latencyNeutral,omitempty"`
	// Split divides the calls among the service's Subsets: 5 % to a canary.
	// Default: the service's.
	Split balancer.Split `json:"split,omitempty"`
}

// Switch is a setting that is on, off, or inherited; in JSON true, false, or left
// out.
type Switch = inherit.Switch

// What a [Switch] can be.
const (
	// Inherit leaves the choice to the next wider scope, where it ends as Off.
	Inherit = inherit.Inherit
	// On switches on.
	On = inherit.On
	// Off switches off what a wider scope has switched on.
	Off = inherit.Off
)

// inherit returns r with what it leaves out taken from the service's own route.
func (r Route) inherit(own Route) Route {
	if r.Rate.Limit != 0 {
		own.Rate.Burst = 0 // which goes with its Limit
	}
	own.AttemptTimeout = within(own.AttemptTimeout, r.Timeout)
	return inherit.Of(r, own)
}

// within returns the AttemptTimeout of a wider scope, or the default, for a narrower one
// that may have a Timeout: where they do not go together, what was said of fewer calls
// counts.
func within(attempt, timeout time.Duration) time.Duration {
	if timeout > 0 {
		attempt = min(attempt, timeout)
	}
	return attempt
}

// route returns the service's settings for calls without a route of their own.
func (s *Service) route() Route {
	return Route{
		Timeout: s.Timeout, AttemptTimeout: s.AttemptTimeout, BodyIdleTimeout: s.BodyIdleTimeout,
		Retry: s.Retry, CacheTTL: s.CacheTTL,
		Rate: s.Rate, Concurrency: s.Concurrency, LatencyNeutral: s.LatencyNeutral, Split: s.Split,
	}
}

// service returns the settings of a service: its own, filled up from Default.
func (c *Config) service(name string) Service {
	own, ok := c.Services[name]
	if !ok {
		own = c.Services[hostOf(name)]
	}
	standard := c.Default
	if own.Rate.Limit != 0 {
		standard.Rate.Burst = 0 // which goes with its Limit
	}
	standard.AttemptTimeout = within(standard.AttemptTimeout, own.Timeout)
	s := inherit.Of(own, standard)
	switch { // of the two ways to say where the endpoints are, a service's own counts
	case own.Resolver != nil && own.Endpoints == nil:
		s.Endpoints = nil
	case own.Resolver == nil && own.Endpoints != nil:
		s.Resolver = nil
	}
	if keys, ok := s.Policy.(balancer.KeyReader); own.HashKey == (balancer.HashKey{}) && (!ok || !keys.ReadsKeys()) {
		s.HashKey = balancer.HashKey{} // Default's is for another policy
	}
	return s
}

// UnmarshalJSON reads the config, strictly: see [Config].
func (c *Config) UnmarshalJSON(data []byte) error { return jsonconf.Unmarshal(data, c) }

// MarshalJSON writes what UnmarshalJSON reads.
func (c Config) MarshalJSON() ([]byte, error) { return jsonconf.Marshal(c) }
