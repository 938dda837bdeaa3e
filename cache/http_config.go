package cache

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// HTTPConfig is what an [HTTP] cache is made of. The zero value is a good one.
type HTTPConfig struct {
	// TTL is how long a response may be given out after its header came. The
	// response can shorten that by s-maxage, max-age or Expires, and never
	// prolong it. A negative one means that only the response limits it.
	// Default: 10s.
	TTL time.Duration `json:"ttl,omitempty"`

	// Jitter is the fraction of its lifetime by which an entry's is shortened
	// at most. Below 1; a negative one means none.
	// Default: 0.1.
	Jitter float64 `json:"jitter,omitempty"`

	// MaxEntries bounds the number of responses.
	// Default: 10,000.
	MaxEntries int `json:"maxEntries,omitempty"`

	// MaxBytes bounds what the responses take in memory, headers included.
	// Bodies that are still coming are not counted.
	// Default: 64 MiB.
	MaxBytes int64 `json:"maxBytes,omitempty"`

	// MaxBody is the length of the longest body that is stored. A longer one is
	// delivered and forgotten. A negative one means no limit but MaxBytes.
	// Default: 1 MiB, or MaxBytes if that is less.
	MaxBody int64 `json:"maxBody,omitempty"`

	// Coalesce is how long a read waits for one of the same that is under way,
	// to be answered with what that one stores. It waits until the other one's
	// caller has read the whole body, or its response turns out to be one that
	// is not stored; when the time is over it goes itself. A negative one means
	// not at all.
	// Default: 0, not at all.
	Coalesce time.Duration `json:"coalesce,omitempty"`

	// Skip says of a request that it must bypass the cache, for example since
	// its answer depends on a header that the key does not contain. It must not
	// change the request.
	// Default: nil, none.
	Skip func(*http.Request) bool `json:"-"`
}

const (
	defaultHTTPTTL  = 10 * time.Second
	defaultMaxBytes = 64 << 20
	defaultMaxBody  = 1 << 20
	// bodiesPerShard is how many of the longest bodies a shard has room for.
	bodiesPerShard = 4
)

// withDefaults returns the config with zero fields filled in, or all that is
// wrong with it.
func (c *HTTPConfig) withDefaults() (HTTPConfig, error) {
	var cfg HTTPConfig
	if c != nil {
		cfg = *c
	}
	if cfg.TTL == 0 {
		cfg.TTL = defaultHTTPTTL
	}
	if cfg.MaxEntries == 0 {
		cfg.MaxEntries = defaultMaxEntries
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = defaultMaxBytes
	}
	switch {
	case cfg.MaxBody == 0:
		cfg.MaxBody = min(defaultMaxBody, cfg.MaxBytes)
	case cfg.MaxBody < 0:
		cfg.MaxBody = cfg.MaxBytes
	}

	var errs []error
	problem := func(field string, value any, want string) {
		errs = append(errs, fmt.Errorf("cache: HTTPConfig.%s is %v, want %s", field, value, want))
	}
	if !(cfg.Jitter < 1) { // so that NaN is refused too
		problem("Jitter", cfg.Jitter, "< 1")
	}
	if cfg.MaxEntries < 0 {
		problem("MaxEntries", cfg.MaxEntries, ">= 1, or 0 for the default: a cache is bounded")
	}
	if cfg.MaxBytes < 0 {
		problem("MaxBytes", cfg.MaxBytes, ">= 1, or 0 for the default: a cache is bounded")
	} else if cfg.MaxBody > cfg.MaxBytes {
		problem("MaxBody", cfg.MaxBody, fmt.Sprintf("<= MaxBytes (%d)", cfg.MaxBytes))
	}
	return cfg, errors.Join(errs...)
}

// store is the config of the cache beneath.
func (c *HTTPConfig) store() *Config[httpKey, *httpEntry] {
	fits := c.MaxBytes / bodiesPerShard / max(c.MaxBody, 1)
	return &Config[httpKey, *httpEntry]{
		MaxEntries: c.MaxEntries,
		MaxWeight:  c.MaxBytes,
		Weigh:      weighEntry,
		TTL:        c.TTL,
		Jitter:     c.Jitter,
		Shards:     int(min(max(fits, 1), int64(defaultShards(c.MaxEntries)))),
	}
}
