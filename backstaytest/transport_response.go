package backstaytest

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

func responseChecks() []check {
	return []check{
		{"response or error but never both", responseOrError, fakes},
		{"response stays readable after the return", responseReadable, 0},
		{"response is streamed", responseStreams, 0},
		{"response that says failure is a response", responseFailures, 0},
		{"response keeps its fields", responseFields, 0},
		{"response bears the request it answers", responseRequest, fakes},
		{"response without a body", responseBodiless, 0},
		{"response whose body is nil", responseNilBody, fakes},
		{"response trailers arrive", responseTrailers, 0},
		{"response body is closed once", responseClosed, fakes},
		{"response body that is left ends the request", responseLeft, 0},
		{"response body that breaks says so", responseBreaks, 0},
		{"response that switches protocols", responseSwitches, 0},
		{"response that switches protocols can be written to", responseWriter, fakes},
		{"informational responses come before it", responseInformational, 0},
	}
}

func responseOrError(t *trial) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var f *fake
	for name, test := range map[string]struct {
		ctx    context.Context //nolint:containedctx // a table of cases
		answer func(int, *sent) (*http.Response, error)
	}{
		"success":       {t.Context(), nil},
		"failure":       {t.Context(), func(_ int, s *sent) (*http.Response, error) { return f.respond(s, 503, "no"), nil }},
		"throttled":     {t.Context(), func(_ int, s *sent) (*http.Response, error) { return f.respond(s, 429, "no"), nil }},
		"error":         {t.Context(), func(int, *sent) (*http.Response, error) { return nil, errReset() }},
		"ended context": {ended, nil},
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			f = t.fake(test.answer)
			resp, err := t.do(t.wrap(f), t.request(test.ctx, method, "http://orders.test/", nil)) // checks it
			if err == nil {
				if resp.Body == nil {
					t.Errorf("%s: the response has no body", name)
					continue
				}
				t.read(resp)
			}
		}
	}
}

// flush sends what a handler has written.
func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }

func responseReadable(t *trial) {
	const parts, size = 16, 32 << 10
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		for range parts {
			_, _ = w.Write(make([]byte, size))
			flush(w)
			if wait(r.Context(), time.Millisecond) != nil {
				return
			}
		}
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		resp := t.get(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil))
		time.Sleep(5 * time.Millisecond) // what ends with RoundTrip has ended
		equal(t, "the length of the body", len(t.read(resp)), parts*size)
	})
}

func responseStreams(t *trial) {
	release := make(chan struct{}, 16)
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first")
		flush(w)
		select {
		case <-release:
			_, _ = io.WriteString(w, "rest")
		case <-r.Context().Done():
		}
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		resp := t.get(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil))
		p := make([]byte, 5)
		var err error
		t.promptly("reading the first part of a body before the rest is there", func() { _, err = io.ReadFull(resp.Body, p) })
		if err != nil {
			t.Fatalf("reading the first part: %v", err)
		}
		release <- struct{}{}
		equal(t, "the rest", t.read(resp), "rest")
	})
}

func responseFailures(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		var status int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &status)
		w.Header().Set("X-Detail", "why")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "the reason")
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			for _, status := range []int{400, 404, 500, 501, 502, 503, 504} {
				resp := t.get(rt, t.request(t.Context(), method, fmt.Sprintf("%s/%d", s.URL(), status), nil))
				equal(t, "the status", resp.StatusCode, status)
				equal(t, "a header", resp.Header.Get("X-Detail"), "why")
				equal(t, "the body", t.read(resp), "the reason")
			}
		}
	})
}

func responseFields(t *trial) {
	t.over([]Protocol{HTTP1, HTTP1TLS, HTTP2, H2C}, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Many"] = []string{"a", "b"}
		if r.URL.Path == "/gzip" {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = io.WriteString(z, strings.Repeat("hello", 100))
			_ = z.Close()
			return
		}
		w.Header().Set("Content-Length", "5")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, "hello")
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		resp := t.get(rt, t.request(t.Context(), http.MethodGet, s.URL()+"/x", nil))
		equal(t, "Status", resp.Status, "202 Accepted")
		equal(t, "ContentLength", resp.ContentLength, 5)
		equal(t, "X-Many", fmt.Sprint(resp.Header["X-Many"]), "[a b]")
		equal(t, "ProtoMajor", resp.ProtoMajor, map[Protocol]int{HTTP1: 1, HTTP1TLS: 1, HTTP2: 2, H2C: 2}[s.protocol])
		equal(t, "whether TLS is set", resp.TLS != nil, s.protocol.secure())
		equal(t, "Uncompressed", resp.Uncompressed, false)
		t.read(resp)
		resp = t.get(rt, t.request(t.Context(), http.MethodGet, s.URL()+"/gzip", nil))
		equal(t, "Uncompressed", resp.Uncompressed, true)
		equal(t, "the body", t.read(resp), strings.Repeat("hello", 100))
	})
}

