package backstaytest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"
)

// process is one life of a server, from its start to its kill.
type process struct {
	http   *http.Server
	ctx    context.Context //nolint:containedctx // the life of what it serves
	cancel context.CancelFunc
	conns  map[*serverConn]struct{}
	active active // handlers, connections and accept loops
}

// Restart starts the server again, at the address it had: after Kill with
// nothing left of the old life, after Refuse with the connections that stand.
// Faults and counters stay. It does nothing to a server that listens.
func (s *Server) Restart() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		return
	}
	l, err := s.listen()
	if err != nil {
		s.t.Errorf("backstaytest: server %s: %v", s.ID, err)
		return
	}
	s.listener = l
	if s.Addr == "" { // written once, for users read it
		s.Addr = l.Addr().String()
	}
	if s.process == nil {
		s.process = s.newProcess()
	}
	p := s.process
	p.active.begin()
	go func() {
		defer p.active.end()
		if s.protocol.secure() {
			_ = p.http.ServeTLS(trackedListener{l, s, p}, "", "")
		} else {
			_ = p.http.Serve(trackedListener{l, s, p})
		}
	}()
}

// listen is called with the lock held. On loopback the port is held from before it
// is listened on first, best effort: without that a test works nearly always.
func (s *Server) listen() (net.Listener, error) {
	if s.network != nil {
		return s.network.Listen(s.Addr)
	}
	own := cmp.Or(s.Addr, "127.0.0.1:0")
	addr := own
	if s.Addr == "" {
		addr = s.hold(own)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil && s.release != nil { // a system where nobody listens beside who holds
		s.letGo()
		l, err = net.Listen("tcp", own)
	}
	return l, err
}

// hold holds an address if it can, and returns the one to listen on.
func (s *Server) hold(addr string) string {
	if held, release, ok := holdPort(addr); ok {
		s.release = release
		return held
	}
	return addr
}

// letGo gives back the port that is held.
func (s *Server) letGo() {
	if s.release != nil {
		s.release()
		s.release = nil
	}
}

func (s *Server) newProcess() *process {
	p := &process{conns: make(map[*serverConn]struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.http = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p.active.begin()
			defer p.active.end()
			defer s.reportPanic(r)
			s.serve(w, r)
		}),
		Protocols:   s.protocol.protocols(),
		BaseContext: func(net.Listener) context.Context { return p.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, serverConnOf(c))
		},
		ConnState: connState,
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // broken connections are what it is for
	}
	if s.protocol.secure() {
		p.http.TLSConfig = &tls.Config{Certificates: []tls.Certificate{s.Authority.Certificate(s.names...)}}
	}
	return p
}

// reportPanic tells the test what net/http would hide in its log.
func (s *Server) reportPanic(r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p != any(http.ErrAbortHandler) {
		s.t.Errorf("backstaytest: server %s: %s %s: the handler panicked: %v\n%s", s.ID, r.Method, r.URL.Path, p, debug.Stack())
	}
	panic(p) //nolint:forbidigo // handed on
}

// Refuse closes the listener, so that new connections are refused; those that
// stand go on. The port stays the server's.
func (s *Server) Refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse()
}

func (s *Server) refuse() {
	if s.listener == nil {
		return
	}
	_ = s.listener.Close()
	s.listener = nil
	if s.network == nil && s.release == nil {
		_ = s.hold(s.Addr)
	}
}

// Kill ends the server like a crash: the listener is closed, connections are
// reset, handlers find their contexts ended. The port stays the server's, and
// resolvers keep listing it: see [Fleet.Unlist].
func (s *Server) Kill() {
	if p := s.die(); p != nil {
		s.end(p)
	}
}

// die makes the present life, if there is one, a past one, and returns it.
func (s *Server) die() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse()
	p := s.process
	if p != nil {
		s.past, s.process = append(s.past, p), nil
	}
	return p
}

// end cuts what is left of a life.
func (s *Server) end(p *process) {
	s.mu.Lock()
	conns := p.conns
	p.conns = make(map[*serverConn]struct{})
	s.mu.Unlock()
	for c := range conns {
		c.reset()
	}
	p.cancel()
	_ = p.http.Close()
}

// Shutdown ends the server in good order: no new connections, HTTP/2 ones get a
// GOAWAY, requests under way are finished, for as long as ctx lets them; then
// what is left is cut. It returns when that is done.
func (s *Server) Shutdown(ctx context.Context) error {
	p := s.die()
	if p == nil {
		return nil
	}
	err := p.http.Shutdown(ctx)
	if errors.Is(err, net.ErrClosed) {
		err = nil // the listener's: it has been closed already, and net/http may not know yet
	}
	s.end(p)
	select {
	case <-p.active.none():
	case <-ctx.Done():
	}
	return err
}

// Close ends the server and waits for its goroutines; it complains to the test
// about a handler that does not return within 5 s although its context has
// ended. It is called when the test ends.
func (s *Server) Close() {
	s.Thaw()
	s.Kill()
	s.mu.Lock()
	s.left = true
	s.letGo()
	past := s.past
	s.past = nil
	s.mu.Unlock()
	timer := time.NewTimer(5 * time.Second)
	defer timer.Stop()
	for _, p := range past {
		select {
		case <-p.active.none():
		case <-timer.C:
			s.t.Errorf("backstaytest: server %s: a handler did not return within 5s of the server's end", s.ID)
			return
		}
	}
}
