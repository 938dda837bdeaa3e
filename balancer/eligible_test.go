package balancer_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

// used returns the keys of the nodes that get calls, sorted.
func (r *rig) used() []string {
	r.t.Helper()
	var keys []string
	for key := range r.counts(200) {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// anyOf is a policy that finds every node soon.
func anyOf(cfg balancer.Config) *balancer.Config {
	cfg.Policy = balancer.RoundRobin{}
	return exact(cfg)
}

func TestOpenNodeGetsNothingAndTheOthersCarryOn(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{}), endpoints(4), func(t *testing.T, r *rig) {
		r.open(addr(0))
		require.Equal(t, []string{addr(1), addr(2), addr(3)}, r.used())
		r.open(addr(1), addr(2))
		require.Equal(t, []string{addr(3)}, r.used(), "however few are left: an open breaker is no opinion")
	})
}

// The cost of a node that was unwell is terrible, so the policy alone would never
// choose it.
func TestHalfOpenNodeGetsItsShareWhateverItCosts(t *testing.T) {
	for name, policy := range map[string]balancer.Policy{"by cost": balancer.P2C{}, "first of all": policies(1)["first of all"]} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, exact(balancer.Config{Policy: policy}), endpoints(4), func(t *testing.T, r *rig) {
				r.call(addr(3), time.Millisecond, throttled(300*time.Second))
				r.open(addr(3))
				require.NotContains(t, r.used(), addr(3))
				time.Sleep(5 * time.Second)
				synctest.Wait()
				for i := 0; r.node(addr(3)).Breaker().State() != breaker.Closed; i++ {
					require.Less(t, i, 200)
					r.counts(1)
				}
			})
		})
	}
}

func TestHalfOpenNodeGetsItsShareAndNoMore(t *testing.T) {
	cfg := anyOf(balancer.Config{Breaker: breaker.Config{ProbeInterval: -1}})
	inBubble(t, cfg, endpoints(4), func(t *testing.T, r *rig) {
		r.open(addr(3))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		probed := 0
		for range 1000 {
			l := r.acquire(balancer.Call{})
			if l.Node().Key() == addr(3) {
				probed++
			}
			l.Done(time.Time{}, cancelled) // so that it stays half-open
		}
		require.InDelta(t, 250, probed, 75)
		for range 100 {
			l := r.acquire(balancer.Call{Avoid: []*balancer.Node{r.node(addr(3))}})
			require.NotEqual(t, addr(3), l.Node().Key(), "what the call has tried is not probed with it")
			l.Done(time.Time{}, cancelled)
		}
	})
}

// A breaker that counts more than a share has to see what a tally hides from it.
func TestBreakersThatNeedItSeeEveryCall(t *testing.T) {
	for name, c := range map[string]struct {
		cfg   breaker.Config
		good  time.Duration // what the good calls take
		opens bool
	}{
		"failures in a row": {breaker.Config{FailureRate: -1, Consecutive: 5}, 0, false},
		"slow calls":        {breaker.Config{FailureRate: -1, SlowTime: time.Second}, 2 * time.Second, true},
		"quick calls":       {breaker.Config{FailureRate: -1, SlowTime: time.Second}, 100 * time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.Window = time.Hour
			inBubble(t, exact(balancer.Config{Breaker: c.cfg}), endpoints(1), func(t *testing.T, r *rig) {
				node := r.node(addr(0))
				for range 10 {
					for range 4 {
						r.call(addr(0), 0, failure)
					}
					for range 46 {
						l, err := r.Acquire(t.Context(), balancer.Call{})
						if c.opens && err != nil {
							return
						}
						require.NoError(t, err)
						time.Sleep(c.good)
						l.Done(time.Time{}, success)
					}
				}
				require.False(t, c.opens)
				require.Equal(t, breaker.Closed, node.Breaker().State())
				if name == "failures in a row" {
					for range 5 {
						r.call(addr(0), 0, failure)
					}
					require.Equal(t, breaker.Open, node.Breaker().State())
				}
			})
		})
	}
}

