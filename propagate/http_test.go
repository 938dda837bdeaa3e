package propagate_test

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/propagate"
	"github.com/backstay/backstay/retry"
)

var ourHeaders = []string{
	propagate.TimeoutHeader, propagate.HeadersTimeoutHeader, propagate.AttemptHeader, propagate.RetryHeader,
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// recorder answers with the statuses in turn, and then with 200.
type recorder struct {
	mu       sync.Mutex
	seen     []http.Header
	statuses []int
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, req.Header.Clone())
	status := http.StatusOK
	if len(r.statuses) > 0 {
		status, r.statuses = r.statuses[0], r.statuses[1:]
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: http.NoBody, Request: req}, nil
}

func ours(h http.Header) map[string]string {
	got := make(map[string]string)
	for _, name := range ourHeaders {
		if values, ok := h[name]; ok {
			got[name] = strings.Join(values, ",")
		}
	}
	return got
}

func get(t *testing.T, ctx context.Context, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	require.NoError(t, err)
	return req
}

func TestLayerKeepsTheRoundTripperContract(t *testing.T) {
	backstaytest.TestTransport(t, propagate.Layer, nil)
}

func TestLayerTellsTheNearestBound(t *testing.T) {
	for _, test := range []struct {
		name    string
		caller  time.Duration // the context's deadline
		timeout time.Duration // the call's
		attempt time.Duration
		body    io.Reader
		header  http.Header
		want    map[string]string
	}{
		{name: "nothing", want: map[string]string{}},
		{name: "caller", caller: 2 * time.Second, want: map[string]string{"Grpc-Timeout": "2000000u", "X-Envoy-Expected-Rq-Timeout-Ms": "2000"}},
		{name: "call", timeout: 3 * time.Second, caller: 4 * time.Second, want: map[string]string{"Grpc-Timeout": "3000000u", "X-Envoy-Expected-Rq-Timeout-Ms": "3000"}},
		{name: "attempt does not bound the body", attempt: time.Second, want: map[string]string{"X-Envoy-Expected-Rq-Timeout-Ms": "1000"}},
		{
			name: "attempt within the call", attempt: time.Second, timeout: 5 * time.Second,
			want: map[string]string{"Grpc-Timeout": "5000000u", "X-Envoy-Expected-Rq-Timeout-Ms": "1000"},
		},
		{
			name: "attempt does not bound an upload", attempt: time.Second, caller: 5 * time.Second, body: io.LimitReader(strings.NewReader("x"), 1),
			want: map[string]string{"Grpc-Timeout": "5000000u", "X-Envoy-Expected-Rq-Timeout-Ms": "5000"},
		},
		{name: "small body", attempt: time.Second, body: strings.NewReader("x"), want: map[string]string{"X-Envoy-Expected-Rq-Timeout-Ms": "1000"}},
		{name: "less than a millisecond", caller: time.Microsecond, want: map[string]string{"Grpc-Timeout": "1000n"}},
		{
			name: "the caller's own, less", caller: time.Second, header: http.Header{"Grpc-Timeout": {"10m"}},
			want: map[string]string{"Grpc-Timeout": "10000000n", "X-Envoy-Expected-Rq-Timeout-Ms": "10"},
		},
		{
			name: "the caller's own, more", caller: time.Second, header: http.Header{"Grpc-Timeout": {"1H"}, "X-Envoy-Expected-Rq-Timeout-Ms": {"99999"}},
			want: map[string]string{"Grpc-Timeout": "1000000u", "X-Envoy-Expected-Rq-Timeout-Ms": "1000"},
		},
		{
			name: "the caller's own, nonsense", caller: time.Second, header: http.Header{"Grpc-Timeout": {"soon"}},
			want: map[string]string{"Grpc-Timeout": "1000000u", "X-Envoy-Expected-Rq-Timeout-Ms": "1000"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if test.caller > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.caller)
					defer cancel()
				}
				server := new(recorder)
				rt := propagate.Layer(server)
				ctx, f := call.Push(ctx, call.NewChain(rt), call.Info{Start: time.Now()})
				if test.timeout > 0 {
					f.SetDeadline(time.Now().Add(test.timeout))
				}
				f.SetAttemptTimeout(test.attempt)
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://orders/", test.body)
				require.NoError(t, err)
				maps.Copy(req.Header, test.header)
				was := req.Header.Clone()
				resp, err := rt.RoundTrip(req)
				require.NoError(t, err)
				require.Same(t, req, resp.Request)
				require.Equal(t, was, req.Header)
				test.want["X-Envoy-Attempt-Count"] = "1"
				require.Equal(t, test.want, ours(server.seen[0]))
			})
		})
	}
}

