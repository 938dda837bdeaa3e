package breaker

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// GroupConfig configures a [Group].
type GroupConfig struct {
	// Config is that of each breaker.
	Config
	// MaxKeys bounds the number of breakers. Beyond it, the one that was asked
	// for the longest time ago goes. One that is not closed stays as long as
	// there is another to go, unless nobody has asked for it for MaxOpenTime
	// after it could have probed.
	// Default: 10,000.
	MaxKeys int `json:"maxKeys,omitempty"`
}

// Group makes breakers by key on demand and keeps the most recently used. All
// methods may be called concurrently.
type Group struct {
	mu  sync.Mutex
	set *Config
	max int
	// idle holds breakers that were closed when last looked at, kept those that
	// were not when their turn to go came: the two bounded together. Each moves
	// at most once between two uses, so that to make room costs no search.
	idle, kept *simplelru.LRU[string, *Breaker]
}

// NewGroup returns an empty group. A nil config is the default.
func NewGroup(cfg *GroupConfig) (*Group, error) {
	set, maxKeys, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	g := &Group{set: set, max: maxKeys}
	// The bound is ours to keep: the lists never drop anything themselves.
	g.idle, _ = simplelru.NewLRU[string, *Breaker](math.MaxInt, nil)
	g.kept, _ = simplelru.NewLRU[string, *Breaker](math.MaxInt, nil)
	return g, nil
}

func (c *GroupConfig) resolve() (*Config, int, error) {
	if c == nil {
		c = new(GroupConfig)
	}
	set, err := c.Config.resolve()
	maxKeys := cmp.Or(c.MaxKeys, 10_000)
	if maxKeys < 1 {
		err = errors.Join(err, fmt.Errorf("breaker: MaxKeys is %d, want >= 1", maxKeys))
	}
	return set, maxKeys, err
}

// Get returns the key's breaker, the same to all who ask, and makes it if there
// is none. A caller that holds on to a breaker keeps it even after the group has
// let go of it; it emits no events then.
func (g *Group) Get(key string) *Breaker {
	g.mu.Lock()
	if b, ok := g.idle.Get(key); ok {
		g.mu.Unlock()
		return b
	}
	b, ok := g.kept.Get(key)
	if ok && b.State() == Closed {
		g.kept.Remove(key)
		g.idle.Add(key, b)
	}
	var gone []*Breaker
	if !ok {
		b = newBreaker(key, g.set)
		g.idle.Add(key, b)
		gone = g.shrink()
	}
	g.mu.Unlock()
	flush(gone)
	return b
}

// Remove forgets the key's breaker, and reports whether there was one. To
// observers, one that was not closed has closed. The next Get makes a new one.
func (g *Group) Remove(key string) bool {
	g.mu.Lock()
	b, ok := g.idle.Peek(key)
	if !ok {
		b, ok = g.kept.Peek(key)
	}
	if ok {
		g.idle.Remove(key)
		g.kept.Remove(key)
		b.retire()
	}
	g.mu.Unlock()
	if ok {
		b.events.Flush()
	}
	return ok
}

// Len returns the number of breakers.
func (g *Group) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.idle.Len() + g.kept.Len()
}

// All returns the breakers that there are now, in no particular order. It is no
// use of them: who is looked at may go next.
func (g *Group) All() iter.Seq[*Breaker] {
	g.mu.Lock()
	all := append(g.idle.Values(), g.kept.Values()...)
	g.mu.Unlock()
	return slices.Values(all)
}

// Update replaces the configuration of the group and of all its breakers, as
// [Breaker.Update] does, and returns what NewGroup would about it; then nothing
// has changed.
func (g *Group) Update(cfg *GroupConfig) error {
	set, maxKeys, err := cfg.resolve()
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.set, g.max = set, maxKeys
	gone := g.shrink()
	g.mu.Unlock()
	flush(gone)
	for b := range g.All() {
		b.update(set)
	}
	return nil
}

// shrink keeps the bound. It returns those that went, for their events to be
// flushed without the lock.
func (g *Group) shrink() (gone []*Breaker) {
	for g.idle.Len()+g.kept.Len() > g.max {
		b := g.evict()
		b.retire()
		gone = append(gone, b)
	}
	return gone
}

func flush(gone []*Breaker) {
	for _, b := range gone {
		b.events.Flush()
	}
}

// evict removes one breaker, but not the most recently used idle one: it has
// been asked for just now.
func (g *Group) evict() *Breaker {
	if key, b, ok := g.kept.GetOldest(); ok && b.abandoned() {
		g.kept.Remove(key)
		return b
	}
	for g.idle.Len() > 1 {
		key, b, _ := g.idle.RemoveOldest()
		if b.State() == Closed {
			return b
		}
		g.kept.Add(key, b)
	}
	// None is left that was closed when looked at. One may have closed since.
	_, oldest, _ := g.kept.GetOldest()
	for _, b := range g.kept.Values() {
		if b.State() == Closed {
			oldest = b
			break
		}
	}
	g.kept.Remove(oldest.key)
	return oldest
}

// abandoned reports whether the breaker is closed, or could have probed for so
// long that its peer is of no interest to anybody.
func (b *Breaker) abandoned() bool {
	p := b.cur.Load()
	return p.state == Closed || b.nanos(time.Time{})-int64(p.set.MaxOpenTime) > p.next.Load()
}
