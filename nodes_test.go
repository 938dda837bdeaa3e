package backstay_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/retry"
)

// working is a server's handler that takes 10 ms, for in a bubble everything else
// takes no time at all.
var working = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	time.Sleep(10 * time.Millisecond)
	_, _ = w.Write([]byte("ok"))
})

// Callers with short deadlines never see an attempt time out. What they see is
// nobody's failure, call by call; a node that answers none of them is found out.
func TestBlackHoleSeenOnlyThroughShortDeadlinesIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 4, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork(), Handler: working})
		c := fleetClient(t, fleet, nil)
		impatient := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			return try(ctx, c, fleet.URL())
		}
		run := func(d time.Duration) (calls, failed int) {
			for begin := time.Now(); time.Since(begin) < d; calls++ {
				if impatient() != nil {
					failed++
				}
				time.Sleep(10 * time.Millisecond)
			}
			return calls, failed
		}
		_, failed := run(time.Second)
		require.Zero(t, failed)
		fleet.Server(0).Stall()
		run(2 * time.Second)
		fleet.ResetStats()
		calls, failed := run(20 * time.Second)
		bad := fleet.Server(0).Stats().Requests
		t.Logf("%d calls, %d failed, %d to the black hole", calls, failed, bad)
		require.LessOrEqual(t, float64(bad), .02*float64(calls))

		fleet.Heal()
		run(40 * time.Second)
		fleet.ResetStats()
		calls, failed = run(10 * time.Second)
		require.Zero(t, failed)
		require.Greater(t, float64(fleet.Server(0).Stats().Requests), .1*float64(calls), "it is found well again, too")
	})
}

func TestBlackHoleThatIsTheOnlyNodeOpensItsBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		c := fleetClient(t, fleet, nil)
		for range 20 {
			require.NoError(t, try(t.Context(), c, fleet.URL()))
		}
		fleet.Server(0).Stall()
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			_ = try(ctx, c, fleet.URL())
			cancel()
		}
		begin := time.Now()
		require.ErrorIs(t, try(t.Context(), c, fleet.URL()), breaker.ErrOpen)
		require.Zero(t, time.Since(begin))
	})
}

func TestServiceOfOneNodeOpensItsBreakerAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		rec := new(backstaytest.Recorder)
		c := fleetClient(t, fleet, func(cfg *backstay.Config, _ *backstay.Service) { cfg.Observer = rec })
		fleet.Server(0).Fail(http.StatusInternalServerError)
		opened := 0
		for range 40 {
			resp, err := c.Get(fleet.URL())
			if err != nil {
				require.ErrorIs(t, err, breaker.ErrOpen)
				opened++
				continue
			}
			status, _ := read(t, resp)
			require.Equal(t, 500, status)
		}
		require.Equal(t, 20, opened)
		require.Equal(t, 20, fleet.Stats().Requests)

		fleet.Heal()
		time.Sleep(6 * time.Second)
		for range 20 {
			require.NoError(t, try(t.Context(), c, fleet.URL()))
		}
		var states []breaker.State
		for _, e := range backstaytest.EventsOf[breaker.StateChanged](rec) {
			states = append(states, e.To)
		}
		require.Equal(t, []breaker.State{breaker.Open, breaker.HalfOpen, breaker.Closed}, states)
	})
}

func TestWithThreeOfFourBreakersOpenTheFourthCarriesTheCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 4, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		rec := new(backstaytest.Recorder)
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			cfg.Observer = rec
			// With the default policy it takes minutes until a call goes there again
			// often enough for a breaker to open.
			s.Policy, s.Breaker.Consecutive = balancer.RoundRobin{}, 5
			s.Retry = retry.Config{MaxAttempts: 4, Backoff: retry.Backoff{Base: -1}}
		})
		for _, s := range fleet.Servers()[:3] {
			s.Fail(http.StatusServiceUnavailable)
		}
		for range 40 {
			require.NoError(t, try(t.Context(), c, fleet.URL()), "none is lost on the way")
		}
		fleet.ResetStats()
		for range 100 {
			require.NoError(t, try(t.Context(), c, fleet.URL()))
		}
		require.Equal(t, 100, fleet.Server(3).Stats().Requests)
		require.Equal(t, 100, fleet.Stats().Requests)

		for range 300 { // half-open ones are probed meanwhile, at nobody's cost
			require.NoError(t, try(t.Context(), c, fleet.URL()))
			time.Sleep(100 * time.Millisecond)
		}
		fleet.Heal()
		for range 1000 {
			require.NoError(t, try(t.Context(), c, fleet.URL()))
			time.Sleep(100 * time.Millisecond)
		}
		for _, s := range fleet.Servers() {
			s.ResetStats()
		}
		for range 400 {
			require.NoError(t, try(t.Context(), c, fleet.URL()))
		}
		for _, s := range fleet.Servers() {
			require.Greater(t, s.Stats().Requests, 50, s.ID)
		}
	})
}

func TestNodesThatJoinAndLeaveAreFollowedWithoutALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork(), Handler: working})
		c := fleetClient(t, fleet, nil)
		use := func(d time.Duration) (calls int) {
			fleet.ResetStats()
			for begin := time.Now(); time.Since(begin) < d; calls++ {
				require.NoError(t, try(t.Context(), c, fleet.URL()))
				time.Sleep(10 * time.Millisecond)
			}
			return calls
		}
		use(time.Second)
		third := fleet.Join()
		use(10 * time.Second) // its slow start
		calls := use(4 * time.Second)
		require.Greater(t, third.Stats().Requests, calls/6)
		for _, s := range fleet.Servers()[:2] {
			fleet.Leave(s)
			use(time.Second)
			require.LessOrEqual(t, s.Stats().Requests, 1, "but for what was on its way")
		}
		calls = use(time.Second)
		require.Equal(t, calls, third.Stats().Requests)
	})
}
