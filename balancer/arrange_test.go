package balancer_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// placed is n endpoints with the priorities and zones that at gives them.
func placed(n int, at func(i int, e *discovery.Endpoint)) []discovery.Endpoint {
	list := endpoints(n)
	for i := range list {
		at(i, &list[i])
	}
	return list
}

// shares makes calls and returns the share of each group of nodes.
func (r *rig) shares(call balancer.Call, group func(discovery.Endpoint) string) map[string]float64 {
	r.t.Helper()
	const calls = 40_000
	got := make(map[string]float64)
	for range calls {
		l := r.acquire(call)
		got[group(l.Node().Endpoint())] += 1.0 / calls
		l.Done(time.Time{}, success)
	}
	return got
}

func requireShares(t *testing.T, want, got map[string]float64) {
	t.Helper()
	for name, share := range want {
		require.InDelta(t, share, got[name], 0.015, "%s of %v", name, got)
	}
	for name := range got {
		require.Contains(t, want, name)
	}
}

func byPriority(e discovery.Endpoint) string { return fmt.Sprint(e.Priority) }
func byZone(e discovery.Endpoint) string     { return e.Zone }
func byVersion(e discovery.Endpoint) string  { return e.Metadata["version"] }

// The examples are Envoy's.
func TestPrioritiesSpillOverAsTheirNodesFail(t *testing.T) {
	for _, c := range []struct {
		well [2]int // of 100 each
		want map[string]float64
	}{
		{[2]int{100, 100}, map[string]float64{"0": 1}},
		{[2]int{72, 100}, map[string]float64{"0": 1}},
		{[2]int{71, 100}, map[string]float64{"0": 0.994, "1": 0.006}},
		{[2]int{50, 100}, map[string]float64{"0": 0.7, "1": 0.3}},
		{[2]int{25, 100}, map[string]float64{"0": 0.35, "1": 0.65}},
		{[2]int{25, 25}, map[string]float64{"0": 0.5, "1": 0.5}},
		{[2]int{0, 100}, map[string]float64{"1": 1}},
	} {
		t.Run(fmt.Sprint(c.well), func(t *testing.T) {
			list := placed(200, func(i int, e *discovery.Endpoint) { e.Priority = i / 100 })
			inBubble(t, anyOf(balancer.Config{PanicThreshold: -1}), list, func(t *testing.T, r *rig) {
				for i := range 200 {
					if i%100 >= c.well[i/100] {
						require.NoError(t, r.Eject(addr(i), time.Hour))
					}
				}
				requireShares(t, c.want, r.shares(balancer.Call{}, byPriority))
			})
		})
	}
}

// What has been ejected of a priority is no reason to panic while another can bear
// the calls.
func TestPanicWaitsUntilNoPriorityCanBearTheCalls(t *testing.T) {
	for _, closed := range []bool{false, true} {
		list := placed(6, func(i int, e *discovery.Endpoint) { e.Priority = i / 4 })
		inBubble(t, anyOf(balancer.Config{FailClosed: closed}), list, func(t *testing.T, r *rig) {
			for i := range 4 {
				require.NoError(t, r.Eject(addr(i), time.Hour))
			}
			requireShares(t, map[string]float64{"1": 1}, r.shares(balancer.Call{}, byPriority))
			require.NoError(t, r.Eject(addr(4), time.Hour))
			require.NoError(t, r.Eject(addr(5), time.Hour))
			if closed {
				_, err := r.Acquire(t.Context(), balancer.Call{})
				require.ErrorIs(t, err, balancer.ErrPanic)
				return
			}
			requireShares(t, map[string]float64{"0": 1}, r.shares(balancer.Call{}, byPriority))
		})
	}
}

func TestACallThatHasTriedAllNodesInUseGoesToOneThatStandsBy(t *testing.T) {
	list := placed(3, func(i int, e *discovery.Endpoint) { e.Priority = i / 2 })
	inBubble(t, nil, list, func(t *testing.T, r *rig) {
		l := r.acquire(balancer.Call{Avoid: r.others(addr(2))})
		require.Equal(t, addr(2), l.Node().Key())
		l.Done(time.Time{}, success)
	})
}

