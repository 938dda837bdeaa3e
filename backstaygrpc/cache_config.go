package backstaygrpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

// CacheConfig is what a [Cache] keeps. The zero value is a good one for methods that
// are declared to have no side effects.
type CacheConfig struct {
	// Methods lists methods whose replies are kept, each with for how long:
	// "/orders.v1.Orders/Get", or "/orders.v1.Orders/*" for all of a service that are
	// not listed themselves. 0 is TTL; negative: they are not kept.
	// Default: those of option idempotency_level = NO_SIDE_EFFECTS.
	Methods map[string]time.Duration `json:"methods,omitempty"`
	// OnlyListed means that methods that are not in Methods are not kept, whatever is
	// declared of them. Default: false.
	OnlyListed bool `json:"onlyListed,omitempty"`
	// TTL is how long a reply is given out after it came. Default: 10s.
	TTL time.Duration `json:"ttl,omitempty"`
	// Jitter is the fraction of a TTL by which it is shortened at most. Below 1;
	// negative: none. Default: 0.1.
	Jitter float64 `json:"jitter,omitempty"`
	// NegativeTTL is how long a status of NegativeCodes is given out.
	// Default: 0, no error is kept.
	NegativeTTL time.Duration `json:"negativeTTL,omitempty"`
	// NegativeCodes are the codes for which NegativeTTL holds. Default: NOT_FOUND.
	NegativeCodes []codes.Code `json:"negativeCodes,omitempty"`
	// KeyMetadata lists the keys of outgoing metadata on which replies depend: calls
	// that differ in them do not share. A call with authorization or cookie among its
	// metadata bypasses the cache, unless these are listed here. Default: none.
	KeyMetadata []string `json:"keyMetadata,omitempty"`
	// MaxEntries bounds the number of replies. Default: 10,000.
	MaxEntries int `json:"maxEntries,omitempty"`
	// MaxBytes bounds what they take, with their keys and metadata, as they are on the
	// wire; in memory it is some times as much. Default: 64 MiB.
	MaxBytes int64 `json:"maxBytes,omitempty"`
	// MaxReply is the size of the largest reply that is kept. Default: 1 MiB, or
	// MaxBytes if that is less.
	MaxReply int64 `json:"maxReply,omitempty"`
	// Skip says of a call that it must bypass the cache. It must be safe for
	// concurrent use and must not change the request. Default: none.
	Skip func(ctx context.Context, method string, request any) bool `json:"-"`
}

const (
	defaultCacheTTL = 10 * time.Second
	defaultEntries  = 10_000
	defaultBytes    = 64 << 20
	defaultReply    = 1 << 20
)

// secrets are keys of metadata that say who is asking.
func secrets() []string { return []string{"authorization", "cookie"} }

func (c *CacheConfig) withDefaults() (CacheConfig, error) {
	var cfg CacheConfig
	if c != nil {
		cfg = *c
	}
	var errs []error
	problem := func(field string, value any, want string) {
		errs = append(errs, fmt.Errorf("backstaygrpc: CacheConfig.%s is %v, want %s", field, value, want))
	}
	cfg.Methods = maps.Clone(cfg.Methods)
	for _, full := range slices.Sorted(maps.Keys(cfg.Methods)) {
		if service, name, ok := splitMethod(full); !ok || service == "" || name == "" {
			errs = append(errs, fmt.Errorf("backstaygrpc: CacheConfig.Methods has %q, want /service/method or /service/*", full))
		}
	}
	cfg.KeyMetadata = slices.Clone(cfg.KeyMetadata)
	for _, key := range cfg.KeyMetadata {
		if key == "" || key != strings.ToLower(key) {
			problem("KeyMetadata", fmt.Sprintf("%q", key), "keys of metadata in lower case")
		}
	}
	slices.Sort(cfg.KeyMetadata)
	cfg.NegativeCodes = slices.Clone(cfg.NegativeCodes)
	if cfg.NegativeCodes == nil {
		cfg.NegativeCodes = []codes.Code{codes.NotFound}
	}
	if slices.Contains(cfg.NegativeCodes, codes.OK) {
		problem("NegativeCodes", "OK", "errors")
	}
	if cfg.TTL < 0 {
		problem("TTL", cfg.TTL, "> 0")
	}
	if cfg.NegativeTTL < 0 {
		problem("NegativeTTL", cfg.NegativeTTL, ">= 0")
	}
	if !(cfg.Jitter < 1) { // so that NaN is refused too
		problem("Jitter", cfg.Jitter, "< 1")
	}
	for field, value := range map[string]int64{"MaxEntries": int64(cfg.MaxEntries), "MaxBytes": cfg.MaxBytes, "MaxReply": cfg.MaxReply} {
		if value < 0 {
			problem(field, value, ">= 1, or 0 for the default: a cache is bounded")
		}
	}
	if cfg.TTL == 0 {
		cfg.TTL = defaultCacheTTL
	}
	if cfg.MaxEntries == 0 {
		cfg.MaxEntries = defaultEntries
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = defaultBytes
	}
	if cfg.MaxReply == 0 {
		cfg.MaxReply = min(defaultReply, cfg.MaxBytes)
	}
	if cfg.MaxReply > cfg.MaxBytes && cfg.MaxBytes > 0 {
		problem("MaxReply", cfg.MaxReply, fmt.Sprintf("<= MaxBytes (%d)", cfg.MaxBytes))
	}
	slices.SortStableFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return cfg, errors.Join(errs...)
}
