package balancer

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"
)

// target is what a transport would dial: the service's name and port, and whether
// by TLS.
type target struct {
	secure  bool
	service string
}

// learn takes note of what calls dial, and has connections made ahead from then on.
func (l *transport) learn(to target) {
	if l.b.cfg.Conns.Min == 0 || l.target.Load() != nil || !l.target.CompareAndSwap(nil, &to) {
		return
	}
	for _, n := range l.b.Nodes() {
		l.warm(n)
	}
}

// warm begins to make connections to n ahead of calls.
func (l *transport) warm(n *Node) {
	if l.template == nil || l.b.cfg.Conns.Min == 0 || l.target.Load() == nil {
		return
	}
	l.conn(n).fill()
	if n.hasLeft() && n.InFlight() == 0 {
		l.drop(n) // it may have been dropped before
	}
}

// warmth is what a generation has ready for calls to come. conn.mu guards it.
type warmth struct {
	spare    []*spare
	filling  bool // a goroutine is at it
	asleep   bool // until the next call dials: CloseIdleConnections was called
	failures int  // in a row: dials, and spare connections that the node closed
}

// spare is a connection that net/http has not got yet. A goroutine reads from it,
// because nothing else finds out that the peer has closed it.
type spare struct {
	nc    net.Conn
	to    target
	since int64
	done  chan struct{} // closed when the goroutine has ended
	err   error         // with what
}

// missing is how many connections there should be more. conn.mu is held.
func (g *generation) missing() int {
	to := g.conn.layer.target.Load()
	if g.conn.closed || g.retired || g.warm.asleep || to == nil || g.conn.pooled(to.secure) {
		return 0
	}
	want := g.conn.layer.b.cfg.Conns.Min
	switch {
	case g.conn.http2 && g.lane < want:
		want = 1
	case g.conn.http2 || g.lane > 0:
		want = 0
	}
	if most := g.t.MaxConnsPerHost; most > 0 {
		want = min(want, most)
	}
	return max(0, want-(g.open-g.due))
}

// fill sees to it that there are as many connections as there should be.
func (g *generation) fill() {
	c := g.conn
	to := c.layer.target.Load()
	if to == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if g.warm.filling || g.missing() == 0 {
		return
	}
	g.warm.filling = true
	c.layer.b.dials.start(func() { g.keepFilling(*to) })
}

// Between attempts to make a connection ahead there are 1 s after the first
// failure, 2 s after the second, and so on to a minute.
const (
	fillRetry    = time.Second
	maxFillRetry = time.Minute
	joinTimeout  = 10 * time.Second
)

// keepFilling makes connections until nothing is missing.
func (g *generation) keepFilling(to target) {
	c := g.conn
	c.mu.Lock()
	failures := g.warm.failures
	for {
		missing := g.missing()
		if missing == 0 {
			g.warm.filling = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		if failures > 0 && !g.pause(min(fillRetry<<min(failures-1, 10), maxFillRetry)) {
			missing = 0 // the generation has ended
		} else {
			g.fillOne(to)
		}
		c.mu.Lock()
		failures = 0
		if missing > 0 && g.missing() >= missing {
			g.warm.failures++
			failures = g.warm.failures
		} else if c.http2 {
			g.warm.failures = 0
		}
	}
}

// pause waits, and returns false if the generation has ended meanwhile.
func (g *generation) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-g.ended:
		return false
	}
}

// fillOne makes a connection if one is missing. One of HTTP/2 is handed to net/http, which watches
// it; servers close those that say nothing.
func (g *generation) fillOne(to target) {
	c := g.conn
	ctx := c.layer.b.ctx
	c.mu.Lock()
	missing, http2 := g.missing(), c.http2
	c.mu.Unlock()
	if missing == 0 {
		return
	}
	if !http2 {
		nc, err := g.connectTo(ctx, g.t, to)
		if err != nil {
			return
		}
		if http2 = g.put(nc, to); !http2 {
			return
		}
	}
	join(ctx, g.t, to)
}

// join has t make its HTTP/2 connection, if it has none, by a call that cannot be
// sent, over HTTP/1.1 neither: the path is refused when the headers are encoded.
func join(ctx context.Context, t *http.Transport, to target) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	u := &url.URL{Scheme: "http", Host: to.service, Opaque: "\x00"}
	if to.secure {
		u.Scheme = "https"
	}
	req := (&http.Request{Method: http.MethodGet, URL: u, Header: make(http.Header)}).WithContext(ctx)
	if resp, err := t.RoundTrip(req); err == nil {
		_ = resp.Body.Close()
	}
}

