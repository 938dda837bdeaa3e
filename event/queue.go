package event

import (
	"context"
	"sync"
)

// Queue hands the events of one source to an observer in order and outside the
// source's lock. A state machine adds events while it holds its lock and calls
// Flush after it has let go of it; whoever flushes first delivers for all, and
// the others do not wait. So an observer that is slow delays only the goroutine
// that happens to deliver, one that calls back into the source does not
// deadlock, and one that ends its goroutine loses no event of others.
//
// The zero Queue is ready for use. All methods may be called concurrently.
type Queue struct {
	mu         sync.Mutex
	pending    []queued
	delivering bool
}

type queued struct {
	ctx context.Context //nolint:containedctx // an event travels with the context of its cause
	to  Observer
	e   Event
}

// Add appends e for the observer o. A nil o drops it.
func (q *Queue) Add(ctx context.Context, o Observer, e Event) {
	if o == nil {
		return
	}
	q.mu.Lock()
	q.pending = append(q.pending, queued{ctx, o, e})
	q.mu.Unlock()
}

// Flush delivers what has been added, unless another goroutine (or this one,
// from inside an observer) is already at it: then that one delivers these too.
// The caller must hold no lock that an observer may take.
func (q *Queue) Flush() {
	q.mu.Lock()
	if q.delivering || len(q.pending) == 0 {
		q.mu.Unlock()
		return
	}
	q.delivering = true
	q.mu.Unlock()
	done := false
	defer func() {
		if done {
			return // another goroutine may be delivering by now
		}
		// An observer ends this goroutine: the others' events go on without it.
		q.mu.Lock()
		q.delivering = false
		q.mu.Unlock()
		q.Flush()
	}()
	for {
		q.mu.Lock()
		if len(q.pending) == 0 {
			// Under the lock, so that nobody adds between this look and the
			// end of the delivery and finds it still going on.
			q.delivering, done = false, true
			q.pending = nil
			q.mu.Unlock()
			return
		}
		next := q.pending[0]
		q.pending = q.pending[1:]
		q.mu.Unlock()
		Emit(next.ctx, next.to, next.e)
	}
}
