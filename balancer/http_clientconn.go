package balancer

import (
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"sync/atomic"

	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/internal/layer"
)

// clientConns is how a node is reached by plain http, or as Conns.ClientConns says: by
// pools of connections that net/http makes and speaks over, but does not keep. There is
// one for each scheme and host that requests name.
type clientConns struct {
	conn  *conn
	last  atomic.Pointer[pool] // mostly the only one
	http1 bool                 // that is what is spoken without TLS

	mu     sync.Mutex
	pools  map[hostKey]*pool
	closed bool

	phrases phrases
}

func newClientConns(c *conn) *clientConns {
	return &clientConns{
		conn: c, http1: !c.layer.b.cfg.H2C && speaksHTTP1(c.layer.template), pools: make(map[hostKey]*pool),
	}
}

// alone reports whether req has a connection for itself, so that it can be ended by
// closing that, and cannot itself take its time. Then it needs no context of its own,
// and so no copy: those are most of what an attempt costs.
func (cs *clientConns) alone(req *http.Request) bool {
	return cs.http1 && req.URL.Scheme == "http" && (req.Body == nil || req.Body == http.NoBody || attempt.Small(req)) &&
		!cs.conn.layer.orphans.under(req.Context())
}

// ridden is an exchange whose request may have a connection of our own pools for itself,
// which is closed to end it.
type ridden struct {
	exchange
	on    atomic.Pointer[clientConn] // what carries the request; nil where the context ends it
	turn  atomic.Int64               // the request's, there
	seat  *attempt.Seat              // where it is watched; nil is any place
	armed bool                       // it is abortable
}

// ride takes note that m carries the request, and alone. If it returns false, the
// attempt was aborted on its way to m.
func (r *ridden) ride(m *clientConn) bool {
	r.turn.Store(m.turn.Load())
	r.on.Store(m)
	r.arm(&m.seat)
	return !r.Aborted()
}

// alight ends what ride began, without an answer.
func (r *ridden) alight() {
	r.on.Store(nil)
	r.Stand()
}

// arm has the bounds of the attempt looked after, once.
func (r *ridden) arm(seat *attempt.Seat) {
	if !r.armed {
		r.armed, r.seat = true, seat
		r.Abortable(r)
	}
}

// Seat is where the bounds are looked after.
func (r *ridden) Seat() *attempt.Seat { return r.seat }

// aborting is closed when the attempt is to wait no longer. r may be nil.
func (r *ridden) aborting() <-chan struct{} {
	if r == nil {
		return nil
	}
	r.arm(nil)
	return r.Aborting()
}

// Abort closes the connection that carries the request. A connection of the caller's
// dialer may take its time for that, and the other attempts on the node are not to wait
// for it.
func (r *ridden) Abort() {
	if m := r.on.Load(); m != nil {
		go m.cut(r.turn.Load())
	}
}

// maxSends is how often a request is sent before others have to decide what to do,
// as in net/http's HTTP/2.
const maxSends = 6

// RoundTrip sends req over one of the node's connections, and over another one
// if it turns out that the node has not seen it, or where net/http would repeat it.
func (cs *clientConns) RoundTrip(req *http.Request) (*http.Response, error) { return cs.send(req, nil) }

// send is RoundTrip. If r is not nil, it is r that ends the request at its bounds, and
// not the request's context.
func (cs *clientConns) send(req *http.Request, r *ridden) (*http.Response, error) {
	out, body := trackBody(req)
	trace := httptrace.ContextClientTrace(req.Context())
	for sends := 1; ; sends++ {
		p := cs.pool(req.URL)
		if p.http1 != nil && req.Header["Upgrade"] != nil {
			return p.http1.RoundTrip(req)
		}
		if trace != nil && trace.GetConn != nil {
			trace.GetConn(p.addr)
		}
		m, err := p.acquire(req, r)
		if err == errReplaced { //nolint:errorlint // it goes no further than here
			sends--
			continue
		}
		if err != nil {
			layer.CloseBody(out)
			return nil, err
		}
		used, mark := m.used.Load(), m.wire.writes.mark()
		if trace != nil && trace.GotConn != nil {
			m.show(trace, used)
		}
		if r != nil && !r.ride(m) {
			m.unsent()
			layer.CloseBody(out)
			return nil, errTimeUp
		}
		resp, err := m.cc.RoundTrip(out)
		if err == nil {
			m.answered()
			m.release()
			return resp, nil
		}
		err, repeat := m.failed(out, body, err, used, mark)
		if r != nil {
			r.alight()
			cs.conn.layer.orphans.left(req.Context())
			repeat = repeat && !r.Aborted()
		}
		m.recall() // where net/http has refused the request
		m.release()
		layer.CloseBody(out) // net/http does not where it has not come so far
		if repeat && sends < maxSends {
			if again, next, ok := rewound(out, body); ok {
				out, body = again, next
				continue
			}
		}
		return nil, err
	}
}

