package backstaytest

import (
	"errors"
	"io"
	"net/http"
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
		most := t.connected(s, rt)
		for range 10 {
			t.text(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil))
			t.text(rt, t.request(t.Context(), http.MethodPut, s.URL(), newCallersBody("hello")))
		}
		t.text(rt, t.request(t.Context(), http.MethodGet, s.URL()+"/503", nil))
		t.text(rt, t.request(t.Context(), http.MethodGet, s.URL()+"/503", nil))
		t.stillConnected("the number of connections for requests one after the other", s, most)
	})
}

// connected makes the first connection and returns how many there are then,
// which is 1 but for h2c: of that net/http hands a connection to the request it
// was dialed for before it shows it to others, so that a quick second request
// may dial, too. There it goes on until a request has dialed none.
func (t *trial) connected(s *Server, rt http.RoundTripper) int {
	t.Helper()
	get := func() { t.text(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil)) }
	get()
	if s.protocol != H2C {
		return 1
	}
	t.eventually("no request was sent over the connection of the one before", func() bool {
		before := s.Stats().Connections
		get()
		return s.Stats().Connections == before
	})
	return s.Stats().Connections
}

func connectionShared(t *trial) {
	t.over([]Protocol{HTTP2, H2C}, answerOK, func(t *trial, s *Server, rt http.RoundTripper) {
		most := t.connected(s, rt)
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
		t.stillConnected("the number of connections", s, most)
	})
}

// lateDials is how many connections of h2c may still be on their way when connected
// returns: one that net/http dialed for a request that then went over another one.
const lateDials = 2

// stillConnected complains if there have been other connections than those of connected.
func (t *trial) stillConnected(what string, s *Server, most int) {
	t.Helper()
	n := s.Stats().Connections
	if s.protocol == H2C && n > most && n <= most+lateDials {
		return
	}
	equal(t, what, n, most)
}
