package backstaytest

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func retryChecks() []check {
	return []check{
		{"retry answers with the response that is well", retryAnswers, fakes | retries},
		{"retry is bounded", retryBounded, fakes},
		{"retry returns the last response when all fail", retryReturnsLast, fakes | retries},
		{"retry returns the last error when all fail", retryReturnsError, fakes | retries},
		{"retry closes what it discards", retryCloses, fakes | retries},
		{"retry drains what it discards", retryDrains, retries},
		{"retry does not wait for what it discards", retryDoesNotWait, retries},
		{"retry uses GetBody", retryGetBody, fakes | retries},
		{"retry stops when GetBody fails", retryGetBodyFails, fakes | retries},
		{"retry leaves a body that fails", retryBodyFails, fakes},
		{"retry sends the whole body or not at all", retryWhole, fakes},
		{"retry waits until the body has been let go", retryWaitsForBody, fakes | retries},
		{"retry keeps the Idempotency-Key", retryKey, fakes | retries},
		{"retry leaves trailers that cannot be sent again", retryTrailers, fakes | retries},
		{"retry gives each attempt a request of its own", retryOwnRequest, fakes | retries},
	}
}

// failing is a fake whose first answers, all but the layer's last, are 503.
func (t *trial) failing() *fake {
	var f *fake
	f = t.fake(func(n int, s *sent) (*http.Response, error) {
		if n < t.opts.Attempts-1 {
			return f.respond(s, 503, fmt.Sprintf("no %d", n)), nil
		}
		return f.respond(s, 200, "ok"), nil
	})
	return f
}

func retryAnswers(t *trial) {
	f := t.failing()
	resp := t.get(t.wrap(f), t.request(t.Context(), http.MethodGet, "http://orders.test/", nil))
	equal(t, "the status", resp.StatusCode, 200)
	equal(t, "the answer", t.read(resp), "ok")
	equal(t, "the number of attempts", len(f.calls()), t.opts.Attempts)
}

func retryBounded(t *trial) {
	var f *fake
	for name, answer := range map[string]func(int, *sent) (*http.Response, error){
		"503":   func(_ int, s *sent) (*http.Response, error) { return f.respond(s, 503, "no"), nil },
		"error": func(int, *sent) (*http.Response, error) { return nil, errReset() },
	} {
		f = t.fake(answer)
		resp, err := t.do(t.wrap(f), t.request(t.Context(), http.MethodGet, "http://orders.test/", nil))
		if err == nil {
			t.read(resp)
		}
		if n := len(f.calls()); n > t.opts.Attempts {
			t.Errorf("%s: a request was sent %d times, want at most %d", name, n, t.opts.Attempts)
		}
	}
}

func retryReturnsLast(t *trial) {
	var f *fake
	f = t.fake(func(n int, s *sent) (*http.Response, error) { return f.respond(s, 503, fmt.Sprintf("no %d", n)), nil })
	resp := t.get(t.wrap(f), t.request(t.Context(), http.MethodGet, "http://orders.test/", nil))
	equal(t, "the status", resp.StatusCode, 503)
	equal(t, "the body", t.read(resp), fmt.Sprintf("no %d", t.opts.Attempts-1))
}

func retryReturnsError(t *trial) {
	f := t.fake(func(n int, _ *sent) (*http.Response, error) { return nil, fmt.Errorf("no %d: %w", n, errReset()) })
	err := t.failure(t.wrap(f), t.request(t.Context(), http.MethodGet, "http://orders.test/", nil), syscall.ECONNRESET)
	if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("no %d", len(f.calls())-1)) {
		t.Errorf("the error is %v, want the last attempt's", err)
	}
}

func retryCloses(t *trial) {
	f := t.failing()
	resp := t.get(t.wrap(f), t.request(t.Context(), http.MethodGet, "http://orders.test/", nil))
	bodies := f.bodies()
	for i, b := range bodies[:len(bodies)-1] {
		t.eventually(fmt.Sprintf("the body of discarded response %d was not closed", i), func() bool { return b.closed() > 0 })
		equal(t, fmt.Sprintf("how often the body of discarded response %d was closed", i), b.closed(), 1)
	}
	equal(t, "how often the returned response's body was closed", bodies[len(bodies)-1].closed(), 0)
	equal(t, "the answer", t.read(resp), "ok")
}

func retryDrains(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write(make([]byte, 1<<10))
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		t.text(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil)) // makes the connection
		t.reuses("requests that are repeated", s, func() {
			before := s.Stats().Requests
			for range 3 {
				t.text(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil))
			}
			if n := s.Stats().Requests - before; n < 4 {
				t.Errorf("of 3 requests %d reached the server: nothing was repeated", n)
			}
		})
	})
}

func retryDoesNotWait(t *trial) {
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request){
		"never ends": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 32<<10)); err != nil {
					return
				}
			}
		},
		"stalls": func(w http.ResponseWriter, r *http.Request) {
			flush(w)
			<-r.Context().Done()
		},
	} {
		var n atomic.Int32
		t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) > 1 {
				_, _ = io.WriteString(w, "ok")
				return
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			answer(w, r)
		}, func(t *trial, s *Server, rt http.RoundTripper) {
			n.Store(0)
			start := time.Now()
			resp := t.get(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil))
			equal(t, "the answer after one that "+name, t.read(resp), "ok")
			if d := time.Since(start); d > t.opts.Patience/2 {
				t.Errorf("the next attempt waited %v for a discarded response that %s", d, name)
			}
		})
	}
}
