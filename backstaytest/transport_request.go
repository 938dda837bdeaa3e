package backstaytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"time"
)

func requestChecks() []check {
	return []check{
		{"request stays as it was", requestStays, fakes},
		{"request reaches the transport as it was", requestReaches, fakes},
		{"request may be sent again", requestAgain, fakes},
		{"request that is malformed fails without a panic", requestMalformed, 0},
		{"request that must not be repeated is sent once", requestOnce, fakes},
		{"requests do not wait for each other", requestsConcurrent, 0},
	}
}

// rich returns a request that has all a request can have.
func (t *trial) rich(body io.Reader) *http.Request {
	t.Helper()
	req := t.request(context.WithValue(t.Context(), valueKey{}, "value"), http.MethodPut, "http://user:pass@orders.test/v1/items?q=1#frag", body)
	req.Header = http.Header{"Accept": {"text/plain"}, "X-Many": {"a", "b"}, "User-Agent": nil}
	req.Host = "other.test"
	req.Trailer = http.Header{"X-Sum": nil}
	req.TransferEncoding = []string{"chunked"}
	return req
}

type valueKey struct{}

func requestStays(t *trial) {
	for name, answer := range map[string]func(f *fake, s *sent) (*http.Response, error){
		"success": func(f *fake, s *sent) (*http.Response, error) { return f.respond(s, 200, "ok"), nil },
		"failure": func(f *fake, s *sent) (*http.Response, error) { return f.respond(s, 503, "no"), nil },
		"error":   func(*fake, *sent) (*http.Response, error) { return nil, io.ErrUnexpectedEOF },
	} {
		for _, replayable := range []bool{false, true} {
			var f *fake
			f = t.fake(func(_ int, s *sent) (*http.Response, error) { return answer(f, s) })
			rt := t.wrap(f)
			var req *http.Request
			if replayable {
				req = t.rich(strings.NewReader("hello"))
			} else {
				req = t.rich(newCallersBody("hello"))
			}
			before := snapshot(req)
			f.before = func(int, *http.Request) {
				if field := before.differs(req); field != "" {
					t.Errorf("%s: the caller's request was changed while it was sent: %s", name, field)
				}
			}
			resp, err := t.do(rt, req)
			if err == nil {
				t.read(resp)
			}
			if field := before.differs(req); field != "" {
				t.Errorf("%s: the caller's request was changed: %s", name, field)
			}
		}
	}
}

// requestState is what a request was made of.
type requestState struct {
	request http.Request
	url     url.URL
	header  http.Header
	trailer http.Header
	codings []string
}

func snapshot(req *http.Request) requestState {
	return requestState{*req, *req.URL, req.Header.Clone(), req.Trailer.Clone(), append([]string(nil), req.TransferEncoding...)}
}

// differs names the field in which req is not what it was, or returns "".
func (s requestState) differs(req *http.Request) string {
	was, is := reflect.ValueOf(s.request), reflect.ValueOf(*req)
	for i := range was.NumField() {
		field := was.Type().Field(i)
		if !field.IsExported() {
			continue
		}
		a, b := was.Field(i), is.Field(i)
		var same bool
		switch field.Type.Kind() {
		case reflect.Func, reflect.Map, reflect.Pointer, reflect.Chan, reflect.Slice:
			same = a.Pointer() == b.Pointer()
		default:
			same = a.Interface() == b.Interface()
		}
		if !same {
			return field.Name
		}
	}
	switch {
	case req.Context() != s.request.Context():
		return "its context"
	case *req.URL != s.url:
		return "what URL points to"
	case !reflect.DeepEqual(req.Header, s.header):
		return fmt.Sprintf("the contents of Header: %v, was %v", req.Header, s.header)
	case !reflect.DeepEqual(req.Trailer, s.trailer):
		return "the contents of Trailer"
	case !reflect.DeepEqual(req.TransferEncoding, s.codings):
		return "the contents of TransferEncoding"
	}
	return ""
}

func requestReaches(t *trial) {
	f := t.fake(nil)
	body := newCallersBody("hello")
	req := t.rich(body)
	req.ContentLength = 5
	resp := t.get(t.wrap(f), req)
	t.read(resp)
	calls := f.calls()
	if len(calls) == 0 {
		t.Fatalf("the request did not reach the transport")
	}
	got := calls[0].req
	equal(t, "Method", got.Method, req.Method)
	equal(t, "URL", got.URL.String(), req.URL.String())
	equal(t, "Host", got.Host, req.Host)
	equal(t, "ContentLength", got.ContentLength, 5)
	equal(t, "the body", string(calls[0].body), "hello")
	equal(t, "TransferEncoding", strings.Join(got.TransferEncoding, ","), "chunked")
	equal(t, "a value in the context", fmt.Sprint(got.Context().Value(valueKey{})), "value")
	if _, ok := got.Trailer["X-Sum"]; !ok {
		t.Errorf("Trailer is %v, want X-Sum announced", got.Trailer)
	}
	for name, values := range req.Header {
		if v, ok := calls[0].header[name]; !ok || strings.Join(v, ",") != strings.Join(values, ",") {
			t.Errorf("header %s is %q, want %q", name, v, values)
		}
	}
	body.closedOnce(t, 1)
}

