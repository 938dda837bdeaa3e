package cache

import (
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

// entry is an item in a shard. The item changes only under the shard's lock.
type entry[V any] struct {
	item[V]
	uses atomic.Uint32 // since it was added or last given a second chance, up to maxUses
}

// use notes a read. An entry that is read all the time stays as it is, so that
// its readers do not fight over it.
func (e *entry[V]) use() {
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
	entry    *entry[V]
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
// nothing and needs only the read lock.
//
// The lists never come to their own bound: the shard evicts before it adds.
type shard[K comparable, V any] struct {
	// A cache line that is hardly ever written, so that a hit of the favourite
	// finds it in its own core's cache. The favourite is stored under the read
	// lock at least, and taken back under the lock. Its hash is for a quick look.
	hash        atomic.Uint64
	favourite   atomic.Pointer[favourite[K, V]]
	main, small *simplelru.LRU[K, *entry[V]]
	ghost       *simplelru.LRU[uint64, struct{}]
	seed        maphash.Seed
	maxEntries  int
	maxWeight   int64

	mu sync.RWMutex
	counters
	weight  int64
	flights map[K]*flight[V]        // loads under way
	strays  map[*flight[V]]struct{} // those whose key has been set or deleted meanwhile
	closed  bool
	report  bool // whether anybody wants to know what leaves
	_       [14]byte
}

func (s *shard[K, V]) init(seed maphash.Seed, maxEntries int, maxWeight int64, report bool) {
	s.seed, s.maxEntries, s.maxWeight, s.report = seed, maxEntries, maxWeight, report
	s.flights, s.strays = make(map[K]*flight[V]), make(map[*flight[V]]struct{})
	// NewLRU fails only for sizes below 1, which New rules out.
	s.main, _ = simplelru.NewLRU[K, *entry[V]](maxEntries, nil)
	s.small, _ = simplelru.NewLRU[K, *entry[V]](maxEntries, nil)
	s.ghost, _ = simplelru.NewLRU[uint64, struct{}](maxEntries, nil)
}

// find returns the entry of key, or nil, and the list it is in.
func (s *shard[K, V]) find(key K) (*entry[V], *simplelru.LRU[K, *entry[V]]) {
	if e, ok := s.main.Peek(key); ok {
		return e, s.main
	}
	if e, ok := s.small.Peek(key); ok {
		return e, s.small
	}
	return nil, nil
}

// put stores it under key, in place of what was there, and appends to gone what
// had to leave for it.
func (s *shard[K, V]) put(now int64, key K, it item[V], gone []record[K, V]) []record[K, V] {
	into, uses := s.small, uint32(0)
	if old, list := s.find(key); old != nil {
		gone = s.note(gone, key, old, causeOr(Replaced, now, old))
		if it.weight <= s.maxWeight-(s.weight-old.weight) {
			s.weight += it.weight - old.weight
			old.item = it
			s.disfavour(old)
			return gone
		}
		s.drop(list, key, old)
		into, uses = list, old.uses.Load()
	} else if s.ghost.Len() > 0 && s.ghost.Remove(maphash.Comparable(s.seed, key)) {
		into = s.main
	}
	e := &entry[V]{item: it}
	if it.weight > s.maxWeight || key != key { //nolint:gocritic // NaN: no map gives it back, or lets it go
		return s.note(gone, key, e, Evicted)
	}
	for s.small.Len()+s.main.Len() >= s.maxEntries || it.weight > s.maxWeight-s.weight {
		gone = s.evict(now, gone)
	}
	e.uses.Store(uses)
	into.Add(key, e)
	s.weight += it.weight
	return gone
}

// evict removes one entry. There must be one.
func (s *shard[K, V]) evict(now int64, gone []record[K, V]) []record[K, V] {
	for chances := maxSecondChances; ; chances-- {
		list := s.main
		if small := s.small.Len(); small > (small+s.main.Len())/10 {
			list = s.small
		}
		key, e, _ := list.GetOldest()
		cause, uses := causeOr(Evicted, now, e), e.uses.Load()
		switch {
		case cause == Expired || chances == 0:
		case list == s.small && uses > 1:
			s.small.Remove(key)
			e.uses.Store(0)
			s.main.Add(key, e)
			continue
		case list == s.main && uses > 0:
			e.uses.Store(uses - 1)
			s.main.Get(key) // moves it to the other end
			continue
		case list == s.small:
			s.ghost.Add(maphash.Comparable(s.seed, key), struct{}{})
		}
		s.drop(list, key, e)
		s.evictions.Add(1)
		return s.note(gone, key, e, cause)
	}
}

// remove drops the entry of key, if there is one.
func (s *shard[K, V]) remove(now int64, key K, gone []record[K, V]) []record[K, V] {
	e, list := s.find(key)
	if e == nil {
		return gone
	}
	s.drop(list, key, e)
	return s.note(gone, key, e, causeOr(Deleted, now, e))
}

// purge drops everything.
func (s *shard[K, V]) purge(now int64, gone []record[K, V]) []record[K, V] {
	if s.report {
		s.each(func(key K, e *entry[V]) {
			gone = s.note(gone, key, e, causeOr(Deleted, now, e))
		})
	}
	s.main.Purge()
	s.small.Purge()
	s.ghost.Purge()
	s.favourite.Store(nil)
	s.weight = 0
	return gone
}

// each calls do for every entry, also expired ones.
func (s *shard[K, V]) each(do func(K, *entry[V])) {
	for _, list := range []*simplelru.LRU[K, *entry[V]]{s.main, s.small} {
		for _, key := range list.Keys() {
			e, _ := list.Peek(key)
			do(key, e)
		}
	}
}

// drop takes e out of its list.
func (s *shard[K, V]) drop(list *simplelru.LRU[K, *entry[V]], key K, e *entry[V]) {
	list.Remove(key)
	s.weight -= e.weight
	s.disfavour(e)
}

// favour makes the entry of key the favourite.
func (s *shard[K, V]) favour(hash uint64, key K) {
	e, _ := s.find(key)
	s.hash.Store(hash)
	s.favourite.Store(&favourite[K, V]{key, e.value, e.deadline, e})
}

// disfavour ends that e is the favourite.
func (s *shard[K, V]) disfavour(e *entry[V]) {
	if f := s.favourite.Load(); f != nil && f.entry == e {
		s.favourite.Store(nil)
	}
}

// note appends e to gone if anybody wants to know.
func (s *shard[K, V]) note(gone []record[K, V], key K, e *entry[V], cause Cause) []record[K, V] {
	if !s.report || e.missing {
		return gone
	}
	return append(gone, record[K, V]{key, e.value, cause})
}

// causeOr is cause, unless e had expired by itself.
func causeOr[V any](cause Cause, now int64, e *entry[V]) Cause {
	if now >= e.deadline {
		return Expired
	}
	return cause
}
