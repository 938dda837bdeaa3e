package backstay

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/cache"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/propagate"
	"github.com/backstay/backstay/retry"
)

// service is one service as the client calls it.
type service struct {
	name     string
	client   *Client
	cfg      Service
	idle     bool // not listed in Config.Services: let go when it is not used
	balancer *balancer.Balancer
	nodes    http.RoundTripper    // the balancer's layer
	fallback *pipeline            // for calls that match no route
	routes   map[string]*pipeline // by pattern

	calls atomic.Int64 // under way; far below zero once the service is let go
	used  atomic.Int64 // when it was last entered, as the time since epoch
	epoch time.Time
	held  int // upstreams that hold it; guarded by client.mu
}

// pipeline is what the calls of one route go through.
type pipeline struct {
	layer.Down
	pattern        string
	chain          *call.Chain
	timeout        time.Duration
	attemptTimeout time.Duration
	bodyIdle       time.Duration
	latencyNeutral bool
	split          balancer.Split

	// For calls that do not come over HTTP.
	settings     Settings
	rate         *limit.Rate        // may be nil
	concurrency  *limit.Concurrency // may be nil
	most         int                // what concurrency would have admitted, where it only observes
	untilHeaders bool               // concurrency's permits end with the headers
}

// serviceName returns the name of the service that u's host stands for: the host
// in lower case and ASCII, with a port that is not the scheme's.
func serviceName(u *url.URL) (string, error) {
	var standard string
	switch u.Scheme {
	case "http":
		standard = "80"
	case "https":
		standard = "443"
	default:
		return "", fmt.Errorf("URL's scheme is %q, want http or https", u.Scheme)
	}
	host, port := u.Hostname(), u.Port()
	if host == "" {
		return "", fmt.Errorf("URL's host is %q, want the name of a service", u.Host)
	}
	if strings.ContainsFunc(host, beyondASCII) {
		if ascii, err := idna.Lookup.ToASCII(host); err == nil {
			host = ascii // as net/http does where it connects
		}
	}
	host = strings.ToLower(host)
	if port == "" || port == standard {
		return bracketed(host), nil
	}
	return net.JoinHostPort(host, port), nil
}

func beyondASCII(r rune) bool { return r >= utf8.RuneSelf }

// bracketed is host as it stands in a URL.
func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// hostOf returns a service's name without its port.
func hostOf(name string) string {
	if host, _, err := net.SplitHostPort(name); err == nil {
		return bracketed(host)
	}
	return name
}

// newService builds a service and its pipelines.
func newService(c *Client, name string, idle bool) (*service, error) {
	s := &service{
		name: name, client: c, cfg: c.cfg.service(name), idle: idle,
		routes: make(map[string]*pipeline), epoch: clock.Now(),
	}
	observed := s.cfg.Observe == On
	if idle { // it is perhaps a stranger's: it gets nothing but calls
		s.cfg.Health, s.cfg.Conns.Min = balancer.HealthConfig{}, 0
	}
	b, err := balancer.New(name, s.resolver(), &balancer.Config{
		Policy: s.cfg.Policy, Breaker: s.breaker(), MaxConcurrency: cond(observed, -1, s.cfg.NodeConcurrency),
		SlowStart: s.cfg.SlowStart, PanicThreshold: s.cfg.PanicThreshold, FailClosed: s.cfg.FailClosed == On,
		Overprovisioning: s.cfg.Overprovisioning, Zones: s.cfg.Zones, Subsets: s.cfg.Subsets,
		Outliers: s.cfg.Outliers, Health: s.cfg.Health, Conns: s.cfg.Conns,
		HashKey: s.cfg.HashKey, Override: s.cfg.Override == On, DrainTimeout: s.cfg.DrainTimeout,
		ConnectTimeout: s.cfg.ConnectTimeout, H2C: s.cfg.H2C == On, Classifier: s.cfg.Classifier,
		AttemptTimeout: -1, // the frame says, by route
		OnDemand:       idle, ObserveOnly: observed, Observer: c.cfg.Observer,
	})
	if err != nil {
		return nil, fmt.Errorf("backstay: service %q: %w", name, err)
	}
	s.balancer = b
	if err := s.build(observed); err != nil {
		_ = b.Close()
		return nil, fmt.Errorf("backstay: service %q: %w", name, err)
	}
	return s, nil
}

