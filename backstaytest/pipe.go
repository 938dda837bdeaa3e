package backstaytest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// pipeBuffer is how many bytes one direction of an in-memory connection holds
// before its writer waits: what a socket would take.
const pipeBuffer = 64 << 10

// stream is one direction of an in-memory connection. net.Pipe would not do: its
// writes wait for the reader, so that two peers that write at the same time, as
// HTTP/2's do, can wait for each other, and it knows no reset. Whoever waits
// here waits in sync.Cond.Wait, which lets the clock of a synctest bubble go on.
type stream struct {
	mu    sync.Mutex
	moved sync.Cond // any of the fields below has changed
	buf   bytes.Buffer
	ended bool // by the writer: the reader gets io.EOF once buf is empty
	gone  bool // the reader has closed
	reset bool

	readBy, writeBy deadline
}

// deadline is a time that wakes those who wait.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func newStream() *stream {
	s := &stream{}
	s.moved.L = &s.mu
	return s
}

// set is called with the stream's lock held.
func (s *stream) set(d *deadline, at time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	// One that has passed wakes them below; servers of net/http set such a one after
	// each request.
	if left := time.Until(at); left > 0 {
		d.timer = time.AfterFunc(left, func() { s.change(func() {}) })
	}
	s.moved.Broadcast()
}

func (s *stream) read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.gone:
			return 0, net.ErrClosed
		case s.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case s.buf.Len() > 0:
			s.moved.Broadcast()
			return s.buf.Read(p)
		case s.reset:
			return 0, os.NewSyscallError("read", syscall.ECONNRESET)
		case s.ended:
			return 0, io.EOF
		}
		s.moved.Wait()
	}
}

func (s *stream) write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	written := 0
	for {
		switch {
		case s.ended:
			return written, net.ErrClosed
		case s.writeBy.passed():
			return written, os.ErrDeadlineExceeded
		case s.reset:
			return written, os.NewSyscallError("write", syscall.ECONNRESET)
		case s.gone:
			return written, os.NewSyscallError("write", syscall.EPIPE)
		case len(p) == 0:
			return written, nil
		}
		if room := pipeBuffer - s.buf.Len(); room > 0 {
			n := min(room, len(p))
			s.buf.Write(p[:n])
			p, written = p[n:], written+n
			s.moved.Broadcast()
			continue
		}
		s.moved.Wait()
	}
}

// change runs f under the stream's lock and wakes those who wait.
func (s *stream) change(f func()) {
	s.mu.Lock()
	f()
	s.moved.Broadcast()
	s.mu.Unlock()
}

// pipeConn is one end of an in-memory connection.
type pipeConn struct {
	in, out       *stream
	local, remote net.Addr
}

// pipe returns the two ends of a new connection.
func pipe(client, server net.Addr) (*pipeConn, *pipeConn) {
	up, down := newStream(), newStream()
	return &pipeConn{in: down, out: up, local: client, remote: server},
		&pipeConn{in: up, out: down, local: server, remote: client}
}

func (c *pipeConn) LocalAddr() net.Addr  { return c.local }
func (c *pipeConn) RemoteAddr() net.Addr { return c.remote }

func (c *pipeConn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	return n, c.opError("read", err)
}

func (c *pipeConn) Write(p []byte) (int, error) {
	n, err := c.out.write(p)
	return n, c.opError("write", err)
}

// opError dresses errors as the net package does.
func (c *pipeConn) opError(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: c.local.Network(), Source: c.local, Addr: c.remote, Err: err}
}

// Close ends both directions: the peer reads what has been written, then io.EOF.
func (c *pipeConn) Close() error {
	c.in.change(func() { c.in.gone = true; c.in.set(&c.in.readBy, time.Time{}) })
	return c.CloseWrite()
}

// CloseWrite ends the direction to the peer.
func (c *pipeConn) CloseWrite() error {
	c.out.change(func() { c.out.ended = true; c.out.set(&c.out.writeBy, time.Time{}) })
	return nil
}

// Reset breaks the connection: the peer reads what has arrived, then
// ECONNRESET, which its writes get too. The peer's side comes first: who reads
// on this one finds out then, and may close it, which the peer must not take for
// a good end.
func (c *pipeConn) Reset() {
	c.out.change(func() { c.out.reset = true })
	c.in.change(func() { c.in.reset = true })
	_ = c.Close()
}

// SetDeadline sets both deadlines; see [net.Conn].
func (c *pipeConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline bounds Reads that wait and those to come; see [net.Conn].
func (c *pipeConn) SetReadDeadline(t time.Time) error {
	c.in.change(func() { c.in.set(&c.in.readBy, t) })
	return nil
}

// SetWriteDeadline bounds Writes that wait and those to come; see [net.Conn].
func (c *pipeConn) SetWriteDeadline(t time.Time) error {
	c.out.change(func() { c.out.set(&c.out.writeBy, t) })
	return nil
}
