package cache_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/cache"
	"github.com/backstay/backstay/discovery"
)

type userKey struct{}

// below is a cache over a layer that changes a copy of each request, over an
// origin that answers with a number of its own each time.
func below(t *testing.T, cfg *cache.HTTPConfig, change func(*http.Request)) (http.RoundTripper, *cache.HTTP) {
	var n atomic.Int32
	origin := &transport{do: func(req *http.Request) (*http.Response, error) {
		time.Sleep(time.Second)
		resp := text(fmt.Sprint(n.Add(1)))
		resp.Request = req
		return resp, nil
	}}
	h := newHTTP(t, cfg)
	layer := h.Layer(&transport{do: func(req *http.Request) (*http.Response, error) {
		req = req.Clone(req.Context())
		change(req)
		return origin.RoundTrip(req)
	}})
	return layer, h
}

func field(name, value string) func(*http.Request) {
	return func(req *http.Request) { req.Header.Set(name, value) }
}

func TestAnswerToWhatALayerBelowMadePersonalIsNotStored(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"Authorization":            field("Authorization", "Bearer a"),
		"authorization in the map": func(req *http.Request) { req.Header["authorization"] = []string{"Bearer a"} },
		"Proxy-Authorization":      field("Proxy-Authorization", "Basic a"),
		"Cookie":                   func(req *http.Request) { req.AddCookie(&http.Cookie{Name: "session", Value: "a"}) },
		"Range":                    field("Range", "bytes=0-1"),
		"Accept-Encoding":          field("Accept-Encoding", "br"),
		"method":                   func(req *http.Request) { req.Method = http.MethodHead },
		"credentials in the URL":   func(req *http.Request) { req.URL.User = url.User("a") },
		"query":                    func(req *http.Request) { req.URL.RawQuery = "access_token=a" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rt, h := below(t, nil, change)
				for i := range 3 {
					_, body := get(t, rt, u)
					require.Equal(t, fmt.Sprint(i+1), body)
				}
				require.Zero(t, h.Stats().Stored)
			})
		})
	}
}

func TestEachCallerGetsWhatALayerBelowAskedForOnItsBehalf(t *testing.T) {
	for _, coalesce := range []time.Duration{-1, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			h := newHTTP(t, &cache.HTTPConfig{Coalesce: coalesce})
			rt := h.Layer(&transport{do: func(req *http.Request) (*http.Response, error) {
				req = req.Clone(req.Context())
				req.Header.Set("Authorization", fmt.Sprint(req.Context().Value(userKey{})))
				time.Sleep(time.Second)
				resp := text("account of " + req.Header.Get("Authorization"))
				resp.Request = req
				return resp, nil
			}})
			start, done := time.Now(), make(chan bool)
			for i := range 10 {
				go func() {
					req := newRequest(t, http.MethodGet, u)
					_, body := fetch(t, rt, req.WithContext(context.WithValue(t.Context(), userKey{}, i)))
					done <- body == fmt.Sprint("account of ", i)
				}()
			}
			for range 10 {
				require.True(t, <-done, "it got another's")
			}
			require.LessOrEqual(t, time.Since(start), 2*time.Second, "and nobody waited for more than one other")
		})
	}
}

func TestAnswerToWhatALayerBelowOnlyMarkedOrSentElsewhereIsStored(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"nothing": func(*http.Request) {},
		"X-Trace": field("X-Trace", "1"),
		"host":    func(req *http.Request) { req.Host, req.URL.Host = req.URL.Host, "10.0.0.1:8080" },
		"path":    func(req *http.Request) { req.URL.Path = "/v1" + req.URL.Path },
		"scheme":  func(req *http.Request) { req.URL.Scheme = "https" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rt, h := below(t, nil, change)
				for range 3 {
					_, body := get(t, rt, u, "Accept-Encoding", "gzip")
					require.Equal(t, "1", body)
				}
				require.EqualValues(t, 1, h.Stats().Stored)
			})
		})
	}
}

// Over anything but an *http.Transport the balancer sends requests with the node's
// address in their URL.
func TestAnswersOfABalancerBelowAreStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := balancer.New("orders", discovery.Static(discovery.Addrs("10.0.0.1:8080")...), nil)
		require.NoError(t, err)
		defer b.Close()
		origin := answers(func() *http.Response { return text("x") })
		rt := newHTTP(t, nil).Layer(b.Layer(origin))
		for range 2 {
			_, body := get(t, rt, u)
			require.Equal(t, "x", body)
		}
		require.EqualValues(t, 1, origin.calls.Load())
	})
}
