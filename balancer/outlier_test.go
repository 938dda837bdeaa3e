package balancer_test

import (
	"context"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/outcome"
)

// ejecting is a configuration in which nothing but outlier detection leaves nodes
// alone, and nothing is at random.
func ejecting(o balancer.OutlierConfig) *balancer.Config {
	if o.Consecutive == 0 {
		o.Consecutive = 5
	}
	if o.Jitter == 0 {
		o.Jitter = -1
	}
	cfg := exact(balancer.Config{Outliers: o, SlowStart: -1, PanicThreshold: -1})
	cfg.Breaker.FailureRate = -1
	return cfg
}

// answer makes so many calls to that very node.
func (r *rig) answer(n int, key string, o outcome.Outcome) {
	r.t.Helper()
	for range n {
		l := r.acquire(balancer.Call{Node: key})
		l.Done(time.Time{}, o)
	}
}

// look returns what the balancer's snapshot says of a node.
func (r *rig) look(key string) balancer.NodeSnapshot {
	r.t.Helper()
	for _, n := range r.Snapshot().Nodes {
		if n.Node == key {
			return n
		}
	}
	require.Fail(r.t, "no such node", key)
	return balancer.NodeSnapshot{}
}

func (r *rig) ejected() (keys []string) {
	for _, n := range r.Snapshot().Nodes {
		if n.State == balancer.Ejected {
			keys = append(keys, n.Node)
		}
	}
	return keys
}

func TestOutlierIsEjectedByTheFailureThatIsOneTooMany(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{}), endpoints(3), func(t *testing.T, r *rig) {
		r.rec.Clear()
		r.answer(4, addr(0), failure)
		r.answer(1, addr(0), success)
		r.answer(4, addr(0), failure)
		r.answer(1, addr(0), throttled(time.Second)) // it is well, and asks for less
		r.answer(4, addr(0), failure)
		r.answer(1, addr(0), cancelled) // says nothing
		require.Empty(t, r.ejected())
		r.answer(1, addr(0), failure)
		until := time.Now().Add(30 * time.Second)
		got := backstaytest.EventsOf[balancer.NodeChanged](r.rec)
		require.Len(t, got, 1)
		require.True(t, until.Equal(got[0].Until), got[0].Until)
		got[0].Until = time.Time{}
		require.Equal(t, balancer.NodeChanged{
			Service: "orders", Node: addr(0), To: balancer.Ejected, Reason: "5 failures in a row",
		}, got[0])
		counts := r.counts(200)
		require.Zero(t, counts[addr(0)], "it is left alone")
		require.Len(t, counts, 2)
	})
}

func TestSomeNodesMayBeEjectedButNeverTheLast(t *testing.T) {
	for _, tt := range []struct {
		nodes, draining int
		percent         float64
		want            int
	}{
		{nodes: 1, want: 0},
		{nodes: 2, want: 1},
		{nodes: 3, want: 1},
		{nodes: 9, want: 1},
		{nodes: 10, want: 1},
		{nodes: 11, want: 1},
		{nodes: 20, want: 2},
		{nodes: 100, want: 10},
		{nodes: 1, percent: 100, want: 0},
		{nodes: 2, percent: 100, want: 1},
		{nodes: 10, percent: 100, want: 9},
		{nodes: 10, percent: -1, want: 9},
		{nodes: 10, percent: 59, want: 5},
		{nodes: 3, draining: 2, percent: 100, want: 0},
		{nodes: 12, draining: 10, want: 1},
	} {
		t.Run(fmt.Sprintf("%d nodes, %d draining, %v percent", tt.nodes, tt.draining, tt.percent), func(t *testing.T) {
			list := endpoints(tt.nodes)
			for i := range tt.draining {
				list[i].Draining = true
			}
			inBubble(t, ejecting(balancer.OutlierConfig{MaxPercent: tt.percent}), list, func(t *testing.T, r *rig) {
				for range 3 { // however often
					for i := range tt.nodes {
						r.answer(5, addr(i), failure)
					}
				}
				require.Len(t, r.ejected(), tt.want)
				// With time, others take the place of those that come back, and
				// their number stays.
				for range 10 {
					time.Sleep(17 * time.Second)
					for i := range tt.nodes {
						r.answer(1, addr(i), failure)
					}
					require.Len(t, r.ejected(), tt.want)
				}
			})
		})
	}
}

