package balancer_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/balancer/loadreport"
	"github.com/backstay/backstay/outcome"
)

var reporting = balancer.P2C{Cost: balancer.LoadReport{}}

// says makes calls to the node that take d, each answered with the report.
func (r *rig) says(key string, n int, d time.Duration, report loadreport.Report) {
	r.t.Helper()
	for range n {
		l := r.on(key)
		time.Sleep(d)
		l.Report(time.Time{}, report)
		l.Done(time.Time{}, success)
	}
}

func busy(inFlight float64, took time.Duration) loadreport.Report {
	return loadreport.Report{InFlight: inFlight, ServiceTime: took}
}

// where counts the picks of a picker for all nodes.
func (r *rig) where(p balancer.Policy, n int) map[string]int {
	return picks(p.NewPicker(r.Nodes()), n)
}

func TestLoadReportTakesTheLeastBusyOfAll(t *testing.T) {
	inBubble(t, exact(balancer.Config{Policy: reporting, SlowStart: -1}), endpoints(5), func(t *testing.T, r *rig) {
		for i := range 5 {
			r.says(addr(i), 20, 10*time.Millisecond, busy(float64(10-i), 5*time.Millisecond))
		}
		require.Equal(t, map[string]int{addr(4): 100}, r.where(reporting, 100))
		require.Equal(t, map[string]int{addr(3): 100}, func() map[string]int {
			counts := make(map[string]int)
			p := reporting.NewPicker(r.Nodes())
			for range 100 {
				counts[p.Pick(balancer.Call{Avoid: []*balancer.Node{r.node(addr(4))}}).Key()]++
			}
			return counts
		}())
		// Calls of our own count as well, until another is less busy.
		l := r.on(addr(4))
		m := r.on(addr(4))
		require.Equal(t, map[string]int{addr(3): 100}, r.where(reporting, 100))
		l.Done(time.Time{}, success)
		m.Done(time.Time{}, success)
		got, ok := r.node(addr(0)).Reported(time.Now())
		require.True(t, ok)
		require.InDelta(t, 10, got.InFlight, 0.5)
		require.InDelta(t, 5, got.ServiceTime.Seconds()*1000, 0.001)
	})
}

func TestFasterNodeMayBeBusier(t *testing.T) {
	inBubble(t, exact(balancer.Config{Policy: reporting}), endpoints(2), func(t *testing.T, r *rig) {
		for range 20 {
			r.says(addr(0), 1, 20*time.Millisecond, busy(5, 20*time.Millisecond))
			r.says(addr(1), 1, 10*time.Millisecond, busy(8, 10*time.Millisecond))
		}
		require.Equal(t, map[string]int{addr(1): 100}, r.where(reporting, 100))
	})
}

func TestSilentAndFailingNodesCostMoreWhateverTheyReport(t *testing.T) {
	inBubble(t, exact(balancer.Config{Policy: reporting}), endpoints(3), func(t *testing.T, r *rig) {
		for range 20 {
			r.says(addr(0), 1, 10*time.Millisecond, busy(0, 10*time.Millisecond))
			r.says(addr(1), 1, 10*time.Millisecond, busy(0, 10*time.Millisecond))
			r.says(addr(2), 1, 10*time.Millisecond, busy(6, 10*time.Millisecond))
		}
		stalled := r.on(addr(0))
		for range 5 {
			l := r.on(addr(1))
			l.Report(time.Time{}, busy(0, time.Millisecond))
			l.Done(time.Time{}, failure)
		}
		time.Sleep(200 * time.Millisecond)
		require.Equal(t, map[string]int{addr(2): 100}, r.where(reporting, 100))
		stalled.Done(time.Time{}, success)
	})
}

func TestNodeThatDoesNotReportIsTakenForOneLikeTheOthers(t *testing.T) {
	inBubble(t, exact(balancer.Config{Policy: reporting}), endpoints(4), func(t *testing.T, r *rig) {
		for range 20 {
			r.says(addr(0), 1, 10*time.Millisecond, busy(3, 10*time.Millisecond))
			r.says(addr(1), 1, 10*time.Millisecond, busy(9, 10*time.Millisecond))
			r.call(addr(2), 10*time.Millisecond, success)
			r.call(addr(3), 30*time.Millisecond, success)
		}
		costs := make([]float64, 4)
		for i := range costs {
			costs[i] = balancer.LoadReport{}.Cost(r.node(addr(i)), time.Now())
		}
		require.Less(t, costs[0], costs[2])
		require.Less(t, costs[2], costs[1])
		require.Greater(t, costs[3], costs[2])
		_, ok := r.node(addr(2)).Reported(time.Now())
		require.False(t, ok)

		// Who reports no longer is taken for no idle one.
		for range 600 {
			r.call(addr(1), 10*time.Millisecond, success)
		}
		_, ok = r.node(addr(1)).Reported(time.Now())
		require.False(t, ok)
	})
}

