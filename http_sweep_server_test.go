package backstay_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/backstay/backstay/backstaytest"
)

// breakage is what becomes of a connection at a certain byte.
type breakage uint8

const (
	resets   breakage = iota // RST: what was not read or sent yet is lost
	closes                   // FIN, though a RST on sockets where something was left unread
	stalls                   // nothing more, until the client closes
	garbles                  // bytes that belong to no protocol, then FIN
	hangsOff                 // the write side alone is closed
)

func (b breakage) String() string {
	return [...]string{"reset", "close", "stall", "garbage", "half-close"}[b]
}

// fault is one way for an exchange to fail: when so many bytes of the request
// have been received, or so many of the response were sent.
type fault struct {
	response bool
	at       int
	what     breakage
	// Over HTTP/2:
	early       bool                              // the request's body is not waited for
	frame       func(fr *http2.Framer, id uint32) // instead of what
	named       string                            // the frame
	unprocessed bool                              // by which the server says that it has done nothing
	disowned    bool                              // it says so, but may not be understood
}

func (f fault) String() string {
	side := "request"
	if f.response {
		side = "response"
	}
	what := f.what.String()
	if f.frame != nil {
		what = f.named
	}
	return fmt.Sprintf("%s at byte %d of the %s (early: %v)", what, f.at, side, f.early)
}

// garbage has no end of line, so that it ends nothing that should go on.
const garbage = "\x00\x16\x03\xff garbage \x80\xfe"

const sweptTrailer = "0\r\nX-Sum: 1\r\n\r\n"

// sweptServers are the servers of a service, one byte at a time: raw listeners
// that break the first exchange of a call as they were told, whichever of them it
// comes to, and serve all others well. Calls come one after the other.
type sweptServers struct {
	t         testing.TB
	addrs     []string
	answer    string // the body of every good answer
	listeners []net.Listener
	running   sync.WaitGroup

	mu     sync.Mutex
	open   map[net.Conn]struct{} // nil: the end
	dialed int                   // connections that came
	next   *fault                // of the next exchange
	broken int                   // exchanges that were
	seen   []arrival             // since the last look
}

// arrival is what a server got of a request.
type arrival struct {
	bytes  int  // of it
	head   bool // enough to act upon: all of the head
	whole  bool
	method string
	key    string
	body   string
}

// serveSwept serves what the listeners accept, over HTTP/1.1 or over HTTP/2
// without TLS.
func serveSwept(t testing.TB, answer string, h2 bool, listeners ...net.Listener) *sweptServers {
	s := &sweptServers{t: t, answer: answer, listeners: listeners, open: make(map[net.Conn]struct{})}
	serve := s.serve
	if h2 {
		serve = s.serveHTTP2
	}
	for _, l := range listeners {
		s.addrs = append(s.addrs, l.Addr().String())
		s.running.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				s.running.Go(func() {
					defer func() { _ = c.Close() }()
					if s.enter(c) {
						serve(c)
						s.leave(c)
					}
				})
			}
		})
	}
	t.Cleanup(s.close)
	return s
}

func onLoopback(t testing.TB, n int) (listeners []net.Listener) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		listeners = append(listeners, l)
	}
	return listeners
}

func inMemory(t testing.TB, network *backstaytest.Network, n int) (listeners []net.Listener) {
	for i := range n {
		l, err := network.Listen(fmt.Sprintf("10.0.0.%d:80", i+1))
		require.NoError(t, err)
		listeners = append(listeners, l)
	}
	return listeners
}

func (s *sweptServers) close() {
	for _, l := range s.listeners {
		_ = l.Close()
	}
	s.mu.Lock()
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for c := range open {
		_ = c.Close()
	}
	s.running.Wait()
}

// arm has the next exchange fail.
func (s *sweptServers) arm(f fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next, s.seen = &f, nil
}

// disarm returns what has arrived since arm, and whether the fault has happened.
func (s *sweptServers) disarm() (seen []arrival, happened bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, happened = s.seen, s.next == nil
	s.seen, s.next = nil, nil
	return seen, happened
}

func (s *sweptServers) counts() (dialed, broken int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dialed, s.broken
}

