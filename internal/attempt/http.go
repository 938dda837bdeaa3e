package attempt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
)

// Request makes r a shallow copy of req that is sent as this attempt: under the
// attempt's context and with Body and GetBody watched, unless the body is [Small].
// req stays as it is. r is best a part of what embeds the attempt, and saves an
// allocation then.
func (a *Attempt) Request(r, req *http.Request) *http.Request {
	return a.RequestWith(r, req, req.Body, req.GetBody)
}

// RequestWith is Request with a body of its own, for attempts after the first.
func (a *Attempt) RequestWith(
	r, req *http.Request, body io.ReadCloser, getBody func() (io.ReadCloser, error),
) *http.Request {
	*r = *req.WithContext(a.Context())
	r.Body, r.GetBody = body, getBody
	a.watchBodies(r)
	return r
}

// Copy is Request for those who embed no request.
func (a *Attempt) Copy(req *http.Request) *http.Request {
	r := req.WithContext(a.Context())
	a.watchBodies(r)
	return r
}

func (a *Attempt) watchBodies(r *http.Request) {
	if r.Body == nil || Small(r) {
		return
	}
	body, getBody := r.Body, r.GetBody
	r.Body = a.Body(body)
	if getBody != nil && body != http.NoBody {
		// net/http sends a request again by itself when a kept connection
		// turns out to be dead: that upload makes progress too.
		r.GetBody = func() (io.ReadCloser, error) {
			rc, err := getBody()
			if err != nil {
				return nil, err
			}
			return a.Body(rc), nil
		}
	}
}

// smallBody is what fits into a connection's buffers, so that there is no progress
// to watch.
const smallBody = 64 << 10

// Small reports whether the body of req is short and one of those that net/http
// knows to be in memory: it cannot fail or keep anybody waiting. It should be
// left as it is, because of any other net/http writes the headers first and by
// themselves, which costs another system call and another packet.
func Small(req *http.Request) bool {
	if req.ContentLength <= 0 || req.ContentLength > smallBody || req.Body == nil {
		return false
	}
	t := reflect.TypeOf(req.Body)
	if t != nopCloser && t != nopCloserWriterTo {
		return false // none of the three is a Closer
	}
	r := reflect.ValueOf(req.Body).Field(0).Elem()
	if !r.IsValid() {
		return false
	}
	switch r.Type() {
	case bytesReader, bytesBuffer, stringsReader:
		return true
	}
	return false
}

// What io.NopCloser returns, by which http.NewRequest makes bodies of readers, and the
// readers that it knows.
var (
	bytesReader   = reflect.TypeFor[*bytes.Reader]()   //nolint:gochecknoglobals // constant
	bytesBuffer   = reflect.TypeFor[*bytes.Buffer]()   //nolint:gochecknoglobals // constant
	stringsReader = reflect.TypeFor[*strings.Reader]() //nolint:gochecknoglobals // constant

	nopCloser         = reflect.TypeOf(io.NopCloser(nil))    //nolint:gochecknoglobals // constant
	nopCloserWriterTo = reflect.TypeOf(io.NopCloser(struct { //nolint:gochecknoglobals // constant
		io.Reader
		io.WriterTo
	}{}))
)

// Body returns the request body rc, watched: each Read that returns starts the
// attempt's timeout again, while one is under way the timeout does not run (it
// is the caller's reader that takes its time), and an error it returns is kept
// for Error. Nil and http.NoBody are returned as they are.
func (a *Attempt) Body(rc io.ReadCloser) io.ReadCloser {
	if rc == nil || rc == http.NoBody {
		return rc
	}
	return &upload{a: a, rc: rc}
}

// upload is a watched request body.
type upload struct {
	a      *Attempt
	rc     io.ReadCloser
	closed atomic.Bool
}

func (u *upload) Read(p []byte) (int, error) {
	u.a.reading.Add(1)
	n, err := u.rc.Read(p)
	u.a.from.Store(int64(u.a.passed()))
	u.a.reading.Add(-1)
	if err != nil && err != io.EOF {
		u.a.bodyFailed(u, err)
	}
	return n, err
}

// Close closes the caller's body once, however often a transport does.
func (u *upload) Close() error {
	if u.closed.Swap(true) {
		return nil
	}
	return u.rc.Close()
}

