package retry_test

import (
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/retry"
)

// A shape draws how long an attempt takes.
type shape func(*rand.Rand) time.Duration

func milliseconds(f float64) time.Duration { return time.Duration(f * float64(time.Millisecond)) }

// twoHumps takes 10 ms ± 20 %, and every so often 200 ms.
func twoHumps(r *rand.Rand) time.Duration {
	if r.Float64() < 0.015 {
		return 200 * time.Millisecond
	}
	return milliseconds(8 + 4*r.Float64())
}

func lognormal(r *rand.Rand) time.Duration { return milliseconds(10 * math.Exp(r.NormFloat64())) }

func pareto(r *rand.Rand) time.Duration {
	return min(milliseconds(5/math.Pow(1-r.Float64(), 1/1.5)), time.Minute)
}

// fleet is a transport whose attempts take as long as the shape draws, whoever
// else is on the way.
type fleet struct {
	shape shape
	mu    sync.Mutex
	rand  *rand.Rand
}

func (f *fleet) RoundTrip(req *http.Request) (*http.Response, error) {
	f.mu.Lock()
	d := f.shape(f.rand)
	f.mu.Unlock()
	return after(d, replies(200, ""))(req)
}

// run is what came of calls at 200 per second.
type run struct {
	latencies    []time.Duration // sorted
	began, hedge []time.Duration // since the start
}

func (r *run) percentile(p float64) time.Duration {
	return r.latencies[int(p*float64(len(r.latencies)))]
}

// within returns the greatest share that the hedges of any such time are of the
// calls that began in it, but for a single one.
func (r *run) within(window time.Duration) (worst float64) {
	from, calls := 0, 0
	for to, at := range r.hedge {
		for r.hedge[from] <= at-window {
			from++
		}
		for calls < len(r.began) && r.began[calls] <= at {
			calls++
		}
		first, _ := slices.BinarySearch(r.began, at-window+1)
		worst = max(worst, float64(to-from)/float64(calls-first)) // without the single one
	}
	return worst
}

const runCalls = 20_000

func simulate(t *testing.T, s shape, hedge retry.HedgeConfig) *run {
	t.Helper()
	r := new(run)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var mu sync.Mutex
		retrier := newRetrier(t, &retry.Config{Hedge: hedge, Observer: observeHedged(func() {
			mu.Lock()
			r.hedge = append(r.hedge, time.Since(start))
			mu.Unlock()
		})})
		layer := retrier.Layer(&fleet{shape: s, rand: rand.New(rand.NewPCG(1, 2))})
		var all sync.WaitGroup
		for range runCalls {
			r.began = append(r.began, time.Since(start))
			all.Go(func() {
				begin := time.Now()
				resp, err := layer.RoundTrip(newRequest(t, t.Context(), "GET", nil))
				if err != nil {
					t.Error(err)
					return
				}
				_ = resp.Body.Close()
				mu.Lock()
				r.latencies = append(r.latencies, time.Since(begin))
				mu.Unlock()
			})
			time.Sleep(5 * time.Millisecond)
		}
		all.Wait()
	})
	slices.Sort(r.latencies)
	return r
}

func TestHedgingAtAPercentileCutsTheTailForFewExtraAttempts(t *testing.T) {
	p95 := retry.HedgeConfig{Percentile: 0.95}
	for _, test := range []struct {
		name  string
		shape shape
		bar   bool
	}{{"two humps", twoHumps, true}, {"lognormal", lognormal, false}, {"Pareto", pareto, false}} {
		t.Run(test.name, func(t *testing.T) {
			without, with := simulate(t, test.shape, retry.HedgeConfig{}), simulate(t, test.shape, p95)
			share := float64(len(with.hedge)) / runCalls
			t.Logf("p50 %v, p99 %v, p99.9 %v; hedged p50 %v, p99 %v, p99.9 %v, %.2f %% hedges, at most %.2f %% over 10 s",
				without.percentile(0.5), without.percentile(0.99), without.percentile(0.999),
				with.percentile(0.5), with.percentile(0.99), with.percentile(0.999), 100*share, 100*with.within(10*time.Second))
			require.LessOrEqual(t, share, 0.055)
			require.Greater(t, share, 0.03)
			require.LessOrEqual(t, with.within(10*time.Second), 0.05)
			require.Less(t, with.percentile(0.99), without.percentile(0.99))
			if test.bar {
				require.Greater(t, without.percentile(0.99), 10*without.percentile(0.5), "the bar means something")
				require.Less(t, with.percentile(0.99), 3*with.percentile(0.5))
			}
		})
	}
}

func TestServiceThatSlowsDownAltogetherGetsNoMoreThanItsShareOfHedges(t *testing.T) {
	n := 0
	slower := func(r *rand.Rand) time.Duration {
		if n++; n > runCalls/2 {
			return milliseconds(100 + 50*r.Float64())
		}
		return milliseconds(8 + 4*r.Float64())
	}
	r := simulate(t, slower, retry.HedgeConfig{Percentile: 0.95})
	t.Logf("%d hedges", len(r.hedge))
	require.LessOrEqual(t, r.within(10*time.Second), 0.05)
}

func TestPercentileWaitsForItsSamplesAndDelayStandsInForIt(t *testing.T) {
	for _, test := range []struct {
		name  string
		delay time.Duration
		calls int
		slow  bool // the last call is hedged
	}{
		{"too few", -1, 98, false},
		{"enough", -1, 101, true},
		{"too few with a delay", 30 * time.Millisecond, 50, true},
		{"too few with a longer delay", 300 * time.Millisecond, 50, false},
		{"enough with a longer delay", 300 * time.Millisecond, 101, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{steps: []step{after(10*time.Millisecond, replies(200, ""))}}
				cfg := hedging(t, func(c *retry.Config) { c.Hedge.Delay, c.Hedge.Percentile = test.delay, 0.9 })
				layer := newRetrier(t, cfg).Layer(s)
				for range test.calls {
					resp, err := layer.RoundTrip(newRequest(t, t.Context(), "GET", nil))
					require.NoError(t, err)
					readAll(t, resp)
				}
				time.Sleep(time.Second)
				before := s.attempts()
				s.steps = []step{after(10*time.Millisecond, replies(200, ""))}
				resp, err := layer.RoundTrip(newRequest(t, t.Context(), "GET", nil)) // the percentile is found anew with it
				require.NoError(t, err)
				readAll(t, resp)
				s.steps[0] = after(100*time.Millisecond, replies(200, ""))
				resp, err = layer.RoundTrip(newRequest(t, t.Context(), "GET", nil))
				require.NoError(t, err)
				readAll(t, resp)
				require.Equal(t, test.slow, s.attempts()-before == 3)
			})
		})
	}
}

func TestPercentileIsNoLessThanMinDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{after(10*time.Microsecond, replies(200, ""))}}
		layer := newRetrier(t, hedging(t, func(c *retry.Config) { c.Hedge = retry.HedgeConfig{Percentile: 0.9} })).Layer(s)
		for range 102 {
			time.Sleep(10 * time.Millisecond)
			resp, err := layer.RoundTrip(newRequest(t, t.Context(), "GET", nil))
			require.NoError(t, err)
			readAll(t, resp)
		}
		for d, want := range map[time.Duration]int{time.Millisecond - 1: 1, time.Millisecond + 1: 2} {
			before := s.attempts()
			s.steps = []step{after(d, replies(200, ""))}
			resp, err := layer.RoundTrip(newRequest(t, t.Context(), "GET", nil))
			require.NoError(t, err)
			readAll(t, resp)
			require.Equal(t, want, s.attempts()-before)
		}
	})
}
