package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/discovery"
)

// conn is how a layer reaches one node.
type conn struct {
	layer *transport
	node  *Node
	// rt sends requests to the node and to no other; nil if they must be
	// rewritten and sent through the layer's own.
	rt   atomic.Pointer[http.Transport]
	base dialFunc                // makes connections, as the template would
	told atomic.Pointer[address] // where requests that are rewritten went last

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
	c.renew()
	return c
}

// renew begins with new connections, since the node's address or the name of its
// certificate may be another now. Those in use are closed when they are not any
// more: that is what a transport does after CloseIdleConnections.
func (c *conn) renew() {
	if c.base == nil {
		return
	}
	fresh := fromTemplate(c.layer.template, c.dial, c.layer.b.cfg.H2C, c.node.Endpoint().ServerName)
	if old := c.rt.Swap(fresh); old != nil {
		old.CloseIdleConnections()
	}
}

// ConnectError is why no connection to a node could be made: nothing was sent.
type ConnectError struct {
	// Node is the node's identity, Addr the address that was tried last.
	Node, Addr string
	// Err is the dialer's error.
	Err error
}

// Error names the node and the cause, which names the address.
func (e *ConnectError) Error() string {
	return fmt.Sprintf("balancer: connecting to node %s: %v", e.Node, e.Err)
}

// Unwrap returns the dialer's error.
func (e *ConnectError) Unwrap() error { return e.Err }

// NotSent is true.
func (e *ConnectError) NotSent() bool { return true }

// Timeout reports whether the connection took too long.
func (e *ConnectError) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.Err, &t) && t.Timeout()
}

// dial connects to the node, whatever address the transport thinks it has: that
// is the service's name, and stands only for the port. The endpoint's other
// addresses are tried after the first.
func (c *conn) dial(ctx context.Context, _, service string) (net.Conn, error) {
	e := c.node.Endpoint()
	var last *ConnectError
	for i := -1; i < len(e.Fallback); i++ {
		addr := e.Addr
		if i >= 0 {
			addr = e.Fallback[i]
		}
		nc, err := c.dialOne(ctx, addr, service)
		if err == nil {
			return nc, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		last = &ConnectError{Node: c.node.key, Addr: addr, Err: err}
	}
	c.layer.b.hint()
	return nil, last
}

func (c *conn) dialOne(ctx context.Context, addr, service string) (net.Conn, error) {
	_, port, _ := net.SplitHostPort(service)
	network, addr, err := discovery.DialAddr(addr, port)
	if err != nil {
		return nil, err
	}
	bound := c.layer.b.cfg.ConnectTimeout
	dialing := ctx
	if bound > 0 {
		var cancel context.CancelFunc
		dialing, cancel = context.WithTimeout(ctx, bound)
		defer cancel()
	}
	nc, err := c.base(dialing, network, addr)
	if err != nil {
		if dialing.Err() != nil && ctx.Err() == nil {
			// A dialer may answer with its context's error, and that one would
			// pass for the caller's deadline.
			err = &net.OpError{Op: "dial", Net: network, Err: connectTimeout{addr, bound}}
		}
		return nil, err
	}
	return c.keep(nc)
}

// connectTimeout is os.ErrDeadlineExceeded that says where and after how long.
type connectTimeout struct {
	addr  string
	after time.Duration
}

func (t connectTimeout) Error() string {
	return fmt.Sprintf("%s: %v after %v", t.addr, os.ErrDeadlineExceeded, t.after)
}
func (connectTimeout) Unwrap() error   { return os.ErrDeadlineExceeded }
func (connectTimeout) Timeout() bool   { return true }
func (connectTimeout) Temporary() bool { return true }

// nodeConn is a connection that its owner can close from outside.
type nodeConn struct {
	net.Conn
	owner *conn
}

func (c *conn) keep(nc net.Conn) (net.Conn, error) {
	kept := &nodeConn{Conn: nc, owner: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = nc.Close()
		return nil, &Error{Service: c.layer.b.service, Err: ErrClosed}
	}
	c.open[kept] = struct{}{}
	return kept, nil
}

// Close closes the connection and forgets it.
func (nc *nodeConn) Close() error {
	nc.owner.mu.Lock()
	delete(nc.owner.open, nc)
	nc.owner.mu.Unlock()
	return nc.Conn.Close()
}

// ReadFrom keeps the way open for sendfile, which the transport looks for.
func (nc *nodeConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := nc.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{nc.Conn}, r)
}

// CloseWrite is for callers who take a connection over by a 101 response.
func (nc *nodeConn) CloseWrite() error {
	if half, ok := nc.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return fmt.Errorf("balancer: CloseWrite: %w", http.ErrNotSupported)
}

// close closes the node's connections, also those in use.
func (c *conn) close() {
	c.mu.Lock()
	c.closed = true
	open := make([]*nodeConn, 0, len(c.open))
	for nc := range c.open {
		open = append(open, nc)
	}
	c.mu.Unlock()
	if rt := c.rt.Load(); rt != nil {
		rt.CloseIdleConnections()
	}
	for _, nc := range open {
		// A TLS connection above would want to say goodbye and may block on a
		// dead peer; this does not.
		_ = nc.SetDeadline(time.Unix(1, 0))
		_ = nc.Close()
	}
}