func responseRequest(t *trial) {
	f := t.fake(nil)
	req := t.request(t.Context(), http.MethodGet, "http://orders.test/v1?q=1", nil)
	resp := t.get(t.wrap(f), req)
	t.read(resp)
	if resp.Request == nil {
		t.Fatalf("Response.Request is nil")
	}
	equal(t, "Response.Request's URL", resp.Request.URL.String(), req.URL.String())
	equal(t, "Response.Request's method", resp.Request.Method, req.Method)
}

func responseBodiless(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(http.StatusNoContent)
		case "/304":
			w.Header().Set("ETag", `"1"`)
			w.WriteHeader(http.StatusNotModified)
		case "/head":
			w.Header().Set("Content-Length", "1234")
		}
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		for _, test := range []struct {
			method, path string
			status       int
			length       int64
		}{
			{http.MethodGet, "/204", 204, 0},
			{http.MethodDelete, "/204", 204, 0},
			{http.MethodGet, "/304", 304, 0},
			{http.MethodHead, "/head", 200, 1234},
			{http.MethodGet, "/empty", 200, 0},
		} {
			req := t.request(t.Context(), test.method, s.URL()+test.path, nil)
			if test.status == http.StatusNotModified {
				req.Header.Set("If-None-Match", `"1"`)
			}
			resp := t.get(rt, req)
			equal(t, "the status", resp.StatusCode, test.status)
			if resp.ContentLength != test.length && resp.StatusCode != http.StatusNotModified {
				t.Errorf("%s %s: ContentLength is %d, want %d", test.method, test.path, resp.ContentLength, test.length)
			}
			equal(t, "the body", t.read(resp), "")
		}
	})
}

// responseNilBody is for fakes: a real transport's body is never nil, but users'
// own transports in their tests leave it out.
func responseNilBody(t *trial) {
	for _, status := range []int{200, 204, 500, 503} {
		for name, body := range map[string]io.ReadCloser{"nil": nil, "http.NoBody": http.NoBody} {
			f := t.fake(func(_ int, s *sent) (*http.Response, error) { return bare(s.req, status, body), nil })
			resp, err := t.do(t.wrap(f), t.request(t.Context(), http.MethodGet, "http://orders.test/", nil))
			if err != nil {
				t.Errorf("a %d whose body is %s became an error: %v", status, name, err)
				continue
			}
			equal(t, "the status", resp.StatusCode, status)
			if resp.Body != nil {
				equal(t, "the body", t.read(resp), "")
			}
		}
	}
}

func responseTrailers(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "hello")
		w.Header().Set("X-Sum", "5")
		w.Header().Set(http.TrailerPrefix+"X-More", "yes")
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		resp := t.get(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil))
		if _, ok := resp.Trailer["X-Sum"]; !ok {
			t.Errorf("Trailer is %v before the body is read, want X-Sum announced", resp.Trailer)
		}
		t.read(resp)
		equal(t, "a trailer that was announced", resp.Trailer.Get("X-Sum"), "5")
		equal(t, "a trailer that was not", resp.Trailer.Get("X-More"), "yes")
	})
}

func responseClosed(t *trial) {
	for name, use := range map[string]func(*http.Response){
		"read and closed": func(resp *http.Response) { _, _ = io.ReadAll(resp.Body); _ = resp.Body.Close() },
		"closed unread":   func(resp *http.Response) { _ = resp.Body.Close() },
		"read a little":   func(resp *http.Response) { _, _ = resp.Body.Read(make([]byte, 1)); _ = resp.Body.Close() },
	} {
		f := t.fake(nil)
		resp := t.get(t.wrap(f), t.request(t.Context(), http.MethodGet, "http://orders.test/", nil))
		body := f.bodies()[0]
		equal(t, "how often the body was closed before the caller did", body.closed(), 0)
		use(resp)
		equal(t, "how often a body that the caller has "+name+" was closed", body.closed(), 1)
	}
}

func responseLeft(t *trial) {
	var gone atomic.Int32
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(make([]byte, 1000))
		flush(w)
		<-r.Context().Done()
		gone.Add(1)
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		gone.Store(0)
		resp := t.get(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil))
		t.promptly("closing a body that has not been read", func() { _ = resp.Body.Close() })
		t.eventually("the server was not told that nobody reads its answer", func() bool { return gone.Load() == 1 })
	})
}

func responseBreaks(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write(make([]byte, 40))
		flush(w)
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		resp := t.get(rt, t.request(t.Context(), http.MethodGet, s.URL(), nil))
		var data []byte
		var err, again error
		t.promptly("reading a body that breaks", func() {
			data, err = io.ReadAll(resp.Body)
			_, again = resp.Body.Read(make([]byte, 1))
		})
		_ = resp.Body.Close()
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the end of a truncated body is %v, want io.ErrUnexpectedEOF", err)
		}
		if again == nil {
			t.Errorf("a truncated body can be read on after its end")
		}
		equal(t, "the length of what came before the break", len(data), 40)
	})
}
