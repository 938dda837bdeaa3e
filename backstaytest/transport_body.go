package backstaytest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
)

func requestBodyChecks() []check {
	return []check{
		{"request body is closed once when it is answered", bodyAnswered, fakes},
		{"request body is closed once when the transport fails", bodyFailed, fakes},
		{"request body is closed when the context has ended before", bodyContextEnded, 0},
		{"request body is closed when the layer refuses", bodyRefused, refusal},
		{"request body is streamed", bodyStreams, 0},
		{"request body arrives whole", bodyWhole, 0},
		{"request body that is absent or empty stays so", bodyAbsent, 0},
		{"request body that fails says so", bodyFails, 0},
		{"request body waits for 100 Continue", bodyContinue, 0},
		{"request body is left when the answer comes early", bodyEarly, 0},
		{"request body is sent anew for a redirect", bodyRedirect, 0},
		{"request body is sent anew on another connection", bodyRewound, 0},
		{"request trailers arrive", requestTrailers, 0},
	}
}

func bodyAnswered(t *trial) {
	for _, status := range []int{200, 404, 503} {
		var f *fake
		f = t.fake(func(_ int, s *sent) (*http.Response, error) { return f.respond(s, status, "text"), nil })
		body := newCallersBody("hello")
		resp := t.get(t.wrap(f), t.request(t.Context(), http.MethodPost, "http://orders.test/", body))
		equal(t, "the status", resp.StatusCode, status)
		equal(t, "the answer", t.read(resp), "text")
		body.closedOnce(t, 1)
	}
}

func bodyFailed(t *trial) {
	for _, method := range []string{http.MethodPost, http.MethodPut} {
		f := t.fake(func(int, *sent) (*http.Response, error) { return nil, errReset() })
		body := newCallersBody("hello")
		t.fails(t.wrap(f), t.request(t.Context(), method, "http://orders.test/", body), syscall.ECONNRESET)
		body.closedOnce(t, 1)
	}
}

func bodyContextEnded(t *trial) {
	s := t.serve(HTTP1, answerOK)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	body := newCallersBody("hello")
	t.fails(t.wrap(s.Transport()), t.request(ctx, http.MethodPost, s.URL(), body), context.Canceled)
	body.closedOnce(t, anyTimes)
	equal(t, "the number of requests that reached the server", s.Stats().Requests, 0)
}

func bodyRefused(t *trial) {
	s := t.serve(HTTP1, answerOK)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		body := newCallersBody("hello")
		resp, err := t.do(t.build(t.opts.Refuse, s.Transport()), t.request(t.Context(), method, s.URL(), body))
		if err == nil { // a layer may answer for itself
			t.read(resp)
		}
		body.closedOnce(t, 1)
		resp, err = t.do(t.build(t.opts.Refuse, s.Transport()), t.request(t.Context(), method, s.URL(), nil))
		if err == nil {
			t.read(resp)
		}
	}
	equal(t, "the number of refused requests that were sent", s.Stats().Requests, 0)
}

func bodyStreams(t *trial) {
	arrived := make(chan string, 16)
	t.over(everyProtocol(), func(_ http.ResponseWriter, r *http.Request) {
		p := make([]byte, 5)
		_, _ = io.ReadFull(r.Body, p)
		arrived <- string(p)
		_, _ = io.Copy(io.Discard, r.Body)
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		body, write := io.Pipe()
		defer func() { _ = write.Close() }()
		done := t.begin(rt, t.request(t.Context(), http.MethodPost, s.URL(), body))
		t.promptly("taking the first part of the request's body", func() { _, _ = io.WriteString(write, "first") })
		t.promptly("sending the first part of a body before the rest is there", func() { <-arrived })
		_, _ = io.WriteString(write, "rest")
		_ = write.Close()
		if resp, err := t.returned(done); err != nil {
			t.Errorf("the request failed: %v", err)
		} else {
			t.read(resp)
		}
	})
}

// digest is a server's account of a request.
func digest(r *http.Request) string {
	data, err := io.ReadAll(r.Body)
	return fmt.Sprintf("%d bytes, declared %d, %v, sum %d, %v", len(data), r.ContentLength, r.TransferEncoding, sum(data), err)
}

func sum(data []byte) (n uint64) {
	for _, b := range data {
		n = n*31 + uint64(b)
	}
	return n
}

func bodyWhole(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, digest(r))
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		for _, size := range []int{1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 300 << 10} {
			data := bytes.Repeat([]byte("0123456789abcdef!"), size/17+1)[:size]
			for _, known := range []bool{true, false} {
				req := t.request(t.Context(), http.MethodPut, s.URL(), struct{ io.Reader }{bytes.NewReader(data)})
				declared, coding := int64(-1), "[]"
				if known {
					req.ContentLength, declared = int64(size), int64(size)
				} else if s.protocol == HTTP1 {
					coding = "[chunked]"
				}
				want := fmt.Sprintf("%d bytes, declared %d, %s, sum %d, <nil>", size, declared, coding, sum(data))
				equal(t, "what the server got", t.text(rt, req), want)
			}
		}
	})
}

func bodyAbsent(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, digest(r))
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		for _, body := range []io.ReadCloser{nil, http.NoBody} {
			for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
				req := t.request(t.Context(), method, s.URL(), nil)
				req.Body = body
				equal(t, fmt.Sprintf("what the server got of a %s with body %v", method, body), t.text(rt, req), "0 bytes, declared 0, [], sum 0, <nil>")
			}
		}
	})
}

