package backstay_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
)

// Everything at once: services that come and go, routes, caches, events, and a
// shutdown in the middle. What has begun before it ends well.
func TestEverythingAtOnce(t *testing.T) {
	backstaytest.CheckLeaks(t)
	fleet := backstaytest.NewFleet(t, 3, nil)
	rec := new(backstaytest.Recorder)
	c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
		cfg.Observer = rec
		cfg.MaxIdleServices, cfg.IdleTimeout = 2, time.Millisecond
		cfg.Default = backstay.Service{Resolver: fleet.Resolver(), CacheTTL: time.Millisecond}
		cfg.Routes = map[string]backstay.Route{"GET /cached": {CacheTTL: time.Minute}, "/poll": {LatencyNeutral: backstay.On}}
		s.CacheTTL = time.Millisecond
	})
	hosts := []string{fleet.Service, "a.test", "b.test", "c.test", "d.test:8080", "E.test"}
	paths := []string{"/", "/cached", "/poll", "", "/x?y=z"}
	stop := make(chan struct{})
	var work sync.WaitGroup
	var mu sync.Mutex
	var wrong []error
	for i := range 8 {
		work.Go(func() {
			source := rand.New(rand.NewPCG(uint64(i), 2))
			for n := 0; ; n++ {
				err := try(t.Context(), c, "http://"+hosts[source.IntN(len(hosts))]+paths[source.IntN(len(paths))])
				closed := errors.Is(err, backstay.ErrClosed) || errors.Is(err, balancer.ErrClosed)
				select {
				case <-stop:
					if closed {
						return
					}
				default:
				}
				if err != nil {
					mu.Lock()
					wrong = append(wrong, fmt.Errorf("call %d: %w", n, err))
					mu.Unlock()
					return
				}
				if n%50 == i {
					c.CloseIdleConnections()
				}
				if n%50 == i+10 {
					_ = c.Ready(t.Context(), "ready.test")
				}
			}
		})
	}
	timer := time.NewTimer(time.Second)
	<-timer.C
	eventually(t, func() bool { return len(finished(rec)) > 100 }, "calls are made") // however slow the machine is
	close(stop)
	require.NoError(t, c.Shutdown(t.Context()))
	work.Wait()
	require.Empty(t, wrong)
}

// Whoever builds a layer may use the client, or take its time: nobody else waits.
func TestLayersAreBuiltOutsideTheClientsLock(t *testing.T) {
	var c *backstay.Client
	c = newClient(t, &backstay.Config{
		Base:    always(200),
		Default: backstay.Service{Resolver: itself},
		Services: map[string]backstay.Service{"token": {}, "orders": {PerAttempt: []func(http.RoundTripper) http.RoundTripper{
			func(next http.RoundTripper) http.RoundTripper {
				if c != nil { // not while New builds the listed one
					if err := try(t.Context(), c, "http://token"); err != nil {
						t.Error(err)
					}
				}
				return next
			},
		}}},
	})
	done := make(chan error, 1)
	go func() { done <- try(t.Context(), c, "http://orders:8080") }()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(5 * time.Second):
		t.Fatal("the client waits for itself")
	}
}

func TestCallersWhoFindANewServiceAtOnceShareIt(t *testing.T) {
	backstaytest.CheckLeaks(t)
	resolver := &counted{Resolver: itself}
	c := newClient(t, &backstay.Config{Base: always(200), Default: backstay.Service{Resolver: resolver, CacheTTL: time.Hour}})
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			if err := try(t.Context(), c, "http://new"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	_, ever := resolver.watches()
	require.Equal(t, 1, ever)
}
