package balancer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/outcome"
)

// Layer returns an http.RoundTripper that sends each request to a node of the
// service. It is of the type func(http.RoundTripper) http.RoundTripper; a nil
// next is http.DefaultTransport.
//
// If next is an *http.Transport, it is a template: each node gets a transport
// like it, whose connections go to the node's address, whatever the request's
// URL says. Names in certificates and Host headers stay those of the URL. Where
// the template's Proxy applies to a request, and where the template makes its
// TLS connections itself (DialTLSContext) or has a protocol registered for
// http or https, the nodes cannot be told apart: the service is then one node
// under its own name, and requests go through the template itself.
//
// Over any other RoundTripper requests are sent with the node's address in
// their URL. That works for http only; https requests fail, because nobody
// could check the certificate's name.
//
// The response's Request is the layer's own, as it was given.
func (b *Balancer) Layer(next http.RoundTripper) http.RoundTripper {
	l := &transport{b: b, conns: make(map[*Node]*conn), orphans: new(orphans), hashes: b.cfg.HashKey != (HashKey{})}
	l.Around(l, next)
	l.carries = call.ChainOf(l.Next).Len() > 0
	if t, ok := l.Next.(*http.Transport); ok {
		if opaque(t) {
			l.opaque = true
		} else {
			l.template = t
			l.proxy, l.proxyByHost = t.Proxy, t.Proxy != nil && fromEnvironment(t.Proxy)
		}
	}
	b.mu.Lock()
	b.layers = append(b.layers, l)
	closed := b.closed
	b.mu.Unlock()
	if closed {
		l.close()
	}
	b.checker.layered(l)
	return l
}

// transport is what Layer returns.
type transport struct {
	layer.Base
	b *Balancer

	template    *http.Transport // what nodes' transports are made from; may be nil
	opaque      bool            // Next cannot be had per node
	carries     bool            // there are layers below that want the frame
	hashes      bool            // there is a HashKey
	proxy       func(*http.Request) (*url.URL, error)
	proxyByHost bool                   // proxy's answers may be kept
	proxied     sync.Map               // its answers: bool by "scheme://host"
	target      atomic.Pointer[target] // what is dialed ahead; nil until a call has told
	orphans     *orphans               // by itself, since contexts hold on to it

	mu     sync.Mutex
	conns  map[*Node]*conn
	alone  *Balancer // the service as one node under its own name; may be nil
	closed bool
}

// CloseIdleConnections closes the idle connections to all nodes.
func (l *transport) CloseIdleConnections() {
	l.mu.Lock()
	conns := make([]*conn, 0, len(l.conns))
	for _, c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		c.closeIdle()
	}
	l.Base.CloseIdleConnections()
}

// RoundTripFrame sends req to a node.
func (l *transport) RoundTripFrame(req *http.Request, frame *call.Frame) (*http.Response, error) {
	if err := l.check(req); err != nil {
		layer.CloseBody(req)
		return nil, err
	}
	b, direct := l.route(req)
	var x *exchange
	var w *rewritten
	var r *ridden
	switch {
	case direct:
		x = new(exchange)
	case l.template == nil:
		w = new(rewritten)
		x = &w.exchange
	default:
		r = new(ridden)
		x = &r.exchange
	}
	x.layer, x.frame, x.req = l, frame, req
	var c Call
	c.Now, c.Avoid, c.LatencyNeutral = call.Now(frame), b.tried(frame), frame.LatencyNeutral()
	if !direct { // else nobody can tell the nodes apart
		l.aim(&c, req, frame.Subset())
	}
	ctx := req.Context()
	if b.current.Load() == nil { // the first endpoints may be waited for
		var cancel context.CancelFunc
		ctx, cancel = layer.Within(ctx, frame)
		defer cancel()
		if req.Cancel != nil { //nolint:staticcheck // deprecated, but not gone
			ctx, cancel = untilCanceled(ctx, req)
			defer cancel()
		}
	}
	if err := b.leaseFor(ctx, &c, frame, &x.lease); err != nil {
		layer.CloseBody(req)
		return nil, err
	}
	return x.send(c.Now, w, r)
}

