package cache_test

import (
	"context"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/cache"
)

// zipf returns n keys out of so many, a few of them most of the time.
func zipf(n, keys int) []string {
	trace := make([]string, n)
	z := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.01, 1, uint64(keys-1))
	for i := range trace {
		trace[i] = "key:" + strconv.FormatUint(z.Uint64(), 10)
	}
	return trace
}

// store is what the benchmarks compare.
type store struct {
	name string
	get  func(string) bool
	set  func(string)
}

func stores(t testing.TB, size int) []store {
	l, err := lru.New[string, int](size)
	require.NoError(t, err)
	load := (&origin{}).loadInt
	ctx := context.Background()
	var all []store
	for name, ttl := range map[string]time.Duration{"": 0, ", no TTL": -1} {
		c := newCache(t, &cache.Config[string, int]{MaxEntries: size, TTL: ttl})
		set := func(key string) { c.Set(key, 1) }
		all = append(all,
			store{"Get" + name, func(key string) bool { _, err := c.Get(ctx, key, load); return err == nil }, set},
			store{"GetIfPresent" + name, func(key string) bool { _, ok := c.GetIfPresent(key); return ok }, set},
		)
	}
	return append(all, store{
		"golang-lru", func(key string) bool { _, ok := l.Get(key); return ok }, func(key string) { l.Add(key, 1) },
	})
}

const (
	benchKeys = 1 << 15
	benchMask = 1<<16 - 1
)

// bench runs do with keys of a trace, on one goroutine and on several.
func bench(b *testing.B, name string, trace []string, do func(i int, key string)) {
	b.Run(name+"/serial", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			do(i, trace[i&benchMask])
		}
	})
	for _, goroutines := range []int{1, 50} { // times GOMAXPROCS
		b.Run(name+"/parallel-"+strconv.Itoa(goroutines), func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(goroutines)
			b.RunParallel(func(pb *testing.PB) {
				for i := rand.IntN(benchMask); pb.Next(); i++ {
					do(i, trace[i&benchMask])
				}
			})
		})
	}
}

func BenchmarkHit(b *testing.B) {
	trace := zipf(benchMask+1, benchKeys)
	for _, s := range stores(b, 2*benchKeys) {
		for _, key := range trace {
			s.set(key)
		}
		bench(b, s.name, trace, func(_ int, key string) { s.get(key) })
	}
}

func BenchmarkHitOfOneHotKey(b *testing.B) {
	trace := make([]string, benchMask+1)
	for i := range trace {
		trace[i] = "hot"
	}
	for _, s := range stores(b, 100) {
		s.set("hot")
		bench(b, s.name, trace, func(_ int, key string) { s.get(key) })
	}
}

// BenchmarkMixed is three reads to a write, in a cache that is too small.
func BenchmarkMixed(b *testing.B) {
	trace := zipf(benchMask+1, benchKeys)
	for _, s := range stores(b, benchKeys/4) {
		for _, key := range trace {
			s.set(key)
		}
		bench(b, s.name, trace, func(i int, key string) {
			if i%4 == 0 {
				s.set(key)
			} else {
				s.get(key)
			}
		})
	}
}

func BenchmarkMiss(b *testing.B) {
	c := newCache[int, int](b, nil)
	ctx := b.Context()
	load := func(_ context.Context, key int) (int, error) { return key, nil }
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_, _ = c.Get(ctx, i, load)
	}
}

// TestHitRatioIsNoWorseThanLRU on traces as services have them.
func TestHitRatioIsNoWorseThanLRU(t *testing.T) {
	const n, keys = 200_000, 100_000
	skewed := zipf(n, keys)
	scanned := make([]string, 0, n*5/4)
	for i, key := range skewed {
		if scanned = append(scanned, key); i%4 == 0 {
			scanned = append(scanned, "once:"+strconv.Itoa(i))
		}
	}
	for _, tc := range []struct {
		name  string
		trace []string
		size  int
		gain  float64 // in hits per request
	}{
		{"skewed, small", skewed, 1_000, 0.05},
		{"skewed, large", skewed, 10_000, 0.01},
		{"one in five asked for once, small", scanned, 1_000, 0.05},
		{"one in five asked for once, large", scanned, 10_000, 0.02},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := simplelru.NewLRU[string, int](tc.size, nil)
			require.NoError(t, err)
			c := newCache(t, &cache.Config[string, int]{MaxEntries: tc.size})
			ours, theirs := 0, 0
			for _, key := range tc.trace {
				if _, ok := l.Get(key); ok {
					theirs++
				} else {
					l.Add(key, 1)
				}
				if _, ok := c.GetIfPresent(key); ok {
					ours++
				} else {
					c.Set(key, 1)
				}
			}
			total := float64(len(tc.trace))
			t.Logf("%.1f %%, LRU %.1f %%", 100*float64(ours)/total, 100*float64(theirs)/total)
			require.Greater(t, float64(ours)/total, float64(theirs)/total+tc.gain)
		})
	}
}
