package cache

import (
	"container/list"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// maxUses is where an entry's uses stop being counted.
	maxUses = 3
	// maxSecondChances bounds the work of one eviction: among that many entries
	// in use, the oldest goes.
	maxSecondChances = 32
	// sampling is how many hits of a shard there are to one that makes its entry
	// the favourite.
	sampling = 1024
)

// item is what is stored under a key.
type item[V any] struct {
	value    V
	deadline int64 // see lazyClock
	weight   int64
	missing  bool // the loader said ErrNotFound; value is the zero one
}

// entry is an item in a shard. It changes only under the shard's lock.
type entry[K comparable, V any] struct {
	item[V]
	uses  atomic.Uint32 // since it was added or last given a second chance, up to maxUses
	main  bool          // the queue it is in
	key   K
	place *list.Element // there
}

// use notes a read. An entry that is read all the time stays as it is, so that
// its readers do not fight over it.
func (e *entry[K, V]) use() {
	if n := e.uses.Load(); n < maxUses {
		e.uses.CompareAndSwap(n, n+1) // a lost race is one use less: no harm
	}
}

// favourite is a copy of an entry that was hit when a sample was taken, so most
// likely one that is hit all the time: its readers would fight over the lock,
// and need none with this. It never changes; when its entry does, it goes.
type favourite[K comparable, V any] struct {
	key      K
	value    V
	deadline int64
	entry    *entry[K, V]
}

// record is an entry as it is told to others: by All, or by OnEvict with the
// cause of its leaving.
type record[K comparable, V any] struct {
	key   K
	value V
	cause Cause
}

// shard is a part of a cache with its own lock: an S3-FIFO (Yang et al., FIFO
// queues are all you need for cache eviction, SOSP 2023). New keys wait in a
// small queue, a tenth of the entries; those used more than once when they come
// to its end move to the main queue, the others leave and only their hash is
// remembered, so that they go to the main queue if they come back. In the main
// queue an entry that was used gets another round per use. So a read moves
// nothing and needs only the read lock; it goes from the map to the entry, with
// no queue's own map and node between them, each of which would be one more place
// in memory that no processor has at hand.
type shard[K comparable, V any] struct {
	// A cache line that is hardly ever written, so that a hit of the favourite
	// finds it in its own core's cache. The favourite is stored under the read
	// lock at least, and taken back under the lock. Its hash is for a quick look.
	hash       atomic.Uint64
	favourite  atomic.Pointer[favourite[K, V]]
	entries    map[K]*entry[K, V]
	ghost      *simplelru.LRU[uint64, struct{}]
	seed       maphash.Seed
	maxEntries int
	maxWeight  int64
	_          [8]byte

	mu sync.RWMutex
	counters
	main, small list.List // of *entry, the newest in front
	weight      int64
	flights     map[K]*flight[V]        // loads under way
	strays      map[*flight[V]]struct{} // those whose key has been set or deleted meanwhile
	closed      bool
	report      bool // whether anybody wants to know what leaves
	_           [46]byte
}

func (s *shard[K, V]) init(seed maphash.Seed, maxEntries int, maxWeight int64, report bool) {
	s.seed, s.maxEntries, s.maxWeight, s.report = seed, maxEntries, maxWeight, report
	s.flights, s.strays = make(map[K]*flight[V]), make(map[*flight[V]]struct{})
	s.entries = make(map[K]*entry[K, V])
	// NewLRU fails only for sizes below 1, which New rules out.
	s.ghost, _ = simplelru.NewLRU[uint64, struct{}](maxEntries, nil)
}

// queue returns the main or the small queue.
func (s *shard[K, V]) queue(main bool) *list.List {
	if main {
		return &s.main
	}
	return &s.small
}

