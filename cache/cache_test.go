package cache_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/cache"
)

func TestNewRefusesAllThatIsWrongAtOnce(t *testing.T) {
	_, err := cache.New(&cache.Config[string, int]{
		MaxEntries: -1, MaxWeight: 5, Jitter: 1, Shards: 1 << 20,
	})
	require.EqualError(t, err, `cache: MaxEntries is -1, want >= 1, or 0 for the default: a cache is bounded
cache: Weigh is nil, want a function when MaxWeight is set
cache: Jitter is 1, want < 1
cache: Shards is 1048576, want 1 to 65536, or 0 for the default`)
	_, err = cache.New(&cache.Config[string, int]{
		MaxWeight: -1, Jitter: math.NaN(), Shards: -1,
	})
	require.EqualError(t, err, `cache: MaxWeight is -1, want >= 1, or 0 for no limit
cache: Jitter is NaN, want < 1
cache: Shards is -1, want 1 to 65536, or 0 for the default`)
	_, err = cache.New(&cache.Config[string, int]{Weigh: func(string, int) int64 { return 1 }})
	require.EqualError(t, err, "cache: MaxWeight is 0, want >= 1 when Weigh is set")
}

func TestNewLeavesTheConfigAlone(t *testing.T) {
	cfg := &cache.Config[string, int]{}
	newCache(t, cfg)
	require.Zero(t, *cfg)
}

func TestDefaultsAreTenThousandEntriesForAMinuteLessATenth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[int, int](t, nil)
		const n = 10_000
		for i := range 2 * n {
			c.Set(i, i)
		}
		require.LessOrEqual(t, c.Len(), n)
		require.Greater(t, c.Len(), n*9/10)
		time.Sleep(54*time.Second - 1)
		require.Greater(t, c.Len(), n*9/10, "none expires before its TTL less the jitter")
		time.Sleep(3 * time.Second)
		require.InDelta(t, n/2, c.Len(), n/10, "half of them after the TTL less half of the jitter")
		time.Sleep(3*time.Second + 1)
		require.Zero(t, c.Len(), "the jitter prolongs nothing")
	})
}

// TestEntryAtItsDeadlineIsExpiredForEveryOperation: otter#234. The reads before
// make the cache share readings of the clock.
func TestEntryAtItsDeadlineIsExpiredForEveryOperation(t *testing.T) {
	operations := map[string]func(*testing.T, *cache.Cache[string, string], *evictions[string, string]) bool{
		"GetIfPresent": func(_ *testing.T, c *cache.Cache[string, string], _ *evictions[string, string]) bool {
			_, ok := c.GetIfPresent("k")
			return !ok
		},
		"Get": func(t *testing.T, c *cache.Cache[string, string], _ *evictions[string, string]) bool {
			v, err := c.Get(t.Context(), "k", (&origin{}).load)
			require.NoError(t, err)
			return v == "v of k"
		},
		"Len": func(_ *testing.T, c *cache.Cache[string, string], _ *evictions[string, string]) bool {
			return c.Len() == 0
		},
		"All": func(_ *testing.T, c *cache.Cache[string, string], _ *evictions[string, string]) bool {
			return len(maps.Collect(c.All())) == 0
		},
		"Set": func(_ *testing.T, c *cache.Cache[string, string], gone *evictions[string, string]) bool {
			c.Set("k", "new")
			return gone.take()[0].cause == cache.Expired
		},
		"Delete": func(_ *testing.T, c *cache.Cache[string, string], gone *evictions[string, string]) bool {
			c.Delete("k")
			return gone.take()[0].cause == cache.Expired
		},
		"Clear": func(_ *testing.T, c *cache.Cache[string, string], gone *evictions[string, string]) bool {
			c.Clear()
			return gone.take()[0].cause == cache.Expired
		},
	}
	for name, expired := range operations {
		for _, ttl := range []time.Duration{1, 50 * time.Millisecond, time.Minute} {
			for _, early := range []time.Duration{1, 0, -1} {
				t.Run(fmt.Sprintf("%s/%s/%d", name, ttl, early), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var gone evictions[string, string]
						c := newCache(t, exact(cache.Config[string, string]{TTL: ttl, OnEvict: gone.note}))
						c.Set("other", "v")
						c.Delete("other")
						gone.take()
						c.Set("k", "old")
						time.Sleep(ttl - early)
						for range 1000 {
							c.GetIfPresent("k")
						}
						require.Equal(t, early <= 0, expired(t, c, &gone))
					})
				})
			}
		}
	}
}

func TestSharedClockReadingNeverOutlivesADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, exact(cache.Config[int, time.Time]{TTL: -1}))
		start := time.Now()
		for i := range 500 { // deadlines from near to far
			ttl := time.Duration(i+1) * time.Millisecond
			c.SetWithTTL(i, start.Add(ttl), ttl)
		}
		for range 1000 {
			time.Sleep(777 * time.Microsecond)
			for i := range 500 {
				deadline, ok := c.GetIfPresent(i)
				require.Equal(t, time.Now().Before(start.Add(time.Duration(i+1)*time.Millisecond)), ok)
				require.True(t, !ok || time.Now().Before(deadline))
			}
		}
	})
}

func TestTTLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, exact(cache.Config[string, int]{TTL: time.Second}))
		c.Set("default", 1)
		c.SetWithTTL("zero", 1, 0)
		c.SetWithTTL("short", 1, time.Millisecond)
		c.SetWithTTL("long", 1, time.Hour)
		c.SetWithTTL("negative", 1, -time.Hour)
		// otter#204: no overflow.
		c.SetWithTTL("largest", 1, math.MaxInt64)

		keys := func() []string {
			var keys []string
			for k := range c.All() {
				keys = append(keys, k)
			}
			slices.Sort(keys)
			return keys
		}
		require.Len(t, keys(), 6)
		time.Sleep(time.Millisecond)
		require.Equal(t, []string{"default", "largest", "long", "negative", "zero"}, keys())
		time.Sleep(time.Second)
		require.Equal(t, []string{"largest", "long", "negative"}, keys())
		time.Sleep(100 * 365 * 24 * time.Hour)
		require.Equal(t, []string{"largest", "negative"}, keys())
	})
}

func TestNegativeTTLOfTheConfigNeverExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, &cache.Config[string, int]{TTL: -1})
		c.Set("k", 1)
		time.Sleep(100 * 365 * 24 * time.Hour)
		require.Equal(t, 1, c.Len())
	})
}

func TestJitterShortensEveryTTLByUpToItsFraction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, &cache.Config[int, int]{MaxEntries: 100_000, Jitter: 0.5})
		const n = 5000
		for i := range n {
			c.SetWithTTL(i, i, 100*time.Millisecond)
		}
		var left []int
		for range 5 {
			left = append(left, c.Len())
			time.Sleep(10 * time.Millisecond)
		}
		require.Equal(t, []int{n, n, n, n, n}, left)
		for i, want := range []int{n, n * 4 / 5, n * 3 / 5, n * 2 / 5, n / 5, 0} {
			require.InDelta(t, want, c.Len(), n*3/50, "after %d ms", 50+10*i) // more than eight deviations
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func TestSetIsVisibleToTheNextGetOfTheSameGoroutine(t *testing.T) {
	weigh := func(_, v int) int64 { return int64(v) }
	for name, cfg := range map[string]cache.Config[int, int]{
		"one entry":  {MaxEntries: 1},
		"one shard":  {MaxEntries: 10, Shards: 1},
		"ten shards": {MaxEntries: 10, Shards: 10},
		"weights":    {MaxWeight: 100, Weigh: weigh, Shards: 1},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCache(t, &cfg)
			for i := range 1000 {
				key := i % 13
				value := 1 + (i*37)%100
				c.Set(key, value)
				got, err := c.Get(t.Context(), key, never[int, int](t))
				require.NoError(t, err)
				require.Equal(t, value, got)
			}
		})
	}
}

// TestKeyThatIsHitAllTheTimeChangesLikeAnyOther: its readers need no lock.
func TestKeyThatIsHitAllTheTimeChangesLikeAnyOther(t *testing.T) {
	for name, change := range map[string]func(*cache.Cache[string, string]){
		"Set":       func(c *cache.Cache[string, string]) { c.Set("k", "new") },
		"weight":    func(c *cache.Cache[string, string]) { c.Set("k", "new, and heavy") },
		"too heavy": func(c *cache.Cache[string, string]) { c.Set("k", strings.Repeat("new", 10)) },
		"Delete":    func(c *cache.Cache[string, string]) { c.Delete("k") },
		"Clear":     func(c *cache.Cache[string, string]) { c.Clear() },
		"Close":     func(c *cache.Cache[string, string]) { _ = c.Close() },
		"expiry":    func(*cache.Cache[string, string]) { time.Sleep(time.Minute) },
		"eviction": func(c *cache.Cache[string, string]) {
			for i := range 100 {
				c.Set(fmt.Sprint(i), "v")
				for range 5 { // so that it goes to the main queue, where k is
					c.GetIfPresent(fmt.Sprint(i))
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCache(t, exact(cache.Config[string, string]{
					MaxEntries: 5, Shards: 1, MaxWeight: 20,
					Weigh: func(_, v string) int64 { return int64(len(v)) },
				}))
				c.Set("other", "other")
				c.Set("k", "old")
				for range 3000 {
					v, ok := c.GetIfPresent("k")
					require.True(t, ok)
					require.Equal(t, "old", v)
				}
				change(c)
				for range 3000 {
					v, ok := c.GetIfPresent("k")
					require.True(t, !ok || strings.HasPrefix(v, "new"), v)
				}
			})
		})
	}
}

