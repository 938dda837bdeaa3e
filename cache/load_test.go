package cache_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/cache"
	"github.com/backstay/backstay/event"
)

// TestPanicInALoaderReachesAllWhoWaitWithItsStack: golang/go#33519,
// golang/go#41133, mailgun/groupcache#38.
func TestPanicInALoaderReachesAllWhoWaitWithItsStack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[string, string](t, nil)
		begin := make(chan struct{})
		panics := func(context.Context, string) (string, error) {
			<-begin
			panic(errDown)
		}
		var waiting []<-chan result
		for range 10 {
			waiting = append(waiting, goGet(t.Context(), c, "k", panics))
		}
		synctest.Wait()
		close(begin)
		for _, ch := range waiting {
			r := <-ch
			var p *cache.PanicError
			require.ErrorAs(t, r.err, &p)
			require.Equal(t, errDown, p.Value)
			require.ErrorIs(t, r.err, errDown)
			require.Contains(t, string(p.Stack), "TestPanicInALoader")
			require.EqualError(t, r.err, "cache: the loader panicked: down")
			logged := cache.LoadFailed{Err: r.err}.LogValue().Group()
			require.Contains(t, logged[len(logged)-1].String(), "TestPanicInALoader")
			require.Less(t, r.took, time.Second)
		}
		require.Zero(t, c.Len())
		v, err := c.Get(t.Context(), "k", (&origin{}).load)
		require.NoError(t, err)
		require.Equal(t, "v of k", v)
		require.EqualValues(t, 2, c.Stats().Loads)
	})
}

func TestPanicOfALoaderThatIsNoErrorUnwrapsToNothing(t *testing.T) {
	c := newCache(t, &cache.Config[string, string]{NegativeTTL: time.Hour})
	_, err := c.Get(t.Context(), "k", func(context.Context, string) (string, error) { panic("text") })
	require.ErrorContains(t, err, "text")
	require.NoError(t, errors.Unwrap(err))
	_, err = c.Get(t.Context(), "k", func(context.Context, string) (string, error) { panic(cache.ErrNotFound) })
	require.ErrorIs(t, err, cache.ErrNotFound)
	v, err := c.Get(t.Context(), "k", (&origin{}).load)
	require.NoError(t, err, "a panic does not say that there is none")
	require.Equal(t, "v of k", v)
}

func TestPanicInWeighIsTheLoadsPanic(t *testing.T) {
	c := newCache(t, &cache.Config[string, string]{MaxWeight: 1, Weigh: func(string, string) int64 { panic(errDown) }})
	_, err := c.Get(t.Context(), "k", (&origin{}).load)
	require.ErrorIs(t, err, errDown)
}

// TestGoexitInALoaderIsAnErrorAndNothingIsStored: golang/go#67087,
// golang/go#52557.
func TestGoexitInALoaderIsAnErrorAndNothingIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[string, string](t, nil)
		begin := make(chan struct{})
		exits := func(context.Context, string) (string, error) {
			<-begin
			runtime.Goexit()
			return "not reached", nil
		}
		first, second := goGet(t.Context(), c, "k", exits), goGet(t.Context(), c, "k", exits)
		synctest.Wait()
		close(begin)
		require.ErrorIs(t, (<-first).err, cache.ErrGoexit)
		require.ErrorIs(t, (<-second).err, cache.ErrGoexit)
		require.Zero(t, c.Len())
		_, err := c.Get(t.Context(), "k", (&origin{}).load)
		require.NoError(t, err)
	})
}

// TestCallerAfterADeleteJoinsTheNewerLoad: golang/go#31420.
func TestCallerAfterADeleteJoinsTheNewerLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[string, string](t, nil)
		o1, o2, o3 := manual(), manual(), manual()
		first := goGet(t.Context(), c, "k", o1.load)
		synctest.Wait()
		c.Delete("k")
		second := goGet(t.Context(), c, "k", o2.load)
		synctest.Wait()
		o1.answers <- answer{v: "1"}
		require.Equal(t, "1", (<-first).v)
		third := goGet(t.Context(), c, "k", o3.load)
		synctest.Wait()
		o2.answers <- answer{v: "2"}
		require.Equal(t, "2", (<-second).v)
		require.Equal(t, "2", (<-third).v)
		require.Zero(t, o3.loads.Load())
		v, _ := c.GetIfPresent("k")
		require.Equal(t, "2", v)
	})
}

