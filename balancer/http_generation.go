package balancer

import (
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// generation is connections to a node that are replaced together: those of one
// transport, when the node's address or name changes, and over HTTP/2, where there
// is mostly but one, at its age.
//
// To take a single connection out of net/http's pool there is nothing but to
// close it, and a call that has just been given it is lost then, if it must not
// be repeated. So it is the whole transport that is replaced: calls that have
// begun go on in the old one, which gets no new ones, and its connections are
// closed once they are idle. net/http gives out a connection and closes the idle
// ones under one lock, so none is closed under a call. For the many connections of
// HTTP/1.1 see lastCall.
type generation struct {
	conn  *conn
	lane  int // the index among conn's lanes
	t     *http.Transport
	http1 *http.Transport // for calls that need HTTP/1.1, where t cannot tell; may be nil
	old   atomic.Int64    // connections whose next call is the last
	count bool            // calls are counted by connection

	// Guarded by conn.mu.
	open    int // connections
	due     int // those that are past their age
	retired bool
	timer   *time.Timer   // sweeps what is left of it
	sweeps  int           // that have left something
	ended   chan struct{} // closed when it is retired
	warm    warmth
}

// lane is a way to the node: its present generation.
type lane = atomic.Pointer[generation]

// startLanes makes the first generations, unless they are there.
func (c *conn) startLanes() []lane {
	if lanes := c.lanes.Load(); lanes != nil {
		return *lanes
	}
	c.first.Lock()
	defer c.first.Unlock()
	if lanes := c.lanes.Load(); lanes != nil {
		return *lanes
	}
	c.mu.Lock()
	c.http2 = c.layer.b.cfg.H2C
	c.mu.Unlock()
	lanes := make([]lane, c.width())
	for i := range lanes {
		lanes[i].Store(c.newGeneration(i))
	}
	c.lanes.Store(&lanes)
	return lanes
}

// width is how many lanes there are: one, or several that have an HTTP/2 connection each.
func (c *conn) width() int {
	cfg := &c.layer.b.cfg
	if cfg.H2C || speaksHTTP2(c.layer.template) {
		return cfg.Conns.HTTP2Conns
	}
	return 1
}

func (c *conn) newGeneration(lane int) *generation {
	conns := &c.layer.b.cfg.Conns
	g := &generation{conn: c, lane: lane, ended: make(chan struct{}), count: conns.MaxRequests > 0}
	g.t = g.newTransport()
	if conns.Min > 0 {
		t := g.t
		t.DialTLSContext = func(ctx context.Context, _, service string) (net.Conn, error) {
			return g.dialTLS(ctx, t, service)
		}
		t.CloseIdleConnections() // settles its TLS configuration, which is otherwise done at the first call
		g.http1 = g.newTransport()
	}
	return g
}

func (g *generation) newTransport() *http.Transport {
	cfg := &g.conn.layer.b.cfg
	t := fromTemplate(g.conn.layer.template, g.dial, cfg, g.conn.node.Endpoint().ServerName)
	if t.MaxConnsPerHost > 0 {
		t.MaxConnsPerHost = max(1, t.MaxConnsPerHost/g.conn.width())
	}
	g.conn.mu.Lock()
	http2 := g.conn.http2
	g.conn.mu.Unlock()
	if age := cfg.Conns.MaxAge; age > 0 && !http2 {
		// For those that no call is given. Not less than it takes a call to begin on a
		// busy machine: if it is one of HTTP/2 after all, net/http might then have
		// to send the call again.
		idle := max(time.Duration(jitter(int64(age))), leastIdle)
		if t.IdleConnTimeout == 0 || idle < t.IdleConnTimeout {
			t.IdleConnTimeout = idle
		}
	}
	return t
}

const leastIdle = 10 * time.Second

// jitter returns n ±20 %, and for 0 nothing else.
func jitter(n int64) int64 {
	if n == 0 {
		return 0
	}
	return max(1, n+int64((rand.Float64()*2-1)*0.2*float64(n))) //nolint:gosec // no secret
}

// transport returns what sends a call to the node; nil if it must be rewritten and
// sent through the layer's own.
func (c *conn) transport(req *http.Request) http.RoundTripper {
	if k := c.layer.b.checker; k != nil && k.told.Load() == nil {
		k.learn(req.URL.Scheme)
	}
	return c.through(req)
}

// through is transport for requests that are no calls.
func (c *conn) through(req *http.Request) http.RoundTripper {
	switch {
	case c.layer.template == nil:
		return nil
	case c.pooled(req.URL.Scheme == "https"):
		return c.own
	}
	lanes := c.startLanes()
	g := lanes[0].Load()
	t := g.t
	switch {
	case g.http1 != nil && req.Header["Upgrade"] != nil && req.URL.Scheme == "https":
		t = g.http1 // nobody tells a TLS dialer that this one must not get HTTP/2
	case len(lanes) == 1, req.URL.Scheme != "https" && !c.layer.b.cfg.H2C:
		// Over HTTP/1.1 each lane would keep connections of its own.
	default:
		g = lanes[c.turn.Add(1)%int64(len(lanes))].Load()
		t = g.t
	}
	if g.count || g.old.Load() > 0 {
		return lastCall{g, t}
	}
	return t
}

// generations calls f for each of the present generations.
func (c *conn) generations(f func(*generation)) {
	if lanes := c.lanes.Load(); lanes != nil {
		for i := range *lanes {
			f((*lanes)[i].Load())
		}
	}
}

// replace has new calls go over new connections, instead of old's, as soon as there
// are those that are wanted ahead. It returns false if old is not the present one.
func (c *conn) replace(old *generation, ahead bool) bool {
	lane := &(*c.lanes.Load())[old.lane]
	if lane.Load() != old {
		return false
	}
	next := c.newGeneration(old.lane)
	if to := c.layer.target.Load(); to != nil && ahead {
		for range c.layer.b.cfg.Conns.Min {
			next.fillOne(*to) // or not: then calls will see to it
		}
	}
	if !lane.CompareAndSwap(old, next) {
		next.retire() // one of several does it
		return false
	}
	old.retire()
	next.fill()
	return true
}

// transports calls f for each transport of the generation.
func (g *generation) transports(f func(*http.Transport)) {
	f(g.t)
	if g.http1 != nil {
		f(g.http1)
	}
}

// retire closes the generation's connections as they get idle.
func (g *generation) retire() {
	g.conn.mu.Lock()
	left := g.end()
	g.conn.mu.Unlock()
	g.sweep(left)
}

// discard closes spare connections, and those that net/http has idle.
func (g *generation) discard(left []*spare) {
	for _, s := range left {
		_ = s.nc.Close()
	}
	g.transports((*http.Transport).CloseIdleConnections)
}

// end retires the generation and returns its spare connections, which the caller
// closes. conn.mu is held.
func (g *generation) end() []*spare {
	if g.retired {
		return nil
	}
	g.retired = true
	close(g.ended)
	left := g.warm.spare
	g.warm.spare = nil
	return left
}

// sweep closes what is idle of a generation that has been retired, and comes back
// while there is more: HTTP/1.1 connections are closed by net/http when their
// last call is over, but HTTP/2 ones are not; and a call that was on its way may
// have begun after the last sweep.
func (g *generation) sweep(left []*spare) {
	g.discard(left)
	g.conn.mu.Lock()
	defer g.conn.mu.Unlock()
	g.timer = nil
	g.sweepLater()
}

const (
	firstSweep = 100 * time.Millisecond
	maxSweeps  = 8 // doublings
)

// sweepLater arranges for another sweep if there is something to close.
// conn.mu is held.
func (g *generation) sweepLater() {
	if g.timer == nil && g.open > 0 && !g.conn.closed {
		g.timer = time.AfterFunc(firstSweep<<min(g.sweeps, maxSweeps), func() { g.sweep(nil) })
		g.sweeps++
	}
}

// opened takes note of a new connection. conn.mu is held.
func (g *generation) opened() {
	g.open++
	if g.retired {
		g.sweepLater()
	}
}
