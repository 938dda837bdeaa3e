package backstay_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// steady waits 40 ms before each repetition.
func steady() retry.Config {
	return retry.Config{Backoff: retry.Backoff{New: func() backoff.BackOff { return backoff.NewConstantBackOff(40 * time.Millisecond) }}}
}

func TestACallPrintsAsOneLine(t *testing.T) {
	tests := []struct {
		name  string
		setup func(*backstaytest.Fleet, *backstay.Service)
		calls func(call func(method, path string))
		want  string
	}{
		{
			"answered", nil, func(call func(string, string)) { call("GET", "/v1/items?token=secret") },
			"GET orders.test /v1/items: 200 in 20ms; s0 (10.0.0.1:80) 200 in 20ms",
		},
		{
			"tried again", func(f *backstaytest.Fleet, _ *backstay.Service) { f.Server(0).Fail(503) },
			func(call func(string, string)) { call("PUT", "/x") },
			"PUT orders.test /x: 200 in 60ms; s0 (10.0.0.1:80) 503 in 0s; slept 40ms; s1 (10.0.0.2:80) 200 in 20ms",
		},
		{
			"connection refused", func(f *backstaytest.Fleet, _ *backstay.Service) { f.Server(0).Refuse() },
			func(call func(string, string)) { call("POST", "/x") },
			"POST orders.test /x: 200 in 20ms; s0 (10.0.0.1:80) connection refused in 0s; s1 (10.0.0.2:80) 200 in 20ms",
		},
		{
			"attempt timeout", func(f *backstaytest.Fleet, s *backstay.Service) { f.Server(0).Stall(); s.AttemptTimeout = time.Second },
			func(call func(string, string)) { call("GET", "/x") },
			"GET orders.test /x: 200 in 1.06s; s0 (10.0.0.1:80) backstay: attempt timeout after 1s in 1s; slept 40ms; s1 (10.0.0.2:80) 200 in 20ms",
		},
		{
			"not repeated", func(f *backstaytest.Fleet, _ *backstay.Service) { f.Server(0).Fail(500) },
			func(call func(string, string)) { call("POST", "/x") },
			"POST orders.test /x: 500 in 0s; s0 (10.0.0.1:80) 500 in 0s",
		},
		{
			"a full node is passed over", func(f *backstaytest.Fleet, s *backstay.Service) { s.NodeConcurrency = 1 },
			func(call func(string, string)) { call("GET", "/hold"); call("GET", "/x") },
			"GET orders.test /x: 200 in 20ms; s0 refused by its concurrency; s1 (10.0.0.2:80) 200 in 20ms",
		},
		{
			"refused by the service's limit", func(_ *backstaytest.Fleet, s *backstay.Service) { s.Concurrency.Max = 1 },
			func(call func(string, string)) { call("GET", "/hold"); call("GET", "/x") },
			"GET orders.test /x: failed in 0s: limit: full for orders.test, 1 calls under way; refused by concurrency",
		},
		{
			"cached", func(_ *backstaytest.Fleet, s *backstay.Service) { s.CacheTTL = time.Minute },
			func(call func(string, string)) { call("GET", "/x"); call("GET", "/x") },
			"GET orders.test /x: 200 in 0s; cache hit",
		},
		{
			"stored", func(_ *backstaytest.Fleet, s *backstay.Service) { s.CacheTTL = time.Minute },
			func(call func(string, string)) { call("GET", "/x") },
			"GET orders.test /x: 200 in 20ms; cache miss; s0 (10.0.0.1:80) 200 in 20ms",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				done := make(chan struct{})
				fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{
					Network: backstaytest.NewNetwork(),
					Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.URL.Path == "/hold" {
							_ = http.NewResponseController(w).Flush()
							<-done
							return
						}
						time.Sleep(20 * time.Millisecond)
						_, _ = w.Write([]byte("ok"))
					}),
				})
				defer close(done)
				c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
					s.Policy, s.Retry = first{}, steady()
					if test.setup != nil {
						test.setup(fleet, s)
					}
				})
				var line string
				test.calls(func(method, path string) {
					ctx, log := call.WithLog(t.Context())
					resp, err := send(t, ctx, c, method, fleet.URL()+path, "")
					if path == "/hold" {
						t.Cleanup(func() { _ = resp.Body.Close() })
						return
					}
					if err == nil {
						read(t, resp)
					}
					line = log.String()
				})
				require.Equal(t, test.want, strings.TrimSuffix(line, "\n"))
			})
		})
	}
}

func TestLogOfABodyThatBreaksSaysSo(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	fleet.Server(0).Truncate(1)
	c := fleetClient(t, fleet, nil)
	ctx, log := call.WithLog(t.Context())
	resp, err := send(t, ctx, c, http.MethodGet, fleet.URL(), "")
	require.NoError(t, err)
	_, err = fmt.Fscan(resp.Body, new(string))
	require.ErrorContains(t, err, "unexpected EOF")
	require.NoError(t, resp.Body.Close())
	require.Regexp(t, regexp.MustCompile(`^GET orders\.test: 200 in \S+; s0 \(\S+\) 200 in \S+, body broke after \S+: unexpected EOF\n?$`), log.String())
}

func TestCallFinishedIsEmittedOncePerCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		fleet.Server(0).Slow(time.Second)
		rec := new(backstaytest.Recorder)
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			cfg.Observer, s.Policy, s.Retry = rec, first{}, steady()
			cfg.Routes = map[string]backstay.Route{
				"PUT /items/{id}": {}, "/limited": {Rate: limit.RateConfig{Limit: 1e-6, Burst: 1}}, "/cached": {CacheTTL: time.Hour},
				"/timeout": {Timeout: 500 * time.Millisecond},
			}
		})
		finish := func(method, path string) call.Record {
			t.Helper()
			rec.Clear()
			resp, err := send(t, t.Context(), c, method, fleet.URL()+path, "")
			if err == nil {
				read(t, resp)
			}
			records := finished(rec)
			require.Len(t, records, 1)
			if r := records[0]; err == nil {
				require.Equal(t, resp.StatusCode, r.Status)
				require.NoError(t, r.Err)
			} else {
				require.Equal(t, err, r.Err)
				require.Zero(t, r.Status)
			}
			return records[0]
		}
		r := finish("PUT", "/items/7?secret=1")
		require.Equal(t, call.Info{Service: "orders.test", Route: "PUT /items/{id}", Method: "PUT", Path: "/items/7", Start: r.Start}, r.Info)
		require.Equal(t, time.Second, r.Duration)
		require.Len(t, r.Attempts, 1)
		require.Equal(t, time.Second, r.Attempts[0].Headers)

		finish("GET", "/cached")
		require.Equal(t, "hit", finish("GET", "/cached").Cache)
		finish("GET", "/limited")
		require.ErrorIs(t, finish("GET", "/limited").Err, limit.ErrLimited)
		require.ErrorIs(t, finish("GET", "/timeout").Err, outcome.ErrCallTimeout)

		fleet.Server(0).Fail(503)
		r = finish("GET", "/")
		require.Equal(t, []string{"s0", "s1"}, nodesOf(r))
		require.Equal(t, 200, r.Status)
		require.Equal(t, 40*time.Millisecond, r.Duration)
		require.Equal(t, 40*time.Millisecond, r.Attempts[1].Slept)
	})
}

// The record that observers get is the call's as its caller got it: with its
// error, and with none of what other calls did meanwhile.
func TestConcurrentCallsKeepTheirRecordsApart(t *testing.T) {
	var wrong atomic.Int64
	var calls atomic.Int64
	observer := event.ObserverFunc(func(_ context.Context, e event.Event) {
		if f, ok := e.(call.Finished); ok {
			calls.Add(1)
			if r := f.Record; r.Path == "/bad" != (r.Status == 418) || len(r.Attempts) != 1 {
				wrong.Add(1)
			}
		}
	})
	base := roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.URL.Path == "/bad" {
			return answer(req, 418, ""), nil
		}
		return answer(req, 200, ""), nil
	})
	c := newClient(t, &backstay.Config{Base: base, Observer: observer, Default: backstay.Service{Resolver: itself}})
	errs := make(chan error, 8)
	for i := range 8 {
		go func() {
			var err error
			for n := range 200 {
				path := []string{"/good", "/bad"}[(i+n)%2]
				err = errors.Join(err, try(t.Context(), c, "http://orders"+path))
			}
			errs <- err
		}()
	}
	for range 8 {
		require.NoError(t, <-errs)
	}
	require.EqualValues(t, 1600, calls.Load())
	require.Zero(t, wrong.Load())
}

func TestObserverThatPanicsDisturbsNoCall(t *testing.T) {
	c := newClient(t, &backstay.Config{
		Base: always(200), Default: backstay.Service{Resolver: itself},
		Observer: event.ObserverFunc(func(context.Context, event.Event) { panic("observer") }),
	})
	quietly(t)
	status, _ := get(t, c, "http://orders")
	require.Equal(t, 200, status)
}

// Whoever observes may call the client.
func TestObserverMayUseTheClient(t *testing.T) {
	var c *backstay.Client
	var depth atomic.Int64
	c = newClient(t, &backstay.Config{
		Base: always(200), Default: backstay.Service{Resolver: itself},
		Observer: event.ObserverFunc(func(ctx context.Context, e event.Event) {
			if e.EventName() == "call.finished" && depth.Add(1) == 1 {
				_ = try(ctx, c, "http://metrics")
				c.CloseIdleConnections()
			}
		}),
	})
	get(t, c, "http://orders")
	require.EqualValues(t, 2, depth.Load())
}

func TestLayersNameTheWayOfACall(t *testing.T) {
	c := newClient(t, nil)
	require.Equal(t, "observe route cache rate concurrency retry per-attempt balancer breaker connection", strings.Join(c.Layers(), " "))
	c.Layers()[0] = "changed"
	require.Equal(t, "observe", c.Layers()[0])
}