// TestCallerThatComesWhileAnAbandonedLoadStillRuns: tailscale#18919 and
// janos/singleflight#4 together: it gets no other's cancellation, and there
// never are two loaders.
func TestCallerThatComesWhileAnAbandonedLoadStillRuns(t *testing.T) {
	t.Run("loads itself afterwards", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCache[string, string](t, nil)
			stopping := make(chan struct{})
			var running, most atomic.Int32
			slowToStop := func(ctx context.Context, _ string) (string, error) {
				most.Store(max(most.Load(), running.Add(1)))
				defer running.Add(-1)
				<-ctx.Done()
				<-stopping
				return "", ctx.Err()
			}
			ctx, cancel := context.WithCancel(t.Context())
			a := goGet(ctx, c, "k", slowToStop)
			synctest.Wait()
			cancel()
			require.ErrorIs(t, (<-a).err, context.Canceled)
			o := &origin{}
			b1, b2 := goGet(t.Context(), c, "k", o.load), goGet(t.Context(), c, "k", o.load)
			synctest.Wait()
			require.Zero(t, o.loads.Load(), "the slot is taken until the loader has returned")
			close(stopping)
			for _, b := range []<-chan result{b1, b2} {
				r := <-b
				require.NoError(t, r.err)
				require.Equal(t, "v of k", r.v)
			}
			require.EqualValues(t, 1, o.loads.Load())
			require.EqualValues(t, 1, most.Load())
		})
	})
	t.Run("gets the value if there is one after all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCache[string, string](t, nil)
			o := manual()
			o.deaf = true
			ctx, cancel := context.WithCancel(t.Context())
			a := goGet(ctx, c, "k", o.load)
			synctest.Wait()
			cancel()
			<-a
			b := goGet(t.Context(), c, "k", o.load)
			synctest.Wait()
			o.answers <- answer{v: "v"}
			r := <-b
			require.NoError(t, r.err)
			require.Equal(t, "v", r.v)
			require.EqualValues(t, 1, o.loads.Load())
			require.Equal(t, 1, c.Len())
		})
	})
	t.Run("leaves when its own context ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCache[string, string](t, nil)
			o := manual()
			o.deaf = true
			ctx, cancel := context.WithCancel(t.Context())
			a := goGet(ctx, c, "k", o.load)
			synctest.Wait()
			cancel()
			<-a
			ctx, cancel = context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			r := <-goGet(ctx, c, "k", o.load)
			require.ErrorIs(t, r.err, context.DeadlineExceeded)
			require.Equal(t, time.Second, r.took)
			o.answers <- answer{}
		})
	})
}

// TestNoCallersEndFreesTheSlot: janos/singleflight#4.
func TestNoCallersEndFreesTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[string, string](t, nil)
		o := manual()
		stays := goGet(t.Context(), c, "k", o.load)
		synctest.Wait()
		for range 10 {
			ctx, cancel := context.WithCancel(t.Context())
			leaves := goGet(ctx, c, "k", o.load)
			synctest.Wait()
			cancel()
			require.ErrorIs(t, (<-leaves).err, context.Canceled)
		}
		o.answers <- answer{v: "v"}
		require.Equal(t, "v", (<-stays).v)
		require.EqualValues(t, 1, o.loads.Load())
		require.EqualValues(t, 1, o.most.Load())
	})
}

// TestFollowersSucceedWhenTheLeaderIsCancelled: authzed/spicedb#925.
func TestFollowersSucceedWhenTheLeaderIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[string, string](t, nil)
		o := manual()
		ctx, cancel := context.WithCancel(t.Context())
		leader := goGet(ctx, c, "k", o.load)
		synctest.Wait()
		follower := goGet(t.Context(), c, "k", o.load)
		synctest.Wait()
		cancel()
		require.ErrorIs(t, (<-leader).err, context.Canceled)
		synctest.Wait()
		require.NoError(t, (<-o.begun).Err())
		o.answers <- answer{v: "v"}
		r := <-follower
		require.NoError(t, r.err)
		require.Equal(t, "v", r.v)
	})
}