func TestEachAttemptTellsItsNumberAndTheTimeThatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &recorder{statuses: []int{503, 503}}
		r, err := retry.New(&retry.Config{Timeout: 10 * time.Second, AttemptTimeout: 9 * time.Second})
		require.NoError(t, err)
		slow := roundTripper(func(req *http.Request) (*http.Response, error) {
			resp, err := server.RoundTrip(req)
			time.Sleep(time.Second) // in the bubble
			return resp, err
		})
		resp, err := r.Layer(propagate.Layer(slow)).RoundTrip(get(t, t.Context(), "http://orders/"))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Len(t, server.seen, 3)
		left := 10*time.Second + 1
		for i, h := range server.seen {
			require.Equal(t, strconv.Itoa(i+1), h.Get(propagate.AttemptHeader))
			micros, err := strconv.Atoi(strings.TrimSuffix(h.Get(propagate.TimeoutHeader), "u"))
			require.NoError(t, err)
			d := time.Duration(micros) * time.Microsecond
			require.Less(t, d, left)
			require.Greater(t, d, 3*time.Second)
			left = d - time.Second + 1 // the attempt's second is gone, and the wait
		}
		require.Equal(t, "9000", server.seen[0].Get(propagate.HeadersTimeoutHeader))
		require.Len(t, server.seen[0].Values(propagate.TimeoutHeader), 1)
	})
}

func TestLayerOnARequestWithoutHeaderLeavesItMalformed(t *testing.T) {
	req := get(t, t.Context(), "http://127.0.0.1:1/")
	req.Header = nil
	_, err := propagate.Layer(nil).RoundTrip(req)
	require.ErrorContains(t, err, "nil Request.Header")
}

func TestLayerCarriesTheMarkOn(t *testing.T) {
	for _, test := range []struct {
		in   *call.Inbound
		want string
	}{
		{nil, ""},
		{new(call.Inbound), ""},
		{&call.Inbound{Attempt: 1}, ""},
		{&call.Inbound{Attempt: 2}, "no"},
		{&call.Inbound{NoRetry: true}, "no"},
	} {
		server := new(recorder)
		ctx := t.Context()
		if test.in != nil {
			ctx = call.WithInbound(ctx, test.in)
		}
		resp, err := propagate.Layer(server).RoundTrip(get(t, ctx, "http://orders/"))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, test.want, server.seen[0].Get(propagate.RetryHeader))
	}
}

// tiers runs c behind b behind a, each a server of its own; b and a call the one
// below with up to three attempts and no budget. With on, they have propagate's
// handler and layer. It returns a's address and what c and b were asked.
func tiers(t *testing.T, on bool, c http.HandlerFunc) (url string, atC, atB func() int) {
	t.Helper()
	counted := func(h http.Handler) (http.Handler, func() int) {
		var mu sync.Mutex
		n := 0
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			n++
			mu.Unlock()
			h.ServeHTTP(w, r)
		}), func() int { mu.Lock(); defer mu.Unlock(); return n }
	}
	serve := func(h http.Handler) string {
		server := httptest.NewServer(h)
		t.Cleanup(server.Close)
		return server.URL
	}
	caller := func(below string) http.Handler {
		budget, err := retry.NewBudget(&retry.BudgetConfig{Ratio: -1})
		require.NoError(t, err)
		r, err := retry.New(&retry.Config{Budget: budget, Backoff: retry.Backoff{Base: -1}})
		require.NoError(t, err)
		base := http.DefaultTransport.(*http.Transport).Clone()
		t.Cleanup(base.CloseIdleConnections)
		var rt http.RoundTripper = base
		if on {
			rt = propagate.Layer(rt)
		}
		client := http.Client{Transport: r.Layer(rt)}
		var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			req, _ := http.NewRequestWithContext(r.Context(), http.MethodGet, below, nil)
			resp, err := client.Do(req)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			defer resp.Body.Close()
			w.WriteHeader(resp.StatusCode)
			_, _ = io.Copy(w, resp.Body)
		})
		if on {
			h = propagate.Handler(h, nil)
		}
		return h
	}
	hc, atC := counted(c)
	hb, atB := counted(caller(serve(hc)))
	return serve(caller(serve(hb))), atC, atB
}

func TestThreeTiersDoNotMultiplyAttempts(t *testing.T) {
	down := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	for on, want := range map[bool][2]int{true: {3, 1}, false: {9, 3}} {
		t.Run(strconv.FormatBool(on), func(t *testing.T) {
			url, atC, atB := tiers(t, on, down)
			resp, err := http.Get(url)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
			require.Equal(t, want, [2]int{atC(), atB()})
			if on { // and so on upwards
				require.Equal(t, propagate.RetryNo, resp.Header.Get(propagate.RetryHeader))
			} else {
				require.Empty(t, resp.Header.Get(propagate.RetryHeader))
			}
		})
	}
}

func TestCallsForARepeatedRequestAreMadeOnce(t *testing.T) {
	down := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	for name, header := range map[string]http.Header{
		"second attempt": {propagate.AttemptHeader: {"2"}},
		"marked":         {propagate.RetryHeader: {propagate.RetryNo}},
	} {
		t.Run(name, func(t *testing.T) {
			url, atC, atB := tiers(t, true, down)
			req := get(t, t.Context(), url)
			req.Header = header
			resp, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, [2]int{1, 1}, [2]int{atC(), atB()})
			require.Empty(t, resp.Header.Get(propagate.RetryHeader), "the tier that repeats may go on")
		})
	}
}

func TestFailureThatRetriesCureIsNotMarked(t *testing.T) {
	var once sync.Once
	url, atC, _ := tiers(t, true, func(w http.ResponseWriter, _ *http.Request) {
		once.Do(func() { w.WriteHeader(http.StatusServiceUnavailable) })
	})
	resp, err := http.Get(url)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, 2, atC())
	require.Empty(t, resp.Header.Get(propagate.RetryHeader))
}
