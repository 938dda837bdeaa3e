package backstay_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/retry"
)

func TestChainsFirstLayerIsTheOutermost(t *testing.T) {
	var order []string
	tell := func(name string) func(http.RoundTripper) http.RoundTripper {
		return plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) {
			order = append(order, name)
			return next.RoundTrip(req)
		})
	}
	rt := backstay.Chain(always(200), tell("a"), nil, tell("b"), tell("c"))
	resp, err := send(t, t.Context(), rt, http.MethodGet, "http://orders", "")
	require.NoError(t, err)
	read(t, resp)
	require.Equal(t, []string{"a", "b", "c"}, order)
}

func TestChainWithoutABaseIsNetHTTPsDefault(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	resp, err := send(t, t.Context(), backstay.Chain(nil), http.MethodGet, fleet.Server(0).URL(), "")
	require.NoError(t, err)
	read(t, resp)
}

func newRetrier(t *testing.T, cfg retry.Config) *retry.Retrier {
	t.Helper()
	r, err := retry.New(&cfg)
	require.NoError(t, err)
	return r
}

func newBreaker(t *testing.T, cfg breaker.Config) *breaker.Breaker {
	t.Helper()
	b, err := breaker.New("orders", &cfg)
	require.NoError(t, err)
	return b
}

// A layer of the user's in the middle that does not say what it wraps must not
// hide those below it from those above.
func TestChainKeepsItsLayersTogetherAcrossOneThatHidesWhatItWraps(t *testing.T) {
	pass := plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) { return next.RoundTrip(req) })
	base := &recording{next: always(503)}
	br := newBreaker(t, breaker.Config{Consecutive: 2})
	r := newRetrier(t, retry.Config{MaxAttempts: 5, Backoff: retry.Backoff{Base: -1}})
	rt := backstay.Chain(pass(base), r.Layer, pass, br.Layer)
	ctx, log := call.WithLog(t.Context())
	resp, err := send(t, ctx, rt, http.MethodGet, "http://orders", "")
	require.NoError(t, err)
	status, body := read(t, resp)
	require.Equal(t, 503, status)
	require.Equal(t, "ok", body, "whole, although the third attempt was refused")
	require.Len(t, base.requests(), 2)
	calls := log.Calls()
	require.Len(t, calls, 1, "one call, whatever layers it passes")
	require.Len(t, calls[0].Attempts, 2)
	require.Len(t, calls[0].Refusals, 1)
}

// Inside a retry each attempt counts; outside, each call.
func TestBreakerCountsAttemptsInsideARetryAndCallsOutside(t *testing.T) {
	retries := retry.Config{MaxAttempts: 3, Backoff: retry.Backoff{Base: -1}}
	inner, outer := newBreaker(t, breaker.Config{}), newBreaker(t, breaker.Config{})
	rt := backstay.Chain(always(503), outer.Layer, newRetrier(t, retries).Layer, inner.Layer)
	for range 2 {
		resp, err := send(t, t.Context(), rt, http.MethodGet, "http://orders", "")
		require.NoError(t, err)
		read(t, resp)
	}
	require.EqualValues(t, 2, outer.Snapshot(time.Time{}).Calls)
	require.EqualValues(t, 6, inner.Snapshot(time.Time{}).Calls)
}

func TestTwoRetriesInAChainDoNotMultiply(t *testing.T) {
	base := &recording{next: always(503)}
	retries := retry.Config{MaxAttempts: 3, Backoff: retry.Backoff{Base: -1}}
	inner, outer := newRetrier(t, retries), newRetrier(t, retries)
	rt := backstay.Chain(base, outer.Layer, inner.Layer)
	resp, err := send(t, t.Context(), rt, http.MethodGet, "http://orders", "")
	require.NoError(t, err)
	read(t, resp)
	require.Len(t, base.requests(), 3)
}