func TestCallsStayInTheirZoneAsFarAsThereAreNodes(t *testing.T) {
	// 40 clients of 100 are in zone a, and 40 in b; nodes are 25, 50 and 25.
	list := placed(20, func(i int, e *discovery.Endpoint) {
		e.Zone = []string{"a", "b", "b", "c"}[i%4]
	})
	zones := balancer.ZoneConfig{Local: "a", Clients: map[string]float64{"a": 40, "b": 40, "c": 20}}
	inBubble(t, anyOf(balancer.Config{Zones: zones}), list, func(t *testing.T, r *rig) {
		requireShares(t, map[string]float64{"a": 0.625, "b": 0.375 * 10 / 15, "c": 0.375 * 5 / 15}, r.shares(balancer.Call{}, byZone))
	})
	zones.Local = "b"
	inBubble(t, anyOf(balancer.Config{Zones: zones}), list, func(t *testing.T, r *rig) {
		requireShares(t, map[string]float64{"b": 1}, r.shares(balancer.Call{}, byZone))
		for i := range 20 {
			if i%4 == 1 { // half of the zone
				require.NoError(t, r.Eject(addr(i), time.Hour))
			}
		}
		// 15 nodes are left, 5 in each zone: a third for two fifths of the clients.
		got := r.shares(balancer.Call{}, byZone)
		requireShares(t, map[string]float64{"b": 5.0 / 6, "c": 1.0 / 6}, got)
	})
	zones.Clients = nil // as many in each zone
	inBubble(t, anyOf(balancer.Config{Zones: zones}), list, func(t *testing.T, r *rig) {
		requireShares(t, map[string]float64{"b": 1}, r.shares(balancer.Call{}, byZone))
	})
}

func TestZonesDoNotMatterWithoutTheMeansToKeepThemApart(t *testing.T) {
	zone := func(n int) []discovery.Endpoint {
		return placed(n, func(i int, e *discovery.Endpoint) { e.Zone = string(rune('a' + i%2)) })
	}
	for name, c := range map[string]struct {
		nodes int
		zones balancer.ZoneConfig
	}{
		"few nodes":              {4, balancer.ZoneConfig{Local: "a"}},
		"nobody in the zone":     {8, balancer.ZoneConfig{Local: "x"}},
		"a minimum not attained": {8, balancer.ZoneConfig{Local: "a", MinNodes: 9}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, anyOf(balancer.Config{Zones: c.zones}), zone(c.nodes), func(t *testing.T, r *rig) {
				requireShares(t, map[string]float64{"a": 0.5, "b": 0.5}, r.shares(balancer.Call{}, byZone))
			})
		})
	}
	inBubble(t, anyOf(balancer.Config{Zones: balancer.ZoneConfig{Local: "a", MinNodes: -1}}), zone(2), func(t *testing.T, r *rig) {
		requireShares(t, map[string]float64{"a": 1}, r.shares(balancer.Call{}, byZone))
	})
}

func TestHintsOfTheSourceComeBeforeTheArithmetic(t *testing.T) {
	list := placed(8, func(i int, e *discovery.Endpoint) {
		e.Zone, e.ForZones = "a", []string{[]string{"a", "b"}[i%2]}
	})
	meant := func(e discovery.Endpoint) string { return e.ForZones[0] }
	cfg := anyOf(balancer.Config{Zones: balancer.ZoneConfig{Local: "b"}, PanicThreshold: -1})
	inBubble(t, cfg, list, func(t *testing.T, r *rig) {
		requireShares(t, map[string]float64{"b": 1}, r.shares(balancer.Call{}, meant))
		require.NoError(t, r.Eject(addr(1), time.Hour))
		require.NoError(t, r.Eject(addr(3), time.Hour))
		requireShares(t, map[string]float64{"b": 0.7, "a": 0.3}, r.shares(balancer.Call{}, meant))

		list[0].ForZones = nil
		r.update(list...)
		require.Len(t, r.used(), 6, "one without: all hints are ignored, and they are of one zone")
	})
}

func TestHintsAreThoseOfTheSubset(t *testing.T) {
	list := placed(10, func(i int, e *discovery.Endpoint) {
		e.Zone = string(rune('a' + i%2))
		e.ForZones = []string{e.Zone}
		if i < 2 {
			e.Metadata = map[string]string{"version": "canary"}
		}
	})
	cfg := anyOf(balancer.Config{Zones: balancer.ZoneConfig{Local: "a"}, Subsets: map[string]balancer.Subset{
		"canary": {Match: map[string]string{"version": "canary"}},
	}})
	inBubble(t, cfg, list, func(t *testing.T, r *rig) {
		requireShares(t, map[string]float64{"a": 1}, r.shares(balancer.Call{Subset: "canary"}, byZone))
	})
}

