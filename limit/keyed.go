package limit

import (
	"cmp"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// RateGroupConfig configures a [RateGroup].
type RateGroupConfig struct {
	// RateConfig is that of each limit; Key is replaced by the limit's own.
	RateConfig
	// MaxKeys bounds the number of limits. Beyond it, the one that was asked for
	// the longest time ago goes, and its key begins anew with a full bucket: let
	// it be large enough for a bucket to fill up again before its turn comes.
	// Default: 10,000.
	MaxKeys int `json:"maxKeys,omitempty"`
}

// RateGroup makes rates by key on demand and keeps the most recently used. All
// methods may be called concurrently.
type RateGroup struct {
	mu    sync.Mutex
	set   *RateConfig
	rates *simplelru.LRU[string, *Rate]
}

// NewRateGroup returns an empty group. The config must have a Limit.
func NewRateGroup(cfg *RateGroupConfig) (*RateGroup, error) {
	set, maxKeys, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	rates, _ := simplelru.NewLRU[string, *Rate](maxKeys, nil) // errs only for a size below 1
	return &RateGroup{set: set, rates: rates}, nil
}

func (c *RateGroupConfig) resolve() (*RateConfig, int, error) {
	if c == nil {
		c = new(RateGroupConfig)
	}
	set, err := c.RateConfig.resolve()
	maxKeys := cmp.Or(c.MaxKeys, 10_000)
	if maxKeys < 1 {
		err = errors.Join(err, fmt.Errorf("limit: MaxKeys is %d, want >= 1", maxKeys))
	}
	return set, maxKeys, err
}

// Update replaces the configuration of the group and of all its rates, as
// [Rate.Update] does, and returns what NewRateGroup would about it; then nothing
// has changed.
func (g *RateGroup) Update(cfg *RateGroupConfig) error {
	set, maxKeys, err := cfg.resolve()
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.set = set
	g.rates.Resize(maxKeys)
	rates := g.rates.Values()
	g.mu.Unlock()
	for _, r := range rates {
		r.update(set)
	}
	return nil
}

// Get returns the key's rate, the same to all who ask, and makes it if there is
// none.
func (g *RateGroup) Get(key string) *Rate {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r, ok := g.rates.Get(key); ok {
		return r
	}
	r := newRate(key, g.set)
	g.rates.Add(key, r)
	return r
}

// Remove forgets the key's rate, and reports whether there was one.
func (g *RateGroup) Remove(key string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rates.Remove(key)
}

// Len returns the number of rates.
func (g *RateGroup) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rates.Len()
}
