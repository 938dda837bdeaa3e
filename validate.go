package backstay

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/cache"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/retry"
)

// clone copies what the client keeps and the caller might change.
func (c *Config) clone() Config {
	copied := *c
	copied.Default = copied.Default.clone()
	copied.Services = maps.Clone(c.Services)
	for name, s := range copied.Services {
		copied.Services[name] = s.clone()
	}
	copied.Routes = maps.Clone(c.Routes)
	for pattern, r := range copied.Routes {
		r.Retry.Statuses, r.Split = slices.Clone(r.Retry.Statuses), slices.Clone(r.Split)
		copied.Routes[pattern] = r
	}
	return copied
}

func (s Service) clone() Service {
	s.Endpoints = slices.Clone(s.Endpoints)
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.Fallback, e.ForZones, e.Metadata = slices.Clone(e.Fallback), slices.Clone(e.ForZones), maps.Clone(e.Metadata)
	}
	s.Subsets, s.Split = maps.Clone(s.Subsets), slices.Clone(s.Split)
	for name, subset := range s.Subsets {
		subset.Match = maps.Clone(subset.Match)
		s.Subsets[name] = subset
	}
	s.Zones.Clients = maps.Clone(s.Zones.Clients)
	s.Health.Header, s.Health.Status = maps.Clone(s.Health.Header), slices.Clone(s.Health.Status)
	s.PerAttempt = slices.Clone(s.PerAttempt)
	s.Retry.Statuses = slices.Clone(s.Retry.Statuses)
	return s
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// validate returns the matcher of the routes, or all that is wrong with c.
func (c *Config) validate() (*http.ServeMux, error) {
	p := problems{seen: make(map[place]bool)}
	p.within("Default").base("Config", c.Base)
	p.within("Default").service("Default", &c.Default)
	for _, pattern := range sorted(c.Routes) {
		// A route stands on whatever service it is used for; what it says
		// itself must at least go with the default.
		r := c.Routes[pattern].inherit(c.Default.route())
		where := fmt.Sprintf("Routes[%q]", pattern)
		p.within("Default", where).route(where, &r, &c.Default.Breaker)
		if _, listed := c.Services[routeHost(pattern)]; !listed {
			p.add(where, r.Split.Validate(c.Default.Subsets))
		}
	}
	for _, name := range sorted(c.Services) {
		where := fmt.Sprintf("Services[%q]", name)
		p.within("Default", where)
		if got, err := serviceName(&url.URL{Scheme: "http", Host: name}); err != nil || got != name || !isHost(name) {
			p.add(where, errors.New(`want a host in lower case, with a port if it is not 80, such as "orders" or "orders:8080"`))
		}
		s := c.service(name)
		p.service(where, &s)
		for _, pattern := range sorted(c.Routes) {
			if routeApplies(pattern, name) {
				r := c.Routes[pattern].inherit(s.route())
				route := fmt.Sprintf("Routes[%q]", pattern)
				p.within("Default", where, route).route(where+" with "+route, &r, &s.Breaker)
				p.add(where+" with "+route, r.Split.Validate(s.Subsets))
			}
		}
	}
	mux, errs := newMux(c.Routes)
	return mux, errors.Join(append(p.errs, errs...)...)
}

// isHost reports whether a name is one that a URL can have.
func isHost(name string) bool {
	u, err := url.Parse("http://" + name + "/")
	return err == nil && u.Host == name && u.User == nil && !strings.ContainsAny(name, " /?#%")
}

// problems collects errors. What a wider scope says wrong already, each narrower
// one would say again.
type problems struct {
	errs   []error
	scopes []string // from wide to narrow: where the settings come from
	seen   map[place]bool
}

// place is a problem in a scope.
type place struct{ scope, problem string }

func (p *problems) within(scopes ...string) *problems {
	p.scopes = scopes
	return p
}

func (p *problems) add(where string, err error) {
	for _, err := range flatten(err) {
		known := false
		for _, scope := range p.scopes {
			known = known || p.seen[place{scope, err.Error()}]
		}
		if known {
			continue
		}
		p.seen[place{p.scopes[len(p.scopes)-1], err.Error()}] = true
		p.errs = append(p.errs, fmt.Errorf("backstay: %s: %w", where, err))
	}
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, err := range joined.Unwrap() {
			errs = append(errs, flatten(err)...)
		}
		return errs
	}
	return []error{err}
}