// show tells a trace that the call has got m, which is given back if the trace panics.
func (m *clientConn) show(trace *httptrace.ClientTrace, used bool) {
	told := false
	defer func() {
		if !told {
			m.unsent()
		}
	}()
	trace.GotConn(httptrace.GotConnInfo{Conn: m.wire.visible, Reused: used, WasIdle: used})
	told = true
}

// pool returns the pool for u.
func (cs *clientConns) pool(u *url.URL) *pool {
	key := hostKey{u.Scheme, u.Host}
	if p := cs.last.Load(); p != nil && p.key == key {
		return p
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	p := cs.pools[key]
	if p == nil {
		p = newPool(cs, key)
		if cs.closed {
			p.ended = cs.conn.errClosed()
		}
		cs.pools[key] = p
	}
	cs.last.Store(p)
	return p
}

// take empties cs and returns its pools.
func (cs *clientConns) take() map[hostKey]*pool {
	pools := cs.pools
	cs.pools = make(map[hostKey]*pool)
	cs.last.Store(nil)
	return pools
}

// renew begins with new connections.
func (cs *clientConns) renew() {
	cs.mu.Lock()
	pools := cs.take()
	cs.mu.Unlock()
	for _, p := range pools {
		p.end(errReplaced)
	}
	if to := cs.conn.layer.target.Load(); to != nil {
		cs.fill(*to)
	}
}

// fill has connections made ahead of calls.
func (cs *clientConns) fill(to target) {
	u := url.URL{Scheme: "http", Host: to.service}
	if to.secure {
		u.Scheme = "https"
	}
	cs.pool(&u).fill()
}

func (cs *clientConns) closeIdle() {
	cs.mu.Lock()
	pools := make([]*pool, 0, len(cs.pools))
	for _, p := range cs.pools {
		pools = append(pools, p)
	}
	cs.mu.Unlock()
	for _, p := range pools {
		p.closeIdle()
	}
}

// close ends all pools. Connections that are in use are left.
func (cs *clientConns) close() {
	cs.mu.Lock()
	cs.closed = true
	pools := cs.take()
	cs.mu.Unlock()
	for _, p := range pools {
		p.end(cs.conn.errClosed())
	}
}

// trackedBody is a request's body that tells what was done to it.
type trackedBody struct {
	io.ReadCloser
	read, failed, closed atomic.Bool
}

func (b *trackedBody) Read(p []byte) (int, error) {
	b.read.Store(true)
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.failed.Store(true)
	}
	return n, err
}

func (b *trackedBody) Close() error {
	if b.closed.Swap(true) {
		return nil
	}
	return b.ReadCloser.Close()
}

// trackBody returns req with its body tracked, unless that says nothing: there is
// none, or one in memory that can be had again.
func trackBody(req *http.Request) (*http.Request, *trackedBody) {
	if req.Body == nil || req.Body == http.NoBody || req.GetBody != nil && attempt.Small(req) {
		return req, nil
	}
	out := *req
	body := &trackedBody{ReadCloser: req.Body}
	out.Body = body
	return &out, body
}

// rewound returns a request that can be sent in place of out, if there is one.
func rewound(out *http.Request, body *trackedBody) (*http.Request, *trackedBody, bool) {
	if out.Body == nil || out.Body == http.NoBody {
		return out, nil, true
	}
	if out.GetBody == nil {
		return nil, nil, false
	}
	rc, err := out.GetBody()
	if err != nil {
		return nil, nil, false
	}
	again := *out
	again.Body = rc
	if body != nil {
		body = &trackedBody{ReadCloser: rc}
		again.Body = body
	}
	return &again, body, true
}

// canceled returns why req needs no answer any more.
func canceled(req *http.Request) error {
	select {
	case <-req.Cancel: //nolint:staticcheck // deprecated, but not gone
		return errRequestCanceled
	default:
	}
	if ctx := req.Context(); ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