func TestHalfOpenNodeAdmitsExactlyItsProbesUnderManyCalls(t *testing.T) {
	inBubble(t, exact(balancer.Config{Breaker: breaker.Config{Probes: 5}}), endpoints(4), func(t *testing.T, r *rig) {
		r.open(addr(3))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		var held []*balancer.Lease
		for range 500 {
			held = append(held, r.acquire(balancer.Call{}))
		}
		require.Equal(t, 5, r.node(addr(3)).InFlight())
		for _, l := range held {
			l.Done(time.Time{}, success)
		}
		require.Equal(t, breaker.Closed, r.node(addr(3)).Breaker().State())
		idle(t, r.Nodes())
	})
}

func TestProbeThatGotNoVerdictIsReplacedByAnother(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		r.open(addr(0))
		time.Sleep(5 * time.Second)
		for range 5 {
			for range 3 {
				r.acquire(balancer.Call{}).Done(time.Time{}, cancelled)
			}
			_, err := r.Acquire(t.Context(), balancer.Call{})
			require.ErrorIs(t, err, breaker.ErrOpen, "not at any pace")
			time.Sleep(time.Second)
		}
		var lost []*balancer.Lease
		for range 3 {
			lost = append(lost, r.acquire(balancer.Call{}))
		}
		time.Sleep(10 * time.Second) // they lose their places
		r.counts(3)
		require.Equal(t, breaker.Closed, r.node(addr(0)).Breaker().State(), "leases that are lost wedge nothing")
		for _, l := range lost {
			l.Done(time.Time{}, failure)
		}
		require.Equal(t, breaker.Closed, r.node(addr(0)).Breaker().State())
		require.Zero(t, r.node(addr(0)).Breaker().Snapshot(time.Now()).Failures, "and are heard no more")
	})
}

func TestAllOpenFailsAtOnceWithTheEarliest(t *testing.T) {
	inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
		for i := range 3 {
			r.open(addr(i))
			time.Sleep(time.Second)
		}
		start := time.Now()
		var open *breaker.OpenError
		_, err := tryAcquire(r.View(func(*balancer.Node) bool { return true }), balancer.Call{})
		require.ErrorAs(t, err, &open)
		require.Equal(t, "orders/"+addr(0), open.Key)
		_, err = r.Acquire(t.Context(), balancer.Call{})
		require.ErrorAs(t, err, &open)
		require.Equal(t, "orders/"+addr(0), open.Key)
		require.Equal(t, 2*time.Second, open.RetryAfter)
		require.ErrorIs(t, err, errDown, "the last real error is in it")
		require.True(t, outcome.Refused(err))
		require.True(t, outcome.NotSent(err))
		require.Zero(t, time.Since(start))

		time.Sleep(2 * time.Second)
		l := r.acquire(balancer.Call{})
		require.Equal(t, addr(0), l.Node().Key(), "probes go on")
		l.Done(time.Time{}, failure)
		_, err = r.Acquire(t.Context(), balancer.Call{})
		require.ErrorAs(t, err, &open)
		require.Equal(t, "orders/"+addr(1), open.Key)
		require.Equal(t, time.Second, open.RetryAfter)
	})
}

func TestServiceOfOneNodeOpensAndRecovers(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		r.open(addr(0))
		_, err := r.Acquire(t.Context(), balancer.Call{})
		require.ErrorIs(t, err, breaker.ErrOpen)
		time.Sleep(5 * time.Second)
		probes := []*balancer.Lease{r.acquire(balancer.Call{}), r.acquire(balancer.Call{}), r.acquire(balancer.Call{})}
		_, err = r.Acquire(t.Context(), balancer.Call{})
		var open *breaker.OpenError
		require.ErrorAs(t, err, &open)
		require.Equal(t, breaker.ReasonProbing, open.Reason)
		for _, l := range probes {
			l.Done(time.Time{}, success)
		}
		r.counts(100)
		require.Equal(t, breaker.Closed, r.node(addr(0)).Breaker().State())
	})
}