func versions(n, canaries int) []discovery.Endpoint {
	return placed(n, func(i int, e *discovery.Endpoint) {
		e.Metadata = map[string]string{"version": "stable"}
		if i < canaries {
			e.Metadata["version"] = "canary"
		}
	})
}

func canarySubsets() map[string]balancer.Subset {
	return map[string]balancer.Subset{
		"canary": {Match: map[string]string{"version": "canary"}, Else: "stable"},
		"stable": {Match: map[string]string{"version": "stable"}},
		"only":   {Match: map[string]string{"version": "canary"}, Strict: true},
	}
}

func TestASubsetGetsItsCallsAndNobodyElses(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{Subsets: canarySubsets()}), versions(6, 2), func(t *testing.T, r *rig) {
		requireShares(t, map[string]float64{"canary": 1}, r.shares(balancer.Call{Subset: "canary"}, byVersion))
		requireShares(t, map[string]float64{"stable": 1}, r.shares(balancer.Call{Subset: "stable"}, byVersion))
		requireShares(t, map[string]float64{"stable": 4.0 / 6, "canary": 2.0 / 6}, r.shares(balancer.Call{}, byVersion))
		_, err := r.Acquire(t.Context(), balancer.Call{Subset: "beta"})
		require.ErrorIs(t, err, balancer.ErrNoNodes)
		require.ErrorContains(t, err, `there is no subset "beta"`)
	})
}

func TestAnEmptySubsetFallsBackAsItSays(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{Subsets: canarySubsets()}), versions(4, 1), func(t *testing.T, r *rig) {
		r.update(versions(4, 0)...)
		var changes []balancer.SubsetChanged
		for _, e := range r.rec.Events() {
			if e, ok := e.(balancer.SubsetChanged); ok {
				changes = append(changes, e)
			}
		}
		require.Equal(t, []balancer.SubsetChanged{
			{Service: "orders", Subset: "canary"}, {Service: "orders", Subset: "only"},
		}, changes)
		requireShares(t, map[string]float64{"stable": 1}, r.shares(balancer.Call{Subset: "canary"}, byVersion))
		_, err := r.Acquire(t.Context(), balancer.Call{Subset: "only"})
		require.ErrorIs(t, err, balancer.ErrNoNodes)
		require.ErrorContains(t, err, `in subset "only"`)

		r.update(versions(4, 4)...)
		requireShares(t, map[string]float64{"canary": 1}, r.shares(balancer.Call{Subset: "stable"}, byVersion))
	})
}

func TestASubsetWithNobodyWellFallsBackUntilAProbeFindsSomebody(t *testing.T) {
	for name, ruin := range map[string]func(r *rig){
		"ejected": func(r *rig) { require.NoError(r.t, r.Eject(addr(0), time.Minute)) },
		"open":    func(r *rig) { r.open(addr(0)) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, anyOf(balancer.Config{Subsets: canarySubsets()}), versions(6, 1), func(t *testing.T, r *rig) {
				ruin(r)
				synctest.Wait()
				requireShares(t, map[string]float64{"stable": 1}, r.shares(balancer.Call{Subset: "canary"}, byVersion))
				_, err := r.Acquire(t.Context(), balancer.Call{Subset: "only"})
				if name == "open" {
					require.Error(t, err, "a strict one has nobody else")
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				r.shares(balancer.Call{Subset: "canary"}, byVersion) // probes, if need be
				synctest.Wait()
				requireShares(t, map[string]float64{"canary": 1}, r.shares(balancer.Call{Subset: "canary"}, byVersion))
			})
		})
	}
}

func TestACallThatHasTriedAllOfItsSubsetGoesElsewhere(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{Subsets: canarySubsets()}), versions(3, 1), func(t *testing.T, r *rig) {
		l := r.acquire(balancer.Call{Subset: "canary", Avoid: []*balancer.Node{r.node(addr(0))}})
		require.NotEqual(t, addr(0), l.Node().Key())
		l.Done(time.Time{}, success)
		l = r.acquire(balancer.Call{Subset: "only", Avoid: []*balancer.Node{r.node(addr(0))}})
		require.Equal(t, addr(0), l.Node().Key(), "strict is strict")
		l.Done(time.Time{}, success)
	})
}