// Nobody is ejected for the room that another's removal would have made.
func TestRoomForEjectionsFollowsTheSet(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{}), endpoints(20), func(t *testing.T, r *rig) {
		for i := range 20 {
			r.answer(5, addr(i), failure)
		}
		require.Equal(t, []string{addr(0), addr(1)}, r.ejected())
		r.update(endpoints(30)...)
		r.answer(1, addr(7), failure)
		r.answer(1, addr(8), failure)
		require.Equal(t, []string{addr(0), addr(1), addr(7)}, r.ejected())
		r.update(endpoints(30)[1:]...) // an ejected one goes: 2 of 29 are ejected, and 2 may be
		r.answer(1, addr(9), failure)
		require.Equal(t, []string{addr(1), addr(7)}, r.ejected())
	})
}

func TestEachEjectionIsLongerThanTheLastUpToTheMost(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{Probe: -1}), endpoints(3), func(t *testing.T, r *rig) {
		r.answer(4, addr(0), failure)
		for i := range 15 {
			r.answer(1, addr(0), failure) // one is enough if there was no success since
			require.Equal(t, []string{addr(0)}, r.ejected(), i)
			n := r.look(addr(0))
			want := min(time.Duration(i+1)*30*time.Second, 300*time.Second)
			require.Equal(t, want, time.Until(n.Until), i)
			require.Equal(t, min(i+1, 10), n.Ejections)
			time.Sleep(want - time.Nanosecond)
			synctest.Wait()
			require.Len(t, r.ejected(), 1)
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			require.Empty(t, r.ejected())
		}
	})
}

func TestEjectionsAreForgottenByTheInterval(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{Probe: -1}), endpoints(3), func(t *testing.T, r *rig) {
		for range 4 {
			r.answer(5, addr(0), failure)
			time.Sleep(time.Until(r.look(addr(0)).Until))
			synctest.Wait()
		}
		require.Equal(t, 4, r.look(addr(0)).Ejections)
		r.answer(1, addr(0), success)
		time.Sleep(29 * time.Second)
		require.Equal(t, 2, r.look(addr(0)).Ejections)
		r.answer(5, addr(0), failure)
		require.Equal(t, 90*time.Second, time.Until(r.look(addr(0)).Until), "the third that is not forgotten")
		time.Sleep(80 * time.Second)
		require.Equal(t, 3, r.look(addr(0)).Ejections, "nothing is forgotten meanwhile")
		time.Sleep(time.Hour)
		require.Zero(t, r.look(addr(0)).Ejections)
		r.answer(5, addr(0), failure)
		require.Equal(t, 30*time.Second, time.Until(r.look(addr(0)).Until))
	})
}

func TestEjectionsDifferByJitter(t *testing.T) {
	cfg := ejecting(balancer.OutlierConfig{MaxPercent: 100, Jitter: 0.1})
	inBubble(t, cfg, endpoints(50), func(t *testing.T, r *rig) {
		lengths := make(map[time.Duration]bool)
		for i := range 49 {
			r.answer(5, addr(i), failure)
			length := time.Until(r.look(addr(i)).Until)
			require.GreaterOrEqual(t, length, 30*time.Second)
			require.LessOrEqual(t, length, 33*time.Second)
			lengths[length] = true
		}
		require.Greater(t, len(lengths), 40)
	})
}

func TestEjectionSurvivesANewSet(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{Probe: -1}), endpoints(3), func(t *testing.T, r *rig) {
		r.answer(5, addr(1), failure)
		until := r.look(addr(1)).Until
		list := endpoints(5)
		list[1].Zone, list[1].Weight = "b", 7
		r.update(list[4], list[1], list[0])
		require.Equal(t, []string{addr(1)}, r.ejected())
		n := r.look(addr(1))
		require.True(t, until.Equal(n.Until))
		require.Equal(t, "b", n.Zone)
		require.Equal(t, "5 failures in a row", n.Reason)
		require.Zero(t, r.counts(100)[addr(1)])
		time.Sleep(time.Until(until))
		synctest.Wait()
		require.Empty(t, r.ejected())
		require.NotZero(t, r.counts(100)[addr(1)])
	})
}

