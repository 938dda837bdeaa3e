package backstay

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/layer"
)

// Client makes the calls of a process to all services. It is an
// http.RoundTripper, and embeds an *http.Client over itself, so that it can be
// used as one: client.Get("http://orders/v1/items"). The host in a request's URL
// names the service. All methods may be called concurrently.
type Client struct {
	*http.Client

	cfg   Config
	base  http.RoundTripper // what connections are made with; never nil
	mux   *http.ServeMux    // matches routes; nil if there are none
	hosts atomic.Pointer[spelled]
	shut  atomic.Bool // closing, for those who do not look at hosts

	mu       sync.Mutex // guards what follows, and changes of hosts
	services map[string]*service
	sweeper  *time.Timer
	closing  bool
	leaving  sync.WaitGroup // services on their way out
}

// spelled is the services by the scheme and host of the URLs that have named them, as
// those spell it. It is immutable.
type spelled struct{ http, https map[string]*service }

// of returns the map for a scheme, which is nil for one that nobody can be called by.
func (s *spelled) of(scheme string) map[string]*service {
	switch scheme {
	case "http":
		return s.http
	case "https":
		return s.https
	}
	return nil
}

// New returns a client. A nil cfg means every default. The error joins all that
// is wrong with cfg. Close the client when it is no longer needed.
func New(cfg *Config) (*Client, error) {
	c := &Client{services: make(map[string]*service)}
	if cfg != nil {
		c.cfg = cfg.clone()
	}
	if c.base = c.cfg.Base; c.base == nil {
		c.base = http.DefaultTransport
	}
	if c.cfg.IdleTimeout == 0 {
		c.cfg.IdleTimeout = 5 * time.Minute
	}
	if c.cfg.MaxIdleServices == 0 {
		c.cfg.MaxIdleServices = 1024
	}
	var err error
	if c.mux, err = c.cfg.validate(); err != nil {
		return nil, err
	}
	c.hosts.Store(new(spelled))
	c.Client = &http.Client{Transport: c}
	for name := range c.cfg.Services {
		s, err := newService(c, name, false)
		if err != nil {
			_ = c.Close()
			return nil, err
		}
		c.services[name] = s
	}
	return c, nil
}

// RoundTrip makes one call: to the service that the URL's host names, by the
// settings of the service and of the route that the request matches. It keeps
// to http.RoundTripper's contract.
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	now := clock.Now()
	s, err := c.enter(req, now)
	if err != nil {
		layer.CloseBody(req)
		return nil, err
	}
	if s == nil {
		return c.base.RoundTrip(req)
	}
	defer s.leave()
	return s.roundTrip(req, s.pipeline(req), now)
}

// enter returns the service that req goes to, which the caller leaves when the
// call is over; nil if the request is not for a service: a redirect to a host
// that is not known goes out plainly.
func (c *Client) enter(req *http.Request, now time.Time) (*service, error) {
	u := req.URL
	if u == nil {
		return nil, &RequestError{Err: errors.New("URL is nil, want one with a scheme and a host")}
	}
	for {
		s := c.hosts.Load().of(u.Scheme)[u.Host]
		if s == nil {
			var err error
			if s, err = c.find(req); s == nil || err != nil {
				return nil, err
			}
		}
		if s.enter(now) {
			return s, nil
		}
		// It was let go between the look and the step.
	}
}

// find is enter's way for hosts that have not been seen in this spelling.
func (c *Client) find(req *http.Request) (*service, error) {
	u := req.URL
	name, err := serviceName(u)
	if err != nil {
		return nil, &RequestError{Target: target(u), Err: err}
	}
	s, err := c.admit(u, name, nil)
	if s != nil || err != nil {
		return s, err
	}
	_, listed := c.cfg.Services[name]
	_, related := c.cfg.Services[hostOf(name)]
	if !listed && !related && req.Response != nil {
		return nil, nil // a redirect to a stranger
	}
	// Without the lock: it calls the user's layers. The ports of a listed host may
	// be anybody's choice, so only what is listed itself stays for good.
	built, err := newService(c, name, !listed)
	if err != nil {
		return nil, &RequestError{Target: target(u), Err: err}
	}
	if s, err = c.admit(u, name, built); s != built {
		built.close() // another call was faster, or the client has been closed
	}
	return s, err
}

// admit returns the service of that name: the one there is, or else fresh, which
// may be nil.
func (c *Client) admit(u *url.URL, name string, fresh *service) (*service, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return nil, &RequestError{Target: target(u), Err: ErrClosed}
	}
	s := c.services[name]
	if s == nil {
		if fresh == nil {
			return nil, nil
		}
		s = fresh
		c.services[name] = s
		if s.idle {
			c.makeRoom(s)
		}
	}
	if u.Host == name { // else spellings without end
		c.spell(func(hosts *spelled) { hosts.of(u.Scheme)[u.Host] = s })
	}
	return s, nil
}

