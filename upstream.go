package backstay

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// Upstream is one service of a [Client] for those who call it by another protocol
// than net/http's: package backstaygrpc. Its calls have the service's nodes, routes,
// limits and budget in common with the HTTP calls.
//
// All methods may be called concurrently.
type Upstream struct {
	client *Client
	s      *service
	closed atomic.Bool

	known atomic.Pointer[map[string]*Settings] // what paths come to; nil before the first
	mu    sync.Mutex                           // held to add one
}

// Upstream returns the service of that name, as it stands in the host of a URL: with
// a port where one is meant. As long as it is not closed, the service is not let go,
// whether or not it is listed in Config.Services.
func (c *Client) Upstream(name string) (*Upstream, error) {
	u := &url.URL{Scheme: "http", Host: name}
	plain, err := serviceName(u)
	if err == nil && strings.ContainsAny(name, "/?#@") { // no host has these; a target of gRPC's does
		err = fmt.Errorf(`URL's host is %q, want the name of a service, such as "orders" or "orders:8080"`, name)
	}
	if err != nil {
		return nil, &RequestError{Target: target(u), Err: err}
	}
	u.Host = plain
	s, err := c.enter(&http.Request{URL: u}, clock.Now())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	s.held++
	c.mu.Unlock()
	s.leave()
	return &Upstream{client: c, s: s}, nil
}

// Close gives the service back.
func (u *Upstream) Close() {
	if u.closed.CompareAndSwap(false, true) {
		u.client.mu.Lock()
		u.s.held--
		u.client.mu.Unlock()
		u.s.used.Store(int64(clock.Now().Sub(u.s.epoch)))
	}
}

// Service returns the service's name.
func (u *Upstream) Service() string { return u.s.name }

// Config returns the service's settings. They must not be changed.
func (u *Upstream) Config() Service { return u.s.cfg }

// Observer returns the client's observer; nil if there is none.
func (u *Upstream) Observer() event.Observer { return u.client.cfg.Observer }

// Balancer returns the service's balancer, which is the client's.
func (u *Upstream) Balancer() *balancer.Balancer { return u.s.balancer }

// Dial connects to a node, as connections for HTTP are made: by the DialContext of
// the service's *http.Transport if it has one, in no more than the service's
// ConnectTimeout for each of the node's addresses. The port is for endpoints that have
// none, where the service's name has none either.
func (u *Upstream) Dial(ctx context.Context, n *balancer.Node, port string) (net.Conn, error) {
	base := u.s.cfg.Base
	if base == nil {
		base = u.client.base
	}
	var dial func(ctx context.Context, network, addr string) (net.Conn, error)
	if t, ok := base.(*http.Transport); ok {
		dial = t.DialContext
	}
	if _, own, err := net.SplitHostPort(u.s.name); err == nil {
		port = own
	}
	return u.s.balancer.DialNode(ctx, n, dial, port)
}

// Settings is how some of a service's calls behave: those that match a route's
// pattern, or none.
type Settings struct {
	// Route is the pattern; empty if the calls match none.
	Route string
	// Timeout bounds a call, AttemptTimeout each attempt and BodyIdleTimeout the wait
	// for more of the answer; 0 is no limit. There is no default for any of them.
	Timeout, AttemptTimeout, BodyIdleTimeout time.Duration
	// LatencyNeutral is whether their latency says nothing about the nodes.
	LatencyNeutral bool
	// Retry is the settings of Retrier, which makes the calls' attempts.
	Retry   retry.Config
	Retrier *retry.Retrier
	// Observed is whether nothing is to be refused or tried again.
	Observed bool

	chain *call.Chain
	p     *pipeline
}

