package backstay_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

func TestRequestsThatNameNoServiceAreRefusedAndSaySo(t *testing.T) {
	base := &recording{next: always(200)}
	c := newClient(t, &backstay.Config{Base: base, Default: backstay.Service{Resolver: itself}})
	for name, test := range map[string]struct {
		url          *url.URL
		target, want string
	}{
		"nil URL":          {nil, "", "URL is nil, want one with a scheme and a host"},
		"empty URL":        {&url.URL{}, "", `URL's scheme is "", want http or https`},
		"no scheme":        {&url.URL{Host: "orders", Path: "/x"}, "//orders/x", `URL's scheme is "", want http or https`},
		"unknown scheme":   {&url.URL{Scheme: "gopher", Host: "orders"}, "gopher://orders", `URL's scheme is "gopher", want http or https`},
		"upper case":       {&url.URL{Scheme: "HTTP", Host: "orders"}, "HTTP://orders", `URL's scheme is "HTTP", want http or https`},
		"no host":          {&url.URL{Scheme: "http", Path: "/x"}, "http:///x", `URL's host is "", want the name of a service`},
		"a port alone":     {&url.URL{Scheme: "http", Host: ":80"}, "http://:80", `URL's host is ":80", want the name of a service`},
		"opaque":           {&url.URL{Scheme: "mailto", Opaque: "a@b"}, "mailto:", `URL's scheme is "mailto", want http or https`},
		"secrets stay out": {&url.URL{Scheme: "ftp", User: url.UserPassword("me", "pw"), Host: "h", Path: "/p", RawQuery: "k=v"}, "ftp://h/p", `URL's scheme is "ftp", want http or https`},
	} {
		t.Run(name, func(t *testing.T) {
			body := &closeable{Reader: strings.NewReader("content")}
			resp, err := c.RoundTrip(&http.Request{Method: http.MethodPut, URL: test.url, Header: make(http.Header), Body: body})
			require.Nil(t, resp)
			require.EqualError(t, err, `backstay: request to "`+test.target+`": `+test.want)
			var bad *backstay.RequestError
			require.ErrorAs(t, err, &bad)
			require.Equal(t, test.target, bad.Target)
			require.True(t, backstay.Refused(err))
			require.True(t, backstay.NotSent(err))
			require.Equal(t, 1, body.closed)
		})
	}
	require.Empty(t, base.requests())
}

// What the caller got wrong is neither tried again nor held against the nodes.
func TestRequestsThatNetHTTPRefusesAreNoFailures(t *testing.T) {
	for name, spoil := range map[string]func(*http.Request){
		"no header":        func(r *http.Request) { r.Header = nil },
		"header name":      func(r *http.Request) { r.Header["Bad Name"] = []string{"x"} },
		"header value":     func(r *http.Request) { r.Header["X"] = []string{"a\nb"} },
		"method":           func(r *http.Request) { r.Method = "GET IT" },
		"length of a body": func(r *http.Request) { r.ContentLength = 7 },
	} {
		t.Run(name, func(t *testing.T) {
			fleet := backstaytest.NewFleet(t, 1, nil)
			rec := new(backstaytest.Recorder)
			c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
				cfg.Observer, s.Breaker.Consecutive = rec, 1
			})
			ctx, log := call.WithLog(t.Context())
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, fleet.URL(), nil)
			require.NoError(t, err)
			spoil(req)
			_, err = c.RoundTrip(req)
			require.Error(t, err)
			require.LessOrEqual(t, len(log.Calls()[0].Attempts), 1, "%v", log)
			require.Empty(t, backstaytest.EventsOf[breaker.StateChanged](rec))
			get(t, c, fleet.URL())
		})
	}
}

func TestErrorsAreFoundThroughHTTPClientsOwn(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	fleet.Server(0).Fail(http.StatusInternalServerError)
	c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) { s.Breaker.Consecutive = 1 })
	status, _ := get(t, c, fleet.URL())
	require.Equal(t, 500, status)

	_, err := c.Get(fleet.URL())
	var wrapped *url.Error
	require.ErrorAs(t, err, &wrapped)
	require.ErrorIs(t, err, breaker.ErrOpen)
	var open *breaker.OpenError
	require.ErrorAs(t, err, &open)
	require.Equal(t, "orders.test/s0", open.Key)
	require.Equal(t, outcome.StatusError(500), open.Err, "what opened it")
	require.True(t, backstay.Refused(err))
	require.True(t, backstay.NotSent(err))
	after, ok := backstay.RetryAfter(err)
	require.True(t, ok)
	require.InDelta(t, 5, after.Seconds(), 2)
	require.Equal(t, 1, fleet.Stats().Requests)

	_, err = c.Get("gopher://orders.test")
	var bad *backstay.RequestError
	require.ErrorAs(t, err, &bad)
	require.False(t, backstay.Refused(nil))
	require.False(t, backstay.NotSent(errors.New("whatever")))
	_, ok = backstay.RetryAfter(context.Canceled)
	require.False(t, ok)
}

func TestLastRealErrorIsTheCallers(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 4, nil)
	c := fleetClient(t, fleet, nil)
	require.NoError(t, c.Ready(t.Context()))
	for _, s := range fleet.Servers() {
		s.Kill()
	}
	begin := time.Now()
	err := try(t.Context(), c, fleet.URL())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	var connect *balancer.ConnectError
	require.ErrorAs(t, err, &connect)
	require.True(t, backstay.NotSent(err))
	require.False(t, backstay.Refused(err))
	require.Less(t, time.Since(begin), 2*time.Second)

	for range 40 { // until every breaker is open
		err = try(t.Context(), c, fleet.URL())
	}
	for !errors.Is(err, breaker.ErrOpen) {
		err = try(t.Context(), c, fleet.URL())
	}
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "and never a summary instead")
}

