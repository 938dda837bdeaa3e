package backstaytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"
)

// TransportOptions says what a layer may do beyond handing requests on, so that
// [TestTransport] asks it for no less and no more.
type TransportOptions struct {
	// Attempts is how often the layer may send a request that may be repeated:
	// one with an idempotent method, or with an Idempotency-Key. The layer is
	// to be set up so that it makes that many of a GET that is answered 503,
	// within a few milliseconds. Default: 1.
	Attempts int
	// Refuse builds the layer in a state in which it refuses every request
	// without sending it, such as a breaker that is open. Default: nil, which
	// skips what is asked of refusals.
	Refuse func(next http.RoundTripper) http.RoundTripper
	// OverHTTP means that the layer works only around an *http.Transport, and
	// may replace it by others that are set up alike; what is asked by means of
	// fakes is skipped. Default: false.
	OverHTTP bool
	// Skip names subtests, as TestTransport names them, that do not apply to
	// the layer: say why, where you list them. Default: none.
	Skip []string
	// Patience is how long "promptly" and "in the end" may take. Default: 5s.
	Patience time.Duration
}

// TestTransport checks that a layer keeps the contract of [http.RoundTripper]
// and does not stand in the way of what net/http can do: each rule is a
// subtest. It calls layer once or more in each, around transports of its own:
// fakes that watch what reaches them, and real ones to real servers on
// loopback, over HTTP/1.1, HTTP/2 and h2c.
//
//	func TestLayerIsATransport(t *testing.T) {
//		backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
//			br, err := breaker.New("orders", nil)
//			require.NoError(t, err)
//			return br.Layer(next)
//		}, nil)
//	}
//
// So layer returns a fresh layer each time, with fresh state. What it returns is
// closed at the subtest's end if it has a method Close() error. The layer's
// limits must allow for several dozen requests in a row, eight at a time.
//
// The subtests look for leaked goroutines and so must not run beside parallel
// tests.
func TestTransport(t *testing.T, layer func(http.RoundTripper) http.RoundTripper, opts *TransportOptions) {
	t.Helper()
	o := opts.withDefaults()
	checks := transportChecks()
	for _, name := range o.Skip {
		if !slices.ContainsFunc(checks, func(c check) bool { return c.name == name }) {
			t.Errorf("backstaytest: TransportOptions.Skip names %q, which is no subtest", name)
		}
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			if slices.Contains(o.Skip, c.name) {
				t.Skip("by TransportOptions.Skip")
			}
			if reason := c.needless(o); reason != "" {
				t.Skip(reason)
			}
			c.start(t, layer, o)
		})
	}
}

func (o *TransportOptions) withDefaults() TransportOptions {
	var c TransportOptions
	if o != nil {
		c = *o
	}
	c.Attempts = max(c.Attempts, 1)
	if c.Patience <= 0 {
		c.Patience = 5 * time.Second
	}
	return c
}

// check is one rule.
type check struct {
	name  string
	run   func(*trial)
	needs need
}

// need is what a check asks of the layer or the suite.
type need uint8

const (
	fakes   need = 1 << iota // a transport that is not net/http's
	retries                  // a layer that repeats
	refusal                  // TransportOptions.Refuse
)

// needless says why a check does not apply, or "".
func (c check) needless(o TransportOptions) string {
	switch {
	case c.needs&fakes != 0 && o.OverHTTP:
		return "the layer works only around an *http.Transport"
	case c.needs&retries != 0 && o.Attempts < 2:
		return "the layer makes one attempt"
	case c.needs&refusal != 0 && o.Refuse == nil:
		return "TransportOptions.Refuse is not set"
	}
	return ""
}

// start runs the check for t, which need not be a real test.
func (c check) start(t testing.TB, layer func(http.RoundTripper) http.RoundTripper, o TransportOptions) {
	t.Helper()
	checkLeaks(t, o.Patience)
	c.run(&trial{rig: rig{t, o.Patience}, opts: o, layer: layer})
}

func transportChecks() []check {
	return slices.Concat(requestChecks(), requestBodyChecks(), responseChecks(), contextChecks(), errorChecks(), connectionChecks(), retryChecks())
}

// trial is one run of a check.
type trial struct {
	rig
	opts  TransportOptions
	layer func(http.RoundTripper) http.RoundTripper
}

// wrap puts the layer around next.
func (t *trial) wrap(next http.RoundTripper) http.RoundTripper { return t.build(t.layer, next) }

func (t *trial) build(layer func(http.RoundTripper) http.RoundTripper, next http.RoundTripper) http.RoundTripper {
	t.Helper()
	rt := layer(next)
	if c, ok := rt.(io.Closer); ok {
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Errorf("closing the layer: %v", err)
			}
		})
	}
	return rt
}

// serve starts a server on loopback whose certificate is good for its address.
func (t *trial) serve(p Protocol, h http.HandlerFunc) *Server {
	t.Helper()
	s := &Server{ID: "server", t: t, protocol: p, names: []string{"127.0.0.1"}, handler: noStore(h)}
	if p.secure() {
		s.Authority = NewAuthority(t)
	}
	s.start()
	return s
}

