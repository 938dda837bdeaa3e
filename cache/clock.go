package cache

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	// never is the deadline of what does not expire.
	never int64 = math.MaxInt64
	// unknown is what lazyClock.recent holds while there is no reading to share.
	unknown int64 = math.MaxInt64

	// tick is how long one reading of the clock is shared between reads.
	tick = 10 * time.Millisecond
	// margin is how far away a deadline must be for a shared reading to decide.
	// It is much more than a tick because timers may come late.
	margin = int64(100 * time.Millisecond)
	// burst is how many readings there must be before one is shared, so that
	// only a cache that is read often pays for a timer.
	burst = 64
)

// lazyClock decides whether deadlines have passed, mostly without reading the
// system's clock, which would cost more than looking up an entry. Deadlines are
// nanoseconds since the clock was made, and negative in a testing/synctest bubble
// that it was not made in.
//
// A reading is shared for one tick; a timer that runs only while the clock is
// in use ends that. While it is shared it is at most a tick old, plus what the
// timer may be late, and so proves that a deadline further away than margin has
// not passed. Nearer ones are compared with the exact time. Therefore deadlines
// are kept to the nanosecond unless the runtime is so overloaded that a timer
// comes 90 ms late and meanwhile nobody reads the exact time, which every write
// to the cache does.
type lazyClock struct {
	start    time.Time
	recent   atomic.Int64  // a reading that is shared, or unknown
	readings atomic.Uint32 // while there was none to share
	forget   func()
}

func (c *lazyClock) init() {
	c.start = time.Now()
	c.recent.Store(unknown)
	c.forget = func() { c.recent.Store(unknown) }
}

// passed reports whether the time is deadline or later.
func (c *lazyClock) passed(deadline int64) bool {
	if recent := c.recent.Load(); recent != unknown && deadline-recent > margin {
		return false
	}
	return deadline != never && c.now() >= deadline
}

// now is the exact time.
func (c *lazyClock) now() int64 {
	now := int64(time.Since(c.start))
	recent := c.recent.Load()
	switch {
	case recent == unknown:
		if c.readings.Add(1)%burst == 0 && c.recent.CompareAndSwap(unknown, now) {
			// A new timer each time: one that is reset must not be shared
			// between a testing/synctest bubble and the world outside.
			time.AfterFunc(tick, c.forget)
		}
	case now-recent > margin || now < recent: // the timer is late, or belongs to another bubble
		c.recent.CompareAndSwap(recent, unknown)
	}
	return now
}

// after is the deadline that lies ttl ahead of now; never, if ttl is negative or
// beyond what can be counted.
func after(now int64, ttl time.Duration) int64 {
	if ttl < 0 || int64(ttl) > never-max(now, 0) {
		return never
	}
	return now + int64(ttl)
}
