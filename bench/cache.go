package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/golang-lru/v2/expirable"
	"github.com/jellydator/ttlcache/v3"
	"github.com/maypok86/otter/v2"
	"github.com/viccon/sturdyc"

	"github.com/backstay/backstay/cache"
)

const (
	moduleLRU       = "github.com/hashicorp/golang-lru/v2"
	moduleOtter     = "github.com/maypok86/otter/v2"
	moduleRistretto = "github.com/dgraph-io/ristretto/v2"
	moduleSturdyc   = "github.com/viccon/sturdyc"
	moduleTTLCache  = "github.com/jellydator/ttlcache/v3"
)

const (
	cacheKeys = 1 << 15
	cacheSize = 2 * cacheKeys // all keys fit, however unevenly they are spread over shards
	cacheTTL  = time.Hour     // nothing expires
	cacheSkew = 0.99          // of the Zipf distribution by which keys are asked for
	cacheGets = 1 << 16       // how long it takes until the same keys come again
)

var (
	errMiss = errors.New("a key that was set is not there")
	errLoad = errors.New("a key that was set was loaded")
)

// store is a cache as the cases use it.
type store struct {
	get  func(key string) (int, bool)
	set  func(key string, value int)
	load func(ctx context.Context, key string) (int, error) // with failLoad; nil if it cannot
	wait func()                                             // until what was set is there; may be nil
}

func failLoad(context.Context, string) (int, error) { return 0, errLoad }

// cacher is a peer that makes stores.
type cacher struct {
	name, module string
	loads        bool
	new          func(*stage) (store, error)
}

func cacheContests() []contest {
	both := []mode{serial(), parallel()}
	hit := contest{name: "Cache/hit", modes: both}
	load := contest{name: "Cache/get-or-load-hit", modes: both}
	mixed := contest{name: "Cache/get-75-set-25", modes: both}
	keys := sync.OnceValues(zipfKeys)
	for _, c := range cachers() {
		hit.peers = append(hit.peers, c.peer(keys, hits))
		mixed.peers = append(mixed.peers, c.peer(keys, getsAndSets))
		if c.loads {
			load.peers = append(load.peers, c.peer(keys, loads))
		}
	}
	return []contest{hit, load, mixed}
}

// peer fills a store with all keys and runs a loop over what is asked for.
func (c cacher) peer(keys func() (all, asked []string), loop func(store, []string) job) peer {
	return peer{name: c.name, module: c.module, setup: func(s *stage) (job, error) {
		cache, err := c.new(s)
		if err != nil {
			return nil, err
		}
		all, asked := keys()
		for i, key := range all {
			cache.set(key, i)
			if cache.wait != nil {
				cache.wait()
			}
		}
		return loop(cache, asked), nil
	}}
}

// zipfKeys returns all keys, and keys in the order in which they are asked for.
func zipfKeys() (all, asked []string) {
	all = make([]string, cacheKeys)
	cumulated := make([]float64, cacheKeys)
	sum := 0.0
	for i := range all {
		all[i] = fmt.Sprintf("user:%d:profile", i)
		sum += math.Pow(float64(i+1), -cacheSkew)
		cumulated[i] = sum
	}
	random := rand.New(rand.NewPCG(1, 2))
	asked = make([]string, cacheGets)
	for i := range asked {
		rank, _ := slices.BinarySearch(cumulated, random.Float64()*sum)
		asked[i] = all[min(rank, cacheKeys-1)]
	}
	return all, asked
}

// first is where in what is asked for a goroutine begins.
func first(l *loop) int { return l.goroutine * (cacheGets/8 + 1) }

func hits(s store, asked []string) job {
	return func(l *loop) error {
		for i := first(l); l.next(); i++ {
			if _, ok := s.get(asked[i%cacheGets]); !ok {
				return errMiss
			}
		}
		return nil
	}
}

func loads(s store, asked []string) job {
	ctx := context.Background()
	return func(l *loop) error {
		for i := first(l); l.next(); i++ {
			if _, err := s.load(ctx, asked[i%cacheGets]); err != nil {
				return err
			}
		}
		return nil
	}
}

func getsAndSets(s store, asked []string) job {
	return func(l *loop) error {
		for i := first(l); l.next(); i++ {
			if key := asked[i%cacheGets]; i%4 == 0 {
				s.set(key, i)
			} else if _, ok := s.get(key); !ok {
				return errMiss
			}
		}
		return nil
	}
}