// What is held open by hand never passes, and tells nothing.
func TestNodeThatIsForcedOpenIsNotTheEarliest(t *testing.T) {
	inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
		r.node(addr(0)).Breaker().ForceOpen()
		require.NotContains(t, r.used(), addr(0))
		r.open(addr(1), addr(2))
		for name, acquire := range map[string]func() error{
			"balancer": func() error { _, err := r.Acquire(t.Context(), balancer.Call{}); return err },
			"view": func() error {
				_, err := tryAcquire(r.View(func(*balancer.Node) bool { return true }), balancer.Call{})
				return err
			},
		} {
			var open *breaker.OpenError
			require.ErrorAs(t, acquire(), &open, name)
			require.Equal(t, 5*time.Second, open.RetryAfter, name)
			require.ErrorIs(t, open, errDown, name)
		}
		time.Sleep(time.Hour)
		require.Equal(t, []string{addr(1), addr(2)}, r.used())
		r.node(addr(0)).Breaker().Release()
		require.Contains(t, r.used(), addr(0))
	})
}

func TestFullNodesArePassedOver(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{MaxConcurrency: 2}), endpoints(3), func(t *testing.T, r *rig) {
		var held []*balancer.Lease
		for range 6 {
			held = append(held, r.acquire(balancer.Call{}))
		}
		for _, n := range r.Nodes() {
			require.Equal(t, 2, n.InFlight())
		}
		_, err := r.Acquire(t.Context(), balancer.Call{})
		var full *limit.FullError
		require.ErrorAs(t, err, &full)
		require.Equal(t, 2, full.Max)
		require.Contains(t, []string{"orders/" + addr(0), "orders/" + addr(1), "orders/" + addr(2)}, full.Key)
		require.True(t, outcome.Refused(err))

		free := held[3].Node()
		held[3].Answered(time.Time{}, success)
		_, err = r.Acquire(t.Context(), balancer.Call{})
		require.ErrorIs(t, err, limit.ErrFull, "a body that is being read has its place")
		held[3].Done(time.Time{}, success)
		l := r.acquire(balancer.Call{})
		require.Same(t, free, l.Node())
		held[3] = l
		for _, l := range held {
			l.Done(time.Time{}, success)
		}
		idle(t, r.Nodes())
	})
}

func TestCallThatIsRefusedStillAvoidsWhatItHasTried(t *testing.T) {
	inBubble(t, exact(balancer.Config{MaxConcurrency: 1, Policy: policies(1)["first of all"]}), endpoints(3), func(t *testing.T, r *rig) {
		held := r.acquire(balancer.Call{})
		require.Equal(t, addr(0), held.Node().Key())
		for range 50 {
			l := r.acquire(balancer.Call{Avoid: []*balancer.Node{r.node(addr(1))}})
			require.Equal(t, addr(2), l.Node().Key())
			l.Done(time.Time{}, success)
		}
		other := r.on(addr(2))
		l := r.acquire(balancer.Call{Avoid: []*balancer.Node{r.node(addr(1))}})
		require.Equal(t, addr(1), l.Node().Key(), "until there is nobody else")
		for _, l := range []*balancer.Lease{held, other, l} {
			l.Done(time.Time{}, success)
		}
	})
}

// Overload is the worst time for a refusal to be expensive.
func TestRefusalCostsNoMoreThanOneLookAtEachNode(t *testing.T) {
	const n = 2000
	b := newStatic(t, n, &balancer.Config{MaxConcurrency: 1})
	now := time.Now()
	for range n {
		_, err := b.Acquire(t.Context(), balancer.Call{Now: now})
		require.NoError(t, err)
	}
	allocs := testing.AllocsPerRun(3, func() {
		_, err := b.Acquire(t.Context(), balancer.Call{Now: now})
		if !errors.Is(err, limit.ErrFull) {
			t.Error(err)
		}
	})
	require.LessOrEqual(t, allocs, 2.5*n, "an error for each node that was asked, twice at most")
}

// A full node that is half-open gives the probe's place back.
func TestFullNodeKeepsNoProbe(t *testing.T) {
	inBubble(t, exact(balancer.Config{MaxConcurrency: 1}), endpoints(1), func(t *testing.T, r *rig) {
		held := r.on(addr(0))
		held.Answered(time.Time{}, success) // and its body goes on
		node := r.node(addr(0))
		node.Breaker().ForceOpen()
		node.Breaker().Release()
		l := func() error { _, err := r.Acquire(t.Context(), balancer.Call{}); return err }
		require.ErrorIs(t, l(), limit.ErrFull)
		held.Done(time.Time{}, success)
		r.open(addr(0))
		time.Sleep(5 * time.Second)
		probe := r.acquire(balancer.Call{})
		for range 10 {
			require.ErrorIs(t, l(), limit.ErrFull)
			time.Sleep(time.Second)
		}
		probe.Done(time.Time{}, success)
		for range 2 {
			r.acquire(balancer.Call{}).Done(time.Time{}, success)
		}
		require.Equal(t, breaker.Closed, node.Breaker().State())
		idle(t, r.Nodes())
	})
}

