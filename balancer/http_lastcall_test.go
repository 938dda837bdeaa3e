package balancer_test

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
)

// The bar: of a hundred connections to one node, of a minute ±20 %, no more than
// twenty are replaced in any second, and no call is lost, although none could be
// sent again.
func TestConnectionsOfOneNodeAreNotReplacedAllAtOnce(t *testing.T) {
	const callers, second = 100, time.Second
	for name, conns := range map[string]balancer.ConnConfig{
		"net/http's": {MaxAge: time.Minute}, "our own": {MaxAge: time.Minute, ClientConns: balancer.On},
	} {
		t.Run(name, func(t *testing.T) {
			slow := func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				time.Sleep(2 * second)
			}
			virtually(t, 1, slow, balancer.Config{Conns: conns}, func(t *testing.T, c *caller) {
				end := time.Now().Add(200 * second)
				var all sync.WaitGroup
				for i := range callers {
					all.Go(func() {
						time.Sleep(time.Duration(i) * 2 * second / callers) // not in step
						for method := i; time.Now().Before(end); method++ {
							var err error
							if method%2 == 0 {
								err = c.try(c.request(t.Context(), http.MethodPost, "/", once("hello")))
							} else {
								err = c.try(c.request(t.Context(), http.MethodGet, "/", nil))
							}
							if err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
				time.Sleep(3 * second)
				synctest.Wait()
				before := c.fleet.Stats().Connections
				require.Equal(t, callers, before)
				replaced, most := 0, 0
				for time.Now().Before(end) {
					time.Sleep(second)
					synctest.Wait()
					now := c.fleet.Stats().Connections
					replaced, most = replaced+now-before, max(most, now-before)
					before = now
				}
				all.Wait()
				require.LessOrEqual(t, most, callers/5)
				require.GreaterOrEqual(t, replaced, 2*callers, "each of them twice at least")
				require.LessOrEqual(t, replaced, 5*callers)
			})
		})
	}
}

// Each by itself, however many callers there are.
func TestHTTP1ConnectionsTakeExactlySoManyCallsUnderManyCallers(t *testing.T) {
	backstaytest.CheckLeaks(t)
	count := newCounting(0)
	c := newCaller(t, 1, backstaytest.FleetConfig{Handler: count}, balancer.Config{Conns: balancer.ConnConfig{MaxRequests: 10}}, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				c.fetch("/")
			}
		})
	}
	wg.Wait()
	complete := 0
	for conn, n := range count.calls {
		require.LessOrEqual(t, n, 12, conn)
		if n >= 8 {
			complete++
		}
	}
	require.GreaterOrEqual(t, complete, 400/12-8, "%v", count.calls)
}

// What is said to the server of a connection's end, and to whom not.
func TestLastCallOfAConnectionSaysSo(t *testing.T) {
	var said atomic.Value
	c := newCaller(t, 1, backstaytest.FleetConfig{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said.Store(fmt.Sprintf("%q close=%t", r.Header["Connection"], r.Close))
		_, _ = io.Copy(w, r.Body)
	})}, balancer.Config{Conns: balancer.ConnConfig{MaxRequests: 1, ClientConns: balancer.Off}}, nil)
	for name, test := range map[string]struct {
		method, header string
		body           io.Reader
		want           string
	}{
		"without a body":            {method: http.MethodGet, want: `["close"] close=true`},
		"with one":                  {method: http.MethodPost, body: once("hello"), want: `["close"] close=true`},
		"with a header of its own":  {method: http.MethodPost, body: once("hello"), header: "X-Hop", want: `["close, X-Hop"] close=true`},
		"that would rather keep it": {method: http.MethodPost, body: once("hello"), header: "keep-alive", want: `["close"] close=true`},
	} {
		req := c.request(t.Context(), test.method, "/", test.body)
		if test.header != "" {
			req.Header.Set("Connection", test.header)
		}
		header := req.Header.Clone()
		require.NoError(t, c.try(req), name)
		require.Equal(t, test.want, said.Load(), name)
		require.Equal(t, header, req.Header, "%s: the caller's is left alone", name)
		require.False(t, req.Close)
	}
	require.Equal(t, 4, c.fleet.Stats().Connections)
}

func BenchmarkLastCall(b *testing.B) {
	for name, conns := range map[string]balancer.ConnConfig{"without": {}, "counted": {MaxRequests: math.MaxInt32}} {
		b.Run(name, func(b *testing.B) {
			c := newCaller(b, 1, backstaytest.FleetConfig{}, balancer.Config{Conns: conns}, nil)
			b.ReportAllocs()
			for b.Loop() {
				c.fetch("/")
			}
		})
	}
}