func TestTheLastOfConcurrentSetsIsVisible(t *testing.T) {
	c := newCache[string, int](t, nil)
	var wg sync.WaitGroup
	for round := range 200 {
		c.Set("k", -1)
		start := make(chan struct{})
		for v := range 2 {
			wg.Go(func() {
				<-start
				c.Set("k", 2*round+v)
			})
		}
		close(start)
		wg.Wait()
		got, ok := c.GetIfPresent("k")
		require.True(t, ok)
		require.Equal(t, round, got/2, "a value of another round")
		c.Set("k", 2*round)
		got, _ = c.GetIfPresent("k")
		require.Equal(t, 2*round, got)
	}
}

// TestNoneOfConcurrentSetsIsSwallowed: each value is seen to leave, but the one
// that stays.
func TestNoneOfConcurrentSetsIsSwallowed(t *testing.T) {
	var gone evictions[string, int]
	c := newCache(t, &cache.Config[string, int]{OnEvict: gone.note})
	const n = 1000
	var wg sync.WaitGroup
	for v := range n {
		wg.Go(func() { c.Set("k", v) })
	}
	wg.Wait()
	last, ok := c.GetIfPresent("k")
	require.True(t, ok)
	seen := map[int]bool{last: true}
	for _, e := range gone.take() {
		require.Equal(t, cache.Replaced, e.cause)
		require.False(t, seen[e.value])
		seen[e.value] = true
	}
	require.Len(t, seen, n)
}

func TestOverwritingAnExpiredEntryReportsTheOldValueOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone evictions[string, int]
		c := newCache(t, exact(cache.Config[string, int]{TTL: time.Second, OnEvict: gone.note}))
		c.Set("k", 1)
		require.Empty(t, gone.take())
		time.Sleep(time.Second)
		c.Set("k", 2)
		require.Equal(t, []eviction[string, int]{{"k", 1, cache.Expired}}, gone.take())
		c.Set("k", 3)
		require.Equal(t, []eviction[string, int]{{"k", 2, cache.Replaced}}, gone.take())
		time.Sleep(time.Second)
		v, err := c.Get(t.Context(), "k", func(context.Context, string) (int, error) { return 4, nil })
		require.NoError(t, err)
		require.Equal(t, 4, v)
		require.NoError(t, c.Close()) // reporting comes after the answer
		require.Equal(t, []eviction[string, int]{{"k", 3, cache.Expired}, {"k", 4, cache.Deleted}}, sorted(gone.take()))
	})
}

func sorted(list []eviction[string, int]) []eviction[string, int] {
	slices.SortFunc(list, func(a, b eviction[string, int]) int { return a.value - b.value })
	return list
}

func TestEveryValueLeavesOnceWithItsCause(t *testing.T) {
	var gone evictions[string, int]
	c := newCache(t, &cache.Config[string, int]{MaxEntries: 2, Shards: 1, OnEvict: gone.note})
	c.Set("a", 1)
	c.Set("b", 2)
	c.Set("c", 3)
	require.Equal(t, []eviction[string, int]{{"a", 1, cache.Evicted}}, gone.take())
	c.Delete("b")
	c.Delete("b")
	require.Equal(t, []eviction[string, int]{{"b", 2, cache.Deleted}}, gone.take())
	c.Clear()
	require.Equal(t, []eviction[string, int]{{"c", 3, cache.Deleted}}, gone.take())
	c.Set("d", 4)
	require.NoError(t, c.Close())
	c.Set("e", 5)
	require.Equal(t, []eviction[string, int]{{"d", 4, cache.Deleted}}, gone.take())
	require.Equal(t, []string{"evicted", "expired", "replaced", "deleted"}, []string{
		cache.Evicted.String(), cache.Expired.String(), cache.Replaced.String(), cache.Deleted.String(),
	})
}