// A retry around the client, which repeats by itself, is another matter: they
// are not one chain, unless they are made so.
func TestRetryAroundTheClientKnowsOfItsOwn(t *testing.T) {
	base := &recording{next: always(503)}
	c := newClient(t, &backstay.Config{Base: base, Default: backstay.Service{Resolver: itself, Retry: atOnce}})
	rt := newRetrier(t, retry.Config{MaxAttempts: 3, Backoff: retry.Backoff{Base: -1}}).Layer(c)
	resp, err := send(t, t.Context(), rt, http.MethodGet, "http://orders", "")
	require.NoError(t, err)
	read(t, resp)
	require.Len(t, base.requests(), 9, "documented: two clients, one around the other, do multiply")
}

func TestEachRequestThroughAChainIsOneCall(t *testing.T) {
	rt := backstay.Chain(roundTripper(func(req *http.Request) (*http.Response, error) {
		resp := answer(req, 200, "")
		if req.URL.Path == "/to" {
			resp = answer(req, 302, "")
			resp.Header.Set("Location", "/there")
		}
		return resp, nil
	}), newRetrier(t, retry.Config{}).Layer)
	ctx, log := call.WithLog(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://Orders/to", nil)
	require.NoError(t, err)
	resp, err := (&http.Client{Transport: rt}).Do(req)
	require.NoError(t, err)
	read(t, resp)
	calls := log.Calls()
	require.Len(t, calls, 2)
	for i, path := range []string{"/to", "/there"} {
		require.Equal(t, path, calls[i].Path)
		require.Equal(t, "orders", strings.ToLower(calls[i].Service))
		require.NotZero(t, calls[i].Status)
	}
}

func TestChainPassesOnTheWishToCloseIdleConnections(t *testing.T) {
	base := new(closeCount)
	rt := backstay.Chain(base, newBreaker(t, breaker.Config{}).Layer, newRetrier(t, retry.Config{}).Layer)
	rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	require.EqualValues(t, 1, base.closed.Load())
	require.NotNil(t, rt.(interface{ Unwrap() http.RoundTripper }).Unwrap())
}

// The client as the transport of a client that exists, as the README has it.
func TestClientIsTheTransportOfAClientThatExists(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	c := fleetClient(t, fleet, nil)
	existing := &http.Client{Transport: backstay.Chain(c, newBreaker(t, breaker.Config{}).Layer)}
	ctx, log := call.WithLog(context.WithoutCancel(t.Context()))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fleet.URL(), nil)
	require.NoError(t, err)
	resp, err := existing.Do(req)
	require.NoError(t, err)
	read(t, resp)
	existing.CloseIdleConnections()
	eventually(t, func() bool { return fleet.Stats().OpenConnections == 0 }, "closed")
	require.NotEmpty(t, log.Calls())
}

func TestChainInAChainDoesNotMultiplyRetries(t *testing.T) {
	sent := 0
	base := roundTripper(func(req *http.Request) (*http.Response, error) {
		sent++
		return answer(req, 503, ""), nil
	})
	inner, err := retry.New(&atOnce)
	require.NoError(t, err)
	outer, err := retry.New(&atOnce)
	require.NoError(t, err)
	pass := plain(func(next http.RoundTripper, req *http.Request) (*http.Response, error) { return next.RoundTrip(req) })
	within := backstay.Chain(base, inner.Layer)
	for name, rt := range map[string]http.RoundTripper{
		"directly":          backstay.Chain(within, outer.Layer),
		"below a stranger":  backstay.Chain(within, outer.Layer, pass),
		"around a stranger": backstay.Chain(backstay.Chain(base, inner.Layer, pass), outer.Layer),
	} {
		t.Run(name, func(t *testing.T) {
			sent = 0
			ctx, log := call.WithLog(t.Context())
			resp, err := send(t, ctx, rt, http.MethodGet, "http://orders", "")
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, 3, sent)
			require.Len(t, log.Calls(), 1)
		})
	}
}