func cachers() []cacher {
	return []cacher{
		{name: "none", loads: true, new: func(*stage) (store, error) {
			return store{
				get:  func(string) (int, bool) { return 0, true },
				set:  func(string, int) {},
				load: func(context.Context, string) (int, error) { return 0, nil },
			}, nil
		}},
		{name: ours, loads: true, new: func(s *stage) (store, error) { return ourStore(s, cacheTTL) }},
		{name: "backstay-no-ttl", loads: true, new: func(s *stage) (store, error) { return ourStore(s, -1) }},
		{name: "golang-lru", module: moduleLRU, new: func(*stage) (store, error) {
			c, err := lru.New[string, int](cacheSize)
			return store{get: c.Get, set: func(key string, value int) { c.Add(key, value) }}, err
		}},
		{name: "golang-lru-expirable", module: moduleLRU, new: func(*stage) (store, error) {
			c := expirable.NewLRU[string, int](cacheSize, nil, cacheTTL) // its goroutine stays: there is no way to end it
			return store{get: c.Get, set: func(key string, value int) { c.Add(key, value) }}, nil
		}},
		{name: "otter", module: moduleOtter, loads: true, new: func(s *stage) (store, error) {
			return otterStore(s, &otter.Options[string, int]{MaximumSize: cacheSize})
		}},
		{name: "otter-ttl", module: moduleOtter, loads: true, new: func(s *stage) (store, error) {
			return otterStore(s, &otter.Options[string, int]{
				MaximumSize: cacheSize, ExpiryCalculator: otter.ExpiryWriting[string, int](cacheTTL),
			})
		}},
		{name: "ristretto-ttl", module: moduleRistretto, new: func(s *stage) (store, error) {
			c, err := ristretto.NewCache(&ristretto.Config[string, int]{
				NumCounters: 10 * cacheSize, MaxCost: cacheSize, BufferItems: 64, IgnoreInternalCost: true,
			})
			if err != nil {
				return store{}, err
			}
			s.cleanup(c.Close)
			set := func(key string, value int) { c.SetWithTTL(key, value, 1, cacheTTL) }
			return store{get: c.Get, set: set, wait: c.Wait}, nil
		}},
		{name: "sturdyc", module: moduleSturdyc, loads: true, new: func(*stage) (store, error) {
			const shards, evicted = 64, 10
			c := sturdyc.New[int](cacheSize, shards, cacheTTL, evicted, sturdyc.WithNoContinuousEvictions())
			return store{
				get: c.Get, set: func(key string, value int) { c.Set(key, value) },
				load: func(ctx context.Context, key string) (int, error) {
					return c.GetOrFetch(ctx, key, func(ctx context.Context) (int, error) { return failLoad(ctx, key) })
				},
			}, nil
		}},
		{name: "ttlcache", module: moduleTTLCache, loads: true, new: func(*stage) (store, error) {
			return ttlcacheStore(), nil
		}},
	}
}

func ourStore(s *stage, ttl time.Duration) (store, error) {
	c, err := cache.New(&cache.Config[string, int]{MaxEntries: cacheSize, TTL: ttl})
	if err != nil {
		return store{}, err
	}
	s.cleanup(func() { _ = c.Close() })
	return store{
		get: c.GetIfPresent, set: c.Set,
		load: func(ctx context.Context, key string) (int, error) { return c.Get(ctx, key, failLoad) },
	}, nil
}

func otterStore(s *stage, o *otter.Options[string, int]) (store, error) {
	c, err := otter.New(o)
	if err != nil {
		return store{}, err
	}
	s.cleanup(func() { c.StopAllGoroutines() })
	loader := otter.LoaderFunc[string, int](failLoad)
	return store{
		get: c.GetIfPresent, set: func(key string, value int) { c.Set(key, value) },
		load: func(ctx context.Context, key string) (int, error) { return c.Get(ctx, key, loader) },
	}, nil
}

// ttlcacheStore keeps to a TTL from the time of setting, as the others do.
func ttlcacheStore() store {
	c := ttlcache.New(
		ttlcache.WithTTL[string, int](cacheTTL), ttlcache.WithCapacity[string, int](cacheSize),
		ttlcache.WithDisableTouchOnHit[string, int](),
		ttlcache.WithLoader(ttlcache.LoaderFunc[string, int](
			func(*ttlcache.Cache[string, int], string) *ttlcache.Item[string, int] { return nil })),
	)
	get := func(key string) (int, bool) {
		if item := c.Get(key); item != nil {
			return item.Value(), true
		}
		return 0, false
	}
	return store{
		get: get, set: func(key string, value int) { c.Set(key, value, ttlcache.DefaultTTL) },
		load: func(_ context.Context, key string) (int, error) {
			if value, ok := get(key); ok {
				return value, nil
			}
			return failLoad(context.Background(), key)
		},
	}
}