// TestFollowerReturnsAtItsOwnDeadlineAndTheLoadGoesOn: otter#237.
func TestFollowerReturnsAtItsOwnDeadlineAndTheLoadGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[string, string](t, nil)
		slow := func(context.Context, string) (string, error) {
			time.Sleep(400 * time.Millisecond)
			return "v", nil
		}
		leader := goGet(t.Context(), c, "k", slow)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		follower := <-goGet(ctx, c, "k", slow)
		require.ErrorIs(t, follower.err, context.DeadlineExceeded)
		require.Equal(t, 30*time.Millisecond, follower.took)
		r := <-leader
		require.NoError(t, r.err)
		require.Equal(t, 400*time.Millisecond, r.took)
		v, ok := c.GetIfPresent("k")
		require.True(t, ok)
		require.Equal(t, "v", v)
		require.EqualValues(t, 1, c.Stats().Loads)
	})
}

// TestLoadIsCancelledWhenTheLastCallerLeaves: tailscale#12003.
func TestLoadIsCancelledWhenTheLastCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[string, string](t, nil)
		o := manual()
		ctx1, cancel1 := context.WithCancel(t.Context())
		ctx2, cancel2 := context.WithCancel(t.Context())
		first := goGet(ctx1, c, "k", o.load)
		synctest.Wait()
		second := goGet(ctx2, c, "k", o.load)
		synctest.Wait()
		load := <-o.begun
		cancel1()
		<-first
		synctest.Wait()
		require.NoError(t, load.Err())
		cancel2()
		<-second
		synctest.Wait()
		require.ErrorIs(t, load.Err(), context.Canceled)
		require.Zero(t, o.running.Load())
		require.Zero(t, c.Stats().LoadErrors, "to give up because nobody waits is no failure")
	})
}

func TestLoadsContextHasTheFirstCallersValuesAndNoDeadline(t *testing.T) {
	type key struct{}
	c := newCache[string, string](t, nil)
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "value"), time.Hour)
	defer cancel()
	var load context.Context
	_, err := c.Get(ctx, "k", func(ctx context.Context, _ string) (string, error) {
		load = ctx
		require.Equal(t, "value", ctx.Value(key{}))
		_, has := ctx.Deadline()
		require.False(t, has)
		return "", nil
	})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return load.Err() != nil }, 20*time.Second, time.Millisecond, "released in the end")
}

// TestAllCallersOfALoadGetTheSameWhenItsKeyIsDeleted: otter#137.
func TestAllCallersOfALoadGetTheSameWhenItsKeyIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[string, string](t, nil)
		o := manual()
		var waiting []<-chan result
		for range 5 {
			waiting = append(waiting, goGet(t.Context(), c, "k", o.load))
		}
		synctest.Wait()
		c.Delete("k")
		o.answers <- answer{v: "v"}
		for _, ch := range waiting {
			r := <-ch
			require.NoError(t, r.err)
			require.Equal(t, "v", r.v)
		}
		require.Zero(t, c.Len())
	})
}

// TestConcurrentGetsLoadOncePerGeneration: otter#152, otter#184, otter#241.
func TestConcurrentGetsLoadOncePerGeneration(t *testing.T) {
	rounds := 100_000
	if testing.Short() {
		rounds = 5_000
	}
	c := newCache(t, &cache.Config[int, int]{MaxEntries: 1000})
	const callers = 3
	var loads atomic.Int32
	load := func(_ context.Context, key int) (int, error) {
		loads.Add(1)
		return key, nil
	}
	var round atomic.Int64
	var arrived [2]atomic.Int32
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for i := range rounds {
				// All begin a round together, as nearly as can be.
				if arrived[i%2].Add(1) == callers {
					arrived[(i+1)%2].Store(0)
					round.Add(1)
				}
				for round.Load() <= int64(i) {
					runtime.Gosched()
				}
				if v, err := c.Get(context.Background(), i, load); v != i || err != nil {
					t.Errorf("round %d: %d, %v", i, v, err)
					return
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, rounds, loads.Load())
}

// TestSetDuringALoadWins: otter#203, otter#240, otter#243.
func TestSetDuringALoadWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[string, string](t, nil)
		for i := range 1000 {
			key := fmt.Sprint(i)
			o := manual()
			waiting := goGet(t.Context(), c, key, o.load)
			synctest.Wait()
			c.Set(key, "newer")
			v, err := c.Get(t.Context(), key, never[string, string](t))
			require.NoError(t, err)
			require.Equal(t, "newer", v)
			o.answers <- answer{v: "older"}
			<-waiting
			v, _ = c.GetIfPresent(key)
			require.Equal(t, "newer", v)
		}
	})
}

