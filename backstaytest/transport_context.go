package backstaytest

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

func contextChecks() []check {
	return []check{
		{"context that has ended before", contextEndedBefore, fakes},
		{"context that ends while dialing", contextDialing, 0},
		{"context that ends while awaiting the answer", contextHeaders, 0},
		{"context that ends in the request's body", contextUpload, 0},
		{"context that ends in the response's body", contextBody, 0},
		{"context whose deadline passes", contextDeadline, 0},
		{"context outlives the return of the response", contextLives, fakes},
		{"context is let go when the call is over", contextLetGo, fakes},
		{"client timeout", clientTimeout, 0},
		{"Request.Cancel", requestCancel, 0},
	}
}

func contextEndedBefore(t *trial) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := t.fake(nil)
	t.fails(t.wrap(f), t.request(ctx, http.MethodGet, "http://orders.test/", nil), context.Canceled)
	if n := len(f.calls()); n > 1 {
		t.Errorf("a request whose context has ended was sent %d times", n)
	}
}

// cancelled makes a round trip whose context ends when ready is closed, and
// checks that it fails promptly and for that reason.
func (t *trial) cancelled(rt http.RoundTripper, req *http.Request, ready <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	done := t.begin(rt, req.WithContext(ctx))
	t.promptly("getting to where the context is to end", func() { <-ready })
	cancel()
	resp, err := t.returned(done)
	if err == nil {
		t.Errorf("a request whose context ended was answered %s", resp.Status)
		t.read(resp)
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v, want context.Canceled", err)
	}
}

func contextDialing(t *trial) {
	dialing, release := make(chan struct{}, 16), make(chan struct{})
	defer close(release)
	tr := t.plain()
	tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		select {
		case dialing <- struct{}{}:
		default: // there may be dials that no call waits for, as many as it takes
		}
		select {
		case <-ctx.Done():
		case <-release:
		}
		return nil, errors.New("backstaytest: this dial never ends well")
	}
	body := newCallersBody("hello")
	t.cancelled(t.wrap(tr), t.request(t.Context(), http.MethodPost, "http://127.0.0.1:1/", body), dialing)
	body.closedOnce(t, anyTimes)
}

func contextHeaders(t *trial) {
	arrived := make(chan struct{}, 16)
	t.over(everyProtocol(), func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		<-r.Context().Done()
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPost} {
			body := newCallersBody("hello")
			t.cancelled(rt, t.request(t.Context(), method, s.URL(), body), arrived)
			body.closedOnce(t, anyTimes)
			t.eventually("the server was not told that the caller has gone", func() bool { return s.Stats().InFlight == 0 })
		}
		equal(t, "the number of requests sent, of those that were cancelled", s.Stats().Requests, 3)
	})
}

func contextUpload(t *trial) {
	arrived := make(chan struct{}, 16)
	t.over(everyProtocol(), func(_ http.ResponseWriter, r *http.Request) {
		_, _ = r.Body.Read(make([]byte, 1))
		arrived <- struct{}{}
		_, _ = io.Copy(io.Discard, r.Body)
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		body := &callersBody{data: trickle{}} // net/http waits for a Read that blocks
		t.cancelled(rt, t.request(t.Context(), http.MethodPut, s.URL(), body), arrived)
		body.closedOnce(t, anyTimes)
	})
}

// trickle is a reader that gives a little at a time, without end.
type trickle struct{}

func (trickle) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return min(len(p), 10), nil
}

func contextBody(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hello")
		flush(w)
		<-r.Context().Done()
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		resp := t.get(rt, t.request(ctx, http.MethodGet, s.URL(), nil))
		var data []byte
		var err error
		t.promptly("ending a body whose context ended", func() {
			_, err = io.ReadFull(resp.Body, make([]byte, 5))
			if err != nil {
				return
			}
			cancel()
			data, err = io.ReadAll(resp.Body)
		})
		_ = resp.Body.Close()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the end of a body whose context ended is %v after %q, want context.Canceled", err, data)
		}
	})
}

func contextDeadline(t *trial) {
	t.over(everyProtocol(), func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		body := newCallersBody("hello")
		t.timedOut(t.failure(rt, t.request(ctx, http.MethodPut, s.URL(), body), context.DeadlineExceeded))
		body.closedOnce(t, anyTimes)
	})
}

