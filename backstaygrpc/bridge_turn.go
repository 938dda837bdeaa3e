package backstaygrpc

import (
	"sync"
	"sync/atomic"
	"time"
)

// turn has something done whenever it is poked, by one goroutine at a time: by who
// comes first, for all who come meanwhile. What takes long is done less often, so that
// ten thousand connections that come up one by one do not have as many pickers made of
// ten thousand nodes.
type turn struct {
	do    func()
	pokes atomic.Int64 // since it was done last; above 0 somebody is at it, or the timer is set

	mu    sync.Mutex // guards the timer
	timer *time.Timer

	rested time.Time // not before; who is at it knows
}

const (
	// turnRest is how often longer than it took there must be a rest after it.
	turnRest = 4
	// turnShort is what is too short for a rest.
	turnShort = 250 * time.Microsecond
)

// poke has it done, soon.
func (t *turn) poke() {
	if t.pokes.Add(1) == 1 {
		t.run(false)
	}
}

// hurry is poke that does not wait for a rest to be over, nor for who is at it.
func (t *turn) hurry() {
	mine := t.pokes.Add(1) == 1
	t.mu.Lock()
	mine = mine || t.timer != nil && t.timer.Stop()
	t.mu.Unlock()
	if mine {
		t.run(true)
	}
}

func (t *turn) run(hurried bool) {
	for {
		n := t.pokes.Load()
		start := time.Now()
		if wait := t.rested.Sub(start); wait > 0 && !hurried {
			t.mu.Lock()
			t.timer = time.AfterFunc(wait, func() { t.run(false) })
			t.mu.Unlock()
			return
		}
		t.do()
		if took := time.Since(start); took > turnShort {
			t.rested = time.Now().Add(turnRest * took)
		}
		if t.pokes.CompareAndSwap(n, 0) {
			return
		}
	}
}