func TestEjectionOfARemovedNodeEndsWithIt(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{}), endpoints(3), func(t *testing.T, r *rig) {
		held := r.acquire(balancer.Call{Node: addr(0)})
		r.answer(5, addr(0), failure)
		require.Equal(t, []string{addr(0)}, r.ejected())
		r.update(endpoints(3)[1:]...)
		r.answer(5, addr(1), failure)
		require.Equal(t, []string{addr(1)}, r.ejected(), "it takes no room any more")
		r.rec.Clear()
		time.Sleep(29 * time.Second)
		held.Done(time.Time{}, success) // to the one that is gone
		time.Sleep(10 * time.Second)    // its ejection would be over
		synctest.Wait()
		for _, e := range backstaytest.EventsOf[balancer.NodeChanged](r.rec) {
			require.Equal(t, addr(1), e.Node, "%v", e)
		}
		r.update(endpoints(3)...)
		n := r.look(addr(0))
		require.Equal(t, balancer.Eligible, n.State)
		require.Zero(t, n.Ejections, "a node that comes back is a new one")
	})
}

func TestEjectedNodeGetsOneCallAtATimeUntilOneIsWell(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{}), endpoints(4), func(t *testing.T, r *rig) {
		r.answer(5, addr(0), failure)
		// For as long as it fails it gets a call every 5 s.
		var failing int
		start := time.Now()
		for time.Since(start) < 20*time.Second {
			for range 10 {
				l := r.acquire(balancer.Call{})
				if l.Node().Key() == addr(0) {
					failing++
					l.Done(time.Time{}, failure)
					continue
				}
				l.Done(time.Time{}, success)
			}
			time.Sleep(100 * time.Millisecond)
		}
		require.Equal(t, 3, failing)
		require.Equal(t, 10*time.Second, time.Until(r.look(addr(0)).Until).Round(time.Second), "that makes it no longer")

		// One that takes its time is alone.
		var probe *balancer.Lease
		for range 10 {
			l := r.acquire(balancer.Call{})
			if l.Node().Key() == addr(0) {
				require.Nil(t, probe)
				probe = l
				continue
			}
			l.Done(time.Time{}, success)
		}
		require.NotNil(t, probe)
		time.Sleep(8 * time.Second)
		require.Zero(t, r.counts(100)[addr(0)])
		r.rec.Clear()
		probe.Done(time.Time{}, success)
		require.Empty(t, r.ejected())
		require.Equal(t, []balancer.NodeChanged{{Service: "orders", Node: addr(0), From: balancer.Ejected}},
			backstaytest.EventsOf[balancer.NodeChanged](r.rec))
		require.True(t, r.look(addr(0)).Used)
	})
}

func TestRetryIsNoProbe(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{}), endpoints(4), func(t *testing.T, r *rig) {
		r.answer(5, addr(0), failure)
		time.Sleep(6 * time.Second)
		for range 100 {
			l := r.acquire(balancer.Call{Avoid: []*balancer.Node{r.node(addr(1))}})
			require.NotEqual(t, addr(0), l.Node().Key())
			l.Done(time.Time{}, success)
		}
		l := r.acquire(balancer.Call{})
		require.Equal(t, addr(0), l.Node().Key())
		l.Done(time.Time{}, success)
	})
}

func TestSuccessOfACallFromBeforeDoesNotEndAnEjection(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{}), endpoints(4), func(t *testing.T, r *rig) {
		early := r.acquire(balancer.Call{Node: addr(0)})
		time.Sleep(time.Millisecond)
		r.answer(5, addr(0), failure)
		early.Done(time.Time{}, success)
		require.Equal(t, []string{addr(0)}, r.ejected())
		time.Sleep(5 * time.Second)
		l := r.acquire(balancer.Call{})
		require.Equal(t, addr(0), l.Node().Key(), "it is tried all the same")
		l.Done(time.Time{}, success)
		require.Empty(t, r.ejected())
	})
}