// timedOut checks that err is what a passed deadline looks like.
func (t *trial) timedOut(err error) {
	t.Helper()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error of a passed deadline is %v, want context.DeadlineExceeded", err)
	}
	var netErr net.Error
	if !errors.As(err, &netErr) || !netErr.Timeout() {
		t.Errorf("the error of a passed deadline is no timeout to net.Error: %v", err)
	}
}

func contextLives(t *trial) {
	f := t.fake(nil)
	f.answer = func(_ int, s *sent) (*http.Response, error) {
		return f.respond(s, 200, strings.Repeat("x", 1<<16)), nil
	}
	rt := t.wrap(f)
	for range 20 {
		resp := t.get(rt, t.request(t.Context(), http.MethodGet, "http://orders.test/", nil))
		time.Sleep(100 * time.Microsecond) // a timer or a deferred call may end it
		equal(t, "the length of a body that breaks when its context ends", len(t.read(resp)), 1<<16)
	}
}

// contextLetGo makes calls under a context that lives on, as that of a worker
// does, and looks for what still hangs on it when they are over.
func contextLetGo(t *trial) {
	var f *fake
	ends := map[string]struct {
		answer func(int, *sent) (*http.Response, error)
		use    func(*http.Response)
	}{
		"a body read":         {nil, func(resp *http.Response) { _, _ = io.Copy(io.Discard, resp.Body) }},
		"a body closed":       {nil, func(resp *http.Response) { _ = resp.Body.Close() }},
		"a body read, closed": {nil, func(resp *http.Response) { _, _ = io.Copy(io.Discard, resp.Body); _ = resp.Body.Close() }},
		"a failure":           {func(_ int, s *sent) (*http.Response, error) { return f.respond(s, 503, "no"), nil }, nil},
		"an error":            {func(int, *sent) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }, nil},
		"no body":             {func(_ int, s *sent) (*http.Response, error) { return bare(s.req, 204, http.NoBody), nil }, nil},
		"a body that breaks": {func(_ int, s *sent) (*http.Response, error) {
			return bare(s.req, 200, io.NopCloser(errReader{errReset()})), nil
		}, nil},
	}
	for name, end := range ends {
		f = t.fake(nil)
		rt := t.wrap(f)
		t.text(rt, t.request(t.Context(), http.MethodGet, "http://orders.test/", nil)) // what it starts once, it may keep
		f.answer = end.answer
		before := make(map[string]bool)
		for _, g := range goroutines() {
			before[g.id] = true
		}
		parent := newLongLived()
		for range 20 {
			resp, err := t.do(rt, t.request(parent, http.MethodGet, "http://orders.test/", nil))
			switch {
			case err != nil:
			case end.use != nil:
				end.use(resp)
			default:
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		}
		t.eventually("the contexts derived from the caller's were not released after "+name, func() bool { return parent.children() == 0 })
		if left := leaked(before, t.opts.Patience); len(left) > 0 {
			t.Errorf("%d goroutines are left after %s while the caller's context lives on:\n\n%s", len(left), name, left[0])
		}
	}
}

func clientTimeout(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/body" {
			_, _ = io.WriteString(w, "hello")
			flush(w)
		}
		<-r.Context().Done()
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		client := &http.Client{Transport: rt, Timeout: 50 * time.Millisecond}
		var resp *http.Response
		var err error
		t.promptly("a request past its client's Timeout", func() {
			resp, err = client.Do(t.request(t.Context(), http.MethodGet, s.URL()+"/headers", nil))
		})
		if err == nil {
			_ = resp.Body.Close()
		}
		t.timedOut(err)
		t.promptly("a body past its client's Timeout", func() {
			resp, err = client.Do(t.request(t.Context(), http.MethodGet, s.URL()+"/body", nil))
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
		})
		t.timedOut(err)
	})
}

func requestCancel(t *trial) {
	arrived := make(chan struct{}, 16)
	url := t.raw(func(_ int, _ net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err == nil {
			arrived <- struct{}{}
			_, _ = r.ReadByte()
		}
	})
	req := t.request(t.Context(), http.MethodGet, url, nil)
	gone := make(chan struct{})
	req.Cancel = gone //nolint:staticcheck // deprecated, and how http.Client's Timeout works around layers
	done := t.begin(t.wrap(t.plain()), req)
	t.promptly("sending a request", func() { <-arrived })
	close(gone)
	if resp, err := t.returned(done); err == nil {
		t.Errorf("a request that was cancelled was answered %s", resp.Status)
		t.read(resp)
	}
}
