package attempt

import (
	"sync"
	"time"
)

// Watch is one timer for many attempts, such as those on one node. A timer of its
// own for each, which nearly always is stopped before it fires, costs an attempt
// more than all else that bounds it. The zero value is ready. It may be used
// concurrently and must not be copied.
//
// The timer is set to the nearest bound of all attempts that there have been since
// it fired last: it may fire for one that is over, and then looks for the next.
type Watch struct {
	mu    sync.Mutex
	first *Attempt
	timer *time.Timer
	at    time.Time // when the timer fires; zero if it is not set
}

// add has the attempt looked at again when left has passed since now. The
// attempt's lock is held.
func (w *Watch) add(a *Attempt, now time.Time, left time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !a.watched {
		a.watched, a.next = true, w.first
		if a.next != nil {
			a.next.previous = a
		}
		w.first = a
	}
	at := now.Add(left)
	if !w.at.IsZero() && !at.Before(w.at) {
		return
	}
	w.at = at
	if w.timer == nil {
		w.timer = time.AfterFunc(left, w.look)
	} else {
		w.timer.Reset(left)
	}
}

// remove forgets the attempt. The attempt's lock is held.
func (w *Watch) remove(a *Attempt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !a.watched {
		return
	}
	if a.previous != nil {
		a.previous.next = a.next
	} else {
		w.first = a.next
	}
	if a.next != nil {
		a.next.previous = a.previous
	}
	a.watched, a.next, a.previous = false, nil, nil
}

// look has every attempt check its bounds, which sets the timer again for those
// that are not over.
func (w *Watch) look() {
	w.mu.Lock()
	w.at = time.Time{}
	var all []*Attempt
	for a := w.first; a != nil; a = a.next {
		all = append(all, a)
	}
	w.mu.Unlock()
	for _, a := range all {
		a.check()
	}
}