// take returns the fault for an exchange that has begun; nil is none. One at the
// first byte happens to a connection before it is read from.
func (s *sweptServers) take(accepted bool) *fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.next
	if f == nil || accepted && (f.response || f.at > 0) {
		return nil
	}
	s.next = nil
	s.broken++
	return f
}

func (s *sweptServers) saw(a arrival) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, a)
}

// enter notes a connection, unless it is the end.
func (s *sweptServers) enter(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return false
	}
	s.open[c] = struct{}{}
	s.dialed++
	return true
}

func (s *sweptServers) leave(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// serve serves one connection until it ends.
func (s *sweptServers) serve(c net.Conn) {
	if f := s.take(true); f != nil {
		s.saw(arrival{})
		s.breakOff(c, f.what)
		return
	}
	first := make([]byte, 1)
	for {
		if _, err := c.Read(first); err != nil {
			return
		}
		f := s.take(false)
		if f != nil && !f.response {
			s.saw(s.part(c, first, f.at))
			s.breakOff(c, f.what)
			return
		}
		if !s.exchange(c, io.MultiReader(bytes.NewReader(first), c), f) {
			return
		}
	}
}

// part receives so many bytes of a request and no more.
func (s *sweptServers) part(c net.Conn, first []byte, n int) arrival {
	got := make([]byte, max(n, 1))
	got[0] = first[0]
	if _, err := io.ReadFull(c, got[1:]); err != nil {
		s.t.Errorf("the request ended before byte %d: %v", n, err)
	}
	head, body, complete := strings.Cut(string(got), "\r\n\r\n")
	a := arrival{bytes: n, head: complete, body: body}
	a.method, _, _ = strings.Cut(head, " ")
	_, a.key, _ = strings.Cut(head, "Idempotency-Key: ")
	a.key, _, _ = strings.Cut(a.key, "\r\n")
	return a
}

// exchange receives a request and answers it, up to the fault if there is one. It
// reports whether the connection is still good.
func (s *sweptServers) exchange(c net.Conn, r io.Reader, f *fault) bool {
	counted := &countingReader{Reader: r}
	in := bufio.NewReader(counted)
	req, err := http.ReadRequest(in)
	if err != nil {
		return false // the client went away
	}
	a := arrival{head: true, method: req.Method, key: req.Header.Get("Idempotency-Key")}
	body, err := io.ReadAll(req.Body)
	a.bytes, a.body, a.whole = counted.n, string(body), err == nil
	s.saw(a)
	if err != nil {
		return false
	}
	if in.Buffered() > 0 {
		s.t.Errorf("%d bytes behind a request", in.Buffered())
	}
	out := []byte(s.response(req.Header.Get("X-Chunked") != ""))
	if f == nil {
		_, err = c.Write(out)
		return err == nil
	}
	if _, err := c.Write(out[:min(f.at, len(out))]); err != nil {
		return false
	}
	s.breakOff(c, f.what)
	return false
}

// response is a good one.
func (s *sweptServers) response(chunked bool) string {
	if !chunked {
		return "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: " +
			strconv.Itoa(len(s.answer)) + "\r\n\r\n" + s.answer
	}
	var b strings.Builder
	b.WriteString("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n")
	for rest := s.answer; rest != ""; {
		n := min(len(rest), 100)
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
	}
	b.WriteString(sweptTrailer)
	return b.String()
}

func (s *sweptServers) breakOff(c net.Conn, what breakage) {
	switch what {
	case resets:
		switch c := c.(type) {
		case *net.TCPConn:
			_ = c.SetLinger(0)
		case interface{ Reset() }:
			c.Reset()
		}
	case garbles:
		_, _ = io.WriteString(c, garbage)
	case stalls:
		_, _ = io.Copy(io.Discard, c)
	case hangsOff:
		if half, ok := c.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		_, _ = io.Copy(io.Discard, c)
	case closes:
	}
	_ = c.Close()
}

type countingReader struct {
	io.Reader
	n int
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.n += n
	return n, err
}

// unequal shows where two texts begin to differ.
func unequal(got, want string) error {
	if got == want {
		return nil
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	return errors.New("got " + strconv.Itoa(len(got)) + " bytes, want " + strconv.Itoa(len(want)) +
		", and they differ from byte " + strconv.Itoa(i) + " on")
}