// resolver returns what finds the service's endpoints.
func (s *service) resolver() discovery.Resolver {
	switch {
	case len(s.cfg.Endpoints) > 0:
		return discovery.Static(s.cfg.Endpoints...)
	case s.cfg.Resolver != nil:
		return s.cfg.Resolver
	}
	return discovery.DNS(nil)
}

// breaker returns how the nodes' breakers behave: by default their window holds
// the calls of an outage, which end an attempt timeout late.
func (s *service) breaker() breaker.Config {
	b := s.cfg.Breaker
	if b.Window != 0 {
		return b
	}
	own := s.cfg.route()
	longest := outageTime(own)
	for pattern, r := range s.client.cfg.Routes {
		if routeApplies(pattern, s.name) {
			longest = max(longest, outageTime(r.inherit(own)))
		}
	}
	if longest > defaultBreakerWindow/2 {
		b.Window = 2 * min(longest, maxOutageTime)
	}
	return b
}

// outageTime is how late the calls of an outage end, as far as settings say it.
func outageTime(r Route) time.Duration {
	if r.LatencyNeutral == On {
		return 0 // long polls are long, and no outage
	}
	return r.AttemptTimeout
}

const (
	defaultBreakerWindow = 10 * time.Second
	maxOutageTime        = 1000 * time.Hour // a breaker's window has a limit
)

// build makes the pipelines: one for calls without a route, and one for each
// route. They share what belongs to the service.
func (s *service) build(observed bool) error {
	base := s.cfg.Base
	if base == nil {
		base = s.client.base
	}
	s.nodes = s.balancer.Layer(base)
	shared := parts{attempts: s.nodes}
	if s.cfg.Propagate == On {
		shared.attempts = propagate.Layer(s.nodes)
	}
	shared.members = call.ChainOf(shared.attempts).Members()
	for _, around := range slices.Backward(s.cfg.PerAttempt) {
		shared.attempts = around(shared.attempts)
		// Step by step, for a user's layer need not say what it wraps.
		shared.members = append(shared.members, call.ChainOf(shared.attempts).Members()...)
	}
	var err error
	if shared.budget, err = retry.NewBudget(&s.cfg.Budget); err != nil {
		return err
	}
	own := s.cfg.route()
	routes := make(map[string]Route, len(s.client.cfg.Routes))
	cached := own.CacheTTL > 0
	for pattern, r := range s.client.cfg.Routes {
		if !routeApplies(pattern, s.name) {
			continue
		}
		r = r.inherit(own)
		routes[pattern] = r
		cached = cached || r.CacheTTL > 0
	}
	if cached && !observed {
		if shared.cache, err = cache.NewHTTP(&s.cfg.CacheStore); err != nil {
			return err
		}
	}
	if shared.rate, err = newRate(s.name, own.Rate); err != nil {
		return err
	}
	if shared.concurrency, err = newConcurrency(s.name, own.Concurrency, observed); err != nil {
		return err
	}
	if s.fallback, err = s.pipe("", own, own, shared, observed); err != nil {
		return err
	}
	for pattern, r := range routes {
		if s.routes[pattern], err = s.pipe(pattern, r, own, shared, observed); err != nil {
			return err
		}
	}
	return nil
}

// parts is what a service's pipelines share.
type parts struct {
	attempts    http.RoundTripper
	members     []any
	budget      *retry.Budget
	cache       *cache.HTTP
	rate        *limit.Rate
	concurrency *limit.Concurrency
}

