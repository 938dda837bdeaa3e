package discovery

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func sources(n int) ([]*source, []Resolver) {
	var (
		srcs      []*source
		resolvers []Resolver
	)
	for range n {
		s := newSource()
		srcs, resolvers = append(srcs, s), append(resolvers, s)
	}
	return srcs, resolvers
}

func TestMergeIsTheUnionOfAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Merge(r...), "orders")
		s[0].push(Set{TTL: time.Minute, Endpoints: Addrs("a:1", "b:1")})
		require.Empty(t, rec.take(), "the first set is the whole")
		s[1].push(Set{TTL: time.Second, Endpoints: []Endpoint{{Addr: "b:1", Zone: "other"}, {Addr: "c:1"}}})
		got := rec.take()
		require.Len(t, got, 1)
		require.Equal(t, Set{TTL: time.Second, Endpoints: Addrs("a:1", "b:1", "c:1")}, got[0].set, "of two with a Key the first counts")
		s[0].push(Set{})
		require.Equal(t, []string{"b:1", "c:1"}, addrsOf(rec.take()[0].set))
	})
}

func TestMergeDoesNotWaitLongForAResolverThatIsSilent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Merge(r...), "orders")
		s[0].push(of("a:1"))
		time.Sleep(time.Second)
		got := rec.take()
		require.Len(t, got, 1)
		require.Equal(t, []string{"a:1"}, addrsOf(got[0].set))
		require.Equal(t, time.Second, got[0].at)
		s[0].push(of("b:1"))
		require.Equal(t, []string{"b:1"}, addrsOf(rec.take()[0].set))
	})
}

func TestMergeKeepsTheSetOfAResolverThatFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Merge(r...), "orders")
		s[0].push(of("a:1"))
		s[1].push(of("b:1"))
		rec.take()
		s[0].steps <- step{err: errDown, end: true}
		got := rec.take()
		require.Len(t, got, 1)
		require.ErrorIs(t, got[0].err, errDown)
		s[1].push(of("c:1"))
		require.Equal(t, []string{"a:1", "c:1"}, addrsOf(rec.take()[0].set))
		time.Sleep(2 * time.Second) // it is started again
		require.Len(t, s[0].began(), 2)
		s[0].push(of("d:1"))
		require.Equal(t, []string{"d:1", "c:1"}, addrsOf(rec.take()[0].set))
	})
}

func TestMergeDoesNotFailWaitersWhileAnotherMayAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(3)
		rec := record(t.Context(), t, Merge(r...), "orders")
		s[0].fail(errDown)
		s[1].push(Set{})
		require.Empty(t, rec.take())
		s[2].push(of("a:1"))
		got := rec.take()
		require.Len(t, got, 2)
		require.Equal(t, []string{"a:1"}, addrsOf(got[0].set))
		require.ErrorIs(t, got[1].err, errDown)
	})
}

func TestMergeFailsWaitersWhenAllHaveAnsweredOrASecondHasPassed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Merge(r...), "orders")
		s[0].fail(errDown)
		s[1].push(Set{})
		got := rec.take()
		require.Len(t, got, 1)
		require.ErrorIs(t, got[0].err, errDown, "an empty set beside a failure is no empty union")
	})
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Merge(r...), "orders")
		s[0].fail(errDown)
		time.Sleep(time.Second)
		got := rec.take()
		require.Len(t, got, 1)
		require.ErrorIs(t, got[0].err, errDown)
		require.Equal(t, time.Second, got[0].at)
		time.Sleep(time.Hour)
		require.Empty(t, rec.take())
	})
}

func TestMergeIsEmptyOnlyIfAllAre(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Merge(r...), "orders")
		s[0].push(of("a:1"))
		s[1].push(Set{Authoritative: true})
		rec.take()
		s[0].push(Set{})
		require.Equal(t, Set{}, rec.take()[0].set)
		s[0].push(Set{Authoritative: true})
		require.Equal(t, Set{Authoritative: true}, rec.take()[0].set)
		s[1].fail(errDown)
		require.ErrorIs(t, rec.take()[0].err, errDown)
		s[0].push(Set{Authoritative: true})
		require.ErrorIs(t, rec.take()[0].err, errDown)
	})
}

