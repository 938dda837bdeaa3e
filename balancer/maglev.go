package balancer

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"sync"

	"github.com/backstay/backstay/internal/hash"
)

// Maglev sends calls with the same [Call.Key] to the same node, as [Rendezvous]
// does, by a table in which a pick takes one look, however many nodes there are:
// Google's Maglev hashing (Eisenbud et al., 2016, §3.4).
//
// Use it with more nodes than some two hundred; with fewer, Rendezvous is as fast,
// spreads better, and moves fewer keys. When one of n nodes leaves, some of
// the other keys move as well, of a hundred nodes one in two hundred. The table is
// made anew then, which takes a millisecond or two; the last tables of a balancer
// are kept, so that a node that comes back costs nothing.
//
// A call that may not have the key's first node, because of the bound or of
// [Call.Avoid], goes to the node of another entry of the table, and so on, in a
// sequence that depends on nothing but the key. It is not the next entry: the calls
// that one full node passes on would fill the next one, and so on
// (arXiv:1908.08762). Calls without a key are spread by [P2C] with [InFlight].
type Maglev struct {
	// TableSize is the number of entries; the next prime number is taken. At most
	// 5,000,011. Another size is another placement, so all processes must
	// have the same. Nodes have numbers of entries that differ by one, or those
	// that their weights say: for a spread within 1 %, there should be a hundred
	// for each node. It is not made to grow with the nodes, for that would move
	// all keys at once, unless there are more nodes than entries. A node whose
	// weight is not worth an entry gets calls without a key, at most. An entry
	// takes four bytes. Default: 65537.
	TableSize int
	// Seed gives another placement. It must be the same in all processes that
	// should agree. Default: 0, which is as good as any.
	Seed uint64
	// Bound is how much more than its part of the calls in flight a node may
	// have: see Rendezvous. Negative: no bound. Default: 1.25.
	Bound float64
	// Rand is the source of the draws for calls without a key; it must be safe for
	// concurrent use if the balancer is used concurrently. Default: the runtime's.
	Rand rand.Source
}

const (
	defaultTableSize = 65537
	maxTableSize     = 5_000_011 // Envoy's
)

// ReadsKeys is true.
func (Maglev) ReadsKeys() bool { return true }

// Validate returns all that is wrong with m, joined; [New] does so too.
func (m Maglev) Validate() error {
	var errs []error
	if m.TableSize < 0 || m.TableSize > maxTableSize {
		errs = append(errs, fmt.Errorf("balancer: Maglev.TableSize is %d, want between 1 and %d", m.TableSize, maxTableSize))
	}
	return errors.Join(append(errs, validateBound("Maglev", m.Bound))...)
}

// NewPicker returns the picker for nodes.
func (m Maglev) NewPicker(nodes []*Node) Picker {
	size := m.TableSize
	if size <= 0 {
		size = defaultTableSize
	}
	p := new(maglev)
	p.init(nodes, m.Seed, m.Bound, m.Rand)
	p.table = nodes[0].owner.tables.of(p.members, p.weights, nextPrime(max(min(size, maxTableSize), len(nodes))))
	return p
}

type maglev struct {
	bounded
	table []uint32 // indices of members
}

func (p *maglev) Pick(call Call) *Node {
	if call.Key == "" {
		return p.keyless.Pick(call)
	}
	h := hash.String(p.seed, call.Key)
	if m := p.at(h); p.roomy(m, &call) && !call.avoids(m.Node) {
		return m.Node
	}
	return p.jump(h, &call)
}

// at returns the node that has the entry for h.
func (p *maglev) at(h uint64) *member {
	i, _ := bits.Mul64(h, uint64(len(p.table)))
	return &p.members[p.table[i]]
}

// jumps is how many entries a pick looks at before it goes through the nodes. With
// the default bound, nodes with a fifth of the entries or more have room.
const jumps = 32

// jump returns the first node in the key's sequence that may take the call.
func (p *maglev) jump(h uint64, call *Call) *Node {
	total := p.count(call)
	n := len(p.members)
	first := p.at(h).Node
	avoided := call.avoids(first)
	start, at := int(h%uint64(n)), h //nolint:gosec // below n
	for i := range jumps + n {
		var m *member
		if i < jumps {
			m = p.at(at)
			at = hash.Mix(at, h)
		} else {
			m = &p.members[(start+i)%n]
		}
		switch {
		case call.avoids(m.Node):
		case p.fits(m, total):
			return m.Node
		case avoided: // full, but better than one to be avoided
			first, avoided = m.Node, false
		}
	}
	return first
}

// makeTable makes a table of size entries, a prime number and not less than that of
// the members. Each member goes through all entries in an order of its own, and in
// its turn takes the first that is still free.
func makeTable(members []member, weights float64, size int) []uint32 {
	type turn struct {
		at, skip     uint32 // where it is in its order
		pace, credit uint64 // turns per round, and those it has not used, in units of oneTurn
	}
	const oneTurn = 1 << 32
	// A round has a turn for every member, on average, more or less: so many rounds
	// of few turns, as with the heaviest for a measure, would take n times as long.
	// The measure is a power of two, so that it seldom changes when members do: a
	// change moves keys.
	_, exp := math.Frexp(weights / float64(len(members)))
	turns := make([]turn, len(members))
	for i := range members {
		m := &members[i]
		turns[i] = turn{
			at:   uint32(hash.Mix(m.hash, 1) % uint64(size)),     //nolint:gosec // size is below 2^32
			skip: uint32(hash.Mix(m.hash, 2)%uint64(size-1)) + 1, //nolint:gosec // likewise
			pace: uint64(math.Ldexp(m.weight, 32-exp)),
		}
	}
	table := make([]uint32, size)
	taken := make([]uint64, (size+63)/64) // apart, so that it fits the nearest cache
	for left := size; ; {
		for i := range turns {
			t := &turns[i]
			for t.credit += t.pace; t.credit >= oneTurn; t.credit -= oneTurn {
				at := t.at
				for taken[at/64]&(1<<(at%64)) != 0 {
					if at += t.skip; at >= uint32(size) { //nolint:gosec // likewise
						at -= uint32(size) //nolint:gosec // likewise
					}
				}
				taken[at/64] |= 1 << (at % 64)
				table[at] = uint32(i) //nolint:gosec // likewise
				t.at = at
				if left--; left == 0 {
					return table
				}
			}
		}
	}
}

// nextPrime returns the least prime number that is not below n.
func nextPrime(n int) int {
	for n = max(n, 2); ; n++ {
		d := 2
		for d*d <= n && n%d != 0 {
			d++
		}
		if d*d > n {
			return n
		}
	}
}

// tables are the last tables of a balancer: those of its zones, subsets and views,
// and those before the last changes. They depend on the members' identities and
// weights alone.
type tables struct {
	mu   sync.Mutex
	last [4]table
	next int
}

type table struct {
	members uint64 // a hash of them
	count   int
	entries []uint32
}

// of returns the table of that size for the members.
func (t *tables) of(members []member, weights float64, size int) []uint32 {
	id := uint64(0)
	for i := range members {
		id = hash.Mix(hash.Mix(id, members[i].hash), math.Float64bits(members[i].weight))
	}
	t.mu.Lock()
	last := t.last
	t.mu.Unlock()
	for _, l := range last {
		if l.members == id && l.count == len(members) && len(l.entries) == size {
			return l.entries
		}
	}
	entries := makeTable(members, weights, size)
	t.mu.Lock()
	t.last[t.next] = table{id, len(members), entries}
	t.next = (t.next + 1) % len(t.last)
	t.mu.Unlock()
	return entries
}
