package balancer

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/discovery"
)

// conn is how a layer reaches one node.
type conn struct {
	layer *transport
	node  *Node
	// own and the lanes send requests to the node and to no other: which, pooled
	// says. Both are nil if requests must be rewritten and sent through the layer's own.
	own   *clientConns
	lanes atomic.Pointer[[]lane]  // of net/http's pools; made for the first request
	first sync.Mutex              // while they are made
	turn  atomic.Int64            // of the lanes
	base  dialFunc                // makes connections, as the template would
	told  atomic.Pointer[address] // where requests that are rewritten went last

	writes writes // over all connections of the lanes

	mu     sync.Mutex
	open   map[*nodeConn]struct{}
	http2  bool // the lanes are known to speak it
	closed bool
}

// address is what a node's address came to for URLs of a port, and a host that has it.
type address struct{ addr, host, port, hostport string }

// hostport returns the node's address with a port: that of u, if it has none.
func (c *conn) hostport(u *url.URL) (string, error) {
	addr := c.node.endpoint.Load().Addr
	told := c.told.Load()
	known := told != nil && told.addr == addr
	if known && told.host == u.Host {
		return told.hostport, nil
	}
	port := cmp.Or(u.Port(), "80")
	if known && told.port == port {
		return told.hostport, nil
	}
	network, hostport, err := discovery.DialAddr(addr, port)
	if err != nil {
		return "", err
	}
	if network != "tcp" {
		return "", &URLError{URL: addr, Reason: "a unix socket needs an *http.Transport below"}
	}
	c.told.Store(&address{addr, u.Host, port, hostport})
	return hostport, nil
}

func newConn(l *transport, n *Node) *conn {
	c := &conn{layer: l, node: n}
	if l.template == nil {
		return c
	}
	c.open = make(map[*nodeConn]struct{})
	c.base = l.dialer()
	if l.b.cfg.Conns.ClientConns != Off {
		c.own = newClientConns(c)
	}
	return c
}

// pooled reports whether requests by http, or by https, go over connections in pools
// of our own.
func (c *conn) pooled(secure bool) bool {
	switch c.layer.b.cfg.Conns.ClientConns {
	case On:
		return true
	case Off:
		return false
	default:
		return !secure
	}
}

// renew begins with new connections, since the node's address or the name of its
// certificate may be another now.
func (c *conn) renew() {
	if c.own != nil {
		c.own.renew()
	}
	c.first.Lock() // lanes that are being made may know the old name
	defer c.first.Unlock()
	c.generations(func(g *generation) { c.replace(g, false) })
}

// fill sees to it that there are as many connections as there should be.
func (c *conn) fill() {
	to := c.layer.target.Load()
	switch {
	case to == nil:
	case c.pooled(to.secure):
		c.own.fill(*to)
	default:
		c.startLanes()
		c.generations((*generation).fill)
	}
}

func (c *conn) errClosed() error { return &Error{Service: c.layer.b.service, Err: ErrClosed} }

// unsent returns err as one that says that nothing was sent, if that is certain:
// the connection failed at a write or is closed, and since the attempt began, at
// the mark, nobody else has come through either. Which
// connection net/http has taken for a call it does not say but to a trace, which
// costs more than the rest of a call; so with calls going on beside this one it
// mostly stays open whether it was sent. What net/http knows not to have sent, and
// can repeat, it sends again by itself.
func (c *conn) unsent(err error, mark int64) error {
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case !ok:
		return err
	case op.Op == "write":
	case op.Op == "read" && errors.Is(err, net.ErrClosed) && c.writes.quiet():
		// It was closed on this side, mostly by net/http after a write that failed: of
		// the two errors it reports either.
	default:
		return err
	}
	if !c.writes.noneSince(mark) { // asked last: a write may have been going on until it was quiet
		return err
	}
	return &unsentError{err}
}

type unsentError struct{ err error }

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }
func (e *unsentError) NotSent() bool { return true }

// Timeout is what net/url.Error asks the error for that it wraps.
func (e *unsentError) Timeout() bool {
	t, ok := errors.AsType[net.Error](e.err)
	return ok && t.Timeout()
}

