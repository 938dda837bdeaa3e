package backstay_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/call"
)

// redirecting answers /to?u=… with a redirect, and everything else with what it
// was sent.
func redirecting(status int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if to := r.URL.Query().Get("u"); to != "" {
			http.Redirect(w, r, to, status)
			return
		}
		_, _ = io.WriteString(w, r.Method+" "+r.Host+r.URL.Path+" "+string(body))
	})
}

func TestRedirectToAForeignHostGoesOutPlainlyAndMakesNoService(t *testing.T) {
	backstaytest.CheckLeaks(t)
	foreign := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Handler: redirecting(302)}).Server(0)
	fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Handler: redirecting(302)})
	rec := new(backstaytest.Recorder)
	lookedUp := &counted{Resolver: itself}
	c := fleetClient(t, fleet, func(cfg *backstay.Config, _ *backstay.Service) {
		cfg.Observer, cfg.Default.Resolver = rec, lookedUp
	})
	resp, err := c.Get(fleet.URL() + "/to?u=" + foreign.URL() + "/elsewhere")
	require.NoError(t, err)
	status, body := read(t, resp)
	require.Equal(t, 200, status)
	require.Equal(t, "GET "+foreign.Addr+"/elsewhere ", body)

	_, ever := lookedUp.watches()
	require.Zero(t, ever)
	records := finished(rec)
	require.Len(t, records, 1, "the foreign hop is no call of a service")
	require.Equal(t, 302, records[0].Status)
}

func TestRedirectToAServiceThatIsListedUsesIt(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Handler: redirecting(302)})
	other := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Handler: redirecting(302), Service: "users.test"})
	rec := new(backstaytest.Recorder)
	c := fleetClient(t, fleet, func(cfg *backstay.Config, _ *backstay.Service) {
		cfg.Observer = rec
		cfg.Services = map[string]backstay.Service{"users.test": {Resolver: other.Resolver()}}
	})
	for _, port := range []string{"", ":8080"} { // the second is another service, with the same settings
		_, body := get(t, c, fleet.URL()+"/to?u=http://users.test"+port+"/list")
		require.Equal(t, "GET users.test"+port+"/list ", body)
	}
	var services []string
	for _, r := range finished(rec) {
		services = append(services, r.Service)
	}
	require.Equal(t, []string{"orders.test", "users.test", "orders.test", "users.test:8080"}, services)
}

func TestRedirectToAServiceThatIsKnownUsesIt(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Handler: redirecting(302)})
	rec := new(backstaytest.Recorder)
	lookedUp := &counted{Resolver: fleet.Resolver()}
	c := newClient(t, &backstay.Config{Base: fleet.Transport(), Observer: rec, Default: backstay.Service{Resolver: lookedUp}})
	get(t, c, "http://known/")
	get(t, c, "http://orders/to?u=http://Known:80/")
	require.Len(t, finished(rec), 3)
	require.Equal(t, "known", finished(rec)[2].Service)
	_, ever := lookedUp.watches()
	require.Equal(t, 2, ever, "of known and of orders")
}

// A redirect is another call: it has tried no node yet.
func TestRedirectWithinAServiceDoesNotAvoidTheFirstHopsNode(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Handler: redirecting(307)})
	c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) { s.Policy = first{} })
	for range 5 {
		ctx, log := call.WithLog(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, fleet.URL()+"/to?u=/there", strings.NewReader("content"))
		require.NoError(t, err)
		resp, err := c.Do(req)
		require.NoError(t, err)
		_, body := read(t, resp)
		require.Equal(t, "PUT orders.test/there content", body)
		calls := log.Calls()
		require.Len(t, calls, 2)
		for _, r := range calls {
			require.Len(t, r.Attempts, 1)
			require.Equal(t, "s0", r.Attempts[0].Node)
		}
	}
}

// first is a policy that insists on the first node.
type first struct{}

func (first) NewPicker(nodes []*balancer.Node) balancer.Picker {
	return balancer.PickerFunc(func(balancer.Call) *balancer.Node { return nodes[0] })
}

func TestRedirectToAnUnknownSchemeIsAnError(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Handler: redirecting(302)})
	c := fleetClient(t, fleet, nil)
	err := try(t.Context(), c, fleet.URL()+"/to?u=gopher://host/x")
	var bad *backstay.RequestError
	require.ErrorAs(t, err, &bad)
	require.Equal(t, "gopher://host/x", bad.Target)
}

func TestRedirectsBodyOfAHopIsReadAgainAfterARetry(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Handler: redirecting(308)})
	for _, s := range fleet.Servers() {
		s.FailNext(1, http.StatusServiceUnavailable)
	}
	c := fleetClient(t, fleet, nil)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, fleet.URL()+"/to?u=/there", strings.NewReader("content"))
	require.NoError(t, err)
	resp, err := c.Do(req)
	require.NoError(t, err)
	status, body := read(t, resp)
	require.Equal(t, 200, status)
	require.Equal(t, "PUT orders.test/there content", body)
}