// TestDeleteOrClearDuringALoadKeepsTheStaleFillOut: caffeine#193,
// kvcache-ai/Mooncake#2446.
func TestDeleteOrClearDuringALoadKeepsTheStaleFillOut(t *testing.T) {
	for name, invalidate := range map[string]func(*cache.Cache[string, string]){
		"Delete": func(c *cache.Cache[string, string]) { c.Delete("k") },
		"Clear":  func(c *cache.Cache[string, string]) { c.Clear() },
	} {
		for _, err := range []error{nil, cache.ErrNotFound} {
			t.Run(fmt.Sprint(name, err), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newCache(t, &cache.Config[string, string]{NegativeTTL: time.Hour})
					o := manual()
					waiting := goGet(t.Context(), c, "k", o.load)
					synctest.Wait()
					invalidate(c)
					o.answers <- answer{v: "stale", err: err}
					<-waiting
					v, err := c.Get(t.Context(), "k", (&origin{}).load)
					require.NoError(t, err)
					require.Equal(t, "v of k", v)
				})
			})
		}
	}
}

// TestEvictionOfOtherKeysDoesNotDisturbALoad: otter#188.
func TestEvictionOfOtherKeysDoesNotDisturbALoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, &cache.Config[string, string]{MaxEntries: 2})
		o := manual()
		waiting := goGet(t.Context(), c, "k", o.load)
		synctest.Wait()
		for i := range 100 {
			c.Set(fmt.Sprint(i), "")
		}
		load := <-o.begun
		require.NoError(t, load.Err())
		o.answers <- answer{v: "v"}
		r := <-waiting
		require.NoError(t, r.err)
		v, ok := c.GetIfPresent("k")
		require.True(t, ok)
		require.Equal(t, "v", v)
	})
}

// TestNilContextOrLoaderFailsAtOnce: otter#257.
func TestNilContextOrLoaderFailsAtOnce(t *testing.T) {
	c := newCache[string, string](t, nil)
	_, err := c.Get(nil, "k", (&origin{}).load) //nolint:staticcheck // the point
	require.EqualError(t, err, "cache: Get needs a context and a loader, got nil")
	_, err = c.Get(t.Context(), "k", nil)
	require.EqualError(t, err, "cache: Get needs a context and a loader, got nil")
	v, err := c.Get(t.Context(), "k", (&origin{}).load)
	require.NoError(t, err)
	require.Equal(t, "v of k", v)
	require.EqualValues(t, 1, c.Stats().Loads)
}

func TestContextThatHasEndedLoadsNothingButMayHit(t *testing.T) {
	c := newCache[string, string](t, nil)
	c.Set("there", "v")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Get(ctx, "k", never[string, string](t))
	require.ErrorIs(t, err, context.Canceled)
	v, err := c.Get(ctx, "there", never[string, string](t))
	require.NoError(t, err)
	require.Equal(t, "v", v)
}

// TestLoadThatTakesLongerThanTheTTLServesAllWhoWait: jellydator/ttlcache#44.
func TestLoadThatTakesLongerThanTheTTLServesAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, exact(cache.Config[string, string]{TTL: time.Millisecond}))
		slow := func(context.Context, string) (string, error) {
			time.Sleep(time.Second)
			return "v", nil
		}
		var waiting []<-chan result
		for range 10 {
			waiting = append(waiting, goGet(t.Context(), c, "k", slow))
			time.Sleep(10 * time.Millisecond)
		}
		for _, ch := range waiting {
			r := <-ch
			require.NoError(t, r.err)
			require.Equal(t, "v", r.v)
		}
		require.EqualValues(t, 1, c.Stats().Loads)
		require.Equal(t, 1, c.Len(), "the TTL counts from the load's end")
		time.Sleep(time.Millisecond)
		require.Zero(t, c.Len())
	})
}