func TestWithoutReportsTheCostIsPeakEWMA(t *testing.T) {
	inBubble(t, exact(balancer.Config{}), endpoints(3), func(t *testing.T, r *rig) {
		for i := range 3 {
			r.call(addr(i), time.Duration(i+1)*10*time.Millisecond, success)
		}
		for _, n := range r.Nodes() {
			require.InDelta(t, balancer.PeakEWMA{}.Cost(n, time.Now()), balancer.LoadReport{}.Cost(n, time.Now()), 0)
		}
	})
}

func TestBusyNodeThatNobodyAsksIsAskedAgain(t *testing.T) {
	inBubble(t, exact(balancer.Config{Policy: reporting}), endpoints(2), func(t *testing.T, r *rig) {
		r.says(addr(0), 5, 10*time.Millisecond, busy(20, 10*time.Millisecond))
		start := time.Now()
		for {
			l := r.acquire(balancer.Call{})
			time.Sleep(10 * time.Millisecond)
			if l.Node().Key() == addr(0) {
				l.Done(time.Time{}, success)
				break
			}
			l.Report(time.Time{}, busy(5, 10*time.Millisecond))
			l.Done(time.Time{}, success)
			require.Less(t, time.Since(start), 2*time.Minute)
		}
		require.Greater(t, time.Since(start), 20*time.Second)
	})
}

func TestNewNodeIsNotFlooded(t *testing.T) {
	inBubble(t, exact(balancer.Config{Policy: reporting}), endpoints(4), func(t *testing.T, r *rig) {
		for range 20 {
			for i := range 4 {
				r.says(addr(i), 1, 10*time.Millisecond, busy(2, 10*time.Millisecond))
			}
		}
		r.update(endpoints(5)...)
		var leases []*balancer.Lease
		for range 50 {
			leases = append(leases, r.acquire(balancer.Call{}))
		}
		got := 0
		for _, l := range leases {
			if l.Node().Key() == addr(4) {
				got++
			}
			l.Done(time.Time{}, success)
		}
		require.LessOrEqual(t, got, 3, "of 50 calls at once")
	})
}

func TestOfManyNodesSomeAreAsked(t *testing.T) {
	asked := make(map[*balancer.Node]bool)
	b := newStatic(t, 200, nil)
	p := balancer.P2C{Cost: balancer.LoadReport{}, Rand: rand.NewPCG(1, 2)}.NewPicker(b.Nodes())
	for range 5000 {
		asked[p.Pick(balancer.Call{})] = true
	}
	require.Greater(t, len(asked), 190)
	avoid := b.Nodes()[:199]
	for range 100 {
		l, err := b.Acquire(t.Context(), balancer.Call{Avoid: avoid})
		require.NoError(t, err)
		require.Equal(t, addr(199), l.Node().Key())
		l.Done(time.Time{}, success)
	}
}

func TestReportsThatMakeNoSenseChangeNothing(t *testing.T) {
	inBubble(t, exact(balancer.Config{Policy: reporting}), endpoints(2), func(t *testing.T, r *rig) {
		nan, inf := math.NaN(), math.Inf(1)
		for _, report := range []loadreport.Report{
			{},
			{InFlight: nan, ServiceTime: time.Second},
			{InFlight: -1, ServiceTime: time.Second},
			{InFlight: inf, ServiceTime: time.Second},
			{InFlight: 1, ServiceTime: -time.Second},
			{RPS: nan, CPUUtilization: 1},
			{RPS: 1, CPUUtilization: nan},
			{RPS: 1, CPUUtilization: 1, EPS: nan},
			{RPS: inf, CPUUtilization: 1},
			{RPS: 1, CPUUtilization: 1, EPS: -1},
		} {
			r.says(addr(0), 1, time.Millisecond, report)
			_, ok := r.node(addr(0)).Reported(time.Now())
			require.False(t, ok, "%+v", report)
		}
		var none balancer.Lease
		none.Report(time.Now(), busy(1, 1))
		l := r.on(addr(0))
		l.Done(time.Time{}, success)
		l.Report(time.Time{}, busy(1, time.Second)) // too late
		_, ok := r.node(addr(0)).Reported(time.Now())
		require.False(t, ok)
	})
}