// bodyFailed keeps the error of the caller's body, unless it only says that the
// transport has closed the body, or that we have ended the attempt.
func (a *Attempt) bodyFailed(u *upload, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if rare := a.more(); rare.bodyErr == nil && rare.timeout == nil && !a.is(released) && !u.closed.Load() {
		rare.bodyErr = err
	}
}

// ErrClosed is what an [Ender] gets when the body was closed before its end:
// the caller had enough, which says nothing bad about the peer.
var ErrClosed = errors.New("attempt: the response's body was closed before its end")

// Ender is told how the response's body ended: nil for a clean end, [ErrClosed],
// or the error that broke it. It is called exactly once, on the goroutine that
// reads or closes the body, after the attempt's context has been released.
type Ender interface {
	Ended(err error)
}

// Wrap returns body as the attempt's: at its end, its Close or its failure the
// context is released and then end is told, which may be nil. A failure that our
// own bound brought about reads as the *outcome.TimeoutError.
//
// A body that can be written to, as that of a 101 response, stays so; it is a
// connection that the caller takes over, and no bound of ours cuts it any more.
// A body that is nil or http.NoBody is returned as it is, and has ended.
func (a *Attempt) Wrap(body io.ReadCloser, end Ender) io.ReadCloser {
	a.body = body
	if a.kind != abortable { // else it is known, and a timer may be looking at it
		a.ender = end
	}
	if body == nil || body == http.NoBody {
		a.finish(nil)
		return body
	}
	if !a.bounded && end == nil {
		return body
	}
	if _, ok := body.(io.Writer); ok {
		a.mu.Lock()
		a.limits = limits{}
		a.mu.Unlock()
		return (*upgradedBody)(a)
	}
	if a.limits.idle > 0 {
		if a.is(made) {
			a.check() // the timer is set to what counted before
		}
		return (*idleBody)(a)
	}
	return (*responseBody)(a)
}

// finish ends the attempt, the first time it is called.
func (a *Attempt) finish(err error) {
	if a.state.Or(finished|released)&finished == 0 {
		a.tell(err)
	}
}

func (a *Attempt) tell(err error) {
	a.release()
	if a.ender != nil {
		a.ender.Ended(err)
	}
}

// responseBody is the attempt as its response's body.
type responseBody Attempt

func (b *responseBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if err == nil {
		return n, nil
	}
	a := (*Attempt)(b)
	if err == io.EOF && !a.cut() { //nolint:errorlint // io.Reader's contract is identity
		a.finish(nil)
		return n, err
	}
	// A server that sees that we have gone may end what it had not finished as if
	// it had, and be faster than our own transport at that.
	err = a.Error(err)
	a.finish(err)
	return n, err
}

// cut reports whether one of our bounds has ended the attempt.
func (a *Attempt) cut() bool {
	if !a.is(made) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ours() != nil
}

// Close may be called while a Read is blocked. The Read's error is then of our
// own making, so the end is claimed before the body is closed.
func (b *responseBody) Close() error {
	a := (*Attempt)(b)
	if !a.is(finished) && a.state.Or(finished)&finished == 0 {
		defer func() {
			// Only after the body: a transport that sees the context end first
			// throws away a connection that it could have kept.
			a.state.Or(released)
			a.tell(ErrClosed)
		}()
	}
	return b.body.Close()
}

// idleBody is a responseBody with an idle timeout. A Read only says since when it
// waits: the timer looks when it fires.
type idleBody Attempt

func (b *idleBody) Read(p []byte) (int, error) {
	b.awaiting.Store(max(int64((*Attempt)(b).passed()), 1))
	n, err := (*responseBody)(b).Read(p)
	b.awaiting.Store(0)
	return n, err
}

func (b *idleBody) Close() error { return (*responseBody)(b).Close() }

// upgradedBody is the attempt as the body of a 101 response.
type upgradedBody Attempt

func (b *upgradedBody) Read(p []byte) (int, error) { return (*responseBody)(b).Read(p) }
func (b *upgradedBody) Close() error               { return (*responseBody)(b).Close() }
func (b *upgradedBody) Write(p []byte) (int, error) {
	return b.body.(io.Writer).Write(p) //nolint:errcheck // Wrap has looked
}

// CloseWrite is net/http's own addition, for connections that can be half closed.
func (b *upgradedBody) CloseWrite() error {
	if half, ok := b.body.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return fmt.Errorf("attempt: CloseWrite: %w", http.ErrNotSupported)
}