// TestLoadersErrorReachesAllWhoWaitAndIsNotStored: jellydator/ttlcache#117,
// jellydator/ttlcache#122, jellydator/ttlcache#167.
func TestLoadersErrorReachesAllWhoWaitAndIsNotStored(t *testing.T) {
	for _, err := range []error{errDown, fmt.Errorf("no such user: %w", cache.ErrNotFound)} {
		synctest.Test(t, func(t *testing.T) {
			c := newCache[string, string](t, nil)
			o := manual()
			var waiting []<-chan result
			for range 10 {
				waiting = append(waiting, goGet(t.Context(), c, "k", o.load))
			}
			synctest.Wait()
			o.answers <- answer{"no value", err}
			for _, ch := range waiting {
				r := <-ch
				require.Equal(t, err, r.err)
				require.Empty(t, r.v)
			}
			_, err := c.Get(t.Context(), "k", (&origin{}).load)
			require.NoError(t, err)
		})
	}
}

func TestNotFoundIsRememberedForTheNegativeTTLAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone evictions[string, string]
		c := newCache(t, exact(cache.Config[string, string]{TTL: time.Hour, NegativeTTL: time.Second, OnEvict: gone.note}))
		none := func(context.Context, string) (string, error) {
			return "", fmt.Errorf("no such user: %w", cache.ErrNotFound)
		}
		_, err := c.Get(t.Context(), "k", none)
		require.EqualError(t, err, "no such user: cache: not found")
		time.Sleep(time.Second - 1)
		_, err = c.Get(t.Context(), "k", never[string, string](t))
		require.Equal(t, cache.ErrNotFound, err)
		_, ok := c.GetIfPresent("k")
		require.False(t, ok)
		require.Zero(t, c.Len())
		time.Sleep(1)
		v, err := c.Get(t.Context(), "k", (&origin{}).load)
		require.NoError(t, err)
		require.Equal(t, "v of k", v)

		for _, overcome := range []func(){func() { c.Set("l", "v of l") }, func() { c.Delete("l") }} {
			_, err = c.Get(t.Context(), "l", none)
			require.ErrorIs(t, err, cache.ErrNotFound)
			overcome()
			v, err = c.Get(t.Context(), "l", (&origin{}).load)
			require.NoError(t, err)
			require.Equal(t, "v of l", v)
			c.Delete("l")
		}
		for _, e := range gone.take() {
			require.NotEmpty(t, e.value, "a negative entry has no value to report")
		}
	})
}

// TestKeysThatPrintAlikeAreDifferent: ttlcache makes keys of them by fmt.Sprint.
func TestKeysThatPrintAlikeAreDifferent(t *testing.T) {
	type key struct{ a, b string }
	k1, k2 := key{"a b", "c"}, key{"a", "b c"}
	require.Equal(t, fmt.Sprint(k1), fmt.Sprint(k2))
	synctest.Test(t, func(t *testing.T) {
		c := newCache[key, key](t, nil)
		begin := make(chan struct{})
		load := func(_ context.Context, k key) (key, error) {
			<-begin
			return k, nil
		}
		got := make(chan [2]key, 2)
		for _, k := range []key{k1, k2} {
			go func() {
				v, err := c.Get(t.Context(), k, load)
				require.NoError(t, err)
				got <- [2]key{k, v}
			}()
		}
		synctest.Wait()
		require.EqualValues(t, 2, c.Stats().Loads)
		close(begin)
		for range 2 {
			g := <-got
			require.Equal(t, g[0], g[1])
		}
		require.Equal(t, 2, c.Len())
	})
}

func TestLoaderMayAskForOtherKeysButNotForItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[string, string](t, nil)
		var same func(context.Context, string) (string, error)
		same = func(ctx context.Context, key string) (string, error) { return c.Get(ctx, key, same) }
		_, err := c.Get(t.Context(), "same", same)
		require.ErrorIs(t, err, cache.ErrReentrant)

		other := func(ctx context.Context, key string) (string, error) {
			v, err := c.Get(ctx, "of "+key, (&origin{}).load)
			return v + ", indirectly", err
		}
		v, err := c.Get(t.Context(), "k", other)
		require.NoError(t, err)
		require.Equal(t, "v of of k, indirectly", v)

		// In a circle, and although the key has been deleted meanwhile.
		circle := map[string]string{"a": "b", "b": "c", "c": "a"}
		var next func(context.Context, string) (string, error)
		next = func(ctx context.Context, key string) (string, error) {
			c.Delete(key)
			return c.Get(ctx, circle[key], next)
		}
		_, err = c.Get(t.Context(), "a", next)
		require.ErrorIs(t, err, cache.ErrReentrant)

		// Another cache's key is another key.
		c2 := newCache[string, string](t, nil)
		v, err = c.Get(t.Context(), "x", func(ctx context.Context, key string) (string, error) {
			return c2.Get(ctx, key, (&origin{}).load)
		})
		require.NoError(t, err)
		require.Equal(t, "v of x", v)
	})
}

