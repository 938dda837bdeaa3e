package cache_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/cache"
)

// TestReadersNeverSeeWhatWasInvalidatedBefore is cache-aside as it is used: a
// writer changes the origin and then deletes or sets the key, readers load. What
// was the origin's value when a read began is the oldest that it may return.
func TestReadersNeverSeeWhatWasInvalidatedBefore(t *testing.T) {
	const keys = 4
	var source, floor [keys]atomic.Int64
	var running [keys]atomic.Int32
	c := newCache(t, &cache.Config[int, int64]{MaxEntries: 1000, TTL: 200 * time.Microsecond})
	load := func(ctx context.Context, key int) (int64, error) {
		defer running[key].Add(-1)
		running[key].Add(1)
		v := source[key].Load()
		for range rand.IntN(100) {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
		}
		return v, nil
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				key := rand.IntN(keys)
				oldest := floor[key].Load()
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(100))*time.Microsecond)
				got, err := c.Get(ctx, key, load)
				switch {
				case err == nil && got < oldest:
					t.Errorf("read %d, want at least %d", got, oldest)
				case err != nil && !(errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil):
					t.Errorf("a caller got what is not its own: %v", err)
				}
				cancel()
			}
		})
	}
	for i := 0; c.Stats().Loads < 3000; i++ {
		key := i % keys // one writer, so that versions only grow
		v := source[key].Add(1)
		switch i % 3 {
		case 0:
			c.Delete(key)
		case 1:
			c.Set(key, v)
		case 2:
			c.Clear()
		}
		floor[key].Store(v)
		runtime.Gosched()
	}
	close(end)
	wg.Wait()
	require.NoError(t, c.Close())
	for key := range keys {
		require.Zero(t, running[key].Load())
	}
}

// TestOneLoaderAtATimeUnlessTheKeyChanges: with callers that come and leave at
// will, and nobody who sets or deletes.
func TestOneLoaderAtATimeUnlessTheKeyChanges(t *testing.T) {
	var running, most atomic.Int32
	c := newCache(t, &cache.Config[string, int]{TTL: time.Nanosecond})
	load := func(ctx context.Context, _ string) (int, error) {
		defer running.Add(-1)
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		for i := range 50 {
			if i > 25 && ctx.Err() != nil { // takes its time to notice
				return 0, ctx.Err()
			}
		}
		return 1, nil
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 3000 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(10))*time.Microsecond)
				_, err := c.Get(ctx, "k", load)
				if err != nil && ctx.Err() == nil {
					t.Errorf("a caller got what is not its own: %v", err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	require.NoError(t, c.Close())
	require.EqualValues(t, 1, most.Load())
}

// TestEverythingAtOnce is for the race detector.
func TestEverythingAtOnce(t *testing.T) {
	var in, out atomic.Int64
	c := newCache(t, &cache.Config[int, int]{
		MaxEntries: 64, TTL: 100 * time.Microsecond, NegativeTTL: 50 * time.Microsecond,
		MaxWeight: 10_000, Weigh: func(_, v int) int64 { return int64(v % 200) },
		OnEvict: func(int, int, cache.Cause) { out.Add(1) },
	})
	load := func(ctx context.Context, key int) (int, error) {
		switch rand.IntN(10) {
		case 0:
			panic("now and then")
		case 1:
			return 0, cache.ErrNotFound
		case 2:
			cache.SetTTL(ctx, time.Millisecond)
			return c.Get(ctx, key+1, func(context.Context, int) (int, error) { return key, nil })
		}
		return key, nil
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 5000 {
				key := rand.IntN(200)
				switch rand.IntN(20) {
				case 0:
					in.Add(1)
					c.Set(key, i)
				case 1:
					c.Delete(key)
				case 2:
					for range c.All() {
						break
					}
				case 3:
					c.Stats()
				case 4:
					if i%100 == 0 {
						c.Clear()
					}
				case 5:
					c.GetIfPresent(key)
				default:
					_, _ = c.Get(context.Background(), key, load)
				}
			}
			if g == 0 {
				_ = c.Close()
			}
		})
	}
	wg.Wait()
	require.NoError(t, c.Close())
	require.Zero(t, c.Len())
	require.NotZero(t, in.Load())
	require.NotZero(t, out.Load())
}
