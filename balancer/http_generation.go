package balancer

import (
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// generation is the connections to a node that live and are replaced together.
//
// To take a single connection out of net/http's pool there is nothing but to
// close it, and a call that has just been given it is lost then, if it must not
// be repeated. So it is the whole transport that is replaced: calls that have
// begun go on in the old one, which gets no new ones, and its connections are
// closed once they are idle. net/http gives out a connection and closes the idle
// ones under one lock, so none is closed under a call.
type generation struct {
	conn  *conn
	only  *http.Transport   // lanes[0] where there is nothing to choose or to count
	lanes []*http.Transport // each with an HTTP/2 connection of its own
	http1 *http.Transport   // for calls that need HTTP/1.1, where the lanes cannot tell; may be nil
	quota int64             // calls for each connection; 0: no limit
	calls atomic.Int64
	open  atomic.Int64 // connections

	// Guarded by conn.mu.
	retired bool
	timer   *time.Timer   // replaces the generation at its age, or sweeps what is left of it
	sweeps  int           // that have left something
	ended   chan struct{} // closed when it is retired
	warm    warmth
}

func (c *conn) newGeneration() *generation {
	cfg := &c.layer.b.cfg
	g := &generation{conn: c, ended: make(chan struct{}), quota: jitter(int64(cfg.Conns.MaxRequests))}
	lanes := 1
	if cfg.H2C || speaksHTTP2(c.layer.template) {
		lanes = cfg.Conns.HTTP2Conns
	}
	name := c.node.Endpoint().ServerName
	for range lanes {
		t := fromTemplate(c.layer.template, g.dial, cfg, name)
		if t.MaxConnsPerHost > 0 {
			t.MaxConnsPerHost = max(1, t.MaxConnsPerHost/lanes)
		}
		if cfg.Conns.Min > 0 {
			t.DialTLSContext = func(ctx context.Context, _, service string) (net.Conn, error) {
				return g.dialTLS(ctx, t, service)
			}
		}
		g.lanes = append(g.lanes, t)
	}
	if cfg.Conns.Min > 0 {
		g.warm.http2 = cfg.H2C
		for _, t := range g.lanes {
			t.CloseIdleConnections() // settles its TLS configuration, which is otherwise done at the first call
		}
		g.http1 = fromTemplate(c.layer.template, g.dial, cfg, name)
	}
	if lanes == 1 && g.http1 == nil && g.quota == 0 {
		g.only = g.lanes[0]
	}
	return g
}

// jitter returns n ±10 %, and for 0 nothing else.
func jitter(n int64) int64 {
	if n == 0 {
		return 0
	}
	return max(1, n+int64((rand.Float64()*2-1)*0.1*float64(n))) //nolint:gosec // no secret
}

// transport returns what sends req to the node; nil if it must be rewritten and
// sent through the layer's own.
func (c *conn) transport(req *http.Request) http.RoundTripper {
	if c.own != nil {
		return c.own
	}
	g := c.gen.Load()
	switch {
	case g == nil:
		return nil
	case g.only != nil:
		return g.only
	}
	n := g.calls.Add(1)
	if g.quota > 0 && n > g.quota*max(1, g.open.Load()) {
		g = c.replace(g)
		n = g.calls.Add(1)
	}
	if g.http1 != nil && req.Header["Upgrade"] != nil && req.URL.Scheme == "https" {
		// Nobody tells a TLS dialer that this one must not get HTTP/2.
		return g.http1
	}
	if req.URL.Scheme != "https" && !c.layer.b.cfg.H2C {
		return g.lanes[0] // over HTTP/1.1 each lane would keep connections of its own
	}
	return g.lanes[n%int64(len(g.lanes))]
}

// replace has new calls go over new connections, instead of old's, and returns
// where.
func (c *conn) replace(old *generation) *generation {
	c.replacing.Lock() // one of many callers does it
	now := c.gen.Load()
	if now == old {
		now = c.newGeneration()
		if !c.gen.CompareAndSwap(old, now) {
			now = c.gen.Load()
		}
	}
	c.replacing.Unlock()
	old.retire()
	now.fill()
	return now
}

// expire replaces the generation at its age, as soon as the next one has the
// connections that are wanted ahead.
func (g *generation) expire() {
	c := g.conn
	next := c.newGeneration()
	if to := c.layer.target.Load(); to != nil {
		for range c.layer.b.cfg.Conns.Min {
			next.fillOne(*to) // or not: then calls will see to it
		}
	}
	if !c.gen.CompareAndSwap(g, next) {
		next.retire()
		return
	}
	g.retire()
	next.fill()
	c.mu.Lock()
	defer c.mu.Unlock()
	next.age()
}

// transports calls f for each transport of the generation.
func (g *generation) transports(f func(*http.Transport)) {
	for _, t := range g.lanes {
		f(t)
	}
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
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
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
	if g.timer == nil && g.open.Load() > 0 && !g.conn.closed {
		g.timer = time.AfterFunc(firstSweep<<min(g.sweeps, maxSweeps), func() { g.sweep(nil) })
		g.sweeps++
	}
}

// opened takes note of a new connection. conn.mu is held.
func (g *generation) opened() {
	g.open.Add(1)
	if g.retired {
		g.sweepLater()
		return
	}
	g.age()
}

// age has the generation replaced at its age, which counts from its first
// connection as the present one. conn.mu is held.
func (g *generation) age() {
	c := g.conn
	age := c.layer.b.cfg.Conns.MaxAge
	if age == 0 || g.timer != nil || g.open.Load() == 0 || c.gen.Load() != g {
		return
	}
	g.timer = time.AfterFunc(time.Duration(jitter(int64(age))), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.closed && !g.retired {
			c.layer.b.work.Go(g.expire)
		}
	})
}