func TestContextOfALoadThatIsOverMayLoadItsKeyAgain(t *testing.T) {
	c := newCache[string, string](t, nil)
	var kept context.Context
	_, err := c.Get(t.Context(), "k", func(ctx context.Context, _ string) (string, error) {
		kept = context.WithoutCancel(ctx)
		return "", errDown
	})
	require.ErrorIs(t, err, errDown)
	_, err = c.Get(kept, "k", (&origin{}).load)
	require.NoError(t, err)
}

func TestLoaderDecidesTheTTLOfItsRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, exact(cache.Config[string, string]{TTL: time.Minute, NegativeTTL: time.Minute}))
		lives := func(key string, err error, ttls ...time.Duration) time.Duration {
			t.Helper()
			start := time.Now()
			load := func(ctx context.Context, _ string) (string, error) {
				for _, ttl := range ttls {
					cache.SetTTL(context.WithValue(ctx, t, 1), ttl)
				}
				return "v", err
			}
			for loads := c.Stats().Loads; c.Stats().Loads < loads+2; time.Sleep(time.Second) {
				_, got := c.Get(t.Context(), key, load)
				require.Equal(t, err, got)
				if time.Since(start) > time.Hour {
					return -1
				}
			}
			c.Delete(key)
			return time.Since(start) - time.Second
		}
		require.Equal(t, time.Minute, lives("a", nil))
		require.Equal(t, 5*time.Second, lives("b", nil, 5*time.Second))
		require.Equal(t, 3*time.Second, lives("c", nil, 5*time.Second, 3*time.Second))
		require.Equal(t, time.Minute, lives("d", nil, 5*time.Second, 0))
		require.EqualValues(t, -1, lives("e", nil, -5*time.Second))
		require.Equal(t, 2*time.Second, lives("f", cache.ErrNotFound, 2*time.Second))
		cache.SetTTL(t.Context(), time.Second) // no load: nothing happens

		// The TTL of a record that a loader asks for is not its own.
		start := time.Now()
		outer := func(ctx context.Context, _ string) (string, error) {
			return c.Get(ctx, "inner", func(ctx context.Context, _ string) (string, error) {
				cache.SetTTL(ctx, time.Second)
				return "v", nil
			})
		}
		_, err := c.Get(t.Context(), "outer", outer)
		require.NoError(t, err)
		time.Sleep(time.Second)
		_, ok := c.GetIfPresent("inner")
		require.False(t, ok)
		_, ok = c.GetIfPresent("outer")
		require.True(t, ok, "after %s", time.Since(start))
	})
}

func TestFailedLoadsAreReportedWithoutTheirKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []event.Event
		c := newCache(t, &cache.Config[string, string]{
			Name: "users",
			Observer: event.ObserverFunc(func(_ context.Context, e event.Event) {
				events = append(events, e)
			}),
		})
		fails := func(context.Context, string) (string, error) {
			time.Sleep(time.Second)
			return "", errDown
		}
		_, _ = c.Get(t.Context(), "secret", fails)
		_, _ = c.Get(t.Context(), "k", func(context.Context, string) (string, error) { return "", cache.ErrNotFound })
		_, _ = c.Get(t.Context(), "k", (&origin{}).load)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Get(ctx, "abandoned", manual().load)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		synctest.Wait()
		require.Equal(t, []event.Event{
			cache.LoadFailed{Cache: "users", Key: "secret", Err: errDown, Duration: time.Second},
		}, events)
		require.Equal(t, "cache.load_failed", events[0].EventName())
		line := events[0].LogValue().String()
		require.Equal(t, "[cache=users error=down duration=1s]", line)
		require.False(t, strings.Contains(line, "secret"))
	})
}