func TestASplitSendsEachSubsetItsPart(t *testing.T) {
	split := balancer.Split{{Subset: "canary", Weight: 5}, {Subset: "stable", Weight: 95}}
	require.NoError(t, split.Validate(canarySubsets()))
	got := make(map[string]int)
	random := rand.NewPCG(1, 2)
	for range 100_000 {
		got[split.Draw(random)]++
	}
	require.InDelta(t, 5_000, got["canary"], 300)
	require.InDelta(t, 95_000, got["stable"], 300)
	require.Contains(t, got, split.Draw(nil))
	require.Empty(t, balancer.Split(nil).Draw(nil))
}

func TestSplitsAndSubsetsThatMakeNoSense(t *testing.T) {
	err := balancer.Split{{Subset: "x", Weight: 1}, {Weight: math.NaN()}, {Weight: -1}}.Validate(canarySubsets())
	require.EqualError(t, err, `balancer: Split[0].Subset is "x", want one of Subsets (["canary" "only" "stable"])
balancer: Split[1].Weight is NaN, want a finite number >= 0
balancer: Split[2].Weight is -1, want a finite number >= 0`)
	require.EqualError(t, balancer.Split{{}}.Validate(nil), "balancer: Split has no weight, want at least one share above 0")
	match := map[string]string{"v": "1"}
	err = balancer.Config{
		Subsets: map[string]balancer.Subset{
			"":  {Match: match},
			"a": {Match: match, Else: "b"}, "b": {Match: match, Else: "a"},
			"c": {}, "d": {Match: match, Else: "z"}, "e": {Match: match, Else: "c", Strict: true},
		},
		Overprovisioning: 0.5, Zones: balancer.ZoneConfig{Local: "b", Clients: map[string]float64{"a": math.Inf(1)}},
	}.Validate()
	require.EqualError(t, err, `balancer: Overprovisioning is 0.5, want a finite number >= 1
balancer: Zones.Clients says nothing of Local ("b"), want its share as well
balancer: Zones.Clients["a"] is +Inf, want a finite number >= 0
balancer: Subsets has the name "", want another: it stands for all nodes
balancer: Subsets["a"].Else comes back to "a", want an end
balancer: Subsets["b"].Else comes back to "b", want an end
balancer: Subsets["c"].Match is empty, want what tells its endpoints from others
balancer: Subsets["d"].Else is "z", want one of Subsets (["" "a" "b" "c" "d" "e"])
balancer: Subsets["e"].Else is "c", want none with Strict`)
	require.ErrorContains(t, balancer.Config{Overprovisioning: math.Inf(-1)}.Validate(), "Overprovisioning")
}

func TestFailingClosedRefusesWhatPanicWouldLetThrough(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{FailClosed: true}), endpoints(4), func(t *testing.T, r *rig) {
		for i := range 2 {
			require.NoError(t, r.Eject(addr(i), time.Minute))
		}
		require.Len(t, r.used(), 2)
		require.NoError(t, r.Eject(addr(2), time.Minute))
		_, err := r.Acquire(t.Context(), balancer.Call{})
		require.ErrorIs(t, err, balancer.ErrPanic)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, r.used(), 4)
	})
}

func TestACallForOneNodeGoesThere(t *testing.T) {
	inBubble(t, exact(balancer.Config{Override: true}), endpoints(3), func(t *testing.T, r *rig) {
		require.NoError(t, r.Eject(addr(1), time.Minute))
		for range 20 {
			l := r.acquire(balancer.Call{Node: addr(1)})
			require.Equal(t, addr(1), l.Node().Key())
			l.Done(time.Time{}, success)
		}
		_, err := r.Acquire(t.Context(), balancer.Call{Node: "nobody"})
		require.ErrorIs(t, err, balancer.ErrNoNodes)
		require.ErrorContains(t, err, `there is no node "nobody"`)
		r.Restore(addr(1))
		r.open(addr(1))
		_, err = r.Acquire(t.Context(), balancer.Call{Node: addr(1)})
		require.ErrorContains(t, err, "open")
	})
}
