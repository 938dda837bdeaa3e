package balancer_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// byHost is a layer that makes a balancer for each host it meets, with that host
// as its only node: the suite sends to servers of its own.
type byHost struct {
	t    testing.TB
	cfg  balancer.Config
	next http.RoundTripper

	mu     sync.Mutex
	layers map[string]http.RoundTripper
	all    []*balancer.Balancer
}

func (h *byHost) layer(req *http.Request) http.RoundTripper {
	host := "nowhere.test"
	if req.URL != nil && req.URL.Host != "" {
		host = req.URL.Host
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if rt := h.layers[host]; rt != nil {
		return rt
	}
	b, err := balancer.New(host, discovery.Static(discovery.Endpoint{Addr: host}), unhurried(h.cfg))
	require.NoError(h.t, err)
	h.all = append(h.all, b)
	rt := b.Layer(h.next)
	h.layers[host] = rt
	return rt
}

func (h *byHost) RoundTrip(req *http.Request) (*http.Response, error) {
	return h.layer(req).RoundTrip(req)
}

func (h *byHost) CloseIdleConnections() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.layers) == 0 {
		h.next.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	}
	for _, rt := range h.layers {
		rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	}
}

// Close closes the balancers, after which nothing of theirs may be left, and
// requires that all leases have been given back.
func (h *byHost) Close() error {
	for _, b := range h.all {
		for _, n := range b.Nodes() {
			if n.InFlight() != 0 || n.Awaiting() != 0 {
				h.t.Errorf("node %s has %d in flight, %d awaiting", n, n.InFlight(), n.Awaiting())
			}
		}
		if err := b.Close(); err != nil {
			return err
		}
	}
	return nil
}

func TestLayerIsATransport(t *testing.T) {
	for name, cfg := range map[string]balancer.Config{"by default": {}, "without timeouts": {AttemptTimeout: -1, ConnectTimeout: -1}, "on demand": {OnDemand: true}, "with connections ahead": {Conns: balancer.ConnConfig{Min: 2, MaxRequests: 20, HTTP2Conns: 2}}} {
		t.Run(name, func(t *testing.T) {
			// Over a fake the URL bears the node's address: see
			// TestOverAnotherRoundTripperTheURLIsRewritten, and below.
			skip := []string{"request reaches the transport as it was"}
			if cfg.Conns.Min > 0 { // there are more connections than calls
				skip = append(skip, "connections are used again", "HTTP/2 shares a connection")
			}
			layer := func(next http.RoundTripper) http.RoundTripper {
				return &byHost{t: t, cfg: cfg, next: next, layers: make(map[string]http.RoundTripper)}
			}
			backstaytest.TestTransport(t, layer, &backstaytest.TransportOptions{
				Patience: time.Minute,
				Skip:     skip,
				Refuse: func(next http.RoundTripper) http.RoundTripper {
					h := layer(next).(*byHost)
					h.cfg.MaxConcurrency = 1
					return &refusing{h}
				},
			})
		})
	}
}

type testKey struct{}

func TestAllButTheAddressReachesTheTransportAsItWas(t *testing.T) {
	var got *http.Request
	_, rt := over(t, 1, nil, func(req *http.Request) (*http.Response, error) {
		got = req
		return answer(req, http.StatusOK, http.NoBody), nil
	})
	req, err := http.NewRequestWithContext(context.WithValue(t.Context(), testKey{}, "kept"), http.MethodPost, "http://orders/x", strings.NewReader("hello"))
	require.NoError(t, err)
	req.Header = http.Header{"X-Many": {"a", "b"}, "User-Agent": nil}
	req.Trailer = http.Header{"X-Sum": nil}
	req.TransferEncoding = []string{"chunked"}
	req.Close = true
	_, err = rt.RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, "kept", got.Context().Value(testKey{}))
	require.Equal(t, req.Header, got.Header)
	require.Equal(t, req.Trailer, got.Trailer)
	require.Equal(t, req.TransferEncoding, got.TransferEncoding)
	require.Equal(t, req.ContentLength, got.ContentLength)
	require.Equal(t, req.Method, got.Method)
	require.True(t, got.Close)
	require.NotNil(t, got.GetBody)
	require.Equal(t, "orders", got.Host)
}

// refusing is a layer all of whose nodes' breakers are open.
type refusing struct{ *byHost }

func (r *refusing) RoundTrip(req *http.Request) (*http.Response, error) {
	rt := r.layer(req)
	for _, b := range r.all {
		require.NoError(r.t, b.Ready(r.t.Context()))
		for _, n := range b.Nodes() {
			n.Breaker().ForceOpen()
		}
	}
	return rt.RoundTrip(req)
}
