package backstay_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// births returns how often a service has been built, which is how often its
// nodes were new. It is for bubbles, for that is told beside the calls.
func births(rec *backstaytest.Recorder, service string) int {
	synctest.Wait()
	n := 0
	for _, e := range backstaytest.EventsOf[balancer.NodesChanged](rec) {
		if e.Service == service && len(e.Added) > 0 {
			n++
		}
	}
	return n
}

func TestIdleServiceIsLetGoAfterIdleTimeoutAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		rec := new(backstaytest.Recorder)
		c := newClient(t, &backstay.Config{
			Base: fleet.Transport(), Observer: rec,
			Default:  backstay.Service{Resolver: fleet.Resolver()},
			Services: map[string]backstay.Service{"listed": {}},
		})
		for _, host := range []string{"idle", "listed"} {
			get(t, c, "http://"+host)
		}
		require.Equal(t, 2, fleet.Stats().OpenConnections)

		for range 10 { // each call begins the time anew
			time.Sleep(4 * time.Minute)
			get(t, c, "http://idle")
		}
		require.Equal(t, 1, births(rec, "idle"))

		time.Sleep(4*time.Minute + 58*time.Second)
		synctest.Wait()
		require.Equal(t, 2, fleet.Stats().OpenConnections, "not before its time")
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		require.Equal(t, 1, fleet.Stats().OpenConnections, "the listed service's")

		for _, host := range []string{"idle", "listed"} {
			get(t, c, "http://"+host)
		}
		require.Equal(t, 2, births(rec, "idle"))
		require.Equal(t, 1, births(rec, "listed"))
	})
}

// streaming serves a body that ends when the test says so.
func streaming() (h http.Handler, end func()) {
	done := make(chan struct{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begin ")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-done:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "end")
	}), sync.OnceFunc(func() { close(done) })
}

func TestIdleServiceStaysWhileABodyIsBeingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, end := streaming()
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork(), Handler: h})
		c := newClient(t, &backstay.Config{Base: fleet.Transport(), Default: backstay.Service{Resolver: fleet.Resolver()}})
		resp, err := c.Get("http://idle")
		require.NoError(t, err)
		time.Sleep(24 * time.Hour)
		end()
		_, body := read(t, resp)
		require.Equal(t, "begin end", body)
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		require.Zero(t, fleet.Stats().OpenConnections, "let go once the body has ended")
	})
}

func TestIdleServiceStaysWhileACallAwaitsItsAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		fleet.Server(0).Slow(time.Hour)
		c := newClient(t, &backstay.Config{Base: fleet.Transport(), Default: backstay.Service{
			Resolver: fleet.Resolver(), AttemptTimeout: -1,
		}})
		status, _ := get(t, c, "http://idle")
		require.Equal(t, 200, status)
	})
}

func TestIdleServicesAreKeptForEverWhereIdleTimeoutIsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(backstaytest.Recorder)
		c := newClient(t, &backstay.Config{
			Base: always(200), Observer: rec, IdleTimeout: -1, Default: backstay.Service{Resolver: itself},
		})
		get(t, c, "http://idle")
		time.Sleep(1000 * time.Hour)
		get(t, c, "http://idle")
		require.Equal(t, 1, births(rec, "idle"))
	})
}

func TestServiceUsedLongestAgoMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(backstaytest.Recorder)
		c := newClient(t, &backstay.Config{
			Base: always(200), Observer: rec, MaxIdleServices: 2, Default: backstay.Service{Resolver: itself},
			Services: map[string]backstay.Service{"listed": {}},
		})
		for _, host := range []string{"a", "listed", "b", "a", "c", "a", "b"} { // c takes b's place, b takes c's
			time.Sleep(2 * time.Second)
			get(t, c, "http://"+host)
		}
		require.Equal(t, 1, births(rec, "a"))
		require.Equal(t, 2, births(rec, "b"))
		require.Equal(t, 1, births(rec, "c"))
		require.Equal(t, 1, births(rec, "listed"), "listed services do not count")
	})
}

func TestBusyServicesDoNotMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, end := streaming()
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork(), Handler: h})
		c := newClient(t, &backstay.Config{
			Base: fleet.Transport(), MaxIdleServices: 1, Default: backstay.Service{Resolver: fleet.Resolver()},
		})
		var open []*http.Response
		for _, host := range []string{"a", "b", "c"} {
			resp, err := c.Get("http://" + host)
			require.NoError(t, err)
			open = append(open, resp)
		}
		end()
		for _, resp := range open {
			_, body := read(t, resp)
			require.Equal(t, "begin end", body)
		}
		get(t, c, "http://d")
		synctest.Wait()
		require.Equal(t, 1, fleet.Stats().OpenConnections, "back to the bound with the next one")
	})
}

func TestCallsEnterServicesThatAreJustBeingLetGo(t *testing.T) {
	backstaytest.CheckLeaks(t)
	var calls atomic.Int64
	c := newClient(t, &backstay.Config{
		Base:            roundTripper(func(r *http.Request) (*http.Response, error) { calls.Add(1); return answer(r, 200, ""), nil }),
		MaxIdleServices: 1, Default: backstay.Service{Resolver: itself},
	})
	var all sync.WaitGroup
	errs := make(chan error, 8)
	const each = 200
	for i := range 8 {
		all.Go(func() {
			for n := range each {
				if err := try(t.Context(), c, fmt.Sprintf("http://s%d", (i+n)%3)); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	require.NoError(t, <-errs)
	require.EqualValues(t, 8*each, calls.Load())
}

func TestTenThousandForeignHostsLeaveABoundedNumberOfServicesAndNoGoroutines(t *testing.T) {
	hosts := 10_000
	if underRace {
		hosts = 2_500 // more than there is room for will do
	}
	backstaytest.CheckLeaks(t)
	resolver := &counted{Resolver: itself}
	connections := &closeCount{}
	c := newClient(t, &backstay.Config{Base: connections, Default: backstay.Service{Resolver: resolver}})
	before := runtime.NumGoroutine()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for n := i; n < hosts; n += 4 {
				if err := try(t.Context(), c, fmt.Sprintf("http://host%d.example", n)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	// Nothing is known of services from outside, but that each one passes on a
	// wish, and the base gets it once more.
	c.CloseIdleConnections()
	require.EqualValues(t, 1024+1, connections.closed.Load())
	eventually(t, func() bool { open, _ := resolver.watches(); return open == 0 }, "look-ups end")
	eventually(t, func() bool { return runtime.NumGoroutine() <= before+2 }, "goroutines end")
}

// closeCount counts the wishes to close idle connections.
type closeCount struct{ closed atomic.Int64 }

func (c *closeCount) RoundTrip(req *http.Request) (*http.Response, error) {
	return answer(req, 200, ""), nil
}

func (c *closeCount) CloseIdleConnections() { c.closed.Add(1) }

func TestIdleServiceWhoseLookUpHangsIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		resolver := &counted{Resolver: silent}
		c := newClient(t, &backstay.Config{Base: always(200), Default: backstay.Service{Resolver: resolver}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, try(ctx, c, "http://idle"), context.DeadlineExceeded)
		time.Sleep(time.Hour)
		synctest.Wait()
		open, _ := resolver.watches()
		require.Zero(t, open)
	})
}

func TestServiceWithoutAnyEndpointSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, &backstay.Config{Base: always(200), Default: backstay.Service{Resolver: discovery.Static()}})
		begin := time.Now()
		err := try(t.Context(), c, "http://empty")
		require.ErrorIs(t, err, balancer.ErrNoNodes)
		require.True(t, backstay.NotSent(err))
		require.Less(t, time.Since(begin), time.Second)
	})
}

// A URL's port may come from outside.
func TestPortsOfAListedHostAreIdleServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, &backstay.Config{
			Base: always(200), MaxIdleServices: 3, IdleTimeout: time.Minute, Default: backstay.Service{Resolver: itself},
			Services: map[string]backstay.Service{"orders": {Timeout: time.Hour}, "orders:9": {}},
		})
		left := func() (n int) {
			for port := 1; port <= 20; port++ {
				if c.Balancer(fmt.Sprintf("orders:%d", port)) != nil {
					n++
				}
			}
			return n
		}
		for port := 1; port <= 20; port++ {
			get(t, c, fmt.Sprintf("http://orders:%d", port))
		}
		require.Equal(t, 3+1, left())
		time.Sleep(time.Hour)
		require.Equal(t, 1, left())
		require.NotNil(t, c.Balancer("orders:9"))
	})
}