// TestOnEvictMayCallTheCache: it runs under no lock.
func TestOnEvictMayCallTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // a lock held would be a deadlock
		var c *cache.Cache[int, int]
		var calls atomic.Int32
		c = newCache(t, &cache.Config[int, int]{MaxEntries: 1, OnEvict: func(key, value int, _ cache.Cause) {
			if calls.Add(1) > 10 {
				return
			}
			c.Set(key+1, value)
			c.GetIfPresent(key)
			c.Delete(key)
			c.Len()
			c.Stats()
			_, err := c.Get(t.Context(), key+2, func(context.Context, int) (int, error) { return 0, nil })
			require.NoError(t, err)
		}})
		c.Set(1, 1)
		c.Set(2, 2)
		c.Delete(2)
		c.Clear()
		synctest.Wait()
		require.Greater(t, calls.Load(), int32(10))
	})
}

func TestPanicInOnEvictIsLoggedAndGoesNoFurther(t *testing.T) {
	var log bytes.Buffer
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, &cache.Config[string, string]{MaxEntries: 1, OnEvict: func(string, string, cache.Cause) {
			panic("in OnEvict")
		}})
		c.Set("a", "1")
		c.Set("b", "2")
		v, err := c.Get(t.Context(), "c", (&origin{}).load) // evicts b, on the load's goroutine
		require.NoError(t, err)
		require.Equal(t, "v of c", v)
		synctest.Wait()
		require.Equal(t, 2, strings.Count(log.String(), `OnEvict panicked" cache="" panic="in OnEvict"`))
	})
}

func TestSmallestSizesWork(t *testing.T) {
	for _, size := range []int{1, 2, 3, 7, 64} {
		for _, shards := range []int{0, 1, 2, 64, 1 << 16} {
			t.Run(fmt.Sprintf("%d entries in %d shards", size, shards), func(t *testing.T) {
				c := newCache(t, &cache.Config[int, int]{MaxEntries: size, Shards: shards})
				for i := range 1000 {
					c.Set(i, i)
					got, ok := c.GetIfPresent(i)
					require.True(t, ok)
					require.Equal(t, i, got)
					require.LessOrEqual(t, c.Len(), size)
				}
				require.Greater(t, c.Len(), size/3, "keys fall unevenly on shards, but not that much")
			})
		}
	}
}

func TestEntriesOfAllShardsTogetherStayWithinMaxEntries(t *testing.T) {
	for _, shards := range []int{1, 4, 16} {
		c := newCache(t, &cache.Config[int, int]{MaxEntries: 101, Shards: shards})
		for i := range 10_000 {
			c.Set(i, i)
		}
		require.Equal(t, 101, c.Len(), "%d shards", shards)
	}
}

// TestSizeStaysBoundedUnderConcurrentSetsOfNewKeys: otter#189.
func TestSizeStaysBoundedUnderConcurrentSetsOfNewKeys(t *testing.T) {
	c := newCache(t, &cache.Config[int, int]{MaxEntries: 100})
	for round := range 300 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for i := range 10 {
					c.Set(round*10+i, i)
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, c.Len(), 100)
	}
	require.Greater(t, c.Stats().Evictions, uint64(2000))
	c.Clear()
	require.Zero(t, c.Len(), "an entry that cannot be removed")
}

func TestKeysThatDoNotEqualThemselvesAreNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone evictions[float64, int]
		c := newCache(t, &cache.Config[float64, int]{MaxEntries: 100, OnEvict: gone.note})
		for i := range 1000 {
			c.Set(math.NaN(), i)
			v, err := c.Get(t.Context(), math.NaN(), func(context.Context, float64) (int, error) { return i, nil })
			require.NoError(t, err)
			require.Equal(t, i, v)
		}
		synctest.Wait()
		require.Zero(t, c.Len())
		require.Len(t, gone.take(), 1000, "what was set has left at once")
		require.NoError(t, c.Close())
	})
}

