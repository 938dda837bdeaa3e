package breaker_test

import (
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
)

func newGroup(t testing.TB, cfg breaker.Config, maxKeys int) (*breaker.Group, *recorder) {
	t.Helper()
	r := new(recorder)
	cfg.Observer, cfg.Jitter = r, -1
	g, err := breaker.NewGroup(&breaker.GroupConfig{Config: cfg, MaxKeys: maxKeys})
	require.NoError(t, err)
	return g, r
}

// trip opens a breaker of a group by n failures.
func trip(t testing.TB, b *breaker.Breaker, n int) {
	t.Helper()
	for range n {
		require.Equal(t, errDown, b.Run(t.Context(), returns(errDown)))
	}
	require.Equal(t, breaker.Open, b.State())
}

func keysOf(g *breaker.Group) (keys []string) {
	for b := range g.All() {
		keys = append(keys, b.Key())
	}
	slices.Sort(keys)
	return keys
}

func TestAGroupGivesEachKeyItsOwnBreaker(t *testing.T) {
	g, _ := newGroup(t, breaker.Config{}, 0)
	require.Same(t, g.Get("a"), g.Get("a"))
	require.NotSame(t, g.Get("a"), g.Get("b"))
	trip(t, g.Get("a"), 20)
	require.Equal(t, breaker.Closed, g.Get("b").State())
	require.Equal(t, 2, g.Len())
	require.Equal(t, []string{"a", "b"}, keysOf(g))
}

func TestAllWhoAskForANewKeyAtOnceGetOneBreaker(t *testing.T) {
	g, _ := newGroup(t, breaker.Config{}, 0)
	for round := range 100 {
		var wg sync.WaitGroup
		got := make([]*breaker.Breaker, 8)
		start := make(chan struct{})
		for i := range got {
			wg.Go(func() {
				<-start
				got[i] = g.Get(strconv.Itoa(round))
			})
		}
		close(start)
		wg.Wait()
		for _, b := range got {
			require.Same(t, got[0], b)
		}
	}
}

func TestAMillionKeysKeepWithinTheBound(t *testing.T) {
	g, r := newGroup(t, breaker.Config{}, 1000)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for i := range 10_000 {
		g.Get(strconv.Itoa(i))
	}
	before := heap()
	for i := range 1_000_000 {
		g.Get(strconv.Itoa(i))
	}
	require.Equal(t, 1000, g.Len())
	require.Less(t, heap(), before+1<<20)
	require.Empty(t, r.all())
	runtime.KeepAlive(g)
}

func TestTheLeastRecentlyUsedGoes(t *testing.T) {
	g, _ := newGroup(t, breaker.Config{}, 3)
	for _, key := range []string{"a", "b", "c", "a", "d"} {
		g.Get(key)
	}
	require.Equal(t, []string{"a", "c", "d"}, keysOf(g))
}

func TestAnOpenBreakerIsNotEvictedBeforeClosedOnes(t *testing.T) {
	g, r := newGroup(t, breaker.Config{MinCalls: 1}, 3)
	open := g.Get("open")
	trip(t, open, 1)
	for i := range 100 {
		g.Get(strconv.Itoa(i))
	}
	require.Equal(t, 3, g.Len())
	require.Same(t, open, g.Get("open"))
	require.Len(t, r.all(), 1)

	// Once it has closed it is like the others: it goes when its turn comes.
	open.Reset()
	g.Get("open")
	g.Get("0")
	require.Equal(t, []string{"0", "99", "open"}, keysOf(g))
	g.Get("1")
	require.Equal(t, []string{"0", "1", "open"}, keysOf(g))
	g.Get("2")
	require.Equal(t, []string{"0", "1", "2"}, keysOf(g))
}

func TestABreakerThatClosedUnseenGoesBeforeOpenOnes(t *testing.T) {
	g, _ := newGroup(t, breaker.Config{MinCalls: 1}, 3)
	for _, key := range []string{"a", "b", "c"} {
		trip(t, g.Get(key), 1)
	}
	unseen := g.Get("c")
	g.Get("d") // a, b and c are known to be open now; a is the oldest
	require.Equal(t, []string{"b", "c", "d"}, keysOf(g))
	trip(t, g.Get("d"), 1)
	unseen.Reset()
	g.Get("e")
	require.Equal(t, []string{"b", "d", "e"}, keysOf(g))
}