// Settings returns what holds for calls to a path, such as the full name of a method
// in gRPC, which are POST requests as routes' patterns see them.
func (u *Upstream) Settings(path string) *Settings {
	if known := u.known.Load(); known != nil {
		if set := (*known)[path]; set != nil {
			return set
		}
	}
	p := u.s.pipeline(&http.Request{Method: http.MethodPost, URL: &url.URL{Path: path}})
	u.mu.Lock()
	defer u.mu.Unlock()
	known := make(map[string]*Settings)
	if all := u.known.Load(); all != nil {
		if len(*all) >= maxPaths {
			return &p.settings
		}
		maps.Copy(known, *all)
	}
	known[path] = &p.settings
	u.known.Store(&known)
	return &p.settings
}

// maxPaths bounds the paths whose settings are kept: a service has some dozens, and a
// proxy may be asked for anything.
const maxPaths = 1024

// Call is a call under way. The zero value is ready for [Upstream.Begin].
type Call struct {
	// Frame is the call's, for Settings.Retrier; it is the call's until Finish.
	Frame *call.Frame
	// Settings is how the call behaves.
	Settings *Settings

	u *Upstream
}

// Begin begins a call, which Finish ends: defer that. It gives the call a frame; its
// Info is filled in but for Method and Path; a zero Start is the present. The error is
// of a client that takes no more calls; then there is nothing to end.
func (u *Upstream) Begin(ctx context.Context, c *Call, set *Settings, info call.Info) error {
	info.Start = clock.Or(info.Start)
	if !u.s.enter(info.Start) {
		return &RequestError{Target: u.s.name + info.Path, Err: ErrClosed}
	}
	if u.closed.Load() || u.client.shut.Load() {
		u.s.leave()
		return &RequestError{Target: u.s.name + info.Path, Err: ErrClosed}
	}
	info.Service, info.Route = u.s.name, set.Route
	f := set.p.frame(ctx, set.chain, info, set.AttemptTimeout)
	c.Frame, c.Settings, c.u = f, set, u
	return nil
}

// Admit has the call wait for, or be refused by, the limits of its route: Rate and
// Concurrency. The lease is Concurrency's, to be given back at the call's end; with
// headers true already when the answer's headers have come.
func (c *Call) Admit(ctx context.Context) (l limit.Lease, headers bool, err error) {
	p := c.Settings.p
	if p.rate == nil && p.concurrency == nil {
		return limit.Lease{}, false, nil
	}
	ctx, cancel := layer.Within(ctx, c.Frame)
	defer cancel()
	defer c.Frame.SetYoung(false) // it may have waited
	if err := c.admitRate(ctx, p.rate); err != nil || p.concurrency == nil {
		return limit.Lease{}, false, err
	}
	if c.Settings.Observed {
		l, err = tryConcurrency(p.concurrency, p.most)
	} else {
		l, err = p.concurrency.Acquire(ctx)
	}
	return l, p.untilHeaders, c.refused(ctx, "concurrency", err)
}

// admitRate is Admit for a rate, which may be nil.
func (c *Call) admitRate(ctx context.Context, r *limit.Rate) error {
	if r == nil {
		return nil
	}
	if !c.Settings.Observed {
		return c.refused(ctx, "rate", r.Wait(ctx))
	}
	_, err := r.Reserve(ctx)
	return c.refused(ctx, "rate", err)
}

// refused notes a limit's refusal, which under Service.Observe is told and no more.
func (c *Call) refused(ctx context.Context, by string, err error) error {
	switch {
	case err == nil:
	case c.Settings.Observed:
		if outcome.Refused(err) { // and not a context that has ended
			event.Emit(ctx, c.u.client.cfg.Observer, WouldRefuse{Service: c.u.s.name, Err: err})
		}
		return nil
	case outcome.Refused(err):
		c.Frame.Refused("", by, err)
	}
	return err
}

// Finish ends the call, with what its caller gets. A call whose answer goes on, as a
// stream does, ends when the caller has got it: the lease on its node keeps the client
// from being closed gracefully. The frame must not be used any more, but for what its
// Watched returned before.
func (c *Call) Finish(ctx context.Context, status int, err error) {
	f := c.Frame
	c.Frame = nil
	c.u.client.finish(ctx, f, status, err)
	c.u.s.leave()
}