func TestLastRealResponseIsTheCallersWhole(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 3, &backstaytest.FleetConfig{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Why", "overload")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(strings.Repeat("why ", 10_000)))
		}),
	})
	c := fleetClient(t, fleet, nil)
	resp, err := c.Get(fleet.URL())
	require.NoError(t, err)
	require.Equal(t, "overload", resp.Header.Get("X-Why"))
	status, body := read(t, resp)
	require.Equal(t, 503, status)
	require.Equal(t, strings.Repeat("why ", 10_000), body)
	require.Equal(t, 3, fleet.Stats().Requests)
}

// The second attempt is refused: the first one's answer is all there is.
func TestFailureFollowedByARefusalGivesBackTheFailure(t *testing.T) {
	setup := func(t *testing.T, h http.Handler) (*backstaytest.Fleet, *backstay.Client) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Handler: h})
		return fleet, fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
			s.Breaker.Consecutive = 1
			s.Retry.Backoff = retry.Backoff{Base: -1}
		})
	}
	t.Run("response", func(t *testing.T) {
		long := strings.Repeat("why ", 100_000) // more than would be drained
		fleet, c := setup(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write([]byte(long))
		}))
		ctx, log := call.WithLog(t.Context())
		resp, err := send(t, ctx, c, http.MethodGet, fleet.URL(), "")
		require.NoError(t, err)
		status, body := read(t, resp)
		require.Equal(t, 502, status)
		require.Equal(t, long, body)
		require.Equal(t, 1, fleet.Stats().Requests)
		refusals := log.Calls()[0].Refusals
		require.NotEmpty(t, refusals, "the log says why there was no other attempt")
		require.ErrorIs(t, refusals[0].Err, breaker.ErrOpen)
	})
	t.Run("error", func(t *testing.T) {
		fleet, c := setup(t, nil)
		fleet.Server(0).ResetBeforeHeaders()
		err := try(t.Context(), c, fleet.URL())
		require.ErrorIs(t, err, breaker.ErrOpen)
		var stopped *retry.StoppedError
		require.ErrorAs(t, err, &stopped)
		require.NotErrorIs(t, stopped.Err, breaker.ErrOpen)
		require.False(t, backstay.Refused(err), "it was sent, and failed")
		require.False(t, backstay.NotSent(err))
		require.Equal(t, 1, fleet.Stats().Requests)
	})
}

func TestHTTPClientsTimeoutIsHonouredAndNoFailureOfTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		fleet.Server(0).Stall()
		rec := new(backstaytest.Recorder)
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			cfg.Observer, s.Breaker.Consecutive = rec, 1
		})
		c.Timeout = 500 * time.Millisecond
		begin := time.Now()
		_, err := c.Get(fleet.URL())
		require.Equal(t, 500*time.Millisecond, time.Since(begin))
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 1, fleet.Stats().Requests, "the caller's end is not tried again")
		require.Empty(t, backstaytest.EventsOf[breaker.StateChanged](rec))
	})
}

func TestOurTimeoutsAreFoundThroughHTTPClientsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		fleet.Server(0).Stall()
		fleet.Server(1).Stall()
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			s.AttemptTimeout = time.Second
			cfg.Routes = map[string]backstay.Route{"/call": {Timeout: 1500 * time.Millisecond}}
		})
		for path, kind := range map[string]error{"/attempt": outcome.ErrAttemptTimeout, "/call": outcome.ErrCallTimeout} {
			_, err := c.Get(fleet.URL() + path)
			require.ErrorIs(t, err, kind)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			var wrapped *url.Error
			require.ErrorAs(t, err, &wrapped)
			require.True(t, wrapped.Timeout())
			require.False(t, backstay.Refused(err))
			require.False(t, backstay.NotSent(err))
		}
		_, err := c.Get(fleet.URL() + "/call")
		var ours *outcome.TimeoutError
		require.ErrorAs(t, err, &ours)
		require.ErrorIs(t, ours.Err, outcome.ErrAttemptTimeout, "and what came before")
	})
}

func TestRefusalsBeforeTheFirstAttemptCloseTheBody(t *testing.T) {
	base := &recording{next: always(200)}
	c := newClient(t, &backstay.Config{
		Base:     base,
		Services: map[string]backstay.Service{"orders": {Resolver: itself, Rate: limit.RateConfig{Limit: 1e-6, Burst: 1}}},
	})
	get(t, c, "http://orders")
	body := &closeable{Reader: strings.NewReader("content")}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://orders", body)
	require.NoError(t, err)
	resp, err := c.RoundTrip(req)
	require.Nil(t, resp)
	require.ErrorIs(t, err, limit.ErrLimited)
	require.Equal(t, 1, body.closed)
	require.Len(t, base.requests(), 1)
}

func TestHTTPSNeedsATransportThatCanCheckNames(t *testing.T) {
	base := &recording{next: always(200)}
	c := newClient(t, &backstay.Config{Base: base, Default: backstay.Service{Resolver: itself}})
	err := try(t.Context(), c, "https://orders")
	var bad *balancer.URLError
	require.ErrorAs(t, err, &bad)
	require.True(t, backstay.NotSent(err))
	require.Empty(t, base.requests())
}
