package balancer_test

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// serving returns a server that answers with text.
func serving(t *testing.T, text string, secure bool) *httptest.Server {
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
	server := httptest.NewServer
	if secure {
		server = httptest.NewTLSServer
	}
	s := server(h)
	t.Cleanup(s.Close)
	return s
}

func fetch(t *testing.T, rt http.RoundTripper, url string) (string, error) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// Its old address may be another tenant's by now.
func TestNodeThatMovesIsCalledAtItsNewAddressOnly(t *testing.T) {
	backstaytest.CheckLeaks(t)
	one, two := serving(t, "one", false), serving(t, "two", false)
	at := func(s *httptest.Server) discovery.Endpoint {
		return discovery.Endpoint{ID: "pod", Addr: s.Listener.Addr().String()}
	}
	f := newFeed(at(one))
	b, err := balancer.New("orders", f, unhurried(balancer.Config{}))
	require.NoError(t, err)
	defer b.Close()
	rt := b.Layer(&http.Transport{})
	got, err := fetch(t, rt, "http://orders/")
	require.NoError(t, err)
	require.Equal(t, "one", got)

	node := b.Nodes()[0]
	f.yield(at(two))
	require.Eventually(t, func() bool { return node.Endpoint().Addr == at(two).Addr }, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool {
		got, err := fetch(t, rt, "http://orders/")
		return err == nil && got == "two"
	}, time.Minute, time.Millisecond)
	for range 20 {
		got, err := fetch(t, rt, "http://orders/")
		require.NoError(t, err)
		require.Equal(t, "two", got)
	}
	require.Same(t, node, b.Nodes()[0], "its estimates stay")
}

func TestNodesNewNameIsTheOneThatItsCertificateIsCheckedFor(t *testing.T) {
	server := serving(t, "ok", true)
	template := server.Client().Transport.(*http.Transport).Clone()
	var asked atomic.Value
	template.TLSClientConfig.VerifyConnection = func(s tls.ConnectionState) error {
		asked.Store(s.ServerName)
		return nil
	}
	named := func(name string) discovery.Endpoint {
		return discovery.Endpoint{ID: "pod", Addr: server.Listener.Addr().String(), ServerName: name}
	}
	f := newFeed(named("wrong.test"))
	b, err := balancer.New("orders", f, unhurried(balancer.Config{}))
	require.NoError(t, err)
	defer b.Close()
	rt := b.Layer(template)
	_, err = fetch(t, rt, "https://orders/")
	require.Error(t, err)
	f.yield(named("example.com"))
	require.Eventually(t, func() bool { return b.Nodes()[0].Endpoint().ServerName == "example.com" }, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool {
		got, err := fetch(t, rt, "https://orders/")
		return err == nil && got == "ok"
	}, time.Minute, time.Millisecond)
	require.Equal(t, "example.com", asked.Load())
}

func TestPolicyThatPanicsLeavesTheChoiceToChanceAndHoldsNoLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		events := new(backstaytest.Recorder)
		f := newFeed(endpoints(2)...)
		b, err := balancer.New("orders", f, &balancer.Config{
			Observer: events,
			Policy: balancer.PolicyFunc(func(nodes []*balancer.Node) balancer.Picker {
				if broken.Load() {
					panic("policy")
				}
				return balancer.RoundRobin{}.NewPicker(nodes)
			}),
		})
		require.NoError(t, err)
		require.NoError(t, b.Ready(t.Context()))
		broken.Store(true)
		require.NoError(t, b.Eject(addr(0), time.Minute))
		f.yield(endpoints(3)...)
		time.Sleep(time.Second)
		require.Len(t, b.Nodes(), 3)
		l, err := b.Acquire(t.Context(), balancer.Call{})
		require.NoError(t, err)
		l.Done(time.Time{}, success)
		require.NotEmpty(t, backstaytest.EventsOf[balancer.PolicyFailed](events))
		require.NoError(t, b.Close())
	})
}

func TestNodeIdleForAWeekAfterFailingIsNotShunnedForEver(t *testing.T) {
	b := newStatic(t, 2, nil)
	bad, good := b.Nodes()[0], b.Nodes()[1]
	now := time.Now()
	for range 10 {
		l, err := b.Acquire(t.Context(), balancer.Call{Now: now, Avoid: []*balancer.Node{good}})
		require.NoError(t, err)
		now = now.Add(time.Millisecond)
		l.Done(now, failure)
	}
	require.Greater(t, balancer.PeakEWMA{}.Cost(bad, now), float64(time.Second))
	for _, idle := range []time.Duration{time.Minute, 24 * time.Hour, 7 * 24 * time.Hour, 10 * 24 * time.Hour, 12 * 24 * time.Hour} {
		require.Less(t, balancer.PeakEWMA{}.Cost(bad, now.Add(idle)), float64(time.Second), "%v", idle)
	}
}

func TestRequestCancelEndsTheWaitForTheFirstEndpoints(t *testing.T) {
	backstaytest.CheckLeaks(t)
	b, err := balancer.New("orders", newFeed(), nil)
	require.NoError(t, err)
	defer b.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://orders/", nil)
	require.NoError(t, err)
	gone := make(chan struct{})
	req.Cancel = gone //nolint:staticcheck // http.Client's Timeout still uses it
	close(gone)
	_, err = b.Layer(&http.Transport{}).RoundTrip(req)
	require.ErrorIs(t, err, context.Canceled)
}

type closedBody struct {
	io.Reader
	closed *atomic.Int32
}

func (b closedBody) Close() error {
	b.closed.Add(1)
	return nil
}

type answers func(*http.Request) (*http.Response, error)

func (a answers) RoundTrip(req *http.Request) (*http.Response, error) { return a(req) }

func TestResponseIsClosedWhenTheClassifierPanicsOrAnErrorComesWithIt(t *testing.T) {
	for name, test := range map[string]struct {
		classifier outcome.Classifier
		err        error
	}{
		"panic": {classifier: func(*http.Request, *http.Response, error) outcome.Outcome { panic("classifier") }},
		"error": {err: io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			var closed atomic.Int32
			b, err := balancer.New("orders", discovery.Static(endpoints(1)...), &balancer.Config{Classifier: test.classifier})
			require.NoError(t, err)
			defer b.Close()
			rt := b.Layer(answers(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Header: make(http.Header), Body: closedBody{http.NoBody, &closed}}, test.err
			}))
			if test.err != nil {
				_, err = fetch(t, rt, "http://orders/")
				require.ErrorIs(t, err, test.err)
			} else {
				require.Panics(t, func() { _, _ = fetch(t, rt, "http://orders/") })
			}
			require.EqualValues(t, 1, closed.Load())
			require.Zero(t, b.InFlight())
		})
	}
}
