package backstay_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// fakes and clients

// roundTripper is a function that is an http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// answer is a response with a body that counts its closes.
func answer(req *http.Request, status int, body string) *http.Response {
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)), Request: req,
	}
}

// always is a transport that answers every request with status.
func always(status int) roundTripper {
	return func(req *http.Request) (*http.Response, error) {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return answer(req, status, "ok"), nil
	}
}

// recording is a transport that remembers what reaches it.
type recording struct {
	next http.RoundTripper

	mu   sync.Mutex
	reqs []*http.Request
}

func (r *recording) RoundTrip(req *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.reqs = append(r.reqs, req)
	r.mu.Unlock()
	return r.next.RoundTrip(req)
}

func (r *recording) requests() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*http.Request(nil), r.reqs...)
}

// hosts lists where the requests went.
func (r *recording) hosts() []string {
	var hosts []string
	for _, req := range r.requests() {
		hosts = append(hosts, req.URL.Host)
	}
	return hosts
}

// newClient returns a client that is closed when the test ends.
func newClient(t testing.TB, cfg *backstay.Config) *backstay.Client {
	t.Helper()
	c, err := backstay.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// fleetClient returns a client for the fleet's service, by default settings but
// for what change changes.
func fleetClient(t testing.TB, fleet *backstaytest.Fleet, change func(*backstay.Config, *backstay.Service)) *backstay.Client {
	t.Helper()
	s := backstay.Service{Resolver: fleet.Resolver()}
	cfg := &backstay.Config{Base: fleet.Transport()}
	if change != nil {
		change(cfg, &s)
	}
	if cfg.Services == nil {
		cfg.Services = make(map[string]backstay.Service)
	}
	cfg.Services[fleet.Service] = s
	return newClient(t, cfg)
}

// once makes calls single attempts.
func once() retry.Config { return retry.Config{MaxAttempts: -1} }

// calls

// get reads the answer to a GET.
func get(t testing.TB, c *backstay.Client, url string) (status int, body string) {
	t.Helper()
	resp, err := c.Get(url)
	require.NoError(t, err)
	return read(t, resp)
}

// read reads a response to its end.
func read(t testing.TB, resp *http.Response) (status int, body string) {
	t.Helper()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode, string(text)
}

// send makes a request without an http.Client, whose redirects, cookies and
// timeouts are no part of what is tested.
func send(t testing.TB, ctx context.Context, rt http.RoundTripper, method, url, body string) (*http.Response, error) {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, r)
	require.NoError(t, err)
	return rt.RoundTrip(req)
}

// try makes a call whose answer does not matter, and returns its error, or the
// status where that is a failure's.
func try(ctx context.Context, c *backstay.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode >= 500 {
		err = errors.Join(err, outcome.StatusError(resp.StatusCode))
	}
	return errors.Join(err, resp.Body.Close())
}

// logged makes a GET and returns its record.
func logged(t testing.TB, c *backstay.Client, url string) call.Record {
	t.Helper()
	ctx, log := call.WithLog(t.Context())
	resp, err := send(t, ctx, c, http.MethodGet, url, "")
	require.NoError(t, err)
	read(t, resp)
	calls := log.Calls()
	require.Len(t, calls, 1)
	return calls[0]
}

// discovery

// oneNode finds one endpoint for every service, at an address of its own.
func oneNode(addr string) discovery.Resolver {
	return discovery.Static(discovery.Endpoint{Addr: addr})
}

// itself finds one endpoint for every service: at the service's name.
var itself = discovery.ResolverFunc(func(ctx context.Context, service string) iter.Seq2[discovery.Set, error] {
	return discovery.Static(discovery.Endpoint{Addr: service}).Watch(ctx, service)
})

// silent never finds anything.
var silent = discovery.ResolverFunc(func(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
	return func(func(discovery.Set, error) bool) { <-ctx.Done() }
})

// failing says nothing but err.
func failing(err error) discovery.Resolver {
	return discovery.ResolverFunc(func(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
		return func(yield func(discovery.Set, error) bool) {
			if yield(discovery.Set{}, err) {
				<-ctx.Done()
			}
		}
	})
}

// counted counts the watches of a resolver, those under way and all there were.
type counted struct {
	discovery.Resolver

	mu         sync.Mutex
	open, ever int
}

func (c *counted) Watch(ctx context.Context, service string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		c.count(1)
		defer c.count(-1)
		c.Resolver.Watch(ctx, service)(yield)
	}
}

func (c *counted) count(d int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open += d
	c.ever += max(d, 0)
}

func (c *counted) watches() (open, ever int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open, c.ever
}

// events

func finished(rec *backstaytest.Recorder) []call.Record {
	var records []call.Record
	for _, e := range backstaytest.EventsOf[call.Finished](rec) {
		records = append(records, e.Record)
	}
	return records
}

// eventually waits in real time until ok; it fails after ten seconds.
func eventually(t testing.TB, ok func() bool, what string) {
	t.Helper()
	require.Eventually(t, ok, 10*time.Second, 5*time.Millisecond, what)
}

// quietly keeps what slog's default logger is told out of the test's output.
func quietly(t *testing.T) {
	t.Helper()
	old := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	t.Cleanup(func() { slog.SetDefault(old) })
}
