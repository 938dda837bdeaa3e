package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/discovery"
)

// conn is how a layer reaches one node.
type conn struct {
	layer *transport
	node  *Node
	// gen sends requests to the node and to no other; nil if they must be
	// rewritten and sent through the layer's own.
	gen       atomic.Pointer[generation]
	own       *clientConns            // instead of gen, with Conns.ClientConns
	replacing sync.Mutex              // held while gen is replaced
	base      dialFunc                // makes connections, as the template would
	told      atomic.Pointer[address] // where requests that are rewritten went last

	written atomic.Int64 // bytes, over all connections

	mu     sync.Mutex
	open   map[*nodeConn]struct{}
	closed bool
}

// address is what a node's address came to.
type address struct{ addr, port, hostport string }

// hostport returns the node's address with a port.
func (c *conn) hostport(port string) (string, error) {
	addr := c.node.endpoint.Load().Addr
	if a := c.told.Load(); a != nil && a.addr == addr && a.port == port {
		return a.hostport, nil
	}
	network, hostport, err := discovery.DialAddr(addr, port)
	if err != nil {
		return "", err
	}
	if network != "tcp" {
		return "", &URLError{URL: addr, Reason: "a unix socket needs an *http.Transport below"}
	}
	c.told.Store(&address{addr, port, hostport})
	return hostport, nil
}

func newConn(l *transport, n *Node) *conn {
	c := &conn{layer: l, node: n}
	if l.template == nil {
		return c
	}
	c.open = make(map[*nodeConn]struct{})
	c.base = l.template.DialContext
	if c.base == nil {
		if legacy := l.template.Dial; legacy != nil { //nolint:staticcheck // whoever set it wants it used
			c.base = func(_ context.Context, network, addr string) (net.Conn, error) { return legacy(network, addr) }
		} else {
			c.base = new(net.Dialer).DialContext
		}
	}
	if l.b.cfg.Conns.ClientConns == On {
		c.own = newClientConns(c)
	} else {
		c.gen.Store(c.newGeneration())
	}
	return c
}

// renew begins with new connections, since the node's address or the name of its
// certificate may be another now.
func (c *conn) renew() {
	if c.own != nil {
		c.own.renew()
	} else if g := c.gen.Load(); g != nil {
		c.replace(g)
	}
}

// fill sees to it that there are as many connections as there should be.
func (c *conn) fill() {
	if c.own != nil {
		c.own.fill(*c.layer.target.Load())
	} else {
		c.gen.Load().fill()
	}
}

func (c *conn) errClosed() error { return &Error{Service: c.layer.b.service, Err: ErrClosed} }

// unsent returns err as one that says that nothing was sent, if that is certain:
// the connection failed at a write, and since the attempt began, when there were so
// many bytes written to the node, nobody else has come through either. Which
// connection net/http has taken for a call it does not say but to a trace, which
// costs more than the rest of a call; so with calls going on beside this one it
// mostly stays open whether it was sent. What net/http knows not to have sent, and
// can repeat, it sends again by itself.
func (c *conn) unsent(err error, written int64) error {
	if c == nil || c.gen.Load() == nil || c.written.Load() != written {
		return err
	}
	if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "write" {
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
}

func (g *generation) keep(nc net.Conn) (net.Conn, error) {
	c := g.conn
	kept := &nodeConn{Conn: nc, conn: c, gen: g}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.keep(kept); err != nil {
		return nil, err
	}
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
	c.mu.Unlock()
	switch {
	case !first:
	case nc.wire != nil:
		nc.wire.end()
	default:
		nc.gen.open.Add(-1)
		nc.gen.fill()
	}
	return nc.Conn.Close()
}

// Write counts what was written.
func (nc *nodeConn) Write(p []byte) (int, error) {
	n, err := nc.Conn.Write(p)
	nc.count(int64(n))
	return n, err
}

// ReadFrom keeps the way open for sendfile, which the transport looks for.
func (nc *nodeConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := nc.Conn.(io.ReaderFrom); ok {
		n, err := rf.ReadFrom(r)
		nc.count(n)
		return n, err
	}
	return io.Copy(struct{ io.Writer }{nc}, r)
}

func (nc *nodeConn) count(n int64) {
	if nc.wire != nil {
		nc.wire.wrote(n)
	} else {
		nc.conn.written.Add(n)
	}
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
		return
	}
	g := c.gen.Load()
	if g == nil {
		return
	}
	c.mu.Lock()
	g.warm.asleep = true
	left := g.warm.spare
	g.warm.spare = nil
	c.mu.Unlock()
	g.discard(left)
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
	if g := c.gen.Load(); g != nil {
		_ = g.end() // what it has to spare is open, too
	}
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