func TestFailoverFollowsTheFirstWithEndpoints(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(3)
		rec := record(t.Context(), t, Failover(r...), "orders")
		s[1].push(of("b:1"))
		require.Empty(t, rec.take(), "the first has a head start")
		s[0].push(of("a:1"))
		require.Equal(t, []string{"a:1"}, addrsOf(rec.take()[0].set))
		s[2].push(of("c:1"))
		s[1].push(of("b:1", "b:2"))
		require.Empty(t, rec.take())
		s[0].push(Set{})
		require.Equal(t, []string{"b:1", "b:2"}, addrsOf(rec.take()[0].set), "it is empty")
		s[1].push(of("b:3"))
		require.Equal(t, []string{"b:3"}, addrsOf(rec.take()[0].set), "the one followed changes")
		s[1].push(Set{})
		require.Equal(t, []string{"c:1"}, addrsOf(rec.take()[0].set))
		s[0].push(of("a:1"))
		require.Equal(t, []string{"a:1"}, addrsOf(rec.take()[0].set), "it is well again")
	})
}

func TestFailoverLeavesAResolverThatGoesOnFailing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Failover(r...), "orders")
		s[0].push(of("a:1"))
		s[1].push(of("b:1"))
		time.Sleep(time.Minute)
		rec.take()
		s[0].fail(errDown)
		got := rec.take()
		require.Len(t, got, 1, "not at the first failure")
		require.ErrorIs(t, got[0].err, errDown)
		require.False(t, isWarning(got[0].err))
		time.Sleep(9 * time.Second)
		s[0].fail(errDown)
		require.Len(t, rec.take(), 1)
		time.Sleep(time.Second)
		got = rec.take()
		require.Len(t, got, 1)
		require.Equal(t, []string{"b:1"}, addrsOf(got[0].set))
		s[0].fail(errDown)
		got = rec.take()
		require.Len(t, got, 1)
		require.True(t, isWarning(got[0].err), "the set that is followed is current")
		require.ErrorIs(t, got[0].err, errDown)
		s[0].push(of("a:1"))
		require.Equal(t, []string{"a:1"}, addrsOf(rec.take()[0].set))
	})
}

func TestFailoverForgivesAFailureThatPasses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Failover(r...), "orders")
		s[0].push(of("a:1"))
		s[1].push(of("b:1"))
		for range 10 {
			s[0].fail(errDown)
			time.Sleep(5 * time.Second)
			s[0].push(of("a:1"))
		}
		time.Sleep(time.Minute)
		for _, y := range rec.take() {
			require.True(t, y.err != nil || y.set.Equal(of("a:1")))
		}
	})
}

func TestFailoverStartsWithTheNextIfTheFirstFailsOrHangs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Failover(r...), "orders")
		s[0].fail(errDown)
		require.Empty(t, rec.take(), "the next may answer")
		s[1].push(of("b:1"))
		got := rec.take()
		require.Len(t, got, 2)
		require.Equal(t, []string{"b:1"}, addrsOf(got[0].set))
		require.True(t, isWarning(got[1].err))
	})
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Failover(r...), "orders")
		s[1].push(of("b:1"))
		time.Sleep(time.Second)
		got := rec.take()
		require.Len(t, got, 1)
		require.Equal(t, time.Second, got[0].at)
	})
}

func TestFailoverKeepsTheFirstSetWhileAllFail(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Failover(r...), "orders")
		s[0].push(of("a:1"))
		s[1].push(of("b:1"))
		rec.take()
		s[0].fail(errDown)
		s[1].fail(errDown)
		time.Sleep(time.Hour)
		got := rec.take()
		require.Len(t, got, 2)
		require.Error(t, got[0].err)
		require.Error(t, got[1].err)
	})
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Failover(r...), "orders")
		s[0].fail(errDown)
		s[1].fail(errDown)
		got := rec.take()
		require.Len(t, got, 1)
		require.ErrorIs(t, got[0].err, errDown)
	})
}