func TestReportingAllocatesNothing(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	b := newStatic(t, 20, &balancer.Config{Policy: reporting})
	h := http.Header{loadreport.Header: {"TEXT rps_fractional=1,cpu_utilization=0.2,named_metrics.rif=3,named_metrics.service_time=0.012"}}
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		l, err := b.Acquire(t.Context(), balancer.Call{})
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := loadreport.FromHeader(h); ok {
			l.Report(time.Time{}, r)
		}
		l.Done(time.Time{}, success)
	}))
}

// Real servers, of which one is busy by other clients' calls.
func TestReportsOfRealServersReachThePolicy(t *testing.T) {
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.HTTP2, backstaytest.H2C} {
		for _, policy := range []balancer.Policy{reporting, balancer.WeightedRoundRobin{Reported: true}, balancer.P2C{}} {
			wants := policy != balancer.Policy(balancer.P2C{})
			t.Run(fmt.Sprintf("%v, %T, %v", p, policy, wants), func(t *testing.T) {
				backstaytest.CheckLeaks(t)
				load := new(loadreport.Server)
				h := load.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) }))
				c := newCaller(t, 2, backstaytest.FleetConfig{Protocol: p, Handler: h}, balancer.Config{Policy: policy}, nil)
				others := load.Begin(time.Now())
				defer others.Done(time.Time{})
				for range 20 {
					require.Equal(t, "ok", c.fetch("/"))
				}
				reported := slices.ContainsFunc(c.Nodes(), func(n *balancer.Node) bool {
					r, ok := n.Reported(time.Now())
					return ok && r.InFlight > 0.9 && r.ServiceTime > 0
				})
				require.Equal(t, wants, reported)
				c.settled()
			})
		}
	}
}

func TestLeastRequestTakesAnyOfTheLeastBusy(t *testing.T) {
	inBubble(t, exact(balancer.Config{Policy: balancer.LeastRequest{}}), endpoints(10), func(t *testing.T, r *rig) {
		var leases []*balancer.Lease
		for i := range 10 {
			for range 1 + i%2 {
				leases = append(leases, r.on(addr(i)))
			}
		}
		leases = append(leases, r.on(addr(0))) // next to each other: 2, 4, 6 and 8 are left
		counts := r.where(balancer.LeastRequest{Rand: rand.NewPCG(1, 2)}, 4000)
		require.Len(t, counts, 4)
		for _, i := range []int{2, 4, 6, 8} {
			require.InDelta(t, 1000, counts[addr(i)], 150) // more than 5 standard deviations
		}
		for _, l := range leases {
			l.Done(time.Time{}, success)
		}
	})
}

func TestLeastRequestKeepsToTheWeights(t *testing.T) {
	list := endpoints(3)
	list[0].Weight, list[1].Weight, list[2].Weight = 1, 2, 3
	inBubble(t, exact(balancer.Config{Policy: balancer.LeastRequest{}}), list, func(t *testing.T, r *rig) {
		var leases []*balancer.Lease
		for range 60 {
			leases = append(leases, r.acquire(balancer.Call{}))
		}
		for i, n := range r.Nodes() {
			require.InDelta(t, 10*(i+1), n.InFlight(), 1)
		}
		for _, l := range leases {
			l.Done(time.Time{}, outcome.Outcome{})
		}
	})
}

// In a bubble nothing else runs, so a cost that every node has alike is told apart
// by chance alone.
func TestLoadReportTakesEqualsAlike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStatic(t, 20, nil)
		counts := picks(balancer.P2C{Cost: balancer.LoadReport{}, Rand: rand.NewPCG(1, 2)}.NewPicker(b.Nodes()), 20_000)
		require.Len(t, counts, 20)
		for key, n := range counts {
			require.InDelta(t, 1000, n, 160, key)
		}
	})
}