// nodeConn is a connection that its owner can close from outside, and that counts
// what it sends.
type nodeConn struct {
	net.Conn
	conn *conn
	gen  *generation // nil with Conns.ClientConns
	wire *wire       // what is known of this connection alone; nil without
	out  *outbox     // what is written goes this way; nil if it is sent at once
	life life        // without Conns.ClientConns
}

func (g *generation) keep(nc net.Conn) (net.Conn, error) {
	c := g.conn
	kept := &nodeConn{Conn: nc, conn: c, gen: g}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.keep(kept); err != nil {
		return nil, err
	}
	kept.begin()
	g.opened()
	return kept, nil
}

// keep has nc closed along with the others. c.mu is held.
func (c *conn) keep(nc *nodeConn) error {
	if c.closed {
		_ = nc.Conn.Close()
		return c.errClosed()
	}
	c.open[nc] = struct{}{}
	return nil
}

// Close closes the connection and forgets it.
func (nc *nodeConn) Close() error {
	c := nc.conn
	c.mu.Lock()
	_, first := c.open[nc]
	delete(c.open, nc)
	if first && nc.wire == nil {
		nc.end()
	}
	c.mu.Unlock()
	switch {
	case !first:
	case nc.wire != nil:
		if nc.out != nil {
			nc.out.close()
		}
		nc.wire.end()
	default:
		nc.gen.fill()
	}
	return nc.Conn.Close()
}

// Read ends with what has ended the connection, if that was a write.
func (nc *nodeConn) Read(p []byte) (int, error) {
	n, err := nc.Conn.Read(p)
	if err != nil && nc.out != nil {
		err = cmp.Or(nc.out.failure(), err)
	}
	return n, err
}

// Write takes note of what was written.
func (nc *nodeConn) Write(p []byte) (int, error) {
	if nc.out != nil {
		return nc.out.Write(p)
	}
	w := nc.writes()
	number := w.begin()
	n, err := nc.Conn.Write(p)
	ended := w.end(number, int64(n))
	if nc.wire != nil {
		nc.wire.wrote(1, ended)
	}
	return n, err
}

// ReadFrom keeps the way open for sendfile, which the transport looks for.
func (nc *nodeConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := nc.Conn.(io.ReaderFrom); ok && nc.out == nil {
		w := nc.writes()
		number := w.begin()
		n, err := rf.ReadFrom(r)
		w.end(number, n)
		return n, err
	}
	return io.Copy(struct{ io.Writer }{nc}, r)
}

func (nc *nodeConn) writes() *writes {
	if nc.wire != nil {
		return &nc.wire.writes
	}
	return &nc.conn.writes
}

// CloseWrite is for callers who take a connection over by a 101 response.
func (nc *nodeConn) CloseWrite() error {
	if half, ok := nc.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return fmt.Errorf("balancer: CloseWrite: %w", http.ErrNotSupported)
}

// closeIdle closes the idle connections. None are made ahead of calls until the
// next one.
func (c *conn) closeIdle() {
	if c.own != nil {
		c.own.closeIdle()
	}
	c.generations(func(g *generation) {
		c.mu.Lock()
		g.warm.asleep = true
		left := g.warm.spare
		g.warm.spare = nil
		c.mu.Unlock()
		g.discard(left)
	})
}

// close closes the node's connections, also those in use.
func (c *conn) close() {
	c.mu.Lock()
	c.closed = true
	open := make([]*nodeConn, 0, len(c.open))
	for nc := range c.open {
		open = append(open, nc)
		if g := nc.gen; g != nil && g.timer != nil {
			g.timer.Stop()
		}
	}
	c.generations(func(g *generation) { _ = g.end() }) // what they have to spare is open, too
	c.mu.Unlock()
	if c.own != nil {
		c.own.close()
	}
	c.closeIdle()
	for _, nc := range open {
		// A TLS connection above would want to say goodbye and may block on a
		// dead peer; this does not.
		_ = nc.SetDeadline(time.Unix(1, 0))
		_ = nc.Close()
	}
}
