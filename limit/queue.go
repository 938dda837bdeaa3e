package limit

import (
	"container/list"
	"context"
)

// Priority says which of the calls that wait comes first.
type Priority int8

// The priorities. What is not one of them is taken for the nearest.
const (
	Low    Priority = -1
	Normal Priority = 0
	High   Priority = 1
)

type priorityKey struct{}

// WithPriority returns a context whose calls have the given priority where they
// wait; without it they have Normal.
//
// A call that waits goes before those of lower priority, but of eight
// permissions one goes to the call that has waited the longest, whatever its
// priority: so each has its turn. A full queue refuses the lowest first: a call
// takes the place of the last one that came with a lower priority.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return context.WithValue(ctx, priorityKey{}, p)
}

func levelOf(ctx context.Context) int {
	p, _ := ctx.Value(priorityKey{}).(Priority)
	return int(min(max(p, Low), High) - Low)
}

// queue is the calls that wait, by priority and then by arrival.
type queue struct {
	levels  [High - Low + 1]list.List // of *waiter
	arrived uint64
	left    uint64
}

type waiter struct {
	level   int
	number  uint64 // in the order of arrival
	place   *list.Element
	state   waiterState   // guarded by the owner's lock
	settled chan struct{} // closed once the state is another than queued
}

type waiterState uint8

const (
	queued waiterState = iota
	admitted
	refused
)

// oldestEach is how often the next is the one that has waited the longest.
const oldestEach = 8

func (q *queue) len() (n int) {
	for i := range q.levels {
		n += q.levels[i].Len()
	}
	return n
}

func (q *queue) push(w *waiter) {
	q.arrived++
	w.number = q.arrived
	w.place = q.levels[w.level].PushBack(w)
}

func (q *queue) remove(w *waiter) { q.levels[w.level].Remove(w.place) }

// next removes and returns whose turn it is. The queue must not be empty.
func (q *queue) next() *waiter {
	q.left++
	oldest := q.left%oldestEach == 0
	var next *waiter
	for i := len(q.levels) - 1; i >= 0; i-- {
		front := q.levels[i].Front()
		if front == nil {
			continue
		}
		if w := waiterOf(front); next == nil || oldest && w.number < next.number {
			next = w
		}
	}
	q.remove(next)
	return next
}

func waiterOf(e *list.Element) *waiter {
	w, _ := e.Value.(*waiter) // there is nothing else in the lists
	return w
}

// displace removes and returns the last to come of the lowest level, if that is
// below the given one; nil if there is none.
func (q *queue) displace(level int) *waiter {
	for i := range level {
		if back := q.levels[i].Back(); back != nil {
			w := waiterOf(back)
			q.remove(w)
			return w
		}
	}
	return nil
}
