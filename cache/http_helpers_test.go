package cache_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/cache"
)

// transport is a RoundTripper that counts and is made of a function.
type transport struct {
	calls atomic.Int32
	do    func(*http.Request) (*http.Response, error)
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.calls.Add(1)
	if req.Body != nil {
		_ = req.Body.Close()
	}
	return t.do(req)
}

// text is a 200 with a body of unknown length and the fields, given by name and
// value.
func text(body string, fields ...string) *http.Response {
	resp := &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: -1,
		TransferEncoding: []string{"chunked"},
	}
	for i := 0; i < len(fields); i += 2 {
		resp.Header.Add(fields[i], fields[i+1])
	}
	return resp
}

// answers is a transport that always answers with what f makes.
func answers(f func() *http.Response) *transport {
	return &transport{do: func(req *http.Request) (*http.Response, error) {
		resp := f()
		resp.Request = req
		return resp, nil
	}}
}

func newHTTP(t testing.TB, cfg *cache.HTTPConfig) *cache.HTTP {
	t.Helper()
	if cfg == nil {
		cfg = &cache.HTTPConfig{}
	}
	if cfg.Jitter == 0 {
		cfg.Jitter = -1
	}
	h, err := cache.NewHTTP(cfg)
	require.NoError(t, err)
	return h
}

func newRequest(t testing.TB, method, url string, fields ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	for i := 0; i < len(fields); i += 2 {
		req.Header.Add(fields[i], fields[i+1])
	}
	return req
}

// fetch sends a request and reads and closes the answer's body.
func fetch(t testing.TB, rt http.RoundTripper, req *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	if resp.Body == nil {
		return resp, ""
	}
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp, string(body)
}

func get(t testing.TB, rt http.RoundTripper, url string, fields ...string) (*http.Response, string) {
	t.Helper()
	return fetch(t, rt, newRequest(t, http.MethodGet, url, fields...))
}

// server runs a handler behind a layer of a fresh cache and counts the requests
// that get through.
func server(t *testing.T, cfg *cache.HTTPConfig, handler http.HandlerFunc) (rt http.RoundTripper, url string, requests *atomic.Int32) {
	t.Helper()
	requests = new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		requests.Add(1)
		handler(w, req)
	}))
	t.Cleanup(s.Close)
	base := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(base.CloseIdleConnections)
	return newHTTP(t, cfg).Layer(base), s.URL, requests
}

// body is a response's body that counts and breaks as told.
type body struct {
	io.Reader
	closed atomic.Int32
}

func (b *body) Close() error {
	b.closed.Add(1)
	return nil
}

var errBroken = errors.New("broken")

// broken reads s and then fails.
func broken(s string) io.Reader { return io.MultiReader(strings.NewReader(s), failing{}) }

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBroken }
