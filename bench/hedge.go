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

// alone is the setup of a layer without an http.Client around it, whose own cost
// would hide that of the layer.
func alone(newLayer func() (http.RoundTripper, error)) func(*stage) (job, error) {
	return func(*stage) (job, error) {
		rt, err := newLayer()
		return func(l *loop) error {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://orders/v1/items", nil)
			if err != nil {
				return err
			}
			return each(func() error { return exchange(transportDoer{rt}, req, int64(len(nopReply))) })(l)
		}, err
	}
}

// retryLayerOf makes our layer.
func retryLayerOf(cfg retry.Config) func() (http.RoundTripper, error) {
	return func() (http.RoundTripper, error) {
		r, err := retry.New(&cfg)
		if err != nil {
			return nil, err
		}
		return r.Layer(nopTransport{}), nil
	}
}

// retryLayerContests compare what retries cost the calls that need none.
func retryLayerContests() []contest {
	//nolint:bodyclose // policies about responses are no responses
	again, bound := failsafehttp.NewRetryPolicyBuilder().Build(), timeout.New[*http.Response](10*time.Second)
	return []contest{{name: "RetryHTTP/first-try", modes: []mode{serial(), parallel()}, peers: []peer{
		{name: "none", setup: alone(func() (http.RoundTripper, error) { return nopTransport{}, nil })},
		{name: ours, setup: alone(retryLayerOf(retry.Config{}))},
		{name: "backstay-no-timeout", setup: alone(retryLayerOf(retry.Config{AttemptTimeout: -1}))},
		{name: "backstay-timeouts", setup: alone(retryLayerOf(retry.Config{AttemptTimeout: 10 * time.Second, Timeout: time.Minute}))},
		{name: "failsafe", module: moduleFailsafe, setup: alone(func() (http.RoundTripper, error) {
			return failsafehttp.NewRoundTripper(nopTransport{}, again), nil
		})},
		{name: "failsafe+timeout", module: moduleFailsafe, setup: alone(func() (http.RoundTripper, error) {
			return failsafehttp.NewRoundTripper(nopTransport{}, again, bound), nil
		})},
	}}}
}

// hedgeContests compare what a hedge costs the calls that need none, which nearly
// all are.
func hedgeContests() []contest {
	hedged := func(cfg retry.HedgeConfig) func() (http.RoundTripper, error) {
		return retryLayerOf(retry.Config{Hedge: cfg})
	}
	//nolint:bodyclose // policies about responses are no responses
	again, hedge, bound := failsafehttp.NewRetryPolicyBuilder().Build(),
		hedgepolicy.NewWithDelay[*http.Response](hedgeDelay), timeout.New[*http.Response](10*time.Second)
	return []contest{{name: "Hedge/armed", modes: []mode{serial(), parallel()}, peers: []peer{
		{name: "none", setup: alone(func() (http.RoundTripper, error) { return nopTransport{}, nil })},
		{name: "backstay-retry", setup: alone(hedged(retry.HedgeConfig{}))},
		{name: ours, setup: alone(hedged(retry.HedgeConfig{Delay: hedgeDelay}))},
		{name: "backstay-percentile", setup: alone(hedged(retry.HedgeConfig{Percentile: 0.95, MinDelay: hedgeDelay}))},
		{name: "failsafe", module: moduleFailsafe, setup: alone(func() (http.RoundTripper, error) {
			return failsafehttp.NewRoundTripper(nopTransport{}, hedge), nil
		})},
		// What our layer does in any case.
		{name: "failsafe-retry+timeout", module: moduleFailsafe, setup: alone(func() (http.RoundTripper, error) {
			return failsafehttp.NewRoundTripper(nopTransport{}, again, hedge, bound), nil
		})},
	}}}
}

// transportDoer is a transport without a client around it.
type transportDoer struct{ http.RoundTripper }

func (d transportDoer) Do(req *http.Request) (*http.Response, error) { return d.RoundTrip(req) }
