package cache

import (
	"io"
	"slices"
	"sync"
	"time"
)

// probeWait bounds how long the Close of a body waits for its end.
const probeWait = 10 * time.Millisecond

// recorder is a response's body that is passed on as it comes and kept: done is
// called once, with the whole body if it came to its end without an error, or
// else with ok false.
type recorder struct {
	inner    io.ReadCloser
	expected int64 // the body's length, or 0 if it is not known
	maxBody  int64
	done     func(body []byte, ok bool)

	mu      sync.Mutex // Close may come while a Read is waiting
	buf     []byte
	over    bool // done is or will be called
	reading bool

	closing  sync.Once
	closeErr error
}

func (r *recorder) Read(p []byte) (int, error) {
	r.mu.Lock()
	r.reading = true
	r.mu.Unlock()

	n, err := r.inner.Read(p)

	r.mu.Lock()
	r.reading = false
	if r.over {
		r.mu.Unlock()
		return n, err
	}
	r.keep(p[:n])
	if err != nil {
		r.over = true
	}
	over, body, complete := r.over, r.buf, err == io.EOF && r.buf != nil
	r.mu.Unlock()
	if over {
		r.finish(body, complete)
	}
	return n, err
}

// keep appends what was read, or gives up if it is too much.
func (r *recorder) keep(p []byte) {
	if int64(len(r.buf)+len(p)) > r.maxBody {
		r.over, r.buf = true, nil
		return
	}
	if r.buf == nil {
		r.buf = make([]byte, 0, max(r.expected, int64(len(p))))
	}
	r.buf = append(r.buf, p...)
}

// Close closes the body. A body of unknown length of which everything was read
// but its end, as json.Decoder does, gets a short time to show that end.
func (r *recorder) Close() error {
	r.mu.Lock()
	mine, reading, body := !r.over, r.reading, r.buf
	r.over = true
	r.mu.Unlock()

	complete := mine && !reading && body != nil && (r.expected > 0 || r.atEnd())
	err := r.closeInner()
	if mine {
		r.finish(body, complete)
	}
	return err
}

// atEnd reports whether nothing is left to read.
func (r *recorder) atEnd() bool {
	timeout := time.AfterFunc(probeWait, func() { _ = r.closeInner() })
	var p [1]byte
	n, err := r.inner.Read(p[:])
	return timeout.Stop() && n == 0 && err == io.EOF
}

func (r *recorder) closeInner() error {
	r.closing.Do(func() { r.closeErr = r.inner.Close() })
	return r.closeErr
}

// finish calls done. The body's length decides last: not every reader below
// reports that bytes are missing.
func (r *recorder) finish(body []byte, complete bool) {
	if !complete || r.expected > 0 && int64(len(body)) != r.expected {
		r.done(nil, false)
		return
	}
	if cap(body)-len(body) > len(body)/8 {
		body = slices.Clone(body) // what append reserved would stay reserved
	}
	r.done(body, true)
}
