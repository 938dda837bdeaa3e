package main

import (
	"context"
	"net/http"
	"time"

	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/failsafe-go/failsafe-go/hedgepolicy"
	"github.com/failsafe-go/failsafe-go/timeout"

	"github.com/backstay/backstay/retry"
)

// hedgeDelay is so long that no hedge begins.
const hedgeDelay = time.Second

// hedgeContests compare what a hedge costs the calls that need none, which nearly
// all are: by the layer alone, without an http.Client's own cost.
func hedgeContests() []contest {
	layer := func(make func() (http.RoundTripper, error)) func(*stage) (job, error) {
		return func(*stage) (job, error) {
			rt, err := make()
			return func(l *loop) error {
				req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://orders/v1/items", nil)
				if err != nil {
					return err
				}
				return each(func() error { return exchange(transportDoer{rt}, req, int64(len(nopReply))) })(l)
			}, err
		}
	}
	hedged := func(cfg retry.HedgeConfig) func() (http.RoundTripper, error) {
		return func() (http.RoundTripper, error) {
			r, err := retry.New(&retry.Config{Hedge: cfg})
			if err != nil {
				return nil, err
			}
			return r.Layer(nopTransport{}), nil
		}
	}
	//nolint:bodyclose // policies about responses are no responses
	again, hedge, bound := failsafehttp.NewRetryPolicyBuilder().Build(),
		hedgepolicy.NewWithDelay[*http.Response](hedgeDelay), timeout.New[*http.Response](10*time.Second)
	return []contest{{name: "Hedge/armed", modes: []mode{serial(), parallel()}, peers: []peer{
		{name: "none", setup: layer(func() (http.RoundTripper, error) { return nopTransport{}, nil })},
		{name: "backstay-retry", setup: layer(hedged(retry.HedgeConfig{}))},
		{name: ours, setup: layer(hedged(retry.HedgeConfig{Delay: hedgeDelay}))},
		{name: "backstay-percentile", setup: layer(hedged(retry.HedgeConfig{Percentile: 0.95, MinDelay: hedgeDelay}))},
		{name: "failsafe", module: moduleFailsafe, setup: layer(func() (http.RoundTripper, error) {
			return failsafehttp.NewRoundTripper(nopTransport{}, hedge), nil
		})},
		// What our layer does in any case.
		{name: "failsafe-retry+timeout", module: moduleFailsafe, setup: layer(func() (http.RoundTripper, error) {
			return failsafehttp.NewRoundTripper(nopTransport{}, again, hedge, bound), nil
		})},
	}}}
}

// transportDoer is a transport without a client around it.
type transportDoer struct{ http.RoundTripper }

func (d transportDoer) Do(req *http.Request) (*http.Response, error) { return d.RoundTrip(req) }