// A node that hung fails its callers for a while yet after it is well again.
func TestFailuresOfCallsFromBeforeDoNotEjectAgain(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{}), endpoints(4), func(t *testing.T, r *rig) {
		var hung []*balancer.Lease
		for range 20 {
			hung = append(hung, r.acquire(balancer.Call{Node: addr(0)}))
		}
		time.Sleep(time.Second)
		for _, l := range hung[:5] {
			l.Done(time.Time{}, failure)
		}
		require.Equal(t, []string{addr(0)}, r.ejected())
		time.Sleep(time.Second)
		r.answer(1, addr(0), success)
		require.Empty(t, r.ejected())
		for _, l := range hung[5:] {
			l.Done(time.Time{}, failure)
		}
		require.Empty(t, r.ejected())
		time.Sleep(time.Millisecond)
		r.answer(1, addr(0), failure)
		require.Equal(t, []string{addr(0)}, r.ejected())
	})
}

func TestEjectionByHandIsNotEndedByASuccess(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{}), endpoints(4), func(t *testing.T, r *rig) {
		r.answer(5, addr(0), failure)
		require.NoError(t, r.Eject(addr(0), time.Minute))
		require.Equal(t, "by hand", r.look(addr(0)).Reason)
		time.Sleep(10 * time.Second)
		require.Zero(t, r.counts(100)[addr(0)], "not even a probe")
		r.answer(1, addr(0), success)
		require.Equal(t, []string{addr(0)}, r.ejected())
		require.NoError(t, r.Restore(addr(0)))
		require.Empty(t, r.ejected())
	})
}

var errNet = &errLocal{}

type errLocal struct{}

func (*errLocal) Error() string { return "connection refused" }

func TestLocalErrorsAreCountedApartFromAnswers(t *testing.T) {
	answer := outcome.Outcome{Class: outcome.Failure, Err: outcome.StatusError(500)}
	local := outcome.Outcome{Class: outcome.Failure, Retry: outcome.Always, Err: fmt.Errorf("dial: %w", errNet)}
	steps := func(r *rig, key string, n int, list ...outcome.Outcome) {
		for range n {
			for _, o := range list {
				r.answer(1, key, o)
			}
		}
	}
	inBubble(t, ejecting(balancer.OutlierConfig{}), endpoints(4), func(t *testing.T, r *rig) {
		steps(r, addr(0), 3, answer, local)
		require.Equal(t, []string{addr(0)}, r.ejected(), "together, if not split")
	})
	split := balancer.OutlierConfig{SplitLocal: balancer.On, ConsecutiveLocal: 3, MaxPercent: 100}
	inBubble(t, ejecting(split), endpoints(4), func(t *testing.T, r *rig) {
		steps(r, addr(0), 4, local, answer)
		require.Empty(t, r.ejected(), "an answer says that the way is open")
		steps(r, addr(0), 1, success)
		steps(r, addr(0), 4, answer)
		require.Empty(t, r.ejected())
		steps(r, addr(0), 1, answer)
		require.Equal(t, "5 failures in a row", r.look(addr(0)).Reason)
		steps(r, addr(1), 2, local)
		steps(r, addr(1), 1, success)
		steps(r, addr(1), 2, local)
		require.Len(t, r.ejected(), 1)
		steps(r, addr(1), 1, local)
		require.Equal(t, "3 failures in a row without an answer", r.look(addr(1)).Reason)
	})
	off := balancer.OutlierConfig{SplitLocal: balancer.On, ConsecutiveLocal: -1}
	inBubble(t, ejecting(off), endpoints(4), func(t *testing.T, r *rig) {
		steps(r, addr(0), 100, local)
		require.Empty(t, r.ejected())
	})
}

