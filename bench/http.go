package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/bufbuild/httplb"
	"github.com/bufbuild/httplb/resolver"
	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/failsafe-go/failsafe-go/timeout"
	"github.com/gojek/heimdall/v7"
	"github.com/gojek/heimdall/v7/httpclient"
	"github.com/hashicorp/go-retryablehttp"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/cache"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/retry"
)

const (
	moduleRetryable = "github.com/hashicorp/go-retryablehttp"
	moduleHeimdall  = "github.com/gojek/heimdall/v7"
)

// doer is what all clients have in common.
type doer interface {
	Do(req *http.Request) (*http.Response, error)
}

// exchange makes a call and reads its answer.
func exchange(client doer, req *http.Request, want int64) error {
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	read, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK || read != want:
		return fmt.Errorf("the answer is %s with %d bytes, want 200 OK with %d", resp.Status, read, want)
	}
	return nil
}

// wrapper is an HTTP peer that goes around a RoundTripper.
type wrapper struct {
	name, module string
	wrap         func(*stage, http.RoundTripper) (doer, error)
}

func bareClient() wrapper {
	return wrapper{name: "bare", wrap: func(_ *stage, base http.RoundTripper) (doer, error) {
		return &http.Client{Transport: base}, nil
	}}
}

// failsafeClient is failsafe-go's, with a retry and as much of the rest as is
// asked for.
func failsafeClient(withBreaker, withTimeout bool) wrapper {
	w := wrapper{name: "failsafehttp-retry", module: moduleFailsafe}
	if withBreaker {
		w.name += "+breaker"
	}
	if withTimeout {
		w.name += "+timeout"
	}
	//nolint:bodyclose // policies about responses are no responses
	w.wrap = func(_ *stage, base http.RoundTripper) (doer, error) {
		policies := []failsafe.Policy[*http.Response]{failsafehttp.NewRetryPolicyBuilder().Build()}
		if withBreaker {
			rate := circuitbreaker.NewBuilder[*http.Response]().
				WithFailureRateThreshold(breakerRate, breakerCalls, breakerWindow)
			policies = append(policies, rate.Build())
		}
		if withTimeout {
			policies = append(policies, timeout.New[*http.Response](10*time.Second))
		}
		return &http.Client{Transport: failsafehttp.NewRoundTripper(base, policies...)}, nil
	}
	return w
}

// retryableClient is retryablehttp's in the form of an http.Client.
func retryableClient() wrapper {
	return wrapper{name: "retryablehttp", module: moduleRetryable, wrap: func(_ *stage, base http.RoundTripper) (doer, error) {
		c := retryablehttp.NewClient()
		c.HTTPClient, c.Logger = &http.Client{Transport: base}, nil
		return c.StandardClient(), nil
	}}
}

func heimdallClient() wrapper {
	return wrapper{name: "heimdall", module: moduleHeimdall, wrap: func(_ *stage, base http.RoundTripper) (doer, error) {
		return httpclient.NewClient(
			httpclient.WithHTTPClient(&http.Client{Transport: base}), httpclient.WithRetryCount(retryAttempts-1),
			httpclient.WithRetrier(heimdall.NewRetrier(heimdall.NewConstantBackoff(time.Millisecond, time.Millisecond))),
		), nil
	}}
}

// ourClient is the composed client with every default on.
func ourClient(name string, h2c backstay.Switch, addrs ...string) wrapper {
	return wrapper{name: name, wrap: func(s *stage, base http.RoundTripper) (doer, error) {
		c, err := backstay.New(&backstay.Config{Base: base, Default: backstay.Service{
			Endpoints: discovery.Addrs(addrs...), H2C: h2c,
		}})
		if err != nil {
			return nil, err
		}
		s.cleanup(func() { _ = c.Close() })
		return c, nil
	}}
}

// ourLayers is some of our layers around the base, the first outermost.
func ourLayers(name string, makers ...func(*stage) (layer, error)) wrapper {
	return wrapper{name: "backstay-" + name, wrap: func(s *stage, base http.RoundTripper) (doer, error) {
		layers := make([]layer, len(makers))
		for i, newLayer := range makers {
			var err error
			if layers[i], err = newLayer(s); err != nil {
				return nil, err
			}
		}
		if len(layers) == 1 {
			return &http.Client{Transport: layers[0](base)}, nil
		}
		return &http.Client{Transport: backstay.Chain(base, layers...)}, nil
	}}
}

type layer = func(http.RoundTripper) http.RoundTripper

func retryLayer(*stage) (layer, error) {
	r, err := retry.New(nil)
	return r.Layer, err
}

func breakerLayer(*stage) (layer, error) {
	b, err := breaker.New("orders", nil)
	return b.Layer, err
}

func rateLayer(*stage) (layer, error) {
	r, err := limit.NewRate(&limit.RateConfig{Limit: limitRate})
	return r.Layer, err
}

func concurrencyLayer(*stage) (layer, error) {
	c, err := limit.NewConcurrency(nil)
	return c.Layer, err
}

// cacheLayer keeps every answer.
func cacheLayer(*stage) (layer, error) {
	h, err := cache.NewHTTP(&cache.HTTPConfig{TTL: cacheTTL})
	return h.Layer, err
}

func balancerLayer(s *stage) (layer, error) {
	b, err := balancer.New("orders", discovery.Static(discovery.Addrs(nopAddrs()...)...), nil)
	if err != nil {
		return nil, err
	}
	s.cleanup(func() { _ = b.Close() })
	return b.Layer, nil
}

// httplbClient is httplb's over the given addresses. A nil transport is its own.
func httplbClient(s *stage, addrs []string, transport httplb.Transport) doer {
	options := []httplb.ClientOption{httplb.WithResolver(httplbResolver(addrs))}
	if transport != nil {
		options = append(options, httplb.WithTransport("http", transport))
	}
	c := httplb.NewClient(options...)
	s.cleanup(func() { _ = c.Close() })
	return c
}

// httplbTransport makes what httplb sends requests to one address with.
type httplbTransport func() http.RoundTripper

func (t httplbTransport) NewRoundTripper(string, string, httplb.TransportConfig) httplb.RoundTripperResult {
	rt := t()
	result := httplb.RoundTripperResult{RoundTripper: rt}
	if c, ok := rt.(interface{ CloseIdleConnections() }); ok {
		result.Close = c.CloseIdleConnections
	}
	return result
}

// httplbResolver is a resolver that knows the addresses of every service.
type httplbResolver []string

func (r httplbResolver) New(_ context.Context, _, _ string, receiver resolver.Receiver, _ <-chan struct{}) io.Closer {
	addrs := make([]resolver.Address, len(r))
	for i, addr := range r {
		addrs[i].HostPort = addr
	}
	receiver.OnResolve(addrs)
	return io.NopCloser(nil)
}