// pipe makes one pipeline, from the inside out.
func (s *service) pipe(pattern string, r, own Route, shared parts, observed bool) (*pipeline, error) {
	p := &pipeline{
		pattern: pattern, timeout: max(r.Timeout, 0), latencyNeutral: r.LatencyNeutral == On,
		attemptTimeout: r.AttemptTimeout, bodyIdle: max(r.BodyIdleTimeout, 0), split: r.Split,
	}
	if p.attemptTimeout == 0 {
		p.attemptTimeout = within(defaultAttemptTimeout, p.timeout)
	}
	rt := shared.attempts
	members := slices.Clone(shared.members)
	add := func(around func(http.RoundTripper) http.RoundTripper) {
		rt = around(rt)
		members = append(members, rt)
	}

	again := r.Retry
	again.Name, again.Budget, again.Classifier, again.Observer = s.name, shared.budget, s.cfg.Classifier, s.client.cfg.Observer
	again.AttemptTimeout, again.Timeout = -1, -1 // the balancer's layer does it, by the frame
	if again.BufferBody == On && p.attemptTimeout > 0 {
		again.AttemptTimeout = p.attemptTimeout // that knows nothing of the body
	}
	if observed {
		again.MaxAttempts = -1
	}
	retrier, err := retry.New(&again)
	if err != nil {
		return nil, err
	}
	add(retrier.Layer)

	concurrency, rate := shared.concurrency, shared.rate
	if r.Concurrency != own.Concurrency {
		if concurrency, err = newConcurrency(s.name+" "+pattern, r.Concurrency, observed); err != nil {
			return nil, err
		}
	}
	if concurrency != nil {
		add(cond(observed, s.watchConcurrency(concurrency, r.Concurrency.Max), concurrency.Layer))
	}
	if r.Rate != own.Rate {
		if rate, err = newRate(s.name+" "+pattern, r.Rate); err != nil {
			return nil, err
		}
	}
	if rate != nil {
		add(cond(observed, s.watchRate(rate), rate.Layer))
	}
	if shared.cache != nil {
		add(shared.cache.LayerWith(max(r.CacheTTL, 0)))
	}
	p.Down, p.chain = layer.To(rt), call.NewChain(members...)
	p.rate, p.concurrency, p.most, p.untilHeaders = rate, concurrency, r.Concurrency.Max, r.Concurrency.UntilHeaders == On
	p.settings = Settings{
		Route: pattern, Timeout: p.timeout, AttemptTimeout: max(r.AttemptTimeout, 0), BodyIdleTimeout: p.bodyIdle,
		LatencyNeutral: p.latencyNeutral, Retry: r.Retry, Retrier: retrier, Observed: observed,
		chain: call.NewChain(retrier), p: p,
	}
	return p, nil
}

const defaultAttemptTimeout = 10 * time.Second

func newRate(key string, cfg limit.RateConfig) (*limit.Rate, error) {
	if cfg.Limit <= 0 {
		return nil, nil
	}
	cfg.Key = key
	return limit.NewRate(&cfg)
}

func newConcurrency(key string, cfg limit.ConcurrencyConfig, observed bool) (*limit.Concurrency, error) {
	if cfg.Max <= 0 {
		return nil, nil
	}
	cfg.Key = key
	if observed { // those who would wait are under way
		cfg.Max += min(max(cfg.Queue, 0), math.MaxInt-cfg.Max)
	}
	return limit.NewConcurrency(&cfg)
}

func cond[T any](yes bool, a, b T) T {
	if yes {
		return a
	}
	return b
}

// pipeline returns what a request goes through.
func (s *service) pipeline(req *http.Request) *pipeline {
	mux := s.client.mux
	if mux == nil || req.URL.Opaque != "" { // an opaque URL has no path
		return s.fallback
	}
	// The patterns are those of a server: they want the host where a server
	// finds it, and it is the service's. What has been left out is what net/http
	// fills in when it sends.
	seen := &http.Request{Method: cmp.Or(req.Method, http.MethodGet), Host: hostOf(s.name), URL: req.URL}
	if req.URL.Path == "" {
		seen.URL = &url.URL{Path: "/"}
	}
	h, pattern := mux.Handler(seen)
	if route, ok := h.(routeHandler); ok {
		pattern = string(route)
	} // else it is mux's own redirect from a path that is not clean, to one that the pattern matches
	if p := s.routes[pattern]; p != nil {
		return p
	}
	return s.fallback
}

// letGo is what a service's count of calls is lowered by when it is let go.
const letGo = math.MinInt64 / 2

// enter begins a call. It returns false if the service has been let go.
func (s *service) enter(now time.Time) bool {
	if s.calls.Add(1) < 0 {
		s.calls.Add(-1)
		return false
	}
	if s.idle {
		// Not with every call: everybody reads what lies beside it.
		if at := int64(now.Sub(s.epoch)); at-s.used.Load() > int64(time.Second) {
			s.used.Store(at)
		}
	}
	return true
}

// leave ends a call.
func (s *service) leave() { s.calls.Add(-1) }

// busy reports whether calls are under way or bodies being read.
func (s *service) busy() bool { return s.calls.Load() > 0 || s.balancer.InFlight() > 0 }

// drained waits until the service has nothing to do.
func (s *service) drained(ctx context.Context) error {
	wait := time.Millisecond
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for s.busy() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			wait = min(2*wait, 100*time.Millisecond)
			timer.Reset(wait)
		}
	}
	return nil
}

func (s *service) close() { _ = s.balancer.Close() }
