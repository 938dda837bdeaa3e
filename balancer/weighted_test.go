package balancer_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/balancer/loadreport"
	"github.com/backstay/backstay/discovery"
)

func used(rps, utilization, eps float64) loadreport.Report {
	return loadreport.Report{RPS: rps, CPUUtilization: utilization, EPS: eps}
}

// weigh has three nodes report for a time, and returns how many of 6,000 picks by
// the policy each gets then.
func weigh(t *testing.T, w balancer.WeightedRoundRobin, length time.Duration, list []discovery.Endpoint, reports [3]loadreport.Report) (shares [3]float64) {
	t.Helper()
	w.Reported = true
	inBubble(t, exact(balancer.Config{Policy: w}), list, func(t *testing.T, r *rig) {
		for range int(length / time.Second) {
			for i, report := range reports {
				l := r.on(addr(i))
				l.Report(time.Time{}, report)
				l.Done(time.Time{}, success)
			}
			time.Sleep(time.Second)
		}
		counts := r.counts(6000)
		for i := range shares {
			shares[i] = float64(counts[addr(i)])
		}
	})
	return shares
}

func TestReportedWeightsFollowA58(t *testing.T) {
	weighted := endpoints(3)
	weighted[1].Weight = 2
	for name, c := range map[string]struct {
		policy  balancer.WeightedRoundRobin
		length  time.Duration
		list    []discovery.Endpoint
		reports [3]loadreport.Report
		want    [3]float64
	}{
		"rate by utilization": {
			length: 12 * time.Second, reports: [3]loadreport.Report{used(100, 0.5, 0), used(100, 0.25, 0), used(300, 0.5, 0)},
			want: [3]float64{1000, 2000, 3000},
		},
		"the application's utilization comes first": {
			length: 12 * time.Second, reports: [3]loadreport.Report{{RPS: 100, CPUUtilization: 0.01, ApplicationUtilization: 1}, used(100, 0.5, 0), used(100, 0.3333333, 0)},
			want: [3]float64{1000, 2000, 3000},
		},
		"errors count as utilization": {
			length: 12 * time.Second, reports: [3]loadreport.Report{used(100, 0.5, 50), used(100, 0.5, 0), used(100, 0.3333333, 0)},
			want: [3]float64{1000, 2000, 3000},
		},
		"errors count as much as is said": {
			policy: balancer.WeightedRoundRobin{ErrorPenalty: 4}, length: 12 * time.Second,
			reports: [3]loadreport.Report{used(100, 0.5, 12.5), used(100, 0.5, 0), used(100, 0.3333333, 0)},
			want:    [3]float64{1000, 2000, 3000},
		},
		"errors do not count": {
			policy: balancer.WeightedRoundRobin{ErrorPenalty: -1}, length: 12 * time.Second,
			reports: [3]loadreport.Report{used(100, 0.5, 90), used(100, 0.5, 0), used(100, 0.5, 0)},
			want:    [3]float64{2000, 2000, 2000},
		},
		"blackout": {
			length: 5 * time.Second, reports: [3]loadreport.Report{used(100, 0.5, 0), used(100, 0.25, 0), used(300, 0.5, 0)},
			want: [3]float64{2000, 2000, 2000},
		},
		"no blackout": {
			policy: balancer.WeightedRoundRobin{Blackout: -1}, length: 2 * time.Second,
			reports: [3]loadreport.Report{used(100, 0.5, 0), used(100, 0.25, 0), used(300, 0.5, 0)},
			want:    [3]float64{1000, 2000, 3000},
		},
		"who says nothing has the mean": {
			length: 12 * time.Second, reports: [3]loadreport.Report{used(100, 0.5, 0), {}, used(300, 0.5, 0)},
			want: [3]float64{1000, 2000, 3000},
		},
		"one is too few, so the endpoints' hold": {
			length: 12 * time.Second, list: weighted, reports: [3]loadreport.Report{used(100, 0.1, 0), {}, {RPS: 3}},
			want: [3]float64{1500, 3000, 1500},
		},
		"the reports' outweigh the endpoints'": {
			length: 12 * time.Second, list: weighted, reports: [3]loadreport.Report{used(100, 0.5, 0), used(100, 0.5, 0), used(100, 0.5, 0)},
			want: [3]float64{2000, 2000, 2000},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if c.list == nil {
				c.list = endpoints(3)
			}
			got := weigh(t, c.policy, c.length, c.list, c.reports)
			for i := range got {
				require.InDelta(t, c.want[i], got[i], 30, "%v", got)
			}
		})
	}
}

