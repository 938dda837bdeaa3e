package backstay_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/propagate"
	"github.com/backstay/backstay/retry"
)

// rawServer keeps the heads of the requests that it gets, as they came over the
// wire, and answers each with the next status, and then with 200.
func rawServer(t *testing.T, statuses ...int) (addr string, heads func() []string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var (
		mu   sync.Mutex
		all  []string
		work sync.WaitGroup
	)
	serve := func(conn net.Conn) {
		defer conn.Close()
		r := bufio.NewReader(conn)
		for head := ""; ; {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if head += line; line != "\r\n" {
				continue
			}
			mu.Lock()
			all, head = append(all, head), ""
			status := http.StatusOK
			if len(statuses) > 0 {
				status, statuses = statuses[0], statuses[1:]
			}
			mu.Unlock()
			_, _ = io.WriteString(conn, "HTTP/1.1 "+strconv.Itoa(status)+" x\r\nContent-Length: 0\r\n\r\n")
		}
	}
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(t.Context(), func() { _ = conn.Close() }) // ends before cleanups
			work.Go(func() { serve(conn) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); work.Wait() })
	return l.Addr().String(), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), all...)
	}
}

// oursIn returns the lines of a request's head that propagate has written.
func oursIn(head string) map[string]string {
	ours := make(map[string]string)
	for line := range strings.Lines(head) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch name {
		case propagate.TimeoutHeader, propagate.HeadersTimeoutHeader, propagate.AttemptHeader, propagate.RetryHeader:
			ours[name] = value
		}
	}
	return ours
}

func TestServiceThatOptsInIsToldWithEachAttempt(t *testing.T) {
	backstaytest.CheckLeaks(t)
	addr, heads := rawServer(t, 503)
	c := newClient(t, &backstay.Config{
		Base: new(http.Transport),
		Services: map[string]backstay.Service{"orders": {
			Resolver: oneNode(addr), Propagate: backstay.On, Timeout: 20 * time.Second,
			Retry: retry.Config{Backoff: retry.Backoff{Base: 20 * time.Millisecond}},
		}},
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://orders/", nil)
	require.NoError(t, err)
	resp, err := c.Do(req)
	require.NoError(t, err)
	status, _ := read(t, resp)
	require.Equal(t, 200, status)
	require.Empty(t, req.Header)
	require.Len(t, heads(), 2)
	before := 20 * time.Second
	for i, head := range heads() {
		ours := oursIn(head)
		require.Equal(t, strconv.Itoa(i+1), ours[propagate.AttemptHeader])
		require.Equal(t, "10000", ours[propagate.HeadersTimeoutHeader])
		micros, err := strconv.Atoi(strings.TrimSuffix(ours[propagate.TimeoutHeader], "u"))
		require.NoError(t, err, head)
		left := time.Duration(micros) * time.Microsecond
		require.LessOrEqual(t, left, before)
		before = left
		require.Len(t, ours, 3)
	}
}

func TestNothingOfOursReachesWhoDidNotOptIn(t *testing.T) {
	backstaytest.CheckLeaks(t)
	addr, heads := rawServer(t, 503, 503)
	foreign, foreignHeads := rawServer(t)
	redirecting := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{
		Service: "told",
		Handler: http.RedirectHandler("http://"+foreign+"/", http.StatusFound),
	})
	c := newClient(t, &backstay.Config{
		Base: new(http.Transport),
		Services: map[string]backstay.Service{
			"plain": {Resolver: oneNode(addr), Timeout: time.Minute},
			"told":  {Resolver: redirecting.Resolver(), Timeout: time.Minute, Propagate: backstay.On},
		},
	})
	// On behalf of a request that says all there is to say.
	ctx := call.WithInbound(t.Context(), &call.Inbound{Attempt: 1})
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, url := range []string{"http://plain/", "http://told/"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		require.NoError(t, err)
		resp, err := c.Do(req)
		require.NoError(t, err)
		status, _ := read(t, resp)
		require.Equal(t, 200, status)
	}
	require.Len(t, heads(), 3)
	require.Len(t, foreignHeads(), 1)
	for _, head := range append(heads(), foreignHeads()...) {
		require.Empty(t, oursIn(head), head)
	}
}

func TestClientHeedsThatARequestIsNotToBeRepeated(t *testing.T) {
	for header, value := range map[string]string{
		propagate.RetryHeader: propagate.RetryNo, "Grpc-Retry-Pushback-Ms": "-1", "X-Envoy-Overloaded": "true",
	} {
		fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set(header, value)
				w.WriteHeader(http.StatusServiceUnavailable)
			}),
		})
		c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) { s.Retry.Statuses = []int{503} })
		record := logged(t, c, fleet.URL())
		require.Len(t, record.Attempts, 1, header)
		require.Equal(t, 503, record.Status)
	}
}

func TestCallsForAFinalRequestMayStillGoWhereNothingWasSentYet(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 4, nil)
	for i := range 3 {
		fleet.Server(i).Refuse()
	}
	c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) { s.Retry.MaxAttempts = 4 })
	ctx := call.WithInbound(t.Context(), &call.Inbound{NoRetry: true})
	for range 5 {
		resp, err := send(t, ctx, c, http.MethodGet, fleet.URL(), "")
		require.NoError(t, err)
		status, _ := read(t, resp)
		require.Equal(t, 200, status)
	}
}

func TestBodyThatStallsEndsAndCountsAgainstTheNodeOnce(t *testing.T) {
	for _, protocol := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.HTTP2, backstaytest.H2C} {
		t.Run(protocol.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{
					Network: backstaytest.NewNetwork(), Protocol: protocol,
					Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						_, _ = io.WriteString(w, "begun")
						_ = http.NewResponseController(w).Flush()
						<-r.Context().Done()
					}),
				})
				c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
					s.BodyIdleTimeout = 50 * time.Millisecond
					if protocol == backstaytest.H2C {
						s.H2C = backstay.On
					}
				})
				ctx, log := call.WithLog(t.Context())
				resp, err := send(t, ctx, c, http.MethodGet, fleet.URL(), "")
				require.NoError(t, err)
				text, err := io.ReadAll(resp.Body)
				require.Equal(t, "begun", string(text))
				require.ErrorIs(t, err, outcome.ErrBodyIdle)
				var timeout *outcome.TimeoutError
				require.ErrorAs(t, err, &timeout)
				require.Equal(t, 50*time.Millisecond, timeout.After)
				require.NoError(t, resp.Body.Close())
				record := log.Calls()[0]
				require.Len(t, record.Attempts, 1)
				require.Equal(t, outcome.Failure, record.Attempts[0].Outcome.Class)
				require.Contains(t, record.String(), "body broke after")
				node := c.Balancer(fleet.Service).Nodes()[0]
				require.Zero(t, node.InFlight())
			})
		})
	}
}