func TestWeightStaysWithinItsBoundUnderOverwritesWithOtherWeights(t *testing.T) {
	const most = 1000
	weigh := func(_ int, v int64) int64 { return v }
	for _, shards := range []int{1, 8} {
		c := newCache(t, &cache.Config[int, int64]{MaxEntries: 500, MaxWeight: most, Weigh: weigh, Shards: shards})
		kept := 0
		for i := range 20_000 {
			key, w := (i*7919)%300, int64((i*104_729)%(most/shards+20))-10
			c.Set(key, w)
			if got, ok := c.GetIfPresent(key); ok {
				require.Equal(t, w, got)
				kept++
			} else {
				require.Greater(t, w, int64(most/shards), "only what is too heavy is not kept")
			}
			if i%100 == 0 {
				var sum int64
				for _, w := range c.All() {
					sum += max(w, 0)
				}
				require.LessOrEqual(t, sum, int64(most))
			}
		}
		require.Greater(t, kept, 10_000)
		for key := range 300 {
			c.Delete(key)
		}
		c.Set(1, most/int64(shards)) // all is free again
		require.Equal(t, 1, c.Len())
	}
}

func TestTooHeavyAValueTakesThePlaceOfNone(t *testing.T) {
	var gone evictions[string, int]
	c := newCache(t, &cache.Config[string, int]{
		MaxWeight: 10, Shards: 1, Weigh: func(_ string, v int) int64 { return int64(v) }, OnEvict: gone.note,
	})
	c.Set("other", 5)
	c.Set("k", 4)
	c.Set("k", 11)
	require.Equal(t, map[string]int{"other": 5}, maps.Collect(c.All()), "the old value is not given out any more")
	require.Equal(t, []eviction[string, int]{{"k", 4, cache.Replaced}, {"k", 11, cache.Evicted}}, gone.take())
	c.Set("k", math.MaxInt)
	require.Equal(t, map[string]int{"other": 5}, maps.Collect(c.All()))
}

func TestKeyInUseStaysSoWhenItsValueGrows(t *testing.T) {
	c := newCache(t, &cache.Config[string, int]{
		MaxWeight: 20, Shards: 1, Weigh: func(_ string, v int) int64 { return int64(v) },
	})
	flood := func(name string) { // with keys that are asked for once
		for i := range 100 {
			c.Set(fmt.Sprint(name, i), 1)
		}
	}
	c.Set("k", 1)
	for range 3 {
		c.GetIfPresent("k")
	}
	flood("a") // moves k to the main queue
	c.GetIfPresent("k")
	c.Set("k", 5)
	flood("b")
	v, ok := c.GetIfPresent("k")
	require.True(t, ok)
	require.Equal(t, 5, v)
}

func TestExpiredEntriesLeaveBeforeOthersAreEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone evictions[string, int]
		c := newCache(t, exact(cache.Config[string, int]{MaxEntries: 3, Shards: 1, OnEvict: gone.note}))
		c.SetWithTTL("old", 1, time.Second)
		for range 5 {
			c.GetIfPresent("old") // would be kept for that
		}
		c.Set("a", 2)
		c.Set("b", 3)
		time.Sleep(time.Second)
		c.Set("c", 4)
		require.Equal(t, []eviction[string, int]{{"old", 1, cache.Expired}}, gone.take())
		require.Equal(t, 3, c.Len())
	})
}

func TestClearForgetsEverything(t *testing.T) {
	c := newCache(t, &cache.Config[int, int]{MaxWeight: 100, Weigh: func(int, int) int64 { return 1 }, Shards: 1})
	for range 3 {
		for i := range 100 {
			c.Set(i, i)
		}
		require.Equal(t, 100, c.Len())
		c.Clear()
		require.Zero(t, c.Len())
	}
}

func TestAllStopsWhereItsLoopDoesAndMayCallTheCache(t *testing.T) {
	c := newCache[int, int](t, nil)
	for i := range 100 {
		c.Set(i, i)
	}
	n := 0
	for k, v := range c.All() {
		require.Equal(t, k, v)
		c.Delete(k)
		if n++; n == 10 {
			break
		}
	}
	require.Equal(t, 90, c.Len())
	require.Zero(t, c.Stats().Hits, "no use")
}

func TestStatsCountWhatHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, exact(cache.Config[string, string]{
			MaxEntries: 2, Shards: 1, TTL: time.Second, NegativeTTL: time.Second,
		}))
		fails := func(err error) func(context.Context, string) (string, error) {
			return func(context.Context, string) (string, error) { return "", err }
		}
		ctx := t.Context()
		c.GetIfPresent("a")                              // miss
		_, _ = c.Get(ctx, "a", (&origin{}).load)         // miss, load
		c.GetIfPresent("a")                              // hit
		_, _ = c.Get(ctx, "a", nil)                      // neither
		_, _ = c.Get(ctx, "a", (&origin{}).load)         // hit
		_, _ = c.Get(ctx, "b", fails(cache.ErrNotFound)) // miss, load
		_, _ = c.Get(ctx, "b", fails(errDown))           // negative hit
		c.GetIfPresent("b")                              // negative hit
		_, _ = c.Get(ctx, "c", fails(errDown))           // miss, load, error
		time.Sleep(time.Second)
		c.GetIfPresent("a") // miss, expired
		o := manual()
		first := goGet(ctx, c, "b", o.load) // miss, expired, load
		synctest.Wait()
		second := goGet(ctx, c, "b", o.load) // miss, expired, coalesced
		synctest.Wait()
		o.answers <- answer{v: "v"}
		<-first
		<-second
		c.Set("x", "v")
		c.Set("y", "v") // in the place of others
		require.Equal(t, cache.Stats{
			Hits: 2, NegativeHits: 2, Misses: 7, Expired: 3, Loads: 4, LoadErrors: 1, Coalesced: 1, Evictions: 2,
		}, c.Stats())
	})
}

func TestCloseLeavesNothingBehindAndMayBeRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // a goroutine left would fail it
		c := newCache[string, string](t, nil)
		o := manual()
		waiting := goGet(t.Context(), c, "k", o.load)
		replaced := goGet(t.Context(), c, "l", o.load)
		synctest.Wait()
		c.Set("l", "newer") // its load goes on, for those who wait
		require.NoError(t, c.Close())
		require.Zero(t, o.running.Load(), "Close waits for the loads")
		for _, ch := range []<-chan result{waiting, replaced} {
			r := <-ch
			require.ErrorIs(t, r.err, cache.ErrClosed)
			require.ErrorIs(t, r.err, context.Canceled)
		}
		require.NoError(t, c.Close())

		_, err := c.Get(t.Context(), "k", never[string, string](t))
		require.ErrorIs(t, err, cache.ErrClosed)
		c.Set("k", "v")
		c.Delete("k")
		c.Clear()
		_, ok := c.GetIfPresent("k")
		require.False(t, ok)
		require.Zero(t, c.Len())
	})
}

func TestCloseDoesNotWaitForeverForADeafLoader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[string, string](t, nil)
		o := manual()
		o.deaf = true
		waiting := goGet(t.Context(), c, "k", o.load)
		synctest.Wait()
		start := time.Now()
		require.Error(t, c.Close())
		require.Equal(t, 5*time.Second, time.Since(start))
		o.answers <- answer{v: "at last"}
		r := <-waiting
		require.NoError(t, r.err, "a value is a value")
		require.Equal(t, "at last", r.v)
		require.Zero(t, c.Len())
		require.NoError(t, c.Close())
	})
}

func TestCacheThatIsUsedLeavesNoTimerRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[int, int](t, nil)
		for i := range 1000 {
			c.Set(i, i)
			c.GetIfPresent(i)
		}
		// The bubble ends here, without Close. What runs on would fail it.
	})
}

func TestHitsAllocateNothing(t *testing.T) {
	type key struct {
		name string
		id   int
	}
	byString, byStruct := newCache[string, int](t, nil), newCache[key, []byte](t, nil)
	negative := newCache(t, &cache.Config[int, int]{NegativeTTL: time.Minute})
	for i := range 100 {
		byString.Set(fmt.Sprint(i), i)
		byStruct.Set(key{fmt.Sprint(i), i}, nil)
	}
	ctx := t.Context()
	none := func(context.Context, int) (int, error) { return 0, cache.ErrNotFound }
	_, err := negative.Get(ctx, 1, none)
	require.ErrorIs(t, err, cache.ErrNotFound)
	load := (&origin{}).loadInt // a method value, made once
	for name, hit := range map[string]func(){
		"Get":          func() { _, _ = byString.Get(ctx, "7", load) },
		"GetIfPresent": func() { byString.GetIfPresent("7") },
		"struct key":   func() { byStruct.GetIfPresent(key{"7", 7}) },
		"Get, literal": func() { _, _ = byString.Get(ctx, "7", func(context.Context, string) (int, error) { return 0, nil }) },
		"negative":     func() { _, _ = negative.Get(ctx, 1, none) },
		"overwrite":    func() { byString.Set("7", 7) },
		"miss":         func() { byString.GetIfPresent("none") },
	} {
		require.Zero(t, testing.AllocsPerRun(1000, hit), name)
	}
}

func (o *origin) loadInt(context.Context, string) (int, error) { return int(o.loads.Add(1)), nil }
