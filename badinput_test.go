package backstay_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// A file that is broken, half written or gone leaves the last good endpoints in
// use; when it is well again the new ones are.
func TestEndpointsFileThatBreaksLeavesTheLastGoodOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "endpoints.json")
		replace := func(text string) {
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			time.Sleep(3 * time.Second)
			synctest.Wait()
		}
		require.NoError(t, os.WriteFile(path, []byte(`{"orders": ["10.0.0.1:80"]}`), 0o600))
		rec := new(backstaytest.Recorder)
		base := &recording{next: always(200)}
		c := newClient(t, &backstay.Config{Base: base, Observer: rec, Services: map[string]backstay.Service{
			"orders": {Resolver: discovery.File(path, nil)},
		}})
		use := func(want string) {
			t.Helper()
			get(t, c, "http://orders")
			hosts := base.hosts()
			require.Equal(t, want, hosts[len(hosts)-1])
		}
		use("10.0.0.1:80")
		for _, broken := range []string{
			`{"orders": ["10.0.0.2:80"`, `{"orders": ["10.0.0.2:80"]} trailing`, `[]`, ``, `{"orders": [{"adr": "10.0.0.2:80"}]}`,
			`{"orders": ["http://10.0.0.2"]}`, `{"orders": ["10.0.0.2:80"], "orders": []}`, `{"orders": null}`, `{"users": ["10.0.0.2:80"]}`,
		} {
			rec.Clear()
			replace(broken)
			use("10.0.0.1:80")
			failures := backstaytest.EventsOf[balancer.ResolveFailed](rec)
			require.NotEmpty(t, failures, broken)
			require.Equal(t, "orders", failures[0].Service)
			require.Positive(t, failures[0].Stale)
		}
		require.NoError(t, os.Remove(path))
		time.Sleep(time.Minute)
		use("10.0.0.1:80")
		replace(`{"orders": ["10.0.0.2:80"]}`)
		time.Sleep(time.Minute)
		use("10.0.0.2:80")
	})
}

// What a resolver yields is not the user's config: it is used as far as it goes.
func TestResolversBadEndpointsAreLeftOutWithAWarning(t *testing.T) {
	for name, test := range map[string]struct {
		endpoints []discovery.Endpoint
		want      int
	}{
		"twice":           {discovery.Addrs("10.0.0.1:80", "10.0.0.2:80", "10.0.0.1:80"), 2},
		"without address": {[]discovery.Endpoint{{}, {Addr: "10.0.0.1:80"}}, 1},
		"not an address":  {discovery.Addrs("http://10.0.0.9", "10.0.0.1:80", "10.0.0.1:99999"), 1},
		"weight":          {[]discovery.Endpoint{{Addr: "10.0.0.9:80", Weight: math.NaN()}, {Addr: "10.0.0.1:80"}}, 1},
		"priority":        {[]discovery.Endpoint{{Addr: "10.0.0.9:80", Priority: -1}, {Addr: "10.0.0.1:80"}}, 1},
		"same ID":         {[]discovery.Endpoint{{ID: "a", Addr: "10.0.0.1:80"}, {ID: "a", Addr: "10.0.0.9:80"}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rec := new(backstaytest.Recorder)
				base := &recording{next: always(200)}
				c := newClient(t, &backstay.Config{
					Base: base, Observer: rec,
					Services: map[string]backstay.Service{"orders": {Resolver: discovery.Static(test.endpoints...)}},
				})
				for range 50 {
					get(t, c, "http://orders")
				}
				used := make(map[string]bool)
				for _, host := range base.hosts() {
					used[host] = true
				}
				require.NotContains(t, used, "10.0.0.9:80")
				require.LessOrEqual(t, len(used), test.want)
				synctest.Wait()
				failures := backstaytest.EventsOf[balancer.ResolveFailed](rec)
				require.Len(t, failures, 1)
				var warning *discovery.Warning
				require.ErrorAs(t, failures[0].Err, &warning)
			})
		})
	}
}

func TestSetWithNothingUsableIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, &backstay.Config{Base: always(200), Services: map[string]backstay.Service{
			"orders": {Resolver: discovery.Static(discovery.Endpoint{Addr: "http://orders"})},
		}})
		err := try(t.Context(), c, "http://orders")
		var unusable *discovery.ResolveError
		require.ErrorAs(t, err, &unusable)
		require.True(t, backstay.NotSent(err))
		require.Error(t, c.Ready(t.Context()))
	})
}

func TestResolverThatFailsHarmsItsServiceOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, &backstay.Config{Base: always(200), Services: map[string]backstay.Service{
			"wild": {Resolver: discovery.ResolverFunc(func(context.Context, string) iter.Seq2[discovery.Set, error] {
				return func(yield func(discovery.Set, error) bool) {
					for yield(discovery.Set{}, errors.New("again")) {
						time.Sleep(time.Millisecond) // in a bubble
					}
				}
			})},
			"ends": {Resolver: discovery.ResolverFunc(func(context.Context, string) iter.Seq2[discovery.Set, error] {
				return func(func(discovery.Set, error) bool) {}
			})},
			"fine": {Resolver: itself},
		}})
		require.NoError(t, try(t.Context(), c, "http://fine"))
		for _, host := range []string{"wild", "ends"} {
			err := try(t.Context(), c, "http://"+host)
			require.Error(t, err)
			require.True(t, backstay.NotSent(err), "%v", err)
		}
	})
}

// A transport below that breaks its contract does no harm above.
func TestTransportThatAnswersWithNothingIsAFailure(t *testing.T) {
	c := newClient(t, &backstay.Config{
		Base:    roundTripper(func(*http.Request) (*http.Response, error) { return nil, nil }), //nolint:nilnil // the point
		Default: backstay.Service{Resolver: itself, Retry: atOnce},
	})
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		resp, err := send(t, t.Context(), c, method, "http://orders", "")
		require.Nil(t, resp)
		require.Error(t, err)
	}
	c = newClient(t, &backstay.Config{
		Base:    roundTripper(func(req *http.Request) (*http.Response, error) { return &http.Response{StatusCode: 200}, nil }),
		Default: backstay.Service{Resolver: itself, CacheTTL: time.Minute},
	})
	resp, err := send(t, t.Context(), c, http.MethodGet, "http://orders", "")
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
}

func TestClassifierDecidesForTheWholeService(t *testing.T) {
	base := &recording{next: always(404)}
	teapot := func(req *http.Request, resp *http.Response, err error) outcome.Outcome {
		if resp != nil && resp.StatusCode == http.StatusNotFound {
			return outcome.Outcome{Class: outcome.Failure, Retry: outcome.IfIdempotent, Err: fmt.Errorf("not yet there")}
		}
		return outcome.HTTP(req, resp, err)
	}
	c := newClient(t, &backstay.Config{Base: base, Default: backstay.Service{Resolver: itself, Retry: atOnce, Classifier: teapot}})
	status, _ := get(t, c, "http://orders")
	require.Equal(t, 404, status)
	require.Len(t, base.requests(), 3)
}
