package cache

import (
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"log/slog"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"
)

// Cause says why a value left a [Cache].
type Cause uint8

const (
	// Evicted means that it had to leave for others, or was too heavy.
	Evicted Cause = iota
	// Expired means that its time was over when its place was taken, or its key
	// was set or deleted.
	Expired
	// Replaced means that its key was set to another value.
	Replaced
	// Deleted means that its key was deleted, or the cache cleared or closed.
	Deleted
)

// String returns the cause in lower case.
func (c Cause) String() string {
	switch c {
	case Evicted:
		return "evicted"
	case Expired:
		return "expired"
	case Replaced:
		return "replaced"
	default:
		return "deleted"
	}
}

// Cache is a bounded map whose entries expire, and that loads what it does not
// hold. All methods may be called concurrently. Values are handed out as they
// were stored: what they point to is shared among all who get them.
type Cache[K comparable, V any] struct {
	shards []shard[K, V]
	mask   uint64
	seed   maphash.Seed
	clock  lazyClock
	cfg    Config[K, V]
	loads  sync.WaitGroup
}

// New returns a cache. A nil cfg is an empty one.
func New[K comparable, V any](cfg *Config[K, V]) (*Cache[K, V], error) {
	filled, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	n := filled.Shards
	c := &Cache[K, V]{
		shards: make([]shard[K, V], n),
		mask:   uint64(n - 1),
		seed:   maphash.MakeSeed(),
		cfg:    filled,
	}
	c.clock.init()
	maxWeight := int64(math.MaxInt64)
	if filled.MaxWeight > 0 {
		maxWeight = filled.MaxWeight / int64(n)
	}
	for i := range c.shards {
		maxEntries := filled.MaxEntries / n
		if i < filled.MaxEntries%n {
			maxEntries++
		}
		c.shards[i].init(c.seed, maxEntries, maxWeight, filled.OnEvict != nil)
	}
	return c, nil
}

func (c *Cache[K, V]) shard(key K) *shard[K, V] {
	return &c.shards[maphash.Comparable(c.seed, key)&c.mask]
}

// found is what a look-up found.
type found uint8

const (
	foundNothing found = iota
	foundExpired
	foundAbsence // a negative entry
	foundValue
)

// look returns the value of key, noting the use. The caller holds s.mu, if only
// for reading.
func (c *Cache[K, V]) look(s *shard[K, V], key K) (V, found) {
	var zero V
	e := s.entries[key]
	switch {
	case e == nil:
		return zero, foundNothing
	case c.clock.passed(e.deadline):
		return zero, foundExpired
	}
	e.use()
	if e.missing {
		return zero, foundAbsence
	}
	return e.value, foundValue
}

// read is the way of a hit: it returns the value of key, and counts the hit if
// there is one.
func (c *Cache[K, V]) read(key K) (*shard[K, V], V, found) {
	hash := maphash.Comparable(c.seed, key)
	s := &c.shards[hash&c.mask]
	if s.hash.Load() == hash {
		if f := s.favourite.Load(); f != nil && f.key == key && !c.clock.passed(f.deadline) {
			f.entry.use()
			s.hits.Add(1)
			return s, f.value, foundValue
		}
	}
	s.mu.RLock()
	v, what := c.look(s, key)
	if what == foundValue && s.hits.Add(1)%sampling == 0 {
		s.favour(hash, key)
	}
	s.mu.RUnlock()
	return s, v, what
}

// GetIfPresent returns the value of key if it is there, and counts as a use like
// Get. It loads nothing and waits for no load.
func (c *Cache[K, V]) GetIfPresent(key K) (V, bool) {
	s, v, what := c.read(key)
	if what != foundValue {
		s.count(what)
	}
	return v, what == foundValue
}

// Get returns the value of key: the one in the cache or else the one that load
// returns, which is then stored for the config's TTL, counted from load's end, or
// for as long as load says by [SetTTL]. Callers who ask for the same key at the
// same time share one load; see the package's comment for the rules.
//
// A hit does not look at ctx. Otherwise Get waits for the load, and for no longer
// than ctx, whose Err it then returns. It returns load's own error as it is; one
// that is [ErrNotFound] may be remembered, and is then returned as just that. A
// load that panicked gives a [*PanicError], one that called runtime.Goexit
// [ErrGoexit]. Without a load Get returns [ErrReentrant] to a loader that asks for
// its own key, [ErrClosed] after Close, and an error if ctx or load is nil.
//
// A hit allocates nothing. A method value or a closure as load is allocated by
// the caller, at every call unless it is made once.
func (c *Cache[K, V]) Get(ctx context.Context, key K, load func(context.Context, K) (V, error)) (V, error) {
	if ctx == nil || load == nil {
		var zero V
		return zero, errNil
	}
	s, v, what := c.read(key)
	if what == foundValue {
		return v, nil
	}
	return c.load(ctx, s, key, load)
}