func TestObserveOnlyTellsOfOutliersAndUsesThem(t *testing.T) {
	cfg := ejecting(balancer.OutlierConfig{})
	cfg.ObserveOnly = true
	inBubble(t, cfg, endpoints(4), func(t *testing.T, r *rig) {
		r.rec.Clear()
		r.answer(5, addr(0), failure)
		got := backstaytest.EventsOf[balancer.NodeChanged](r.rec)
		require.Len(t, got, 1)
		require.Equal(t, balancer.Ejected, got[0].To)
		time.Sleep(5 * time.Second)
		require.NotZero(t, r.counts(400)[addr(0)])
		n := r.look(addr(0))
		require.True(t, n.Used)
	})
}

func TestEnforcementIsAChance(t *testing.T) {
	count := func(percent float64) (ejected int) {
		cfg := ejecting(balancer.OutlierConfig{Enforcement: percent, MaxPercent: 100})
		inBubble(t, cfg, endpoints(1001), func(t *testing.T, r *rig) {
			for i := range 1000 {
				r.answer(9, addr(i), failure)
			}
			ejected = len(r.ejected())
		})
		return ejected
	}
	require.Equal(t, 1000, count(0))
	require.Equal(t, 1000, count(100))
	require.Zero(t, count(-1))
	require.InDelta(t, 300, count(30), 90) // six standard deviations
}

func TestOutlierDetectionCanBeOff(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{Consecutive: -1}), endpoints(4), func(t *testing.T, r *rig) {
		r.answer(1000, addr(0), failure)
		require.Empty(t, r.ejected())
	})
}

func TestCallersDeadlinesThatCountAsFailuresEject(t *testing.T) {
	inBubble(t, ejecting(balancer.OutlierConfig{}), endpoints(4), func(t *testing.T, r *rig) {
		for range 5 {
			for i := 1; i < 4; i++ {
				r.call(addr(i), 10*time.Millisecond, success)
			}
			l := r.acquire(balancer.Call{Node: addr(0)})
			time.Sleep(2 * time.Second)
			l.Done(time.Time{}, outcome.Outcome{Class: outcome.Neutral, Err: context.DeadlineExceeded})
		}
		require.Equal(t, []string{addr(0)}, r.ejected())
	})
}

func TestOutlierConfigSaysAllThatIsWrong(t *testing.T) {
	err := balancer.Config{Outliers: balancer.OutlierConfig{
		Consecutive: 256, Enforcement: 101, ConsecutiveLocal: 3, Interval: 10 * time.Millisecond, BaseEjection: -1,
		Jitter: math.NaN(), MaxPercent: math.Inf(1),
		SuccessRate:       balancer.SuccessRate{Enforcement: 200, StdevFactor: math.NaN(), MinHosts: -1},
		FailurePercentage: balancer.FailurePercentage{Threshold: 120, RequestVolume: -5},
	}}.Validate()
	require.EqualError(t, err, `balancer: Outliers.Consecutive is 256, want <= 255
balancer: Outliers.Enforcement is 101, want <= 100
balancer: Outliers.Jitter is NaN, want <= 1
balancer: Outliers.MaxPercent is +Inf, want <= 100
balancer: Outliers.SuccessRate.Enforcement is 200, want <= 100
balancer: Outliers.SuccessRate.StdevFactor is NaN, want <= 1000
balancer: Outliers.FailurePercentage.Threshold is 120, want <= 100
balancer: Outliers.ConsecutiveLocal is 3 without SplitLocal, want SplitLocal to be on
balancer: Outliers.Interval is 10ms, want >= 100ms
balancer: Outliers.BaseEjection is -1ns, want between 0 and 1000h0m0s
balancer: Outliers.SuccessRate.MinHosts is -1, want >= 1
balancer: Outliers.FailurePercentage.RequestVolume is -5, want >= 1`)
	require.Error(t, balancer.Config{Outliers: balancer.OutlierConfig{Enforcement: math.Inf(-1)}}.Validate())
	require.NoError(t, balancer.Config{Outliers: balancer.OutlierConfig{
		Consecutive: -1, Enforcement: -1, SplitLocal: balancer.On, ConsecutiveLocal: -1, Probe: -1, Jitter: -1, MaxPercent: -1,
	}}.Validate())
}
