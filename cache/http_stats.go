package cache

import "sync/atomic"

// HTTPStats counts what an [HTTP] cache has done since it was made.
type HTTPStats struct {
	// Hits are requests answered from the cache.
	Hits uint64 `json:"hits"`
	// Misses are requests that could have been, and were not.
	Misses uint64 `json:"misses"`
	// Bypasses are requests that the cache had nothing to do with.
	Bypasses uint64 `json:"bypasses"`
	// Coalesced are hits and misses that waited for another request first.
	Coalesced uint64 `json:"coalesced"`
	// Stored are responses that were stored.
	Stored uint64 `json:"stored"`
	// Evictions are responses that had to leave for others.
	Evictions uint64 `json:"evictions"`
	// Invalidations are URLs that were invalidated, by requests or by
	// [HTTP.Invalidate].
	Invalidations uint64 `json:"invalidations"`
}

type httpCounters struct {
	hits, misses, bypasses, coalesced, stored, invalidations atomic.Uint64
}

// Stats returns the counts so far.
func (h *HTTP) Stats() HTTPStats {
	return HTTPStats{
		Hits:          h.counts.hits.Load(),
		Misses:        h.counts.misses.Load(),
		Bypasses:      h.counts.bypasses.Load(),
		Coalesced:     h.counts.coalesced.Load(),
		Stored:        h.counts.stored.Load(),
		Evictions:     h.store.Stats().Evictions,
		Invalidations: h.counts.invalidations.Load(),
	}
}
