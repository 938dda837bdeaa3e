package backstaytest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"time"
)

func retryGetBody(t *trial) {
	f := t.failing()
	req := t.request(t.Context(), http.MethodPut, "http://orders.test/", nil)
	first, opened := newCallersBody("hello"), []*callersBody(nil)
	req.Body, req.ContentLength = first, 5
	req.GetBody = func() (io.ReadCloser, error) {
		opened = append(opened, newCallersBody("hello"))
		return opened[len(opened)-1], nil
	}
	t.text(t.wrap(f), req)
	for i, call := range f.calls() {
		equal(t, fmt.Sprintf("the body of attempt %d", i), string(call.body), "hello")
		equal(t, fmt.Sprintf("the length of attempt %d", i), call.req.ContentLength, 5)
	}
	equal(t, "the number of attempts", len(f.calls()), t.opts.Attempts)
	equal(t, "how often GetBody was called", len(opened), t.opts.Attempts-1)
	for _, b := range append(opened, first) {
		b.closedOnce(t, 1)
		if reads, _, _ := b.state(); reads == 0 {
			t.Errorf("a body was opened and not sent")
		}
	}
}

func retryGetBodyFails(t *trial) {
	boom := errors.New("the caller's file is gone")
	for _, fail := range []error{nil, errReset()} {
		var f *fake
		f = t.fake(func(_ int, s *sent) (*http.Response, error) {
			if fail != nil {
				return nil, fail
			}
			return f.respond(s, 503, "no"), nil
		})
		req := t.request(t.Context(), http.MethodPut, "http://orders.test/", nil)
		body := newCallersBody("hello")
		req.Body, req.ContentLength = body, 5
		req.GetBody = func() (io.ReadCloser, error) { return nil, boom }
		resp, err := t.do(t.wrap(f), req)
		switch {
		case err == nil:
			equal(t, "the status", resp.StatusCode, 503)
			equal(t, "the answer", t.read(resp), "no")
		case fail != nil && !errors.Is(err, fail):
			t.Errorf("the error is %v, want one that is %v", err, fail)
		case fail == nil && !errors.Is(err, boom):
			t.Errorf("the error is %v, want one that is %v", err, boom)
		}
		equal(t, "the number of attempts of a request whose body is gone", len(f.calls()), 1)
		body.closedOnce(t, 1)
	}
}

func retryBodyFails(t *trial) {
	boom := errors.New("the caller's disk is on fire")
	for _, replayable := range []bool{false, true} {
		f := t.fake(nil)
		body := &callersBody{data: errReader{boom}}
		req := t.request(t.Context(), http.MethodPut, "http://orders.test/", body)
		if replayable {
			req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(errReader{boom}), nil }
		}
		t.fails(t.wrap(f), req, boom)
		equal(t, "how often a request was sent whose body fails", len(f.calls()), 1)
		body.closedOnce(t, 1)
	}
}

// retryWhole breaks the first attempt after so many bytes of a body that only
// the caller can supply.
func retryWhole(t *trial) {
	data := strings.Repeat("0123456789", 20<<10)
	for _, size := range []int{1, 1000, 64 << 10, 200 << 10} {
		for _, broken := range []int{0, 1, size / 2, size} {
			want := data[:size]
			var got []string
			var f *fake
			f = t.fake(func(n int, s *sent) (*http.Response, error) {
				if n > 0 {
					rest, err := io.ReadAll(s.req.Body)
					_ = s.req.Body.Close()
					got = append(got, string(rest))
					if err != nil {
						return nil, err
					}
					return f.respond(s, 200, "ok"), nil
				}
				_, _ = io.CopyN(io.Discard, s.req.Body, int64(broken))
				_ = s.req.Body.Close()
				return nil, errReset()
			})
			f.lazy = true
			body := newCallersBody(want)
			req := t.request(t.Context(), http.MethodPut, "http://orders.test/", body)
			req.ContentLength = int64(size)
			resp, err := t.do(t.wrap(f), req)
			if err == nil {
				t.read(resp)
			} else if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the error is %v", err)
			}
			for _, g := range got {
				if g != want {
					t.Errorf("after an attempt that broke at byte %d of %d, another sent %s", broken, size, short(g))
				}
			}
			body.closedOnce(t, 1)
		}
	}
}

// retryWaitsForBody answers early and goes on reading, as net/http may do: its
// RoundTrip can return while its writer still holds the request's body.
func retryWaitsForBody(t *trial) {
	const size = 32 << 10
	want := strings.Repeat("0123456789abcdef", size/16)
	var f *fake
	f = t.fake(func(n int, s *sent) (*http.Response, error) {
		if n < t.opts.Attempts-1 {
			_, _ = io.CopyN(io.Discard, s.req.Body, 1000)
			body := s.req.Body
			go func() {
				_, _ = io.CopyN(io.Discard, iotestOneByte{body}, 100)
				time.Sleep(2 * time.Millisecond)
				_, _ = io.CopyN(io.Discard, iotestOneByte{body}, 100)
				_ = body.Close()
			}()
			return f.respond(s, 503, "no"), nil
		}
		data, err := io.ReadAll(s.req.Body)
		_ = s.req.Body.Close()
		if err != nil || string(data) != want {
			t.Errorf("the body after an early answer is %s, %v", short(string(data)), err)
		}
		return f.respond(s, 200, "ok"), nil
	})
	f.lazy = true
	body := newCallersBody(want)
	req := t.request(t.Context(), http.MethodPut, "http://orders.test/", body)
	req.ContentLength = size
	t.text(t.wrap(f), req) // sent again or not: the answer is one of the two
	body.closedOnce(t, 1)
}

// iotestOneByte reads a byte at a time.
type iotestOneByte struct{ io.Reader }

func (r iotestOneByte) Read(p []byte) (int, error) { return r.Reader.Read(p[:1]) }

func retryKey(t *trial) {
	f := t.failing()
	req := t.request(t.Context(), http.MethodPost, "http://orders.test/", strings.NewReader("hello"))
	req.Header.Set("Idempotency-Key", "k-1")
	t.text(t.wrap(f), req)
	calls := f.calls()
	equal(t, "the number of attempts of a POST with an Idempotency-Key", len(calls), t.opts.Attempts)
	for _, call := range calls {
		equal(t, "the Idempotency-Key", strings.Join(call.header["Idempotency-Key"], ","), "k-1")
		equal(t, "the body", string(call.body), "hello")
	}
}

func retryTrailers(t *trial) {
	f := t.failing()
	body := newCallersBody("hello")
	req := t.request(t.Context(), http.MethodPut, "http://orders.test/", body)
	req.Trailer = http.Header{"X-Sum": nil}
	resp := t.get(t.wrap(f), req)
	t.read(resp)
	equal(t, "the number of attempts of a request with trailers and without GetBody", len(f.calls()), 1)
	body.closedOnce(t, 1)
}

// retryOwnRequest is for what stands below and writes into the request that it
// was given, as a signer does to its clone.
func retryOwnRequest(t *trial) {
	f := t.failing()
	seen := make(map[*http.Request]bool)
	f.before = func(_ int, req *http.Request) {
		if seen[req] {
			t.Errorf("two attempts were made with the same *http.Request")
		}
		seen[req] = true
	}
	req := t.request(t.Context(), http.MethodPut, "http://orders.test/", strings.NewReader("hello"))
	t.text(t.wrap(f), req)
	for i, call := range f.calls() {
		equal(t, fmt.Sprintf("the body of attempt %d", i), string(call.body), "hello")
	}
}
