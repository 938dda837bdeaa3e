package backstaytest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// fake is a transport that keeps the contract to the letter and watches what
// reaches it.
type fake struct {
	t *trial
	// answer makes the n-th answer, counted from 0. Nil: 200 "ok".
	answer func(n int, sent *sent) (*http.Response, error)
	// before runs ahead of everything else, and sees the request itself.
	before func(n int, req *http.Request)
	// lazy leaves the request's body alone, which answer must then close.
	lazy bool

	mu         sync.Mutex
	all        []*sent
	answers    []*answerBody
	idleCloses int
}

// sent is a request as it reached a fake.
type sent struct {
	req     *http.Request
	header  http.Header
	body    []byte
	bodyErr error
}

func (t *trial) fake(answer func(n int, sent *sent) (*http.Response, error)) *fake {
	return &fake{t: t, answer: answer}
}

func (f *fake) RoundTrip(req *http.Request) (*http.Response, error) {
	s := &sent{req: req, header: req.Header.Clone()}
	f.mu.Lock()
	n := len(f.all)
	f.all = append(f.all, s)
	f.mu.Unlock()
	if f.before != nil {
		f.before(n, req)
	}
	if req.Body != nil && !f.lazy {
		s.body, s.bodyErr = io.ReadAll(req.Body)
		if err := req.Body.Close(); err != nil {
			f.t.Errorf("closing the request's body: %v", err)
		}
	}
	if s.bodyErr != nil {
		return nil, s.bodyErr
	}
	if err := req.Context().Err(); err != nil {
		return nil, context.Cause(req.Context())
	}
	if f.answer != nil {
		return f.answer(n, s)
	}
	return f.respond(s, http.StatusOK, "ok"), nil
}

// CloseIdleConnections counts.
func (f *fake) CloseIdleConnections() {
	f.mu.Lock()
	f.idleCloses++
	f.mu.Unlock()
}

// calls returns what has reached the fake.
func (f *fake) calls() []*sent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*sent(nil), f.all...)
}

// bodies returns the bodies of the answers so far.
func (f *fake) bodies() []*answerBody {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*answerBody(nil), f.answers...)
}

// respond makes a response with a body that is watched and, like a real one,
// breaks when the request's context ends.
func (f *fake) respond(s *sent, status int, body string) *http.Response {
	b := &answerBody{ctx: s.req.Context(), data: bytes.NewReader([]byte(body))}
	f.mu.Lock()
	f.answers = append(f.answers, b)
	f.mu.Unlock()
	resp := bare(s.req, status, b)
	resp.ContentLength = int64(len(body))
	return resp
}

// bare makes a response with a body of the caller's.
func bare(req *http.Request, status int, body io.ReadCloser) *http.Response {
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Cache-Control": {"no-store"}}, Body: body, Request: req, ContentLength: -1,
	}
}

// answerBody is a response's body that is watched.
type answerBody struct {
	ctx  context.Context //nolint:containedctx // its request's
	data io.Reader

	mu     sync.Mutex
	closes int
	ended  bool
}

func (b *answerBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	closed := b.closes > 0
	b.mu.Unlock()
	if closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.data.Read(p)
	b.mu.Lock()
	b.ended = b.ended || errors.Is(err, io.EOF)
	b.mu.Unlock()
	return n, err
}

func (b *answerBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closes++
	return nil
}

// closed returns how often the body has been closed.
func (b *answerBody) closed() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closes
}

// callersBody is a request's body that is watched. It is no type of which
// http.NewRequest knows the length, or a GetBody.
type callersBody struct {
	data io.Reader
	use  sync.Mutex // around data: two readers at a time are a finding, not a race

	mu      sync.Mutex
	reading bool
	reads   int
	closes  int
	misuse  string
}

func newCallersBody(data string) *callersBody {
	return &callersBody{data: bytes.NewReader([]byte(data))}
}

func (b *callersBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	b.reads++
	if b.reading {
		b.misuse = "it was read by two at a time"
	}
	if b.closes > 0 {
		b.misuse = "it was read after its Close"
	}
	b.reading = true
	b.mu.Unlock()
	b.use.Lock()
	n, err := b.data.Read(p)
	b.use.Unlock()
	b.mu.Lock()
	b.reading = false
	b.mu.Unlock()
	return n, err
}

func (b *callersBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closes++
	return nil
}

func (b *callersBody) state() (reads, closes int, misuse string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reads, b.closes, b.misuse
}

// closedOnce complains if the body is not closed in the end, or more often than
// most, or used by two at a time or after its Close. With anyTimes it is below
// net/http, which may do all that.
func (b *callersBody) closedOnce(t *trial, most int) {
	t.Helper()
	t.eventually("the request's body was not closed", func() bool {
		_, closes, _ := b.state()
		return closes > 0
	})
	_, closes, misuse := b.state()
	if most == anyTimes {
		return
	}
	if closes > most {
		t.Errorf("the request's body was closed %d times", closes)
	}
	if misuse != "" {
		t.Errorf("the request's body was misused: %s", misuse)
	}
}

// anyTimes is for closedOnce.
const anyTimes = 1 << 30

// longLived is a context that counts what hangs on it: functions registered by
// the contexts that are derived from it. (Those that are derived by way of a
// context of another make hold it by a goroutine instead.)
type longLived struct {
	done   chan struct{}
	values map[any]any

	mu   sync.Mutex
	hung int
}

func newLongLived() *longLived { return &longLived{done: make(chan struct{})} }

func (*longLived) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c *longLived) Done() <-chan struct{}     { return c.done }
func (c *longLived) Err() error                { return nil }
func (c *longLived) Value(key any) any         { return c.values[key] }

// AfterFunc is what the context package registers by.
func (c *longLived) AfterFunc(func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hung++
	var once sync.Once
	return func() bool {
		first := false
		once.Do(func() {
			first = true
			c.mu.Lock()
			c.hung--
			c.mu.Unlock()
		})
		return first
	}
}

func (c *longLived) children() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hung
}
