package cache_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/cache"
)

// model is a cache without bounds, as simple as can be.
type model map[int]modelEntry

type modelEntry struct {
	value    int
	missing  bool
	deadline time.Time
}

func (m model) live(key int) (modelEntry, bool) {
	e, ok := m[key]
	return e, ok && time.Now().Before(e.deadline)
}

// present returns the model's live values.
func (m model) present() map[int]int {
	present := make(map[int]int)
	for key := range m {
		if e, ok := m.live(key); ok && !e.missing {
			present[key] = e.value
		}
	}
	return present
}

// TestCacheBehavesLikeAMap runs random operations on a cache and on a map. With
// room for everything they always agree; without, the cache holds nothing that
// the map does not, and never more than it may. Either way each value that went
// in comes out once.
func TestCacheBehavesLikeAMap(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  cache.Config[int, int]
		full bool // everything fits
	}{
		{"room for all", cache.Config[int, int]{MaxEntries: 10_000}, true},
		{"room for few", cache.Config[int, int]{MaxEntries: 20}, false},
		{"room for one", cache.Config[int, int]{MaxEntries: 1}, false},
		{"weights", cache.Config[int, int]{
			MaxEntries: 40, MaxWeight: 1000, Shards: 2,
			Weigh: func(_, value int) int64 { return int64(value % 100) },
		}, false},
	} {
		for seed := range uint64(8) {
			t.Run(fmt.Sprintf("%s/%d", tc.name, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { againstModel(t, tc.cfg, tc.full, seed) })
			})
		}
	}
}

func againstModel(t *testing.T, cfg cache.Config[int, int], full bool, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	inside := make(map[int]int) // values that went in and have not come out
	entered := func(value, key int) { inside[value] = key }
	cfg.TTL, cfg.NegativeTTL = time.Second, 300*time.Millisecond
	cfg.OnEvict = func(key, value int, cause cache.Cause) {
		require.Equal(t, key, inside[value], "%v", cause)
		require.Contains(t, inside, value, "it left twice")
		delete(inside, value)
		require.True(t, !full || cause != cache.Evicted)
	}
	c := newCache(t, exact(cfg))
	m := make(model)
	reads, value := uint64(0), 0
	for step := range 2000 {
		key := int(rnd.ExpFloat64() * 20)
		value++
		e, live := m.live(key)
		switch op := rnd.IntN(100); {
		case op < 40:
			reads++
			loaded := false
			got, err := c.Get(t.Context(), key, func(context.Context, int) (int, error) {
				loaded = true
				if value%5 == 0 {
					return 0, cache.ErrNotFound
				}
				return value, nil
			})
			synctest.Wait() // the load has reported what it evicted
			switch {
			case loaded && value%5 == 0:
				require.ErrorIs(t, err, cache.ErrNotFound)
				m[key] = modelEntry{0, true, time.Now().Add(cfg.NegativeTTL)}
			case loaded:
				require.Equal(t, value, got)
				entered(value, key)
				m[key] = modelEntry{value, false, time.Now().Add(cfg.TTL)}
			case e.missing:
				require.True(t, live)
				require.ErrorIs(t, err, cache.ErrNotFound)
			default:
				require.True(t, live)
				require.NoError(t, err)
				require.Equal(t, e.value, got)
			}
			require.True(t, !full || loaded != live)
		case op < 60:
			times := 1
			if op == 59 {
				times = 1024 // makes it the favourite of its shard
			}
			for range times {
				reads++
				got, ok := c.GetIfPresent(key)
				if ok && got != e.value || ok && !live || ok && e.missing || full && ok != (live && !e.missing) {
					t.Fatalf("%d, %v, want %+v, %v", got, ok, e, live)
				}
			}
		case op < 75:
			ttl := time.Duration(rnd.IntN(1500)) * time.Millisecond
			entered(value, key)
			c.SetWithTTL(key, value, ttl)
			if ttl == 0 {
				ttl = cfg.TTL
			}
			m[key] = modelEntry{value, false, time.Now().Add(ttl)}
		case op < 85:
			c.Delete(key)
			delete(m, key)
		case op < 99:
			time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
		case op == 99 && step%3 == 0:
			c.Clear()
			clear(m)
		}
		if step%50 == 0 || !full {
			present, want := maps.Collect(c.All()), m.present()
			require.Equal(t, len(present), c.Len())
			if full {
				require.Equal(t, want, present)
			} else {
				require.LessOrEqual(t, len(present), cfg.MaxEntries)
				for key, got := range present {
					require.Equal(t, want[key], got)
				}
			}
			for key, got := range present {
				require.Equal(t, key, inside[got])
			}
			require.LessOrEqual(t, len(inside), cfg.MaxEntries, "what has not come out is inside, expired or not")
		}
	}
	s := c.Stats()
	require.Equal(t, reads, s.Hits+s.NegativeHits+s.Misses)
	require.LessOrEqual(t, s.Expired, s.Misses)
	require.NoError(t, c.Close())
	require.Empty(t, inside)
}
