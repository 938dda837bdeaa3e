package retry

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/backstay/backstay/internal/clock"
)

// held is a failed response that is kept until the next attempt has an answer:
// if there is none, the caller gets this one. Its body is read into memory
// meanwhile, so that the connection is free for the next attempt.
type held struct {
	body  io.ReadCloser
	until time.Time     // how long it may keep the next attempt waiting
	done  chan struct{} // closed when nothing more is read ahead; nil if nothing is

	mu       sync.Mutex
	filled   sync.Cond
	filling  bool
	buf      []byte
	err      error // what the body ended with
	panicked any   // or what reading it panicked with
}

// hold begins to read ahead up to limit bytes of the response's body. What is
// certainly longer is left alone: the connection would not become free anyway.
func hold(resp *http.Response, limit int, patience time.Duration) *held {
	h := &held{body: resp.Body}
	h.filled.L = &h.mu
	if !hasBody(h.body) {
		return h
	}
	resp.Body = h
	if limit > 0 && patience > 0 && resp.ContentLength <= int64(limit) {
		h.until, h.done, h.filling = clock.Now().Add(patience), make(chan struct{}), true
		go h.fill(limit)
	}
	return h
}

// fill reads ahead. It ends at the latest when the body is closed, which
// whoever holds h does in any case.
func (h *held) fill(limit int) {
	defer close(h.done)
	defer func() {
		// A layer below that panics must not end the process from here: whoever reads
		// the body gets it, if somebody does. Nor may runtime.Goexit leave him waiting.
		panicked := recover()
		h.mu.Lock()
		h.panicked, h.filling = panicked, false
		h.mu.Unlock()
		h.filled.Broadcast()
	}()
	chunk := make([]byte, min(limit+1, 4<<10))
	for more := true; more; {
		n, err := h.body.Read(chunk)
		h.mu.Lock()
		h.buf = append(h.buf, chunk[:n]...)
		h.err = err
		limit -= n
		more = err == nil && limit >= 0 // to the first byte too many: the end may come right after the last
		h.filling = more
		h.mu.Unlock()
		h.filled.Broadcast()
	}
}

// wait waits until the connection is free or patience has run out.
func (h *held) wait(ctx context.Context) {
	if h == nil || h.done == nil {
		return
	}
	patience := time.Until(h.until)
	if patience <= 0 {
		return
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-h.done:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// discard closes the response for good.
func (h *held) discard() {
	if h != nil && h.body != nil {
		_ = h.body.Close()
	}
}

// Read makes h the response's body: first what was read ahead, then the rest.
func (h *held) Read(p []byte) (int, error) {
	h.mu.Lock()
	for len(h.buf) == 0 && h.filling {
		h.filled.Wait()
	}
	n := copy(p, h.buf)
	h.buf = h.buf[n:]
	err, panicked := h.err, h.panicked
	if n > 0 || len(h.buf) > 0 {
		err, panicked = nil, nil
	}
	h.mu.Unlock()
	if panicked != nil {
		panic(panicked) //nolint:forbidigo // handed on
	}
	if n > 0 || err != nil || len(p) == 0 {
		return n, err
	}
	return h.body.Read(p)
}

func (h *held) Close() error { return h.body.Close() }