func (p *problems) service(where string, s *Service) {
	_, err := breaker.New("", &s.Breaker)
	p.add(where+".Breaker", err)
	p.add(where, balancer.Config{
		PanicThreshold: s.PanicThreshold, Overprovisioning: s.Overprovisioning, Zones: s.Zones, Subsets: s.Subsets,
		Outliers: s.Outliers, Health: s.Health, Conns: s.Conns, Policy: s.Policy, HashKey: s.HashKey,
	}.Validate())
	p.add(where, s.Split.Validate(s.Subsets))
	if s.Breaker.Classifier != nil || s.Breaker.Classify != nil {
		p.add(where, errors.New("Breaker.Classifier is set, want none: the service's Classifier says it"))
	}
	_, err = retry.NewBudget(&s.Budget)
	p.add(where+".Budget", err)
	if s.CacheStore.TTL != 0 {
		p.add(where, fmt.Errorf("CacheStore.TTL is %v, want none: CacheTTL says it", s.CacheStore.TTL))
	}
	_, err = cache.NewHTTP(&s.CacheStore)
	p.add(where+".CacheStore", err)
	if s.Endpoints != nil && len(s.Endpoints) == 0 {
		p.add(where, errors.New("Endpoints is empty, want at least one, or nil to have them looked up")) //nolint:staticcheck // a field's name
	}
	if len(s.Endpoints) > 0 {
		if s.Resolver != nil {
			p.add(where, errors.New("Endpoints and Resolver are both set, want one of them")) //nolint:staticcheck // fields' names
		}
		p.endpoints(where, s.Endpoints)
	}
	if v, ok := s.Resolver.(interface{ Validate() error }); ok {
		p.add(where+".Resolver", v.Validate())
	}
	for i, layer := range s.PerAttempt {
		if layer == nil {
			p.add(where, fmt.Errorf("PerAttempt[%d] is nil, want a layer", i))
		}
	}
	p.base(where, s.Base)
	p.onOrOff(where, "H2C", s.H2C)
	p.onOrOff(where, "FailClosed", s.FailClosed)
	p.onOrOff(where, "Override", s.Override)
	p.onOrOff(where, "Propagate", s.Propagate)
	p.onOrOff(where, "Observe", s.Observe)
	r := s.route()
	p.route(where, &r, &s.Breaker)
}

// base finds a transport that is nil in an interface that is not.
func (p *problems) base(where string, base http.RoundTripper) {
	if t, ok := base.(*http.Transport); ok && t == nil {
		p.add(where, errors.New("Base is a nil *http.Transport, want one, or nothing for the default")) //nolint:staticcheck // a field's name
	}
}

func (p *problems) onOrOff(where, field string, value Switch) {
	if !value.Valid() {
		p.add(where, fmt.Errorf("%s is %d, want On or Off", field, value))
	}
}

func (p *problems) endpoints(where string, endpoints []discovery.Endpoint) {
	seen := make(map[string]int)
	for i, e := range endpoints {
		at := fmt.Sprintf("%s.Endpoints[%d]", where, i)
		p.add(at, e.Validate())
		if first, twice := seen[e.Key()]; twice {
			p.add(at, fmt.Errorf("%q is Endpoints[%d] already, want each once", e.Key(), first))
		}
		seen[e.Key()] = i
	}
}

func (p *problems) route(where string, r *Route, b *breaker.Config) {
	again := r.Retry
	unset := func(field string, ok bool, instead string) {
		if !ok {
			p.add(where, fmt.Errorf("%s is set, want none: %s says it", field, instead))
		}
	}
	unset("Retry.Timeout", again.Timeout == 0, "Timeout")
	unset("Retry.AttemptTimeout", again.AttemptTimeout == 0, "AttemptTimeout")
	unset("Retry.Budget", again.Budget == nil, "the service's Budget")
	unset("Retry.Classifier", again.Classifier == nil, "the service's Classifier")
	unset("Retry.Observer", again.Observer == nil, "the client's Observer")
	again.Timeout, again.AttemptTimeout = r.Timeout, cmp.Or(r.AttemptTimeout, defaultAttemptTimeout) // hedges have to come in time
	if r.Timeout > 0 && again.AttemptTimeout > r.Timeout {
		again.AttemptTimeout = 0 // said below if it is set
	}
	_, err := retry.New(&again)
	p.add(where+".Retry", err)
	if r.Timeout > 0 && r.AttemptTimeout > r.Timeout {
		p.add(where, fmt.Errorf("AttemptTimeout is %v, want <= Timeout (%v)", r.AttemptTimeout, r.Timeout))
	}
	if r.BodyIdleTimeout > 0 && r.BodyIdleTimeout < time.Millisecond {
		p.add(where, fmt.Errorf("BodyIdleTimeout is %v, want >= 1ms", r.BodyIdleTimeout))
	}
	if b.Window > 0 && b.Window/2 < outageTime(*r) { // where it is not set, it is made long enough
		p.add(where, fmt.Errorf("Breaker.Window is %v, want >= 2 x AttemptTimeout (%v)", b.Window, 2*r.AttemptTimeout))
	}
	if r.Rate != (limit.RateConfig{}) {
		_, err := limit.NewRate(&r.Rate)
		p.add(where+".Rate", err)
	}
	_, err = limit.NewConcurrency(&r.Concurrency)
	p.add(where+".Concurrency", err)
	if r.Concurrency.Max == 0 && r.Concurrency != (limit.ConcurrencyConfig{}) {
		p.add(where, fmt.Errorf("Concurrency.Max is 0, want it set where another field of Concurrency is"))
	}
	p.onOrOff(where, "LatencyNeutral", r.LatencyNeutral)
	if r.CacheTTL > 0 && r.CacheTTL < time.Millisecond {
		p.add(where, fmt.Errorf("CacheTTL is %v, want >= 1ms", r.CacheTTL))
	}
}