// spell changes what RoundTrip reads. c.mu is held.
func (c *Client) spell(change func(*spelled)) {
	old := c.hosts.Load()
	hosts := &spelled{http: make(map[string]*service), https: make(map[string]*service)}
	maps.Copy(hosts.http, old.http)
	maps.Copy(hosts.https, old.https)
	change(hosts)
	c.hosts.Store(hosts)
}

// target is u without what may be secret.
func target(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// roundTrip makes one call by p.
func (s *service) roundTrip(req *http.Request, p *pipeline, now time.Time) (*http.Response, error) {
	info := call.Info{
		Service: s.name, Route: p.pattern, Method: cmp.Or(req.Method, http.MethodGet), Path: req.URL.Path, Start: now,
	}
	frame := p.frame(req.Context(), p.chain, info, p.attemptTimeout)
	resp, err := p.Forward(req, frame)
	status := 0
	if resp != nil {
		status = resp.StatusCode
		resp.Request = req // and not one whose context ends with the body
	}
	s.client.finish(req.Context(), frame, status, err)
	return resp, err
}

// frame returns the frame of a call that begins now, by p's settings.
func (p *pipeline) frame(ctx context.Context, chain *call.Chain, info call.Info, attemptTimeout time.Duration) *call.Frame {
	f := call.New(ctx, chain, info)
	if p.timeout > 0 {
		f.SetDeadline(info.Start.Add(p.timeout))
	}
	f.SetYoung(true)
	f.SetAttemptTimeout(attemptTimeout)
	f.SetBodyIdle(p.bodyIdle)
	f.SetLatencyNeutral(p.latencyNeutral)
	if p.split != nil {
		f.SetSubset(p.split.Draw(nil))
	}
	return f
}

// finish ends a call's frame, with what its caller gets, and tells whoever listens.
func (c *Client) finish(ctx context.Context, f *call.Frame, status int, err error) {
	if o := c.cfg.Observer; o != nil || f.Watched() != nil {
		f.Finish(clock.Now(), status, err)
		if o != nil {
			event.Emit(ctx, o, call.Finished{Record: f.Record()})
		}
	}
	f.Free()
}

// CloseIdleConnections closes the idle connections of all services.
func (c *Client) CloseIdleConnections() {
	c.mu.Lock()
	services := c.list()
	c.mu.Unlock()
	for _, s := range services {
		layer.CloseIdle(s.nodes) // the layers above may be the user's, and not pass it on
	}
	layer.CloseIdle(c.base)
}

// list returns the services. c.mu is held.
func (c *Client) list() []*service {
	services := make([]*service, 0, len(c.services))
	for _, s := range c.services {
		services = append(services, s)
	}
	return services
}

// Ready waits until the endpoints of the given services are known, within ctx;
// without names, those of all services in Config.Services. It is meant for a
// readiness probe. It returns when each of them is known or has failed, or ctx
// ends; the error joins those of the services that are not ready.
func (c *Client) Ready(ctx context.Context, services ...string) error {
	if len(services) == 0 {
		for name := range c.cfg.Services {
			services = append(services, name)
		}
	}
	errs := make([]error, len(services))
	var all sync.WaitGroup
	for i, name := range services {
		all.Go(func() {
			req := &http.Request{URL: &url.URL{Scheme: "http", Host: name}}
			s, err := c.enter(req, clock.Now())
			if err == nil {
				err = s.balancer.Ready(ctx)
				s.leave()
			}
			errs[i] = err
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// Balancer returns the balancer of a service: its nodes with their state and
// breakers, to look at and to intervene by hand. It is nil if nothing has been
// called by that name, or not for so long that the service has been let go. It is
// the client's, which closes it.
func (c *Client) Balancer(service string) *balancer.Balancer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.services[service]; s != nil {
		return s.balancer
	}
	return nil
}

// Layers names what a call passes, from the caller to the connection.
func (c *Client) Layers() []string {
	return []string{"observe", "route", "cache", "rate", "concurrency", "retry", "per-attempt", "balancer", "breaker", "connection"}
}

// Shutdown closes the client gracefully: it takes no more calls, waits until
// those under way are over and their bodies closed, and then closes. If ctx ends
// before, it closes at once and returns the context's cause.
func (c *Client) Shutdown(ctx context.Context) error {
	c.shut.Store(true)
	c.mu.Lock()
	c.closing = true
	services := c.list()
	c.hosts.Store(new(spelled))
	c.mu.Unlock()
	var err error
	for _, s := range services {
		if err = s.drained(ctx); err != nil {
			break
		}
	}
	return errors.Join(err, c.Close())
}

// Close closes the client: connections are closed, whatever is still going on
// over them, and calls fail from now on. It waits for the client's goroutines.
// It may be called more than once.
func (c *Client) Close() error {
	c.shut.Store(true)
	c.mu.Lock()
	c.closing = true
	services := c.list()
	c.services = make(map[string]*service)
	c.hosts.Store(new(spelled))
	if c.sweeper != nil {
		c.sweeper.Stop()
	}
	c.mu.Unlock()
	var all sync.WaitGroup
	for _, s := range services {
		all.Go(s.close)
	}
	all.Wait()
	c.leaving.Wait()
	return nil
}