// noStore keeps caches out of the way of what is asked.
func noStore(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		h.ServeHTTP(w, r)
	})
}

// over runs f for each protocol, with a server of h and the layer around a
// transport to it.
func (t *trial) over(protocols []Protocol, h http.HandlerFunc, f func(t *trial, s *Server, rt http.RoundTripper)) {
	t.Helper()
	for _, p := range protocols {
		s := t.serve(p, h)
		named := *t
		named.TB = prefixed{t.TB, p.String() + ": "}
		f(&named, s, t.wrap(s.Transport()))
	}
}

// everyProtocol is what over is mostly called with.
func everyProtocol() []Protocol { return []Protocol{HTTP1, HTTP2, H2C} }

// prefixed says in which protocol something went wrong.
type prefixed struct {
	testing.TB
	prefix string
}

func (p prefixed) Errorf(format string, a ...any) {
	p.Helper()
	p.TB.Errorf("%s", p.prefix+fmt.Sprintf(format, a...))
}

func (p prefixed) Fatalf(format string, a ...any) {
	p.Helper()
	p.TB.Fatalf("%s", p.prefix+fmt.Sprintf(format, a...))
}

// request makes a request; a nil body is none.
func (t *trial) request(ctx context.Context, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		t.Fatalf("making a request: %v", err)
	}
	return req
}

// result is how a round trip ended.
type result struct {
	resp     *http.Response
	err      error
	panicked any
	stack    []byte
	exited   bool // by runtime.Goexit
}

// begin starts a round trip on a goroutine of its own.
func (t *trial) begin(rt http.RoundTripper, req *http.Request) <-chan result {
	done := make(chan result, 1)
	go func() {
		r := result{exited: true}
		defer func() {
			if p := recover(); p != nil {
				r.panicked, r.exited, r.stack = p, false, debug.Stack()
			}
			done <- r
		}()
		r.resp, r.err = rt.RoundTrip(req)
		r.exited = false
	}()
	return done
}

// end waits for a round trip, however it ends.
func (t *trial) end(done <-chan result) result {
	t.Helper()
	timer := time.NewTimer(t.opts.Patience)
	defer timer.Stop()
	select {
	case r := <-done:
		return r
	case <-timer.C:
		t.Fatalf("RoundTrip has not returned within %v", t.opts.Patience)
		runtime.Goexit() // a TB whose Fatalf returns is no TB
		return result{}
	}
}

// returned waits for a round trip that returns either a response or an error.
func (t *trial) returned(done <-chan result) (*http.Response, error) {
	t.Helper()
	r := t.end(done)
	switch {
	case r.panicked != nil:
		t.Fatalf("RoundTrip panicked: %v\n%s", r.panicked, r.stack)
	case r.exited:
		t.Fatalf("RoundTrip ended its goroutine")
	case r.resp != nil && r.err != nil:
		t.Fatalf("RoundTrip returned both a response (%s) and an error: %v", r.resp.Status, r.err)
	case r.resp == nil && r.err == nil:
		t.Fatalf("RoundTrip returned neither a response nor an error")
	}
	return r.resp, r.err
}

// do makes a round trip that returns either a response or an error.
func (t *trial) do(rt http.RoundTripper, req *http.Request) (*http.Response, error) {
	t.Helper()
	return t.returned(t.begin(rt, req))
}

// fails makes a round trip whose error must be want.
func (t *trial) fails(rt http.RoundTripper, req *http.Request, want error) {
	t.Helper()
	_ = t.failure(rt, req, want)
}

// failure makes a round trip whose error must be want, and returns the error.
func (t *trial) failure(rt http.RoundTripper, req *http.Request, want error) error {
	t.Helper()
	resp, err := t.do(rt, req)
	if err == nil {
		t.Errorf("the answer is %s, want the error %v", resp.Status, want)
		t.read(resp)
	} else if !errors.Is(err, want) {
		t.Errorf("the error is %v, want %v", err, want)
	}
	return err
}

// get makes a round trip that must succeed.
func (t *trial) get(rt http.RoundTripper, req *http.Request) *http.Response {
	t.Helper()
	resp, err := t.do(rt, req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL.Path, err)
	}
	return resp
}

// text makes a round trip that must succeed and reads the answer to its end.
func (t *trial) text(rt http.RoundTripper, req *http.Request) string {
	t.Helper()
	return t.read(t.get(rt, req))
}

// read reads a response's body to its end, promptly, and closes it.
func (t *trial) read(resp *http.Response) string {
	t.Helper()
	var data []byte
	var err error
	t.promptly("reading the response's body", func() {
		data, err = io.ReadAll(resp.Body)
	})
	if err != nil {
		t.Fatalf("reading the response's body: %v after %d bytes", err, len(data))
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatalf("closing the response's body: %v", err)
	}
	return string(data)
}
