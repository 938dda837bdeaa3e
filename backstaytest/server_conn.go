package backstaytest

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// active counts what runs, so that its end can be waited for. A sync.WaitGroup
// would not do: HTTP/2's handlers may begin when the count is zero again.
type active struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n is 0; made by who waits
}

func (a *active) begin() {
	a.mu.Lock()
	a.n++
	a.mu.Unlock()
}

func (a *active) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n--; a.n == 0 && a.idle != nil {
		close(a.idle)
		a.idle = nil
	}
}

// none returns a channel that is closed when nothing runs.
func (a *active) none() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n == 0 {
		none := make(chan struct{})
		close(none)
		return none
	}
	if a.idle == nil {
		a.idle = make(chan struct{})
	}
	return a.idle
}

type connKey struct{}

// trackedListener hands out connections that the server can break and freeze.
type trackedListener struct {
	net.Listener
	server  *Server
	process *process
}

func (l trackedListener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		if errors.Is(err, net.ErrClosed) {
			err = net.ErrClosed
		}
		return nil, err
	}
	c := &serverConn{Conn: inner, server: l.server, process: l.process, closed: make(chan struct{})}
	s := l.server
	s.mu.Lock()
	s.stats.Connections++
	s.stats.OpenConnections++
	l.process.conns[c] = struct{}{}
	dead := s.process != l.process
	s.mu.Unlock()
	l.process.active.begin()
	if dead { // accepted while it was killed
		c.reset()
	}
	return c, nil
}

// serverConn is the server's end of a connection.
type serverConn struct {
	net.Conn
	server  *Server
	process *process
	once    sync.Once
	closed  chan struct{}

	hijacked atomic.Bool
	over     sync.Once // its goroutine has ended, or its hijacker has closed it
}

// connState follows the goroutine that serves a connection: it may go on, for
// up to half a second, when the connection is closed.
func connState(c net.Conn, state http.ConnState) {
	conn := serverConnOf(c)
	switch state {
	case http.StateHijacked:
		conn.hijacked.Store(true)
	case http.StateClosed:
		conn.over.Do(conn.process.active.end)
	default:
	}
}

// serverConnOf finds the server's connection below TLS.
func serverConnOf(c net.Conn) *serverConn {
	for {
		switch inner := c.(type) {
		case *serverConn:
			return inner
		case interface{ NetConn() net.Conn }:
			c = inner.NetConn()
		default:
			return nil
		}
	}
}

func (c *serverConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.waitThaw() // after the read: what arrives in the frost is not seen
	return n, err
}

func (c *serverConn) Write(p []byte) (int, error) {
	c.waitThaw()
	return c.Conn.Write(p)
}

func (c *serverConn) waitThaw() {
	c.server.mu.Lock()
	frozen := c.server.frozen
	c.server.mu.Unlock()
	if frozen == nil {
		return
	}
	select {
	case <-frozen:
	case <-c.closed:
	}
}

// CloseWrite is what net/http's server does before it lingers.
func (c *serverConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

func (c *serverConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.server.mu.Lock()
		c.server.stats.OpenConnections--
		delete(c.process.conns, c)
		c.server.mu.Unlock()
	})
	err := c.Conn.Close()
	if c.hijacked.Load() {
		c.over.Do(c.process.active.end)
	}
	return err
}

// reset closes the connection so that the peer gets ECONNRESET.
func (c *serverConn) reset() {
	switch inner := c.Conn.(type) {
	case *pipeConn:
		inner.Reset()
	case *net.TCPConn:
		_ = inner.SetLinger(0)
	}
	_ = c.Close()
}
