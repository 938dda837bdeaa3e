package backstay_test

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
)

// Observe: everything is judged and told, and nothing is refused, repeated or
// answered from the cache.
func TestObserveTellsAndLeavesCallsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		rec := new(backstaytest.Recorder)
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			cfg.Observer = rec
			s.Observe = backstay.On
			s.CacheTTL = time.Hour
			s.Rate = limit.RateConfig{Limit: 1}
			cfg.Routes = map[string]backstay.Route{"/own": {CacheTTL: time.Hour, Rate: limit.RateConfig{Limit: 2, Burst: 1}}}
		})
		for range 5 {
			status, _ := get(t, c, fleet.URL())
			require.Equal(t, 200, status)
		}
		require.Equal(t, 5, fleet.Stats().Requests, "no cache")
		refusals := backstaytest.EventsOf[backstay.WouldRefuse](rec)
		require.Len(t, refusals, 4)
		require.Equal(t, "orders.test", refusals[0].Service)
		require.ErrorIs(t, refusals[0].Err, limit.ErrLimited)
		get(t, c, fleet.URL()+"/own")
		get(t, c, fleet.URL()+"/own")
		require.Len(t, backstaytest.EventsOf[backstay.WouldRefuse](rec), 5, "a route's own limit")

		fleet.Server(0).Fail(http.StatusServiceUnavailable)
		fleet.ResetStats()
		for range 50 {
			status, _ := get(t, c, fleet.URL())
			require.Equal(t, 503, status)
		}
		require.Equal(t, 50, fleet.Stats().Requests, "no retry, and no breaker")
		changes := backstaytest.EventsOf[breaker.StateChanged](rec)
		require.NotEmpty(t, changes)
		require.Equal(t, breaker.Open, changes[0].To, "it is told all the same")
		require.Len(t, finished(rec), 57)
	})
}

func TestObserveRefusesNothingWhenNodesOrTheServiceAreFull(t *testing.T) {
	h, end := streaming()
	fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Handler: h})
	rec := new(backstaytest.Recorder)
	c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
		cfg.Observer = rec
		s.Observe, s.NodeConcurrency = backstay.On, 1
		s.Concurrency.Max = 2
	})
	defer end()
	for range 5 {
		resp := slowBody(t, c, fleet.URL())
		defer func() { _ = resp.Body.Close() }()
	}
	require.Equal(t, 5, fleet.Stats().InFlight)
	require.Empty(t, backstaytest.EventsOf[backstay.WouldRefuse](rec), "the service counts to the headers only")
}

func TestObserveTellsOfCallsThatTheServiceHasNoRoomFor(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	fleet.Server(0).Stall()
	rec := new(backstaytest.Recorder)
	c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
		cfg.Observer = rec
		s.Observe, s.Concurrency.Max = backstay.On, 1
	})
	results := make(chan error, 3)
	for range 3 {
		go func() { results <- try(t.Context(), c, fleet.URL()) }()
	}
	eventually(t, func() bool { return fleet.Stats().InFlight == 3 }, "all are let through")
	fleet.Heal()
	for range 3 {
		require.NoError(t, <-results)
	}
	refusals := backstaytest.EventsOf[backstay.WouldRefuse](rec)
	require.Len(t, refusals, 2)
	require.ErrorIs(t, refusals[0].Err, limit.ErrFull)
}

// What is told is what is refused where the limit is not only observed.
func TestObserveTellsNothingOfCallsThatWouldOnlyHaveWaited(t *testing.T) {
	for name, rate := range map[string]limit.RateConfig{
		"none waits":          {Limit: 1},
		"two wait":            {Limit: 1, MaxWait: 2 * time.Second},
		"until the timeout":   {Limit: 1, MaxWait: -1},
		"all wait":            {Limit: 100, Burst: 1, MaxWait: time.Second},
		"all are let through": {Limit: 1, Burst: 10},
		"half a second apart": {Limit: 2, Burst: 1, MaxWait: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			refused := make(map[backstay.Switch]int)
			for _, observe := range []backstay.Switch{backstay.On, backstay.Off} {
				synctest.Test(t, func(t *testing.T) {
					rec := new(backstaytest.Recorder)
					c := newClient(t, &backstay.Config{Base: always(200), Observer: rec, Default: backstay.Service{
						Observe: observe, Endpoints: discovery.Addrs("10.0.0.1:80"), Rate: rate,
						// Not a moment at which a token comes: which of the two is first would be chance.
						Timeout: 4250 * time.Millisecond,
					}})
					var failed atomic.Int64
					var wg sync.WaitGroup
					for range 10 {
						wg.Go(func() {
							if try(t.Context(), c, "http://orders/") != nil {
								failed.Add(1)
							}
						})
					}
					wg.Wait()
					told := len(backstaytest.EventsOf[backstay.WouldRefuse](rec))
					if observe == backstay.On {
						require.Zero(t, failed.Load())
					} else {
						require.Zero(t, told)
					}
					refused[observe] = told + int(failed.Load())
				})
			}
			require.Equal(t, refused[backstay.Off], refused[backstay.On])
		})
	}
}

func TestObserveCountsTheQueueOfTheConcurrencyLimit(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	fleet.Server(0).Stall()
	rec := new(backstaytest.Recorder)
	c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
		cfg.Observer = rec
		s.Observe, s.Concurrency = backstay.On, limit.ConcurrencyConfig{Max: 1, Queue: 3}
		cfg.Routes = map[string]backstay.Route{"/pay": {Concurrency: limit.ConcurrencyConfig{Max: 1, Queue: -1}}}
	})
	for path, want := range map[string]int{"": 2, "/pay": 5} { // of six calls
		rec.Clear()
		results := make(chan error, 6)
		for range 6 {
			go func() { results <- try(t.Context(), c, fleet.URL()+path) }()
		}
		eventually(t, func() bool { return fleet.Stats().InFlight == 6 }, "all are let through")
		fleet.Heal()
		for range 6 {
			require.NoError(t, <-results)
		}
		fleet.Server(0).Stall()
		refusals := backstaytest.EventsOf[backstay.WouldRefuse](rec)
		require.Len(t, refusals, want, path)
		var full *limit.FullError
		require.ErrorAs(t, refusals[0].Err, &full)
		require.Equal(t, 1, full.Max, "as the limit says")
	}
	fleet.Heal()
}

func TestEventsOfACallAndItsServiceReachTheObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		rec := new(backstaytest.Recorder)
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			cfg.Observer, s.Policy = rec, first{}
			s.Outliers.Consecutive = -1 // it would be left alone before its breaker opens
		})
		require.NoError(t, c.Ready(t.Context()))
		synctest.Wait()
		require.Equal(t, []string{"balancer.nodes_changed"}, rec.Names())

		rec.Clear()
		get(t, c, fleet.URL())
		require.Equal(t, []string{"call.finished"}, rec.Names())

		rec.Clear()
		fleet.Server(0).FailNext(1, 503)
		get(t, c, fleet.URL())
		require.Equal(t, []string{"retry.retried", "call.finished"}, rec.Names())

		rec.Clear()
		fleet.Server(0).Fail(503)
		for range 40 {
			get(t, c, fleet.URL())
		}
		changed := backstaytest.EventsOf[balancer.NodeChanged](rec)
		require.Len(t, changed, 1)
		require.Equal(t, balancer.Open, changed[0].To)
		require.Equal(t, "s0", changed[0].Node)
		require.Len(t, backstaytest.EventsOf[breaker.StateChanged](rec), 1)
	})
}