func TestWhenAllAreOpenTheBoundStillHolds(t *testing.T) {
	g, r := newGroup(t, breaker.Config{MinCalls: 1}, 2)
	for i := range 10 {
		trip(t, g.Get(strconv.Itoa(i)), 1)
		require.LessOrEqual(t, g.Len(), 2)
	}
	require.Equal(t, []string{"8", "9"}, keysOf(g))
	last := r.all()[len(r.all())-2]
	require.Equal(t, breaker.ReasonRemoved, last.Reason)
	require.Equal(t, breaker.Closed, last.To)

	one, _ := newGroup(t, breaker.Config{MinCalls: 1}, 1)
	trip(t, one.Get("a"), 1)
	trip(t, one.Get("b"), 1)
	require.Equal(t, []string{"b"}, keysOf(one))
}

func TestOpenBreakersThatNobodyAsksForDoNotFillTheGroupForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGroup(t, breaker.Config{MinCalls: 1}, 3)
		for _, key := range []string{"a", "b", "c"} {
			trip(t, g.Get(key), 1)
		}
		g.Get("d")
		require.Equal(t, []string{"b", "c", "d"}, keysOf(g))
		g.Get("e")
		require.Equal(t, []string{"b", "c", "e"}, keysOf(g))
		time.Sleep(time.Minute + 6*time.Second)
		g.Get("d")
		g.Get("f")
		require.Equal(t, []string{"d", "e", "f"}, keysOf(g))
	})
}

func TestEvictingAndAddingAgainEmitsNoTransitionOfItsOwn(t *testing.T) {
	g, r := newGroup(t, breaker.Config{MinCalls: 1}, 1)
	for range 10 {
		g.Get("a")
		g.Get("b")
	}
	require.Empty(t, r.all())

	// What is gone goes on for those who hold it, but speaks no more: its key may
	// be another's.
	old := g.Get("a")
	g.Get("b")
	trip(t, old, 1)
	require.Empty(t, r.all())
	require.Equal(t, breaker.Closed, g.Get("a").State())
}

func TestRemoveForgetsAndClosesForObservers(t *testing.T) {
	g, r := newGroup(t, breaker.Config{MinCalls: 1}, 0)
	require.False(t, g.Remove("a"))
	old := g.Get("a")
	trip(t, old, 1)
	require.True(t, g.Remove("a"))
	require.False(t, g.Remove("a"))
	require.Zero(t, g.Len())
	require.Equal(t, []breaker.State{breaker.Closed, breaker.Open, breaker.Closed}, r.path(t))
	require.Equal(t, breaker.Open, old.State(), "for those who hold it")

	fresh := g.Get("a")
	require.NotSame(t, old, fresh)
	require.Equal(t, breaker.Snapshot{Key: "a"}, fresh.Snapshot(time.Time{}))
}

func TestAGroupsUpdateReachesAllBreakersAndTheBound(t *testing.T) {
	g, _ := newGroup(t, breaker.Config{}, 0)
	for _, key := range []string{"a", "b", "c"} {
		g.Get(key)
	}
	require.ErrorContains(t, g.Update(&breaker.GroupConfig{MaxKeys: -1}), "breaker: MaxKeys is -1, want >= 1")
	require.NoError(t, g.Update(&breaker.GroupConfig{Config: breaker.Config{MinCalls: 1}, MaxKeys: 2}))
	require.Equal(t, []string{"b", "c"}, keysOf(g))
	trip(t, g.Get("b"), 1)
	trip(t, g.Get("new"), 1)
}

func TestNewGroupReportsAllThatIsWrong(t *testing.T) {
	_, err := breaker.NewGroup(&breaker.GroupConfig{Config: breaker.Config{Probes: -1}, MaxKeys: -1})
	require.EqualError(t, err, "breaker: Probes is -1, want >= 1\nbreaker: MaxKeys is -1, want >= 1")
	g, err := breaker.NewGroup(nil)
	require.NoError(t, err)
	require.NotNil(t, g.Get("a"))
}

func TestGetOfAKnownKeyDoesNotAllocate(t *testing.T) {
	g, _ := newGroup(t, breaker.Config{}, 0)
	g.Get("a")
	require.Zero(t, testing.AllocsPerRun(1000, func() { g.Get("a") }))
}
