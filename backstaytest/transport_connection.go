package backstaytest

import (
	"errors"
	"io"
	"net/http"
	"time"
)

func connectionChecks() []check {
	return []check{
		{"CloseIdleConnections is passed on", idlePassedOn, fakes},
		{"CloseIdleConnections closes them", idleClosed, 0},
		{"CloseIdleConnections is left to the owner", idleLeft, fakes},
		{"connections are used again", connectionsReused, 0},
		{"HTTP/2 shares a connection", connectionShared, 0},
	}
}

func idlePassedOn(t *trial) {
	f := t.fake(nil)
	client := &http.Client{Transport: t.wrap(f)}
	client.CloseIdleConnections()
	f.mu.Lock()
	defer f.mu.Unlock()
	equal(t, "how often the transport was told to close its idle connections", f.idleCloses, 1)
}

func idleClosed(t *trial) {
	t.over(everyProtocol(), answerOK, func(t *trial, s *Server, rt http.RoundTripper) {
		t.text(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil))
		t.eventually("the idle connection was not closed", func() bool {
			// Again and again: net/http may need a moment to find it idle.
			(&http.Client{Transport: rt}).CloseIdleConnections()
			return s.Stats().OpenConnections == 0
		})
		equal(t, "the answer on a fresh connection", t.text(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil)), "ok\n")
	})
}

// idleLeft is about a transport that is shared with others.
func idleLeft(t *trial) {
	f := t.fake(nil)
	rt := t.wrap(f)
	for _, answer := range []func(int, *sent) (*http.Response, error){
		func(_ int, s *sent) (*http.Response, error) { return f.respond(s, 200, "ok"), nil },
		func(_ int, s *sent) (*http.Response, error) { return f.respond(s, 503, "no"), nil },
		func(int, *sent) (*http.Response, error) { return nil, errReset() },
	} {
		f.answer = answer
		for range 3 {
			if resp, err := t.do(rt, t.request(t.Context(), http.MethodGet, "http://orders.test/", nil)); err == nil {
				t.read(resp)
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	equal(t, "how often the layer closed a shared transport's idle connections by itself", f.idleCloses, 0)
}

func connectionsReused(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
		if r.URL.Path == "/503" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write(make([]byte, 1<<10))
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		get := func(path string) { t.text(rt, t.request(t.Context(), http.MethodGet, s.URL()+path, nil)) }
		get("/") // makes the connection
		t.reuses("requests one after the other", s, func() {
			for range 10 {
				get("/")
				t.text(rt, t.request(t.Context(), http.MethodPut, s.URL(), newCallersBody("hello")))
			}
			get("/503")
			get("/503")
			get("/")
		})
	})
}

// reuses complains if each of a few rounds of requests needs new connections. One
// may by chance: net/http and layers wait for a moment only until a connection is
// free to be used again, 50 ms as a rule, which is not enough where the machine
// stalls; and of h2c net/http hands a connection to the request it was dialed for
// before it shows it to others, so that a quick second request may dial, too.
func (t *trial) reuses(what string, s *Server, round func()) {
	t.Helper()
	const rounds = 5
	var dialed []int
	for range rounds {
		before := s.Stats().Connections
		round()
		n := s.Stats().Connections - before
		if n == 0 {
			return
		}
		dialed = append(dialed, n)
	}
	t.Errorf("the numbers of new connections that rounds of %s made are %v, want none in one of them", what, dialed)
}

// connectionShared counts the connections that requests at the same time make once
// there is one, and once only: who gives each request a connection of its own makes
// none in a second round.
func connectionShared(t *trial) {
	const late = 2 // dialed for the requests before, see reuses
	t.over([]Protocol{HTTP2, H2C}, func(w http.ResponseWriter, r *http.Request) {
		timer := time.NewTimer(20 * time.Millisecond) // so that they are under way at the same time
		defer timer.Stop()
		<-timer.C
		answerOK(w, r)
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		get := func() { t.text(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil)) }
		get() // makes the connection
		t.reuses("requests one after the other", s, get)
		before := s.Stats().Connections
		t.together(8, func(int) error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL(), nil)
			if err != nil {
				return err
			}
			resp, err := rt.RoundTrip(req)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, resp.Body)
			return errors.Join(err, resp.Body.Close())
		})
		if n := s.Stats().Connections - before; n > late {
			t.Errorf("8 requests at the same time made %d new connections, want none", n)
		}
	})
}
