package balancer

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/outcome"
)

// link ties a connection of [Balancer.DialContext] to its node.
type link struct {
	lease Lease
	conn  net.Conn
	over  atomic.Bool // the peer has ended it well: what follows is no failure
	done  atomic.Bool // the lease has been given back
}

// saw takes note of how a read or write ended.
func (l *link) saw(err error) {
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		l.over.Store(true)
	case errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe), errors.Is(err, os.ErrDeadlineExceeded):
	case !l.over.Load():
		l.giveBack(outcome.Outcome{Class: outcome.Failure, Retry: outcome.IfIdempotent, Err: err})
	}
}

func (l *link) giveBack(o outcome.Outcome) {
	if l.done.CompareAndSwap(false, true) {
		l.lease.Done(time.Time{}, o)
	}
}

func (l *link) close() error {
	l.lease.node.links.remove(l)
	err := l.conn.Close()
	l.giveBack(outcome.Outcome{})
	return err
}

// links are the connections of one node.
type links struct {
	mu     sync.Mutex
	open   map[*link]struct{}
	closed bool
}

// add returns false if the node's connections have been closed.
func (ls *links) add(l *link) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.closed {
		return false
	}
	if ls.open == nil {
		ls.open = make(map[*link]struct{})
	}
	ls.open[l] = struct{}{}
	return true
}

func (ls *links) remove(l *link) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.open, l)
}

// close closes the connections, and keeps others from being added.
func (ls *links) close() {
	ls.mu.Lock()
	open := ls.open
	ls.open, ls.closed = nil, true
	ls.mu.Unlock()
	for l := range open {
		_ = l.close()
	}
}

// wrap returns the connection that the caller gets. Clients find out by type
// assertions what a connection can do: whether the peer has hung up on an idle one
// (syscall.Conn, as the clients of MySQL and Redis do), half-close, sendfile. So
// it has exactly the methods of the one beneath.
func (l *link) wrap() net.Conn {
	switch c := l.conn.(type) {
	case *net.TCPConn:
		return &tcpConn{c, l}
	case *net.UnixConn:
		return &unixConn{c, l}
	default:
		return &plainConn{c, l}
	}
}

type tcpConn struct {
	*net.TCPConn
	link *link
}

// ReadFrom and WriteTo, too, are those of net.TCPConn: their errors may be those of
// what is copied from or to, so nothing is concluded from them.

func (c *tcpConn) NetConn() net.Conn { return c.TCPConn }
func (c *tcpConn) Close() error      { return c.link.close() }

func (c *tcpConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	c.link.saw(err)
	return n, err
}

func (c *tcpConn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	c.link.saw(err)
	return n, err
}

type unixConn struct {
	*net.UnixConn
	link *link
}

func (c *unixConn) NetConn() net.Conn { return c.UnixConn }
func (c *unixConn) Close() error      { return c.link.close() }

func (c *unixConn) Read(p []byte) (int, error) {
	n, err := c.UnixConn.Read(p)
	c.link.saw(err)
	return n, err
}

func (c *unixConn) Write(p []byte) (int, error) {
	n, err := c.UnixConn.Write(p)
	c.link.saw(err)
	return n, err
}

// plainConn is any other connection, of a dialer of the user's.
type plainConn struct {
	net.Conn
	link *link
}

func (c *plainConn) NetConn() net.Conn { return c.Conn }
func (c *plainConn) Close() error      { return c.link.close() }

func (c *plainConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.link.saw(err)
	return n, err
}

func (c *plainConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.link.saw(err)
	return n, err
}