// put keeps a connection for a call to come, and returns true if it is one of
// HTTP/2.
func (g *generation) put(nc net.Conn, to target) bool {
	c := g.conn
	s := &spare{nc: nc, to: to, since: c.layer.b.since(time.Time{}), done: make(chan struct{})}
	c.mu.Lock()
	if c.closed || g.retired || g.warm.asleep {
		c.mu.Unlock()
		_ = nc.Close()
		return false
	}
	http2 := c.http2
	g.warm.spare = append(g.warm.spare, s)
	if http2 { // it is taken at once, and the server speaks first
		s.err = os.ErrDeadlineExceeded
		close(s.done)
	} else {
		c.layer.b.work.Go(func() { g.watch(s) })
	}
	c.mu.Unlock()
	return http2
}

// watch waits until s is taken or the peer has closed it. A server that speaks
// before it is asked is of no use, either.
func (g *generation) watch(s *spare) {
	_, err := s.nc.Read(make([]byte, 1))
	s.err = cmp.Or(err, errSpoke)
	close(s.done)
	c := g.conn
	c.mu.Lock()
	i := slices.Index(g.warm.spare, s)
	if i >= 0 {
		g.warm.spare = slices.Delete(g.warm.spare, i, i+1)
		if c.layer.b.since(time.Time{})-s.since > int64(maxFillRetry) {
			g.warm.failures = 0 // it was good for something
		}
		if !g.warm.filling { // else it went along with others
			g.warm.failures++
		}
	}
	c.mu.Unlock()
	if i >= 0 {
		_ = s.nc.Close()
	}
}

var errSpoke = errors.New("balancer: the server spoke first")

// take returns a spare connection that still stands, or nil.
func (g *generation) take(to target) net.Conn {
	c := g.conn
	for {
		c.mu.Lock()
		g.warm.asleep = false
		i := slices.IndexFunc(g.warm.spare, func(s *spare) bool { return s.to == to })
		if i < 0 {
			c.mu.Unlock()
			return nil
		}
		s := g.warm.spare[i]
		g.warm.spare = slices.Delete(g.warm.spare, i, i+1)
		c.mu.Unlock()
		if s.nc.SetReadDeadline(time.Unix(1, 0)) == nil {
			<-s.done
			if errors.Is(s.err, os.ErrDeadlineExceeded) && s.nc.SetReadDeadline(time.Time{}) == nil {
				c.mu.Lock()
				g.warm.failures = 0
				c.mu.Unlock()
				return s.nc
			}
		}
		_ = s.nc.Close()
	}
}

// dialTLS is dial for https: only so can net/http be given a connection whose TLS
// handshake is done.
func (g *generation) dialTLS(ctx context.Context, t *http.Transport, service string) (net.Conn, error) {
	to := target{secure: true, service: service}
	if nc := g.take(to); nc != nil {
		return nc, nil
	}
	nc, err := g.connectTo(ctx, t, to)
	g.conn.layer.learn(to)
	g.fill()
	return nc, err
}

// connectTo makes a connection as t would.
func (g *generation) connectTo(ctx context.Context, t *http.Transport, to target) (net.Conn, error) {
	nc, err := g.conn.connect(ctx, to.service, g.keep)
	if err != nil || !to.secure {
		return nc, err
	}
	tc, err := shakeHands(ctx, nc, t, to.service)
	if err != nil {
		return nil, err
	}
	if tc.ConnectionState().NegotiatedProtocol == "h2" {
		g.conn.shares()
	}
	return tc, nil
}

// shares takes note that the node speaks HTTP/2, so that each lane has but one
// connection.
func (c *conn) shares() {
	c.mu.Lock()
	known := c.http2
	c.http2 = true
	c.mu.Unlock()
	if !known && c.layer.target.Load() != nil {
		c.fill()
	}
}

// shakeHands makes a TLS connection of nc as t would, or closes it.
func shakeHands(ctx context.Context, nc net.Conn, t *http.Transport, service string) (*tls.Conn, error) {
	cfg := new(tls.Config)
	if t.TLSClientConfig != nil {
		cfg = t.TLSClientConfig.Clone()
	}
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(service)
	}
	tc := tls.Client(nc, cfg)
	shaking := ctx
	if t.TLSHandshakeTimeout > 0 {
		var cancel context.CancelFunc
		shaking, cancel = context.WithTimeout(ctx, t.TLSHandshakeTimeout)
		defer cancel()
	}
	if err := tc.HandshakeContext(shaking); err != nil {
		_ = nc.Close()
		if shaking.Err() != nil && ctx.Err() == nil {
			err = &net.OpError{Op: "handshake", Net: "tls", Err: connectTimeout{service, t.TLSHandshakeTimeout}}
		}
		return nil, err
	}
	return tc, nil
}
