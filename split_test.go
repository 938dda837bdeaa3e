package backstay_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// canaries returns a fleet of four, the first of which is the canary, and the
// service's subsets.
func canaries(t *testing.T) (*backstaytest.Fleet, map[string]balancer.Subset) {
	fleet := backstaytest.NewFleet(t, 4, nil)
	for i, s := range fleet.Servers() {
		version := "1"
		if i == 0 {
			version = "2"
		}
		s.SetEndpoint(func(e *discovery.Endpoint) { e.Metadata = map[string]string{"version": version} })
	}
	return fleet, map[string]balancer.Subset{
		"canary": {Match: map[string]string{"version": "2"}, Else: "stable"},
		"stable": {Match: map[string]string{"version": "1"}},
	}
}

func TestARoutesSplitSendsTheCanaryItsPart(t *testing.T) {
	fleet, subsets := canaries(t)
	c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
		s.Subsets = subsets
		cfg.Routes = map[string]backstay.Route{
			"GET " + fleet.Service + "/items": {Split: balancer.Split{{Subset: "canary", Weight: 5}, {Subset: "stable", Weight: 95}}},
			"GET " + fleet.Service + "/new":   {Split: balancer.Split{{Subset: "canary", Weight: 1}}},
		}
	})
	for range 1000 {
		get(t, c, fleet.URL()+"/items")
	}
	share := fleet.Server(0).Stats().Requests
	require.InDelta(t, 50, share, 45) // more than six deviations
	for range 100 {
		get(t, c, fleet.URL()+"/new")
	}
	require.Equal(t, share+100, fleet.Server(0).Stats().Requests)

	stable := balancer.WithSubset(t.Context(), "stable")
	req, err := http.NewRequestWithContext(stable, http.MethodGet, fleet.URL()+"/new", nil)
	require.NoError(t, err)
	for range 50 {
		resp, err := c.Do(req)
		require.NoError(t, err)
		read(t, resp)
	}
	require.Equal(t, share+100, fleet.Server(0).Stats().Requests, "the context has the last word")
}

func TestACallsRetriesStayInItsSubset(t *testing.T) {
	fleet, subsets := canaries(t)
	fleet.Server(1).Fail(http.StatusServiceUnavailable)
	c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
		s.Subsets, s.Split = subsets, balancer.Split{{Subset: "stable", Weight: 1}}
	})
	for range 100 {
		status, _ := get(t, c, fleet.URL()+"/items")
		require.Equal(t, http.StatusOK, status)
	}
	require.Zero(t, fleet.Server(0).Stats().Requests)
}

func TestASplitMustNameSubsetsThatThereAre(t *testing.T) {
	split := balancer.Split{{Subset: "canary", Weight: 5}}
	subsets := map[string]balancer.Subset{"canary": {Match: map[string]string{"v": "2"}}}
	_, err := backstay.New(&backstay.Config{
		Services: map[string]backstay.Service{"orders": {Subsets: subsets}, "items": {}},
		Routes: map[string]backstay.Route{
			"GET orders/x": {Split: split}, "GET items/x": {Split: split}, "GET stock/x": {Split: split},
		},
	})
	require.EqualError(t, err, `backstay: Routes["GET stock/x"]: balancer: Split[0].Subset is "canary", want one of Subsets ([])
backstay: Services["items"] with Routes["GET items/x"]: balancer: Split[0].Subset is "canary", want one of Subsets ([])`)
}
