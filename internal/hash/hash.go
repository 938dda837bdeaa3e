// Package hash spreads strings over 64 bits in a way that never changes.
//
// What is hashed here decides which endpoint a key belongs to. So processes on
// any machine, of any age, must agree: unlike hash/maphash there is no random
// seed, and the values are pinned by tests. It is no defence against somebody
// who chooses strings so that they collide.
//
// Rendezvous hashing (Thaler and Ravishankar, 1996) is two calls: of all nodes,
// a key belongs to the one with the highest Mix(String(seed, key), node's hash),
// or, where nodes have weights, with the highest [Score] of that.
package hash

import (
	"math"
	"math/bits"
)

// golden is 2^64 divided by the golden ratio, made odd.
const golden = 0x9e3779b97f4a7c15

// String returns the hash of s. Different seeds give independent hashes. It does
// not allocate.
func String(seed uint64, s string) uint64 {
	// Each step is a bijection of what it takes in, so that nothing is lost
	// between the strings of one length up to eight bytes.
	h := Mix(seed, uint64(len(s)))
	for len(s) >= 8 {
		h = Mix(h, uint64(s[0])|uint64(s[1])<<8|uint64(s[2])<<16|uint64(s[3])<<24|
			uint64(s[4])<<32|uint64(s[5])<<40|uint64(s[6])<<48|uint64(s[7])<<56)
		s = s[8:]
	}
	if s != "" {
		var tail uint64
		for i := range len(s) {
			tail |= uint64(s[i]) << (8 * i)
		}
		h = Mix(h, tail)
	}
	return h
}

// Mix returns a hash of two hashes, or of any two numbers. The order matters.
func Mix(a, b uint64) uint64 {
	// The multiplication keeps pairs of small numbers apart; the rest is the
	// finalizer of SplitMix64 (Stafford's variant 13 of MurmurHash3's).
	x := bits.RotateLeft64(a, 32) ^ (b+1)*golden
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Score returns the score of weighted rendezvous hashing for a node of the given
// weight, whose hash with the key is h: -weight / ln(u), where u is h as a number
// between 0 and 1 (Schindelhauer and Schomaker, 2005). Each node then has the
// highest score for a share of the keys in proportion to its weight, and a change
// of one weight moves only the keys that this node gains or loses. Scores are
// above 0 for weights above 0; with equal weights their order is that of h.
func Score(h uint64, weight float64) float64 {
	return -weight / math.Log(unit(h))
}

// unit returns h as a number above 0 and below 1.
func unit(h uint64) float64 {
	// 52 bits and a half: with 53, the sum would round up to 1 at the end.
	return (float64(h>>12) + 0.5) / (1 << 52)
}
