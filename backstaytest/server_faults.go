package backstaytest

import (
	"net/http"
	"time"
)

// scripted is what a server does to its requests. It is guarded by the
// server's lock.
type scripted struct {
	next    []Fault // for the next requests, one each
	script  func(*http.Request) Fault
	changed chan struct{} // closed when the script changes
}

// Inject makes every request from now on suffer f, instead of what was injected
// or scripted before. Requests that a fault stalls go on.
func (s *Server) Inject(f Fault) { s.Script(func(*http.Request) Fault { return f }) }

// InjectNext makes the next n requests suffer f, before anything else that is
// injected.
func (s *Server) InjectNext(n int, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.faults.next = append(s.faults.next, f)
	}
}

// Script makes decide choose each request's fault, instead of what was injected
// before. It may be called concurrently and must not touch the body. Requests
// that a fault stalls go on. A nil decide is no fault.
func (s *Server) Script(decide func(*http.Request) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.script = decide
	if s.faults.changed != nil {
		close(s.faults.changed)
		s.faults.changed = nil
	}
}

// Fail makes the server answer every request with status.
func (s *Server) Fail(status int) { s.Inject(Fault{Status: status}) }

// FailNext makes the server answer the next n requests with status.
func (s *Server) FailNext(n, status int) { s.InjectNext(n, Fault{Status: status}) }

// FailFast makes the server fail within 1 ms, as a broken one does that is
// faster than its healthy neighbours: the trap of every policy that prefers
// quick answers.
func (s *Server) FailFast() {
	s.Inject(Fault{Status: http.StatusInternalServerError, Delay: time.Millisecond})
}

// Slow delays every request by d.
func (s *Server) Slow(d time.Duration) { s.Inject(Fault{Delay: d}) }

// Stall makes the server take requests and never answer. Answers that have
// begun go on. [Server.Resume] or [Server.Heal] lets the waiting requests go on.
func (s *Server) Stall() { s.Inject(Fault{Stall: true}) }

// Resume ends what Inject, Script and their short forms began; the requests
// that were stalled are served.
func (s *Server) Resume() { s.Script(nil) }

// ResetBeforeHeaders makes the server read each request and break its
// connection without an answer.
func (s *Server) ResetBeforeHeaders() { s.Inject(Fault{Reset: true}) }

// ResetAfter makes the server break each connection after n bytes of an
// answer's body.
func (s *Server) ResetAfter(n int64) { s.Inject(Fault{ResetAfter: n}) }

// Truncate makes the server send n bytes of each answer's body where its
// Content-Length promises more.
func (s *Server) Truncate(n int64) { s.Inject(Fault{Truncate: n}) }

// Freeze stops the server in the middle of whatever it does, like a process
// that is suspended: connections are still made (the kernel does that), but
// nothing more is read from them or written to them, not even a TLS handshake,
// until [Server.Thaw].
func (s *Server) Freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen == nil {
		s.frozen = make(chan struct{})
	}
}

// Thaw ends a Freeze.
func (s *Server) Thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen != nil {
		close(s.frozen)
		s.frozen = nil
	}
}

// Heal ends every fault: what was injected or scripted, a Freeze, a Refuse, a
// Kill. It does not bring back a server that has left its fleet.
func (s *Server) Heal() {
	s.t.Helper()
	s.mu.Lock()
	s.faults.next = nil
	left := s.left
	s.mu.Unlock()
	s.Resume()
	s.Thaw()
	if !left {
		s.Restart()
	}
}

// serve is what every request of the server runs through.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	// A copy, for the server looks at its own request's body when the handler
	// has returned: at whether it was left waiting for 100 Continue, say.
	r = r.WithContext(r.Context())
	s.began(r)
	defer s.ended()
	w.Header().Set(InstanceHeader, s.ID)
	f, lifted := s.faultOf(r)
	if !f.none() {
		w = s.suffer(f, lifted, w, r)
	}
	if w != nil {
		s.handler.ServeHTTP(w, r)
	}
}

// faultOf returns what a request is to suffer, and a channel that is closed when
// that is lifted: both of the same moment, so that no change is missed between.
func (s *Server) faultOf(r *http.Request) (f Fault, lifted <-chan struct{}) {
	s.mu.Lock()
	script := s.faults.script
	if len(s.faults.next) > 0 {
		f, script = s.faults.next[0], nil
		s.faults.next = s.faults.next[1:]
	}
	if s.faults.changed == nil {
		s.faults.changed = make(chan struct{})
	}
	lifted = s.faults.changed
	s.mu.Unlock()
	if script != nil {
		f = script(r)
	}
	return f, lifted
}

// suffer does to a request what f says. It returns the writer that the handler
// is to use, or nil if the request has been answered.
func (*Server) suffer(f Fault, lifted <-chan struct{}, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	readAhead(r)
	reset := func() {
		if c, _ := r.Context().Value(connKey{}).(*serverConn); c != nil {
			c.reset()
		}
	}
	if f.Delay > 0 && wait(r.Context(), f.Delay) != nil {
		abort()
	}
	if f.Stall {
		select {
		case <-lifted:
		case <-r.Context().Done():
			abort()
		}
	}
	if f.Reset || f.Err != nil {
		reset()
		abort()
	}
	cut := &faultWriter{ResponseWriter: w, fault: f, reset: reset}
	if f.Status == 0 {
		return cut
	}
	cut.WriteHeader(f.Status)
	if bodyAllowed(f.Status) {
		_, _ = cut.Write(statusBody(f.Status))
	}
	return nil
}

// abort ends a handler without an answer; it does not return.
func abort() { panic(http.ErrAbortHandler) } //nolint:forbidigo // net/http's way to do it