// tried lists the nodes that this call has been sent to before.
func (b *Balancer) tried(frame *call.Frame) []*Node {
	var nodes []*Node
	for _, key := range frame.TriedNodes() {
		if n, ok := key.(*Node); ok && n.owner == b {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// untried reports whether there is a node for this call that it has not been sent
// to.
func (l *transport) untried(b *Balancer, req *http.Request, frame *call.Frame) bool {
	var c Call
	if b == l.b { // else the service is one node
		if l.aim(&c, req, frame.Subset()); c.Node != "" {
			return false // only that one will do
		}
	}
	return b.untried(frame, c.Subset)
}

// URLError is why a request cannot be sent at all.
type URLError struct {
	// URL is the request's, without user, password and query.
	URL string
	// Reason says what is wrong with it.
	Reason string
}

// Error names the URL and the reason.
func (e *URLError) Error() string { return fmt.Sprintf("balancer: URL %q: %s", e.URL, e.Reason) }

// NotSent is true.
func (e *URLError) NotSent() bool { return true }

// Refused is true: it is not the peer that said no.
func (e *URLError) Refused() bool { return true }

func (l *transport) check(req *http.Request) error {
	u := req.URL
	if u == nil {
		return &URLError{Reason: "is nil, want one with a scheme and a host"}
	}
	var reason string
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		reason = fmt.Sprintf("scheme is %q, want http or https", u.Scheme)
	case u.Host == "":
		reason = `host is "", want the service's name`
	case u.Scheme == "https" && l.template == nil && !l.opaque:
		reason = fmt.Sprintf("https needs an *http.Transport below, to check the certificate's name; have %T: let it wrap the balancer instead, in a Client by Service.PerAttempt", l.Next)
	default:
		return nil
	}
	return &URLError{URL: (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String(), Reason: reason}
}

// route returns the balancer to ask, and whether the request goes through next
// as it is, to the one node that the service then is.
func (l *transport) route(req *http.Request) (b *Balancer, direct bool) {
	if !l.opaque && (l.proxy == nil || !l.goesByProxy(req)) {
		return l.b, false
	}
	return l.loner(), true
}

// loner returns the balancer for the service as one node under its own name.
func (l *transport) loner() *Balancer {
	l.mu.Lock()
	alone := l.alone
	l.mu.Unlock()
	if alone != nil {
		return alone
	}
	e := discovery.Endpoint{ID: l.b.service, Addr: l.b.service}
	if e.Validate() != nil {
		e.Addr = "0.0.0.0" // nobody dials it
	}
	cfg := l.b.cfg
	cfg.Health = HealthConfig{} // whatever is behind the name, it is no node
	cfg.Subsets, cfg.Zones, cfg.Override = nil, ZoneConfig{}, false
	fresh := start(l.b.service, discovery.Static(e), cfg)
	l.mu.Lock()
	if l.alone == nil {
		l.alone = fresh
	}
	alone, closed := l.alone, l.closed
	l.mu.Unlock()
	if closed || alone != fresh {
		_ = fresh.Close()
	}
	return alone
}

func (l *transport) goesByProxy(req *http.Request) bool {
	if !l.proxyByHost {
		u, err := l.proxy(req)
		return u != nil || err != nil // let the template tell the error
	}
	key := hostKey{req.URL.Scheme, req.URL.Host}
	if known, ok := l.proxied.Load(key); ok {
		return known == true
	}
	u, err := l.proxy(req)
	l.proxied.Store(key, u != nil || err != nil)
	return u != nil || err != nil
}

type hostKey struct{ scheme, host string }

// conn returns the layer's connections to n.
func (l *transport) conn(n *Node) *conn {
	if c := n.conn.Load(); c != nil && c.layer == l {
		return c
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.conns[n]
	if c == nil {
		c = newConn(l, n)
		if l.closed {
			c.close()
		}
		l.conns[n] = c
		n.conn.CompareAndSwap(nil, c) // the first layer of a balancer has it quickest
	}
	return c
}

// drop closes the connections to a node that has left.
func (l *transport) drop(n *Node) {
	l.mu.Lock()
	c := l.conns[n]
	delete(l.conns, n)
	l.mu.Unlock()
	if c != nil {
		c.close()
	}
}

// renew has a node's calls go over new connections.
func (l *transport) renew(n *Node) {
	l.mu.Lock()
	c := l.conns[n]
	l.mu.Unlock()
	if c != nil {
		c.renew()
	}
}

// close closes all connections.
func (l *transport) close() {
	l.mu.Lock()
	l.closed = true
	conns, alone := l.conns, l.alone
	l.conns = make(map[*Node]*conn)
	l.mu.Unlock()
	for _, c := range conns {
		c.close()
	}
	if alone != nil {
		_ = alone.Close()
	}
}

// exchange is one attempt on one node: its lease, its context and its bodies, in
// one allocation.
type exchange struct {
	attempt.Attempt
	layer *transport
	frame *call.Frame
	req   *http.Request
	lease Lease
}

// rewritten is an exchange that sends another request, which bears the node's address.
type rewritten struct {
	exchange
	out http.Request
	url url.URL
}

// untilCanceled returns a context that also ends when Request.Cancel is closed.
func untilCanceled(ctx context.Context, req *http.Request) (context.Context, context.CancelFunc) {
	bounded, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-req.Cancel: //nolint:staticcheck // as above
			cancel(errRequestCanceled)
		case <-bounded.Done():
		}
	}()
	return bounded, func() { cancel(nil) }
}

// send makes the attempt. What x is a part of, one of w and r, says how: both are nil if
// it goes through Next as it is.
func (x *exchange) send(now time.Time, w *rewritten, r *ridden) (*http.Response, error) {
	l, n, req := x.layer, x.lease.node, x.req
	x.lease.send(x.frame, now)
	var resp *http.Response
	settled := false
	defer func() {
		if settled {
			return
		}
		// A panic or Goexit below or in the classifier: the attempt failed, and goes
		// on failing.
		x.End()
		x.lease.Done(clock.Now(), outcome.Outcome{Class: outcome.Failure, Err: errAborted})
		layer.CloseResponse(resp)
	}()

	var limits attempt.Limits
	limits.Watch = &n.watch
	limits.Attempt, limits.Deadline, limits.BodyIdle = x.frame.AttemptTimeout(), x.frame.Deadline(), x.frame.BodyIdle()
	if limits.Attempt == 0 {
		limits.Attempt = l.b.cfg.AttemptTimeout
	}
	if !limits.Deadline.IsZero() {
		limits.Call = limits.Deadline.Sub(x.frame.Start())
	}
	ctx := req.Context()
	if l.carries {
		ctx = call.Carry(ctx, x.frame)
	}
	x.Start(ctx, now, &limits)
	rt := l.Next
	var c *conn
	var mark int64
	if w != nil || r != nil {
		c = l.conn(n)
		mark = c.writes.mark()
		if own := c.transport(req); own != nil {
			rt = own
		}
	}
	out, err := x.outgoing(rt, c, w)
	if err != nil {
		layer.CloseBody(req)
		err = x.fail(err)
		settled = true
		return nil, err
	}
	own, pooled := rt.(*clientConns)
	switch {
	case !pooled:
		resp, err = rt.RoundTrip(out)
	case out == req:
		resp, err = own.send(out, r)
	default:
		resp, err = own.send(out, nil)
	}
	if err == nil && resp == nil {
		err = errNoResponse
	}
	if err == nil {
		err = x.Headers()
	}
	if err != nil {
		layer.CloseResponse(resp) // it came too late, or along with the error
		resp = nil
		if c != nil && l.template != nil && !pooled {
			err = c.unsent(err, mark)
		}
		err = x.fail(err)
		settled = true
		return nil, err
	}
	now = clock.Now()
	o := l.b.cfg.Classifier.Classify(req, resp, nil)
	if l.b.reads {
		x.lease.reportFrom(now, resp)
	}
	x.lease.answer(x.frame, now, resp, resp.StatusCode, o)
	resp.Request = req
	x.frame = x.frame.Watched()
	resp.Body = x.Wrap(resp.Body, x)
	settled = true
	return resp, nil
}

// outgoing returns the request as it is sent: req itself if its connection can be
// closed to end it, or else a copy that bears the attempt's context, and the node's
// address where the transport would not know it.
func (x *exchange) outgoing(rt http.RoundTripper, c *conn, w *rewritten) (*http.Request, error) {
	l, req := x.layer, x.req
	if own, pooled := rt.(*clientConns); pooled && own.alone(req) {
		return req, nil
	}
	if w != nil {
		return x.Request(&w.out, req), c.readdress(&w.out, &w.url)
	}
	if _, traced := rt.(lastCall); l.template != nil && !traced {
		x.Direct()
	}
	return x.Copy(req), nil
}

// fail ends an attempt that got no response.
func (x *exchange) fail(err error) error {
	err = x.Error(err)
	x.End()
	now := clock.Now()
	o := x.layer.b.cfg.Classifier.Classify(x.req, nil, err)
	x.lease.end(x.frame, now, x.lease.answer(x.frame, now, nil, 0, o))
	x.frame.SetOthers(x.layer.untried(x.lease.owner, x.req, x.frame))
	return err
}

// Ended is told how the response's body ended.
func (x *exchange) Ended(err error) {
	var o outcome.Outcome
	if err != nil && !errors.Is(err, attempt.ErrClosed) {
		defer x.lease.Done(time.Time{}, outcome.Outcome{Class: outcome.Failure, Err: errAborted}) // if the classifier panics
		o = x.layer.b.cfg.Classifier.Classify(x.req, nil, err)
	}
	x.lease.end(x.frame, time.Time{}, o)
}

var (
	errAborted         = errors.New("balancer: the attempt ended in a panic")
	errRequestCanceled = fmt.Errorf("balancer: Request.Cancel was closed: %w", context.Canceled)
	errNoResponse      = errors.New("balancer: the transport returned neither a response nor an error")
)

// readdress sends out, a copy already, to the node instead of the service's name.
// It uses u for its URL.
func (c *conn) readdress(out *http.Request, u *url.URL) error {
	*u = *out.URL
	hostport, err := c.hostport(u)
	if err != nil {
		return err
	}
	if out.Host == "" {
		out.Host = u.Host
	}
	u.Host = hostport
	out.URL = u
	return nil
}
