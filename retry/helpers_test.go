package retry_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/retry"
)

var (
	errBoom  = errors.New("boom")
	errReset = errors.New("connection reset")
)

func newRetrier(t testing.TB, cfg *retry.Config) *retry.Retrier {
	t.Helper()
	r, err := retry.New(cfg)
	require.NoError(t, err)
	return r
}

func newBudget(t testing.TB, cfg *retry.BudgetConfig) *retry.Budget {
	t.Helper()
	b, err := retry.NewBudget(cfg)
	require.NoError(t, err)
	return b
}

// unlimited is a budget that is off.
func unlimited(t testing.TB) *retry.Budget {
	return newBudget(t, &retry.BudgetConfig{Ratio: -1})
}

// eager is a configuration that retries at once.
func eager(change ...func(*retry.Config)) *retry.Config {
	c := &retry.Config{Backoff: retry.Backoff{Base: -1, ThrottledBase: -1}}
	for _, f := range change {
		f(c)
	}
	return c
}

// body is a response's or request's body that knows what was done to it.
type body struct {
	io.Reader
	reads, closes atomic.Int32
	onClose       func()
}

func newBody(text string) *body { return &body{Reader: strings.NewReader(text)} }

func (b *body) Read(p []byte) (int, error) {
	b.reads.Add(1)
	return b.Reader.Read(p)
}

func (b *body) Close() error {
	b.closes.Add(1)
	if b.onClose != nil {
		b.onClose()
	}
	return nil
}

func response(status int, b io.ReadCloser, headers ...string) *http.Response {
	r := &http.Response{
		StatusCode: status, ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: b, ContentLength: -1,
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

// script is a transport whose nth answer is the nth step's, or the last one's.
// It reads and closes request bodies as a transport must.
type script struct {
	steps []func(req *http.Request) (*http.Response, error)

	mu     sync.Mutex
	reqs   []*http.Request
	bodies []string // what it read of each request's body
	idle   int
}

func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	s.mu.Lock()
	n := len(s.reqs)
	s.reqs = append(s.reqs, req)
	s.mu.Unlock()
	text := ""
	if req.Body != nil {
		b, err := io.ReadAll(req.Body)
		_ = req.Body.Close()
		if err != nil {
			return nil, err
		}
		text = string(b)
	}
	s.mu.Lock()
	s.bodies = append(s.bodies, text)
	s.mu.Unlock()
	resp, err := s.steps[min(n, len(s.steps)-1)](req)
	if resp != nil {
		resp.Request = req
	}
	return resp, err
}

func (s *script) CloseIdleConnections() { s.idle++ }

func (s *script) attempts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.reqs)
}

// answers is a script of statuses, whose bodies bear their number.
func answers(statuses ...int) (*script, []*body) {
	s := new(script)
	bodies := make([]*body, len(statuses))
	for i, status := range statuses {
		bodies[i] = newBody("answer " + string(rune('1'+i)))
		s.steps = append(s.steps, func(*http.Request) (*http.Response, error) {
			return response(status, bodies[i]), nil
		})
	}
	return s, bodies
}

func fails(err error) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

func replies(status int, text string, headers ...string) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) {
		return response(status, io.NopCloser(strings.NewReader(text)), headers...), nil
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func newRequest(t testing.TB, ctx context.Context, method string, b io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, "http://orders/items", b)
	require.NoError(t, err)
	return req
}

func readAll(t testing.TB, resp *http.Response) string {
	t.Helper()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return string(text)
}

// recorder keeps the events it sees.
type recorder struct {
	mu     sync.Mutex
	events []event.Event
}

func (r *recorder) Observe(_ context.Context, e event.Event) {
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
}

func (r *recorder) reasons() []retry.Reason {
	r.mu.Lock()
	defer r.mu.Unlock()
	var reasons []retry.Reason
	for _, e := range r.events {
		if g, ok := e.(retry.GaveUp); ok {
			reasons = append(reasons, g.Reason)
		}
	}
	return reasons
}

// refusal is what a breaker's or a limit's error looks like.
type refusal struct{}

func (refusal) Error() string                 { return "breaker is open" }
func (refusal) Refused() bool                 { return true }
func (refusal) NotSent() bool                 { return true }
func (refusal) RetryAfterHint() time.Duration { return time.Second }

// unsent is the error of an attempt of which nothing was sent.
type unsent struct{}

func (unsent) Error() string { return "never sent" }
func (unsent) NotSent() bool { return true }

// overHTTP runs the test against a real server over HTTP/1.1 and HTTP/2. The
// transport is the server's own client's.
func overHTTP(t *testing.T, handler http.HandlerFunc, test func(t *testing.T, server *httptest.Server, base *http.Transport)) {
	t.Helper()
	for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(proto, func(t *testing.T) {
			server := httptest.NewUnstartedServer(handler)
			server.EnableHTTP2 = proto == "HTTP/2"
			server.StartTLS()
			defer server.Close()
			test(t, server, server.Client().Transport.(*http.Transport))
		})
	}
}

// observeRetried calls f with each Retried.
func observeRetried(f func()) event.Observer {
	return event.ObserverFunc(func(_ context.Context, e event.Event) {
		if _, ok := e.(retry.Retried); ok {
			f()
		}
	})
}