func TestDrainingNodesAreUnusedUnlessAlone(t *testing.T) {
	list := endpoints(3)
	list[2].Draining = true
	inBubble(t, anyOf(balancer.Config{}), list, func(t *testing.T, r *rig) {
		require.Equal(t, []string{addr(0), addr(1)}, r.used())
		held := r.acquire(balancer.Call{})
		list[0].Draining = true
		r.update(slices.Clone(list)...)
		require.Equal(t, []string{addr(1)}, r.used())
		held.Done(time.Time{}, success)
		list[1].Draining = true
		r.update(slices.Clone(list)...)
		require.Equal(t, []string{addr(0), addr(1), addr(2)}, r.used(), "better those than nobody")
		list[1].Draining = false
		r.update(slices.Clone(list)...)
		require.Equal(t, []string{addr(1)}, r.used())
		r.open(addr(1))
		require.Equal(t, []string{addr(0), addr(2)}, r.used())
		time.Sleep(5 * time.Second)
		synctest.Wait()
		for range 100 {
			r.acquire(balancer.Call{}) // and stays
		}
		require.Equal(t, 3, r.node(addr(1)).InFlight(), "half-open, it has its probes")
		require.Equal(t, 97, r.node(addr(0)).InFlight()+r.node(addr(2)).InFlight(), "and the others serve")
	})
}

func TestWithoutOverprovisioningOnlyTheLowestPriorityIsUsed(t *testing.T) {
	list := endpoints(5)
	list[2].Priority, list[3].Priority, list[4].Priority = 1, 1, 7
	inBubble(t, anyOf(balancer.Config{PanicThreshold: -1, Overprovisioning: -1}), list, func(t *testing.T, r *rig) {
		require.Equal(t, []string{addr(0), addr(1)}, r.used())
		require.NoError(t, r.Eject(addr(0), time.Minute))
		require.Equal(t, []string{addr(1)}, r.used())
		r.open(addr(1))
		require.Equal(t, []string{addr(2), addr(3)}, r.used())
		r.open(addr(2), addr(3))
		require.Equal(t, []string{addr(4)}, r.used())
		time.Sleep(time.Minute)
		r.counts(1000) // probes
		require.Equal(t, []string{addr(0), addr(1)}, r.used())
	})
}

func TestEjectAndRestore(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{}), endpoints(3), func(t *testing.T, r *rig) {
		require.NoError(t, r.Eject(addr(1), time.Minute))
		require.Equal(t, []string{addr(0), addr(2)}, r.used())
		require.NoError(t, r.Restore(addr(1)))
		require.Equal(t, []string{addr(0), addr(1), addr(2)}, r.used())
		require.NoError(t, r.Restore(addr(1)), "again")

		require.NoError(t, r.Eject(addr(1), time.Minute))
		require.NoError(t, r.Eject(addr(1), 10*time.Second), "the last word counts")
		time.Sleep(10*time.Second - 1)
		require.Equal(t, []string{addr(0), addr(2)}, r.used())
		time.Sleep(1)
		synctest.Wait()
		require.Equal(t, []string{addr(0), addr(1), addr(2)}, r.used())

		require.EqualError(t, r.Eject("nobody", time.Second), `balancer: service "orders" has no node "nobody"`)
		require.EqualError(t, r.Restore("nobody"), `balancer: service "orders" has no node "nobody"`)
		require.EqualError(t, r.Eject(addr(1), 0), `balancer: ejection of "10.0.0.1:80" for 0s, want > 0`)
	})
}

