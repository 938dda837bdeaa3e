package cache

import "sync/atomic"

// Stats counts what a [Cache] has done since it was made.
type Stats struct {
	// Hits are reads that found a value.
	Hits uint64 `json:"hits"`
	// NegativeHits are reads that found that there is none (see
	// Config.NegativeTTL).
	NegativeHits uint64 `json:"negativeHits"`
	// Misses are reads that found neither. Hits, NegativeHits and Misses
	// together are all reads.
	Misses uint64 `json:"misses"`
	// Expired are the misses that found an entry whose time was over.
	Expired uint64 `json:"expired"`
	// Loads are calls of a loader.
	Loads uint64 `json:"loads"`
	// LoadErrors are the loads that ended in an error other than ErrNotFound,
	// including a panic.
	LoadErrors uint64 `json:"loadErrors"`
	// Coalesced are the misses that waited for a load already under way.
	Coalesced uint64 `json:"coalesced"`
	// Evictions are entries that had to leave for others.
	Evictions uint64 `json:"evictions"`
}

// counters are one shard's part of the Stats.
type counters struct {
	hits, negativeHits, misses, expired     atomic.Uint64
	loads, loadErrors, coalesced, evictions atomic.Uint64
}

// count counts a read by what it found.
func (c *counters) count(what found) {
	switch what {
	case foundValue:
		c.hits.Add(1)
	case foundAbsence:
		c.negativeHits.Add(1)
	case foundExpired:
		c.expired.Add(1)
		fallthrough
	case foundNothing:
		c.misses.Add(1)
	}
}

func (c *counters) addTo(s *Stats) {
	s.Hits += c.hits.Load()
	s.NegativeHits += c.negativeHits.Load()
	s.Misses += c.misses.Load()
	s.Expired += c.expired.Load()
	s.Loads += c.loads.Load()
	s.LoadErrors += c.loadErrors.Load()
	s.Coalesced += c.coalesced.Load()
	s.Evictions += c.evictions.Load()
}
