package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/backstay/backstay/discovery"
)

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
// is the service's name, and stands only for the port.
func (g *generation) dial(ctx context.Context, _, service string) (net.Conn, error) {
	to := target{service: service}
	if nc := g.take(to); nc != nil {
		return nc, nil
	}
	nc, err := g.conn.connect(ctx, service, g.keep)
	g.conn.layer.learn(to)
	g.fill() // now that this one counts
	return nc, err
}

// connect makes a connection to the node, for keep.
func (c *conn) connect(ctx context.Context, service string, keep func(net.Conn) (net.Conn, error)) (net.Conn, error) {
	b := c.layer.b
	_, port, _ := net.SplitHostPort(service)
	return b.dialAny(ctx, c.node, func(ctx context.Context, addr string) (net.Conn, error) {
		network, addr, err := discovery.DialAddr(addr, port)
		if err != nil {
			return nil, err
		}
		nc, err := b.dialWithin(ctx, c.base, network, addr)
		if err != nil {
			return nil, err
		}
		return keep(nc)
	})
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
