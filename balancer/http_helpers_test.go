package balancer_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
)

// caller is a fleet and a balancer that leads there.
type caller struct {
	*balancer.Balancer
	t     testing.TB
	fleet *backstaytest.Fleet
	rt    http.RoundTripper
}

// newCaller starts n servers and a balancer over them, by the fleet's own
// transport or what change makes of it.
func newCaller(t testing.TB, n int, fleet backstaytest.FleetConfig, cfg balancer.Config, change func(*http.Transport)) *caller {
	t.Helper()
	f := backstaytest.NewFleet(t, n, &fleet)
	cfg.H2C = fleet.Protocol == backstaytest.H2C
	if fleet.Network == nil {
		cfg = *unhurried(cfg)
	}
	b, err := balancer.New(f.Service, f.Resolver(), &cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	template := f.Transport()
	if change != nil {
		change(template)
	}
	c := &caller{Balancer: b, t: t, fleet: f, rt: b.Layer(template)}
	require.NoError(t, b.Ready(t.Context()))
	return c
}

// unhurried gives what goes over real sockets the time that it needs on a machine
// that is busy with something else.
func unhurried(cfg balancer.Config) *balancer.Config {
	cfg.ConnectTimeout = cmp.Or(cfg.ConnectTimeout, time.Minute)
	cfg.AttemptTimeout = cmp.Or(cfg.AttemptTimeout, time.Minute)
	cfg.Health.Timeout = cmp.Or(cfg.Health.Timeout, time.Minute)
	return &cfg
}

// overProtocols runs the test over HTTP/1.1, HTTP/2 and h2c on loopback, and
// looks for what it leaves behind.
func overProtocols(t *testing.T, test func(t *testing.T, p backstaytest.Protocol)) {
	t.Helper()
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.HTTP2, backstaytest.H2C} {
		t.Run(p.String(), func(t *testing.T) {
			backstaytest.CheckLeaks(t)
			test(t, p)
		})
	}
}

func (c *caller) request(ctx context.Context, method, path string, body io.Reader) *http.Request {
	c.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, c.fleet.URL()+path, body)
	require.NoError(c.t, err)
	return req
}

// get makes a request that must be answered.
func (c *caller) get(path string) *http.Response {
	c.t.Helper()
	resp, err := c.rt.RoundTrip(c.request(c.t.Context(), http.MethodGet, path, nil))
	require.NoError(c.t, err)
	return resp
}

// read reads a response to its end.
func read(t testing.TB, resp *http.Response) string {
	t.Helper()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return string(data)
}

// fetch is get and read.
func (c *caller) fetch(path string) string {
	c.t.Helper()
	return read(c.t, c.get(path))
}

// settled requires that in the end no lease is out.
func (c *caller) settled() {
	c.t.Helper()
	for _, n := range c.Nodes() {
		eventually(c.t, func() bool { return n.InFlight() == 0 && n.Awaiting() == 0 },
			"node %s has %d in flight", n, n.InFlight())
	}
}

// eventually waits for what happens on another goroutine.
func eventually(t testing.TB, ok func() bool, message string, args ...any) {
	t.Helper()
	for start := time.Now(); !ok(); <-time.After(time.Millisecond) {
		require.Less(t, time.Since(start), time.Minute, append([]any{message}, args...)...)
	}
}

// failures returns how many the nodes' breakers have counted together.
func (c *caller) failures() (n int64) {
	for _, node := range c.Nodes() {
		n += node.Breaker().Snapshot(time.Time{}).Failures
	}
	return n
}

// roundTrip is a function that is a RoundTripper and no *http.Transport.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// answer is a response as a fake transport makes it.
func answer(req *http.Request, status int, body io.ReadCloser) *http.Response {
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: body, Request: req, ContentLength: -1,
	}
}

func text(s string) io.ReadCloser { return io.NopCloser(strings.NewReader(s)) }

// watchedBody is a body that tells whether it was closed.
type watchedBody struct {
	io.Reader
	closed int
}

func (b *watchedBody) Close() error { b.closed++; return nil }

// over makes a balancer's layer over a fake, with n nodes.
func over(t testing.TB, n int, cfg *balancer.Config, f roundTrip) (*balancer.Balancer, http.RoundTripper) {
	t.Helper()
	b := newStatic(t, n, cfg)
	rt := b.Layer(f)
	return b, rt
}

func getFrom(t testing.TB, rt http.RoundTripper, url string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	return rt.RoundTrip(req)
}

var errReset = errors.New("reset")

// halfOpen brings a node's breaker to where the next calls are probes. It is for
// bubbles.
func halfOpen(t testing.TB, n *balancer.Node) {
	t.Helper()
	for n.Breaker().State() != breaker.Open {
		l, err := n.Breaker().Acquire(time.Time{})
		require.NoError(t, err)
		l.Done(time.Time{}, failure)
	}
	time.Sleep(10 * time.Second)
}