func TestReportedWeightsExpireAndBeginAnew(t *testing.T) {
	inBubble(t, exact(balancer.Config{Policy: balancer.WeightedRoundRobin{Reported: true}}), endpoints(2), func(t *testing.T, r *rig) {
		report := func(seconds int) {
			for range seconds {
				r.says(addr(0), 1, 0, used(100, 0.5, 0))
				r.says(addr(1), 1, 0, used(100, 0.25, 0))
				time.Sleep(time.Second)
			}
		}
		require.InDelta(t, 1500, r.counts(3000)[addr(1)], 15)
		report(12)
		require.InDelta(t, 2000, r.counts(3000)[addr(1)], 15)
		time.Sleep(2 * time.Minute)
		require.InDelta(t, 2000, r.counts(3000)[addr(1)], 15)
		time.Sleep(time.Minute)
		require.InDelta(t, 1500, r.counts(3000)[addr(1)], 15)
		report(5) // not believed yet
		require.InDelta(t, 1500, r.counts(3000)[addr(1)], 15)
		report(7)
		require.InDelta(t, 2000, r.counts(3000)[addr(1)], 15)
	})
}

func TestWeightsGrowThroughSlowStart(t *testing.T) {
	for name, w := range map[string]balancer.WeightedRoundRobin{"static": {}, "reported": {Reported: true}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, exact(balancer.Config{Policy: w}), endpoints(2), func(t *testing.T, r *rig) {
				r.update(endpoints(3)...)
				require.InDelta(t, 100.0*1/21, r.counts(2100)[addr(2)]/21, 1)
				time.Sleep(5 * time.Second)
				r.counts(1)
				require.InDelta(t, 100.0*0.5/2.5, r.counts(2500)[addr(2)]/25, 2)
				time.Sleep(6 * time.Second)
				r.counts(1)
				require.InDelta(t, 1000, r.counts(3000)[addr(2)], 10)
				time.Sleep(time.Hour)
				require.InDelta(t, 1000, r.counts(3000)[addr(2)], 10)
			})
		})
	}
}

func TestWeightedRoundRobinIsValidated(t *testing.T) {
	_, err := balancer.New("orders", discovery.Static(endpoints(1)...), &balancer.Config{
		Policy: balancer.WeightedRoundRobin{Update: time.Millisecond, ErrorPenalty: math.NaN()},
	})
	require.ErrorContains(t, err, "balancer: WeightedRoundRobin.Update is 1ms, want >= 100ms")
	require.ErrorContains(t, err, "balancer: WeightedRoundRobin.ErrorPenalty is NaN, want a finite number")
	require.NoError(t, balancer.WeightedRoundRobin{Blackout: -1, Expiration: -1, ErrorPenalty: -1}.Validate())
}

func TestWeightsAreRenewedWithoutAnAllocation(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	synctest.Test(t, func(t *testing.T) {
		b := newStatic(t, 100, nil)
		p := balancer.WeightedRoundRobin{Reported: true, Update: 100 * time.Millisecond}.NewPicker(b.Nodes())
		now := time.Now()
		require.Zero(t, testing.AllocsPerRun(100, func() {
			now = now.Add(time.Second)
			p.Pick(balancer.Call{Now: now})
		}))
	})
}
