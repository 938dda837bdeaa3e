package attempt

import (
	"maps"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/internal/clock"
)

// Watch is one timer for many attempts, such as those on one node. A timer of its
// own for each, which nearly always is stopped before it fires, costs an attempt
// more than all else that bounds it. The zero value is ready. It may be used
// concurrently and must not be copied.
//
// The timer is set to the nearest bound of all attempts that there have been since
// it fired last: it may fire for one that is over, and then looks for the next.
// So an attempt whose bound is no nearer than that, as nearly all are, takes no
// lock: it takes a place, and leaves it.
type Watch struct {
	// at is when the timer fires, by clock.Nanos, which may be less than 0; 0 if it is not set.
	at     atomic.Int64
	places atomic.Pointer[[]*places]

	mu    sync.Mutex // guards what follows, and is held to set at (but to 0) and places
	timer *time.Timer
	seats map[*Seat]struct{}
}

// Seat is where attempts are watched that come one after the other, such as those over
// one connection: to find a place each time would be a matter between them all.
type Seat struct{ taken atomic.Pointer[Attempt] }

// leave gives the seat back, unless there is another attempt in it.
func (s *Seat) leave(a *Attempt) { s.taken.CompareAndSwap(a, nil) }

// Add has the watch look at a seat, until Remove.
func (w *Watch) Add(s *Seat) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seats == nil {
		w.seats = make(map[*Seat]struct{})
	}
	w.seats[s] = struct{}{}
}

// Remove ends what Add began.
func (w *Watch) Remove(s *Seat) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.seats, s)
}

// places is room for 64 attempts. A chain of them would have each attempt write
// into its neighbours, which other processors are writing to.
type places struct {
	free  atomic.Uint64 // a bit for each place
	taken [64]atomic.Pointer[Attempt]
}

// add takes a place for the attempt: any one, so that not all of a burst look for
// theirs in the same place.
func (w *Watch) add(a *Attempt) place {
	for {
		all := w.places.Load()
		if all != nil {
			n := len(*all)
			first := 0
			if n > 1 {
				first = rand.IntN(n) //nolint:gosec // no secret
			}
			for i := range min(n, probes) {
				which := (first + i) % n
				p := (*all)[which]
				for free := p.free.Load(); free != 0; free = p.free.Load() {
					at := bits.TrailingZeros64(free)
					if p.free.CompareAndSwap(free, free&^(1<<at)) {
						p.taken[at].Store(a)
						return place(which*len(p.taken) + at + 1) //nolint:gosec // there are not so many
					}
				}
			}
		}
		w.grow(all)
	}
}

// probes is how many full places an attempt looks at before there are more.
const probes = 4

// grow doubles the room, unless somebody else just did.
func (w *Watch) grow(full *[]*places) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.places.Load() != full {
		return
	}
	var more []*places
	if full != nil {
		more = append(more, *full...)
	}
	for range max(len(more), 1) {
		p := new(places)
		p.free.Store(math.MaxUint64)
		more = append(more, p)
	}
	w.places.Store(&more)
}

// place is where a watch has an attempt; 0 is nowhere.
type place uint32

// seated is the place of those that are in a seat.
const seated place = math.MaxUint32

// leave gives the place back.
func (w *Watch) leave(at place) {
	p := (*w.places.Load())[int(at-1)/len(places{}.taken)]
	bit := int(at-1) % len(p.taken)
	p.taken[bit].Store(nil)
	p.free.Or(1 << bit)
}

// by has the attempts looked at when it is due, by clock.Nanos, at the latest. The
// attempt that wants it has taken its place before.
func (w *Watch) by(due int64) {
	if due == 0 {
		due = -1
	}
	if at := w.at.Load(); at != 0 && at <= due {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if at := w.at.Load(); at != 0 && at <= due {
		return
	}
	w.at.Store(due)
	left := time.Duration(due - clock.Present())
	if w.timer == nil {
		w.timer = time.AfterFunc(left, w.look)
	} else {
		w.timer.Reset(left)
	}
}

// look has every attempt check its bounds, which sets the timer again for those
// that are not over. An attempt that takes a place behind its back finds the timer
// not set; one that has set it just before is found in its place, and sets it again.
func (w *Watch) look() {
	w.at.Store(0)
	if all := w.places.Load(); all != nil {
		for _, p := range *all {
			for at := range p.taken {
				if a := p.taken[at].Load(); a != nil {
					a.check()
				}
			}
		}
	}
	w.mu.Lock()
	seats := slices.Collect(maps.Keys(w.seats))
	w.mu.Unlock()
	for _, s := range seats {
		if a := s.taken.Load(); a != nil {
			a.check()
		}
	}
}