func TestPanicModeIgnoresEjections(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{}), endpoints(5), func(t *testing.T, r *rig) {
		for i := range 2 {
			require.NoError(t, r.Eject(addr(i), time.Minute))
		}
		require.Equal(t, []string{addr(2), addr(3), addr(4)}, r.used())
		require.NoError(t, r.Eject(addr(2), time.Minute)) // two of five are left
		require.Len(t, r.used(), 5)
		require.NoError(t, r.Restore(addr(0)))
		require.Equal(t, []string{addr(0), addr(3), addr(4)}, r.used())
	})
}

func TestPanicModeIgnoresNoOpenBreakerAndNoFullNode(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{MaxConcurrency: 1}), endpoints(4), func(t *testing.T, r *rig) {
		r.open(addr(0))
		for i := range 3 {
			require.NoError(t, r.Eject(addr(i+1), time.Minute))
		}
		require.Equal(t, []string{addr(1), addr(2), addr(3)}, r.used())
		for range 3 {
			r.acquire(balancer.Call{})
		}
		_, err := r.Acquire(t.Context(), balancer.Call{})
		require.ErrorIs(t, err, limit.ErrFull)
		require.Zero(t, r.node(addr(0)).InFlight())
	})
}

func TestPanicThresholds(t *testing.T) {
	for _, c := range []struct {
		threshold float64
		ejected   int
		used      int
	}{
		{0, 2, 2}, {0, 3, 4}, {0, 4, 4}, {1, 1, 4}, {0.25, 3, 1}, {0.26, 3, 4}, {-1, 3, 1},
	} {
		inBubble(t, anyOf(balancer.Config{PanicThreshold: c.threshold}), endpoints(4), func(t *testing.T, r *rig) {
			for i := range c.ejected {
				require.NoError(t, r.Eject(addr(i), time.Minute))
			}
			require.Len(t, r.used(), c.used, "threshold %v, %d ejected", c.threshold, c.ejected)
		})
	}
}

func TestWithoutPanicModeEjectedNodesAreNobody(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{PanicThreshold: -1}), endpoints(2), func(t *testing.T, r *rig) {
		for i := range 2 {
			require.NoError(t, r.Eject(addr(i), time.Minute))
		}
		_, err := r.Acquire(t.Context(), balancer.Call{})
		require.ErrorIs(t, err, balancer.ErrNoNodes)
		require.True(t, outcome.NotSent(err))
		require.False(t, outcome.Refused(err))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, r.used(), 2)
	})
}

func TestLastNodeIsNeverEjected(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		require.NoError(t, r.Eject(addr(0), time.Minute))
		require.Equal(t, []string{addr(0)}, r.used())
	})
}

func TestObserveOnlyLeavesNobodyAlone(t *testing.T) {
	list := endpoints(4)
	list[3].Draining = true
	inBubble(t, anyOf(balancer.Config{ObserveOnly: true}), list, func(t *testing.T, r *rig) {
		r.open(addr(0))
		require.NoError(t, r.Eject(addr(1), time.Minute))
		require.Equal(t, []string{addr(0), addr(1), addr(2)}, r.used(), "that a node drains is no judgment of ours")
		require.Contains(t, r.rec.Names(), "breaker.state_changed", "it judges and tells")
		r.open(addr(2))
		r.counts(100)
		idle(t, r.Nodes())
	})
}

func TestCallersContextDoesNotMatterOnceNodesAreKnown(t *testing.T) {
	b := newStatic(t, 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l, err := b.Acquire(ctx, balancer.Call{})
	require.NoError(t, err, "it never blocks, so there is nothing to end")
	l.Done(time.Time{}, cancelled)
}

func TestEmptySetHasNoNodes(t *testing.T) {
	inBubble(t, nil, endpoints(2), func(t *testing.T, r *rig) {
		r.update()
		_, err := r.Acquire(t.Context(), balancer.Call{})
		var e *balancer.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "orders", e.Service)
		require.ErrorIs(t, err, balancer.ErrNoNodes)
		require.EqualError(t, err, `balancer: service "orders": balancer: no nodes`)
		require.NoError(t, r.Ready(t.Context()), "the set is known")
		require.Empty(t, r.Nodes())
		r.update(endpoints(1)...)
		r.counts(1)
	})
}

var _ discovery.Resolver = (*feed)(nil)