// put stores it under key, in place of what was there, and appends to gone what
// had to leave for it.
func (s *shard[K, V]) put(now int64, key K, it item[V], gone []record[K, V]) []record[K, V] {
	main, uses := false, uint32(0)
	if old := s.entries[key]; old != nil {
		gone = s.note(gone, old, causeOr(Replaced, now, old))
		if it.weight <= s.maxWeight-(s.weight-old.weight) {
			s.weight += it.weight - old.weight
			old.item = it
			s.disfavour(old)
			return gone
		}
		s.drop(old)
		main, uses = old.main, old.uses.Load()
	} else if s.ghost.Len() > 0 && s.ghost.Remove(maphash.Comparable(s.seed, key)) {
		main = true
	}
	e := &entry[K, V]{item: it, main: main, key: key}
	if it.weight > s.maxWeight || key != key { //nolint:gocritic // NaN: no map gives it back, or lets it go
		return s.note(gone, e, Evicted)
	}
	for len(s.entries) >= s.maxEntries || it.weight > s.maxWeight-s.weight {
		gone = s.evict(now, gone)
	}
	e.uses.Store(uses)
	e.place = s.queue(main).PushFront(e)
	s.entries[key] = e
	s.weight += it.weight
	return gone
}

// evict removes one entry. There must be one.
func (s *shard[K, V]) evict(now int64, gone []record[K, V]) []record[K, V] {
	for chances := maxSecondChances; ; chances-- {
		small := s.small.Len()
		queue := s.queue(small <= len(s.entries)/10)
		e := queue.Back().Value.(*entry[K, V]) //nolint:errcheck,forcetypeassert // only those are in it
		cause, uses := causeOr(Evicted, now, e), e.uses.Load()
		switch {
		case cause == Expired || chances == 0:
		case !e.main && uses > 1:
			s.small.Remove(e.place)
			e.uses.Store(0)
			e.main, e.place = true, s.main.PushFront(e)
			continue
		case e.main && uses > 0:
			e.uses.Store(uses - 1)
			s.main.MoveToFront(e.place)
			continue
		case !e.main:
			s.ghost.Add(maphash.Comparable(s.seed, e.key), struct{}{})
		}
		s.drop(e)
		s.evictions.Add(1)
		return s.note(gone, e, cause)
	}
}

// remove drops the entry of key, if there is one.
func (s *shard[K, V]) remove(now int64, key K, gone []record[K, V]) []record[K, V] {
	e := s.entries[key]
	if e == nil {
		return gone
	}
	s.drop(e)
	return s.note(gone, e, causeOr(Deleted, now, e))
}

// purge drops everything.
func (s *shard[K, V]) purge(now int64, gone []record[K, V]) []record[K, V] {
	if s.report {
		s.each(func(e *entry[K, V]) {
			gone = s.note(gone, e, causeOr(Deleted, now, e))
		})
	}
	s.entries = make(map[K]*entry[K, V])
	s.main.Init()
	s.small.Init()
	s.ghost.Purge()
	s.favourite.Store(nil)
	s.weight = 0
	return gone
}

// each calls do for every entry, also expired ones: the oldest of each queue first.
func (s *shard[K, V]) each(do func(*entry[K, V])) {
	for _, main := range []bool{true, false} {
		for at := s.queue(main).Back(); at != nil; at = at.Prev() {
			do(at.Value.(*entry[K, V])) //nolint:errcheck,forcetypeassert // only those are in it
		}
	}
}

// drop takes e out of the shard.
func (s *shard[K, V]) drop(e *entry[K, V]) {
	s.queue(e.main).Remove(e.place)
	delete(s.entries, e.key)
	s.weight -= e.weight
	s.disfavour(e)
}

// favour makes the entry of key the favourite.
func (s *shard[K, V]) favour(hash uint64, key K) {
	e := s.entries[key]
	s.hash.Store(hash)
	s.favourite.Store(&favourite[K, V]{key, e.value, e.deadline, e})
}

// disfavour ends that e is the favourite.
func (s *shard[K, V]) disfavour(e *entry[K, V]) {
	if f := s.favourite.Load(); f != nil && f.entry == e {
		s.favourite.Store(nil)
	}
}

// note appends e to gone if anybody wants to know.
func (s *shard[K, V]) note(gone []record[K, V], e *entry[K, V], cause Cause) []record[K, V] {
	if !s.report || e.missing {
		return gone
	}
	return append(gone, record[K, V]{e.key, e.value, cause})
}

// causeOr is cause, unless e had expired by itself.
func causeOr[K comparable, V any](cause Cause, now int64, e *entry[K, V]) Cause {
	if now >= e.deadline {
		return Expired
	}
	return cause
}
