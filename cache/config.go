package cache

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"time"

	"github.com/backstay/backstay/event"
)

// Config is what a [Cache] is made of. The zero value is a good one.
type Config[K comparable, V any] struct {
	// Name tells this cache from others in events.
	// Default: empty.
	Name string `json:"name,omitempty"`

	// MaxEntries bounds the number of entries, expired ones included. It can
	// not be switched off: a cache without a bound is a leak.
	// Default: 10,000.
	MaxEntries int `json:"maxEntries,omitempty"`

	// MaxWeight bounds the sum of what Weigh says of the entries. Each shard
	// has its share of it, and a value heavier than that share is not kept.
	// Default: 0, no limit.
	MaxWeight int64 `json:"maxWeight,omitempty"`

	// Weigh says how much a value counts towards MaxWeight, for example its
	// size in bytes; less than 0 is taken as 0. It is called once per stored
	// value, without a lock.
	// Default: nil; needed if, and only if, MaxWeight is set.
	Weigh func(key K, value V) int64 `json:"-"`

	// TTL is how long a value may be given out after it was stored. A negative
	// one means that values do not expire.
	// Default: 1m.
	TTL time.Duration `json:"ttl,omitempty"`

	// Jitter is the fraction of a TTL by which it is shortened at most, evenly
	// distributed, so that what was stored together does not expire together.
	// It applies to every TTL and never prolongs one. Below 1; a negative one
	// means none.
	// Default: 0.1.
	Jitter float64 `json:"jitter,omitempty"`

	// NegativeTTL is how long it is remembered that a loader returned
	// [ErrNotFound]. While it is, Get returns ErrNotFound without loading.
	// Default: 0, not remembered.
	NegativeTTL time.Duration `json:"negativeTTL,omitempty"`

	// Shards is the number of parts with a lock, and a share of the bounds, of
	// their own. It is rounded up to a power of two, and down again to what
	// MaxEntries can be shared among.
	// Default: 16 per CPU, but at most 512, and at least 64 entries to each.
	Shards int `json:"shards,omitempty"`

	// OnEvict is called for each value that leaves the cache, with the reason.
	// It runs on the goroutine that caused it, under no lock, and may call the
	// cache; what it is told may have changed again by then. A panic in it is
	// logged to slog.Default() and goes no further. A value that expires leaves
	// only when its place is taken, or its key is set or deleted.
	// Default: nil.
	OnEvict func(key K, value V, cause Cause) `json:"-"`

	// Observer gets the cache's events: [LoadFailed].
	// Default: nil.
	Observer event.Observer `json:"-"`
}

const (
	defaultMaxEntries  = 10_000
	defaultTTL         = time.Minute
	defaultJitter      = 0.1
	minEntriesPerShard = 64
	shardsPerCPU       = 16
	maxDefaultShards   = 512
	maxShards          = 1 << 16
)

// withDefaults returns the config with zero fields filled in, or all that is
// wrong with it.
func (c *Config[K, V]) withDefaults() (Config[K, V], error) {
	var cfg Config[K, V]
	if c != nil {
		cfg = *c
	}
	var errs []error
	problem := func(field string, value any, want string) {
		errs = append(errs, fmt.Errorf("cache: %s is %v, want %s", field, value, want))
	}
	if cfg.MaxEntries < 0 {
		problem("MaxEntries", cfg.MaxEntries, ">= 1, or 0 for the default: a cache is bounded")
	}
	switch {
	case cfg.MaxWeight < 0:
		problem("MaxWeight", cfg.MaxWeight, ">= 1, or 0 for no limit")
	case cfg.MaxWeight > 0 && cfg.Weigh == nil:
		problem("Weigh", "nil", "a function when MaxWeight is set")
	case cfg.MaxWeight == 0 && cfg.Weigh != nil:
		problem("MaxWeight", cfg.MaxWeight, ">= 1 when Weigh is set")
	}
	if !(cfg.Jitter < 1) { // so that NaN is refused too
		problem("Jitter", cfg.Jitter, "< 1")
	}
	if cfg.Shards < 0 || cfg.Shards > maxShards {
		problem("Shards", cfg.Shards, fmt.Sprintf("1 to %d, or 0 for the default", maxShards))
	}
	if errs != nil {
		return cfg, errors.Join(errs...)
	}

	if cfg.MaxEntries == 0 {
		cfg.MaxEntries = defaultMaxEntries
	}
	if cfg.TTL == 0 {
		cfg.TTL = defaultTTL
	}
	if cfg.Jitter == 0 {
		cfg.Jitter = defaultJitter
	}
	if cfg.Shards == 0 {
		cfg.Shards = defaultShards(cfg.MaxEntries)
	}
	cfg.Shards = min(ceilPowerOfTwo(cfg.Shards), floorPowerOfTwo(cfg.MaxEntries))
	return cfg, nil
}

func defaultShards(maxEntries int) int {
	n := min(shardsPerCPU*runtime.GOMAXPROCS(0), maxDefaultShards, maxEntries/minEntriesPerShard)
	return floorPowerOfTwo(max(n, 1))
}

// floorPowerOfTwo is the largest power of two that is not above n >= 1.
func floorPowerOfTwo(n int) int { return 1 << (bits.Len(uint(n)) - 1) }

// ceilPowerOfTwo is the smallest power of two that is not below n >= 1.
func ceilPowerOfTwo(n int) int { return 1 << bits.Len(uint(n-1)) }
