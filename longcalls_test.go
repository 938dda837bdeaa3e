package backstay_test

import (
	"context"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

// dripping is a body that gives a kilobyte at a time, with pauses.
type dripping struct {
	pause time.Duration
	left  int
}

func (d *dripping) Read(p []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	time.Sleep(d.pause) // in a bubble
	d.left--
	return copy(p, make([]byte, 1024)), nil
}

func TestSlowUploadThatMakesProgressOutlivesTheAttemptTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) { s.AttemptTimeout = time.Second })
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, fleet.URL(), &dripping{900 * time.Millisecond, 100})
		require.NoError(t, err)
		begin := time.Now()
		resp, err := c.Do(req)
		require.NoError(t, err)
		status, _ := read(t, resp)
		require.Equal(t, 200, status)
		require.Equal(t, 90*time.Second, time.Since(begin))
		require.Equal(t, 1, fleet.Stats().Requests)
	})
}

func TestUploadThatThePeerDoesNotReadEndsWithTheAttemptTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{
			Network: backstaytest.NewNetwork(),
			Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
		})
		c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
			s.AttemptTimeout, s.Retry = time.Second, once()
		})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, fleet.URL(), &dripping{0, 100_000})
		require.NoError(t, err)
		begin := time.Now()
		_, err = c.Do(req)
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.Equal(t, time.Second, time.Since(begin))
	})
}

func TestCallTimeoutCutsTheBodyAndAttemptTimeoutDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, end := streaming()
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork(), Handler: h})
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			s.AttemptTimeout = time.Second
			cfg.Routes = map[string]backstay.Route{"/bounded": {Timeout: time.Minute}}
		})
		begin := time.Now()
		resp := slowBody(t, c, fleet.URL()+"/bounded")
		_, err := io.ReadAll(resp.Body)
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
		require.Equal(t, time.Minute, time.Since(begin))
		require.NoError(t, resp.Body.Close())

		resp = slowBody(t, c, fleet.URL())
		time.AfterFunc(time.Hour, end)
		rest, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "end", string(rest))
		require.NoError(t, resp.Body.Close())
	})
}

// A probe's verdict comes with the headers of its answer, not with its end.
func TestHourLongDownloadHoldsNoProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, end := streaming()
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork(), Handler: h})
		rec := new(backstaytest.Recorder)
		c := fleetClient(t, fleet, func(cfg *backstay.Config, s *backstay.Service) {
			cfg.Observer, s.Breaker.Consecutive, s.Breaker.Probes = rec, 1, 1
		})
		fleet.Server(0).FailNext(1, http.StatusInternalServerError)
		get(t, c, fleet.URL())
		require.ErrorIs(t, try(t.Context(), c, fleet.URL()), breaker.ErrOpen)
		time.Sleep(6 * time.Second)
		var open []*http.Response
		for range 3 { // the probe, and two calls after it
			open = append(open, slowBody(t, c, fleet.URL()))
		}
		changes := backstaytest.EventsOf[breaker.StateChanged](rec)
		require.Equal(t, breaker.Closed, changes[len(changes)-1].To)
		time.Sleep(time.Hour)
		end()
		for _, resp := range open {
			_, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
		}
		require.Len(t, backstaytest.EventsOf[breaker.StateChanged](rec), len(changes))
	})
}

// shares makes paced calls, and returns the share of each server.
func shares(t *testing.T, c *backstay.Client, fleet *backstaytest.Fleet, calls int) []float64 {
	t.Helper()
	fleet.ResetStats()
	for range calls {
		require.NoError(t, try(t.Context(), c, fleet.URL()+"/quick"))
		time.Sleep(20 * time.Millisecond) // in a bubble
	}
	var shares []float64
	for _, s := range fleet.Servers() {
		shares = append(shares, float64(s.Stats().Requests)/float64(calls))
	}
	return shares
}

func TestHourLongDownloadDoesNotShiftTheLatencyOfItsNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{
			Network: backstaytest.NewNetwork(),
			HandlerOf: func(s *backstaytest.Server) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(10 * time.Millisecond)
					if r.URL.Path == "/long" && s.ID == "s0" {
						_ = http.NewResponseController(w).Flush()
						<-end
					}
				})
			},
		})
		c := fleetClient(t, fleet, nil)
		shares(t, c, fleet, 50)
		var open []*http.Response
		for range 40 { // half of them stay open, all of those on s0
			resp, err := c.Get(fleet.URL() + "/long")
			require.NoError(t, err)
			open = append(open, resp)
		}
		time.Sleep(time.Hour)
		require.InDelta(t, .5, shares(t, c, fleet, 400)[0], .16, "while they are under way")
		close(end)
		for _, resp := range open {
			read(t, resp)
		}
		require.InDelta(t, .5, shares(t, c, fleet, 400)[0], .16, "once they have ended")
	})
}

func TestLongPollOnALatencyNeutralRouteDoesNotDriveTrafficFromItsNode(t *testing.T) {
	for _, test := range []struct {
		name  string
		route backstay.Route
		least float64
		most  float64
	}{
		{"latency neutral", backstay.Route{AttemptTimeout: -1, LatencyNeutral: backstay.On}, .34, .66},
		{"like any other call", backstay.Route{AttemptTimeout: -1}, 0, .05}, // or this test would prove nothing
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{
					Network: backstaytest.NewNetwork(),
					HandlerOf: func(s *backstaytest.Server) http.Handler {
						return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
							wait := 10 * time.Millisecond
							if r.URL.Path == "/poll" && s.ID == "s0" {
								wait = 30 * time.Second
							}
							select {
							case <-time.After(wait):
							case <-r.Context().Done():
							}
						})
					},
				})
				c := fleetClient(t, fleet, func(cfg *backstay.Config, _ *backstay.Service) {
					cfg.Routes = map[string]backstay.Route{"/poll": test.route}
				})
				shares(t, c, fleet, 50)
				ctx, stop := context.WithCancel(t.Context())
				var polls sync.WaitGroup
				for range 20 {
					polls.Go(func() {
						for ctx.Err() == nil {
							_ = try(ctx, c, fleet.URL()+"/poll")
							time.Sleep(time.Second)
						}
					})
				}
				time.Sleep(time.Minute)
				const calls = 400
				ofFirst := 0
				for range calls {
					if logged(t, c, fleet.URL()+"/quick").Attempts[0].Node == "s0" {
						ofFirst++
					}
					time.Sleep(20 * time.Millisecond)
				}
				stop()
				polls.Wait()
				share := float64(ofFirst) / calls
				require.GreaterOrEqual(t, share, test.least)
				require.LessOrEqual(t, share, test.most)
			})
		})
	}
}
