package retry

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
)

// errSuperseded is what a transport gets that goes on reading the body of an
// attempt which is over; errTakenUp is why there is no further attempt when the
// transport was faster.
var (
	errSuperseded = errors.New("retry: the request's body was taken back for another attempt")
	errTakenUp    = errors.New("retry: the request's body is still being sent by the last attempt")
)

// replay lets a request's body that has no GetBody be sent more than once. The
// first attempt streams the caller's body, and what it reads is kept as far as
// the limit goes. The body can be sent again if all of it was kept, or if none of
// it was read. Only one reader ever reads the caller's body, and it is closed
// once: when it has been read, or when nobody will.
type replay struct {
	src    io.ReadCloser
	length int64 // what the request announces; -1 if it does not

	mu       sync.Mutex
	limit    int // of kept; 0 keeps nothing
	kept     []byte
	pool     *sync.Pool  // where the memory of kept comes from, as *[]byte
	shared   bool        // a transport may read kept, for as long as it likes
	complete bool        // kept is all of src
	touched  bool        // somebody has begun to read src
	current  *replayBody // who may read src; nil once it was closed unread
	over     bool        // there will be no other attempt
}

// newReplay keeps up to limit bytes of req's body; 0 keeps nothing.
func newReplay(req *http.Request, limit int, pool *sync.Pool) *replay {
	r := &replay{src: req.Body, length: -1, limit: limit, pool: pool}
	if req.ContentLength > 0 {
		r.length = req.ContentLength
	}
	if r.length > int64(limit) || len(req.Trailer) > 0 {
		r.limit = 0 // trailers are set while the body is read: they would be sent too early
	}
	return r
}

// resendable reports whether the next attempt can have a body.
func (r *replay) resendable() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.complete || !r.touched
}

// body returns the body for the next attempt, and a GetBody if it is a copy; or
// nil if there is none after all, for a transport may have begun to read
// meanwhile.
func (r *replay) body() (io.ReadCloser, func() (io.ReadCloser, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.complete:
		r.shared = true
		kept := r.kept
		get := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(kept)), nil }
		body, _ := get()
		return body, get
	case r.touched:
		return nil, nil
	}
	r.current = &replayBody{r}
	return r.current, nil
}

// finish tells that there will be no other attempt. Whoever still reads the
// body goes on, and closes it.
func (r *replay) finish() {
	r.mu.Lock()
	r.over = true
	r.forget()
	unread := r.current == nil
	r.mu.Unlock()
	if unread {
		_ = r.src.Close()
	}
}

// keep notes what was read.
func (r *replay) keep(p []byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.limit == 0 || r.complete {
		return
	}
	if len(r.kept)+len(p) > r.limit {
		r.forget()
		return
	}
	r.grow(len(p))
	r.kept = append(r.kept, p...)
	r.complete = err == io.EOF || err == nil && int64(len(r.kept)) == r.length //nolint:errorlint // io.Reader's contract
}

// grow makes room for n more bytes, which the limit allows.
func (r *replay) grow(n int) {
	if r.kept == nil {
		if again, _ := r.pool.Get().(*[]byte); again != nil {
			r.kept = *again
		}
	}
	if need := len(r.kept) + n; need > cap(r.kept) {
		size := max(need, 2*cap(r.kept), int(r.length), 512)
		r.kept = append(make([]byte, 0, min(size, r.limit)), r.kept...)
	}
}

// forget keeps no more of the body, and what has been kept only for those who may
// still read it. The caller holds the lock.
func (r *replay) forget() {
	if !r.shared && cap(r.kept) > 0 && cap(r.kept) <= bodyLimit {
		kept := r.kept[:0]
		r.pool.Put(&kept)
	}
	r.kept, r.limit, r.complete = nil, 0, false
}

// replayBody is the caller's body as one attempt sees it.
type replayBody struct{ r *replay }

func (b *replayBody) Read(p []byte) (int, error) {
	r := b.r
	r.mu.Lock()
	mine := r.current == b
	r.touched = r.touched || mine
	r.mu.Unlock()
	if !mine {
		return 0, errSuperseded
	}
	n, err := r.src.Read(p)
	r.keep(p[:n], err)
	return n, err
}

// Close closes the caller's body, unless it has not been read and another
// attempt may want it. The attempt calls it once.
func (b *replayBody) Close() error {
	r := b.r
	r.mu.Lock()
	mine := r.current == b
	spare := mine && !r.touched && !r.over
	if spare {
		r.current = nil
	}
	r.mu.Unlock()
	if !mine || spare {
		return nil
	}
	return r.src.Close()
}