// Set stores a value under key for the config's TTL. A load of key that is under
// way is not stored any more.
func (c *Cache[K, V]) Set(key K, v V) { c.SetWithTTL(key, v, c.cfg.TTL) }

// SetWithTTL is Set with a TTL of its own: 0 means the config's, a negative one
// means that the value does not expire. Jitter applies.
func (c *Cache[K, V]) SetWithTTL(key K, v V, ttl time.Duration) {
	now := c.clock.now()
	it := item[V]{value: v, weight: c.weigh(key, v), deadline: c.deadline(now, ttl)}
	s := c.shard(key)
	s.mu.Lock()
	var gone []record[K, V]
	if !s.closed {
		s.detach(key)
		gone = s.put(now, key, it, nil)
	}
	s.mu.Unlock()
	c.report(gone)
}

// Delete removes the value of key, if there is one, also if it says that there
// is none. A load of key that is under way is not stored any more, and a Get
// that begins after Delete starts a new one.
func (c *Cache[K, V]) Delete(key K) {
	now := c.clock.now()
	s := c.shard(key)
	s.mu.Lock()
	s.detach(key)
	gone := s.remove(now, key, nil)
	s.mu.Unlock()
	c.report(gone)
}

// Clear removes everything that was there when it was called. Loads under way
// are not stored any more.
func (c *Cache[K, V]) Clear() {
	now := c.clock.now()
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for key := range s.flights {
			s.detach(key)
		}
		gone := s.purge(now, nil)
		s.mu.Unlock()
		c.report(gone)
	}
}

// Len returns the number of values, expired ones not counted. It looks at all
// entries.
func (c *Cache[K, V]) Len() int {
	n := 0
	for range c.All() {
		n++
	}
	return n
}

// All returns an iterator over the keys and values, in no particular order,
// without expired ones. Each value was there at some time during the iteration.
// It counts as no use. The loop's body runs under no lock and may call the cache.
func (c *Cache[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for i := range c.shards {
			s := &c.shards[i]
			var live []record[K, V]
			s.mu.RLock()
			s.each(func(e *entry[K, V]) {
				if !e.missing && !c.clock.passed(e.deadline) {
					live = append(live, record[K, V]{key: e.key, value: e.value})
				}
			})
			s.mu.RUnlock()
			for _, l := range live {
				if !yield(l.key, l.value) {
					return
				}
			}
		}
	}
}

// Stats returns the counts so far.
func (c *Cache[K, V]) Stats() Stats {
	var sum Stats
	for i := range c.shards {
		c.shards[i].addTo(&sum)
	}
	return sum
}

func (c *Cache[K, V]) weigh(key K, v V) int64 {
	if c.cfg.Weigh == nil {
		return 0
	}
	return max(c.cfg.Weigh(key, v), 0)
}

// deadline is when a value stored now for ttl expires.
func (c *Cache[K, V]) deadline(now int64, ttl time.Duration) int64 {
	if ttl == 0 {
		ttl = c.cfg.TTL
	}
	if ttl > 0 && c.cfg.Jitter > 0 {
		ttl -= time.Duration(rand.Float64() * c.cfg.Jitter * float64(ttl)) //nolint:gosec // not a secret
	}
	return after(now, ttl)
}

// report tells Config.OnEvict what has gone. The caller holds no lock.
func (c *Cache[K, V]) report(gone []record[K, V]) {
	for _, g := range gone {
		c.reportOne(g)
	}
}

func (c *Cache[K, V]) reportOne(g record[K, V]) {
	defer func() {
		if p := recover(); p != nil {
			slog.Default().Error("backstay: a cache's OnEvict panicked",
				"cache", c.cfg.Name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	c.cfg.OnEvict(g.key, g.value, g.cause)
}