func TestFailoverIsEmptyOnlyIfAllAre(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := sources(2)
		rec := record(t.Context(), t, Failover(r...), "orders")
		s[0].push(of("a:1"))
		s[1].fail(errDown)
		rec.take()
		s[0].push(Set{})
		got := rec.take()
		require.Len(t, got, 1)
		require.ErrorIs(t, got[0].err, errDown)
		s[1].push(Set{})
		got = rec.take()
		require.Len(t, got, 1)
		require.NoError(t, got[0].err)
		require.Empty(t, got[0].set.Endpoints)
	})
}

func TestWarningsPassThroughMergeAndFailover(t *testing.T) {
	for _, several := range []func(...Resolver) Resolver{Merge, Failover} {
		bubble(t, func(t *testing.T) {
			s, r := sources(2)
			rec := record(t.Context(), t, several(r...), "orders")
			s[0].push(of("a:1"))
			s[1].push(of("b:1"))
			rec.take()
			s[0].fail(&Warning{Service: "orders", Err: errDown})
			time.Sleep(time.Hour)
			got := rec.take()
			require.Len(t, got, 1)
			require.True(t, isWarning(got[0].err))
		})
	}
}

func TestHintsReachEveryResolver(t *testing.T) {
	for _, several := range []func(...Resolver) Resolver{Merge, Failover} {
		bubble(t, func(t *testing.T) {
			s, r := sources(3)
			hints := make(chan struct{})
			rec := record(WithHints(t.Context(), hints), t, several(r...), "orders")
			s[0].push(of("a:1"))
			rec.take()
			hints <- struct{}{}
			synctest.Wait()
			for i := range s {
				require.Equal(t, 1, s[i].hinted())
			}
			close(hints)
			time.Sleep(time.Minute)
			require.Equal(t, 1, s[0].hinted())
		})
	}
}

func TestMergeAndFailoverEndTheirResolversWithTheLoop(t *testing.T) {
	for _, several := range []func(...Resolver) Resolver{Merge, Failover} {
		bubble(t, func(t *testing.T) {
			for range several(Static(Addrs("a:1")...), &failing{err: errDown}, newSource()).Watch(t.Context(), "orders") {
				break
			}
		})
	}
}

func TestMergeAndFailoverCopyTheirResolvers(t *testing.T) {
	for _, several := range []func(...Resolver) Resolver{Merge, Failover} {
		r := []Resolver{Static(Addrs("a:1")...)}
		made := several(r...)
		r[0] = nil
		_, err := askOnce(t, made, "orders")
		require.NoError(t, err)
	}
}

func TestMergeAndFailoverOfNothingAreEmpty(t *testing.T) {
	for _, several := range []func(...Resolver) Resolver{Merge, Failover} {
		set, err := askOnce(t, several(), "orders")
		require.NoError(t, err)
		require.Equal(t, Set{Authoritative: true}, set)
	}
}

func TestFilterAndMapEditEndpointsAndNothingElse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		hints := make(chan struct{})
		r := Map(Filter(src, func(e Endpoint) bool { return e.Zone == "a" }), func(e Endpoint) Endpoint {
			e.Weight = 2
			return e
		})
		rec := record(WithHints(t.Context(), hints), t, r, "orders")
		given := Set{TTL: time.Minute, Authoritative: true, Endpoints: []Endpoint{{Addr: "a:1", Zone: "a"}, {Addr: "b:1", Zone: "b"}}}
		src.push(given)
		got := rec.take()
		require.Equal(t, Set{TTL: time.Minute, Authoritative: true, Endpoints: []Endpoint{{Addr: "a:1", Zone: "a", Weight: 2}}}, got[0].set)
		require.Zero(t, given.Endpoints[0].Weight, "the source's set is not written to")
		src.push(of("b:1"))
		require.Equal(t, Set{Endpoints: []Endpoint{}}, rec.take()[0].set)
		src.fail(errDown)
		require.Equal(t, errDown, rec.take()[0].err)
		hints <- struct{}{}
		synctest.Wait()
		require.Equal(t, 1, src.hinted())
	})
	bubble(t, func(t *testing.T) {
		for range Filter(Static(Addrs("a:1")...), func(Endpoint) bool { return true }).Watch(context.Background(), "orders") {
			break
		}
	})
}
