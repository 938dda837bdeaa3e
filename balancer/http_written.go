package balancer

import "sync/atomic"

// writes tells whether anything has been written since some moment, although a
// write and taking note of it are two things: the answer to a request may be there
// before the write that sent it has been counted. So writes are numbered as they
// begin, and the highest number is kept of those that came to something.
type writes struct{ begun, ended, through atomic.Int64 }

// begin returns a number for a write that is about to begin.
func (w *writes) begin() int64 { return w.begun.Add(1) }

// end takes note of how many bytes the write has written, and returns how many
// writes have ended.
func (w *writes) end(number, n int64) int64 { return w.ends(number, 1, n) }

// ends is end for several writes that were made one: number is the last one's.
func (w *writes) ends(number, count, n int64) int64 {
	for n > 0 {
		last := w.through.Load()
		if number <= last || w.through.CompareAndSwap(last, number) {
			break
		}
	}
	return w.ended.Add(count)
}

// mark is for noneSince.
func (w *writes) mark() int64 { return w.begun.Load() }

// noneSince reports whether no write that has begun after the mark, and has ended,
// has written anything. Whoever wants none to be going on either asks quiet before.
func (w *writes) noneSince(mark int64) bool { return w.through.Load() <= mark }

// quiet reports whether no write is going on.
func (w *writes) quiet() bool { return w.ended.Load() == w.begun.Load() }