func requestAgain(t *trial) {
	f := t.fake(nil)
	rt := t.wrap(f)
	req := t.request(t.Context(), http.MethodGet, "http://orders.test/", nil)
	for range 3 {
		equal(t, "the answer", t.text(rt, req), "ok")
	}
	equal(t, "the number of requests sent", len(f.calls()), 3)
}

func requestMalformed(t *trial) {
	s := t.serve(HTTP1, answerOK)
	for name, spoil := range map[string]func(*http.Request){
		"without a URL":                    func(r *http.Request) { r.URL = nil },
		"without a host":                   func(r *http.Request) { r.URL.Host = "" },
		"without a scheme":                 func(r *http.Request) { r.URL.Scheme = "" },
		"with an unknown scheme":           func(r *http.Request) { r.URL.Scheme = "gopher" },
		"without a Header":                 func(r *http.Request) { r.Header = nil },
		"with a bad method":                func(r *http.Request) { r.Method = "GET IT" },
		"with a bad header name":           func(r *http.Request) { r.Header["Bad Name"] = []string{"x"} },
		"with a newline in a header value": func(r *http.Request) { r.Header["X-Bad"] = []string{"a\r\nb: c"} },
	} {
		body := newCallersBody("hello")
		req := t.request(t.Context(), http.MethodPut, s.URL(), body)
		spoil(req)
		r := t.end(t.begin(t.wrap(s.Transport()), req))
		switch {
		case r.panicked != nil:
			t.Errorf("%s: panic: %v\n%s", name, r.panicked, r.stack)
			continue
		case r.err == nil:
			t.Errorf("%s: no error", name)
			if r.resp != nil {
				_ = r.resp.Body.Close()
			}
		case r.resp != nil:
			t.Errorf("%s: a response and an error", name)
		}
		body.closedOnce(t, anyTimes)
	}
	equal(t, "the number of requests that reached the server", s.Stats().Requests, 0)
}

func requestOnce(t *trial) {
	reset := errReset()
	for name, answer := range map[string]func(f *fake, s *sent) (*http.Response, error){
		"a reset connection": func(*fake, *sent) (*http.Response, error) { return nil, reset },
		"a 503":              func(f *fake, s *sent) (*http.Response, error) { return f.respond(s, 503, "no"), nil },
	} {
		var f *fake
		f = t.fake(func(_ int, s *sent) (*http.Response, error) { return answer(f, s) })
		resp, err := t.do(t.wrap(f), t.request(t.Context(), http.MethodPost, "http://orders.test/", strings.NewReader("hello")))
		if err == nil {
			equal(t, "the status", resp.StatusCode, 503)
			t.read(resp)
		} else if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the error is %v", name, err)
		}
		equal(t, "the number of times that a POST was sent after "+name, len(f.calls()), 1)
	}
}

func requestsConcurrent(t *trial) {
	const together, rounds = 8, 5
	t.over(everyProtocol(), func() http.HandlerFunc {
		var mu sync.Mutex
		here, gate := 0, make(chan struct{})
		return func(w http.ResponseWriter, r *http.Request) {
			data, _ := io.ReadAll(r.Body)
			mu.Lock()
			mine := gate
			if here++; here == together { // all are here: let them go
				close(gate)
				here, gate = 0, make(chan struct{})
			}
			mu.Unlock()
			timer := time.NewTimer(t.opts.Patience / 2)
			defer timer.Stop()
			select {
			case <-mine:
			case <-r.Context().Done():
			case <-timer.C:
				w.WriteHeader(http.StatusTeapot)
			}
			_, _ = w.Write(data)
		}
	}(), func(t *trial, s *Server, rt http.RoundTripper) {
		t.together(together, func(i int) error {
			for j := range rounds {
				want := fmt.Sprintf("body %d of %d", j, i)
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL(), strings.NewReader(want))
				if err != nil {
					return err
				}
				resp, err := rt.RoundTrip(req)
				if err != nil {
					return err
				}
				data, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusTeapot {
					return fmt.Errorf("%d requests were not sent at the same time", together)
				}
				if err != nil {
					return err
				}
				if string(data) != want {
					return fmt.Errorf("the answer is %q, want %q", data, want)
				}
			}
			return nil
		})
	})
}

// together runs f n times at once. The goroutines tell t nothing by themselves:
// if they hang, they outlive the test.
func (t *trial) together(n int, f func(i int) error) {
	t.Helper()
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	t.promptly("sending requests at the same time", func() {
		for range n {
			if err := <-errs; err != nil {
				t.Errorf("a concurrent request failed: %v", err)
			}
		}
	})
}
