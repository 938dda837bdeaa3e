package cache

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/internal/clock"
)

// httpEntry is a stored response. It never changes.
type httpEntry struct {
	status       string
	proto        string
	major, minor int
	header       http.Header
	body         []byte
	uncompressed bool

	sent  time.Time     // when the request for it was sent
	age   time.Duration // what the response said of its age
	epoch uint64        // of its URL when the request was sent
}

// fieldOverhead and entryOverhead are roughly what a header field and the rest
// of an entry take in memory beside their bytes.
const (
	fieldOverhead = 64
	entryOverhead = 512
)

func weighEntry(_ httpKey, e *httpEntry) int64 {
	n := entryOverhead + len(e.body)
	for name, values := range e.header {
		n += fieldOverhead + len(name)
		for _, v := range values {
			n += len(v)
		}
	}
	return int64(n)
}

// answer is a response from the cache and its body, in one allocation.
type answer struct {
	resp http.Response
	body hitBody
}

// answer makes a response of the entry: its header is the caller's own, its body
// reads the stored bytes without copying them.
func (e *httpEntry) answer(req *http.Request) *http.Response {
	a := &answer{resp: http.Response{
		Status: e.status, StatusCode: http.StatusOK,
		Proto: e.proto, ProtoMajor: e.major, ProtoMinor: e.minor,
		Header: e.header.Clone(), Body: http.NoBody,
		ContentLength: int64(len(e.body)), Uncompressed: e.uncompressed,
		Request: req,
	}}
	age := e.age + clock.Now().Sub(e.sent)
	a.resp.Header["Age"][0] = strconv.FormatInt(int64(age/time.Second), 10)
	if len(e.body) > 0 {
		a.body.r.Reset(e.body)
		a.resp.Body = &a.body
	}
	return &a.resp
}

// hitBody reads the body of an answer.
type hitBody struct {
	r      bytes.Reader
	closed atomic.Bool
}

func (b *hitBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.r.Read(p)
}

// WriteTo spares io.Copy its buffer.
func (b *hitBody) WriteTo(w io.Writer) (int64, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.r.WriteTo(w)
}

func (b *hitBody) Close() error {
	b.closed.Store(true)
	return nil
}
