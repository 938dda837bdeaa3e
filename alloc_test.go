package backstay_test

import (
	"context"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/event"
)

// instant is a transport that costs next to nothing.
var instant = roundTripper(func(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, Header: emptyHeader, Body: emptyBody{}, Request: req}, nil
})

var emptyHeader = make(http.Header)

type emptyBody struct{}

func (emptyBody) Read([]byte) (int, error) { return 0, io.EOF }
func (emptyBody) Close() error             { return nil }

// perCall returns how many allocations a call makes.
func perCall(t *testing.T, ctx context.Context, c *http.Client) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/x", nil)
	require.NoError(t, err)
	return testing.AllocsPerRun(1000, func() {
		resp, err := c.Do(req)
		if err != nil {
			panic(err)
		}
		_, _ = resp.Body.Read(nil)
		_ = resp.Body.Close()
	})
}

func TestSuccessPathMakesAtMostEightAllocationsMoreThanHTTPClient(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates by itself")
	}
	bare := perCall(t, t.Context(), &http.Client{Transport: instant})
	for name, cfg := range map[string]*backstay.Config{
		"one node":    {Default: backstay.Service{Endpoints: discovery.Addrs("10.0.0.1:80")}},
		"three nodes": {Default: backstay.Service{Endpoints: discovery.Addrs("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")}},
		"listed":      {Services: map[string]backstay.Service{"orders": {Endpoints: discovery.Addrs("10.0.0.1:80", "10.0.0.2:80")}}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Base = instant
			c := newClient(t, cfg)
			ours := perCall(t, t.Context(), c.Client)
			t.Logf("%.0f allocations, http.Client alone %.0f", ours, bare)
			require.LessOrEqual(t, ours-bare, 8.0)
		})
	}
}

func TestNothingIsBuiltForWhoeverDoesNotLook(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates by itself")
	}
	cfg := &backstay.Config{Base: instant, Default: backstay.Service{Endpoints: discovery.Addrs("10.0.0.1:80")}}
	plainly := perCall(t, t.Context(), newClient(t, cfg).Client)

	cfg.Observer = event.ObserverFunc(func(context.Context, event.Event) {})
	observed := perCall(t, t.Context(), newClient(t, cfg).Client)
	require.Greater(t, observed, plainly, "the event is built only where somebody observes")

	cfg.Observer = nil
	ctx, _ := call.WithLog(t.Context())
	require.GreaterOrEqual(t, perCall(t, ctx, newClient(t, cfg).Client), plainly)
}