func bodyFails(t *trial) {
	boom := errors.New("the caller's disk is on fire")
	t.over(everyProtocol(), answerOK, func(t *trial, s *Server, rt http.RoundTripper) {
		for _, before := range []int{0, 10, 100 << 10} {
			body := &callersBody{data: io.MultiReader(strings.NewReader(strings.Repeat("x", before)), errReader{boom})}
			t.fails(rt, t.request(t.Context(), http.MethodPut, s.URL(), body), boom)
			body.closedOnce(t, anyTimes)
		}
	})
}

func bodyContinue(t *trial) {
	s := t.serve(HTTP1, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		data, _ := io.ReadAll(r.Body)
		_, _ = w.Write(data)
	})
	tr := s.Transport()
	tr.ExpectContinueTimeout = 2 * t.opts.Patience
	rt := t.wrap(tr)
	send := func(path string) (*callersBody, *http.Response) {
		body := newCallersBody("hello")
		req := t.request(t.Context(), http.MethodPost, s.URL()+path, body)
		req.ContentLength = 5
		req.Header.Set("Expect", "100-continue")
		return body, t.get(rt, req)
	}
	body, resp := send("/yes")
	equal(t, "the answer", t.read(resp), "hello")
	body.closedOnce(t, anyTimes)

	body, resp = send("/no")
	equal(t, "the status", resp.StatusCode, http.StatusExpectationFailed)
	t.read(resp)
	body.closedOnce(t, anyTimes)
	if reads, _, _ := body.state(); reads > 0 {
		t.Errorf("the body of a request that expects 100 Continue was read %d times without it", reads)
	}
}

func bodyEarly(t *trial) {
	url := t.raw(func(_ int, c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, r, 10<<10)
		_, _ = io.WriteString(c, "HTTP/1.1 413 Request Entity Too Large\r\nConnection: close\r\nContent-Length: 9\r\n\r\ntoo large")
		_, _ = io.Copy(io.Discard, r) // a close with unread data would reset, and perhaps lose the answer
	})
	for _, method := range []string{http.MethodPost, http.MethodPut} {
		body := &callersBody{data: endless{}}
		resp := t.get(t.wrap(t.plain()), t.request(t.Context(), method, url, body))
		equal(t, "the status", resp.StatusCode, http.StatusRequestEntityTooLarge)
		equal(t, "the answer", t.read(resp), "too large")
		t.eventually("the body of a request that was answered early was not closed", func() bool {
			_, closes, _ := body.state()
			return closes > 0
		})
	}
}

func bodyRedirect(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/307":
			http.Redirect(w, r, "/end", http.StatusTemporaryRedirect)
		case "/308":
			http.Redirect(w, r, "/307", http.StatusPermanentRedirect)
		case "/303":
			http.Redirect(w, r, "/end", http.StatusSeeOther)
		default:
			_, _ = io.WriteString(w, r.Method+" "+digest(r))
		}
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		client := &http.Client{Transport: rt}
		for path, want := range map[string]string{
			"/307": "PUT 5 bytes, declared 5, [], sum %d, <nil>",
			"/308": "PUT 5 bytes, declared 5, [], sum %d, <nil>",
			"/303": "GET 0 bytes, declared 0, [], sum 0, <nil>",
		} {
			if strings.Contains(want, "%d") {
				want = fmt.Sprintf(want, sum([]byte("hello")))
			}
			resp, err := client.Do(t.request(t.Context(), http.MethodPut, s.URL()+path, strings.NewReader("hello")))
			if err != nil {
				t.Errorf("a request that is redirected failed: %v", err)
				continue
			}
			equal(t, "what came by way of "+path, t.read(resp), want)
		}
		// Without GetBody http.Client cannot follow, and hands on the redirect.
		body := newCallersBody("hello")
		resp, err := client.Do(t.request(t.Context(), http.MethodPut, s.URL()+"/307", body))
		if err != nil {
			t.Fatalf("a request that cannot be redirected failed: %v", err)
		}
		equal(t, "the status", resp.StatusCode, http.StatusTemporaryRedirect)
		t.read(resp)
		body.closedOnce(t, anyTimes)
	})
}

// bodyRewound lets a kept-alive connection break under a request: net/http then
// sends it again by itself, with the help of GetBody.
func bodyRewound(t *trial) {
	var got atomic.Value
	url := t.raw(func(n int, c net.Conn, r *bufio.Reader) {
		for requests := 0; ; requests++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			data, _ := io.ReadAll(req.Body)
			if n == 0 && requests == 1 {
				return
			}
			got.Store(string(data))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	rt := t.wrap(t.plain())
	t.text(rt, t.request(t.Context(), http.MethodGet, url, nil))
	req := t.request(t.Context(), http.MethodPut, url, strings.NewReader("hello"))
	req.Header.Set("Idempotency-Key", "1")
	resp, err := t.do(rt, req)
	if err != nil {
		t.Fatalf("a request whose connection broke was not sent again (is GetBody still there?): %v", err)
	}
	equal(t, "the answer", t.read(resp), "ok")
	equal(t, "the body that arrived", fmt.Sprint(got.Load()), "hello")
}

// trailing sets a request's trailer when its body has been read.
type trailing struct {
	io.Reader
	req *http.Request
}

func (b *trailing) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		b.req.Trailer.Set("X-Sum", "5")
	}
	return n, err
}

func (*trailing) Close() error { return nil }

func requestTrailers(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s, trailer %q", data, r.Trailer.Get("X-Sum"))
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		req := t.request(t.Context(), http.MethodPut, s.URL(), nil)
		req.Trailer = http.Header{"X-Sum": nil}
		req.Body, req.ContentLength = &trailing{strings.NewReader("hello"), req}, -1
		equal(t, "what the server got", t.text(rt, req), `hello, trailer "5"`)
	})
}
