package balancer

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"sync"
	"time"

	"github.com/backstay/backstay/outcome"
)

// failed judges the error of a call: what to tell the caller, and whether the
// request may be sent again here. Since is the mark of the moment
// before it was sent, and used says whether the connection had answered a call then.
func (m *clientConn) failed(req *http.Request, body *trackedBody, err error, used bool, since int64) (told error, repeat bool) { //nolint:revive // what is told comes first
	if canceled(req) != nil || body != nil && body.failed.Load() {
		return err, false
	}
	unsent := false
	op, ok := errors.AsType[*net.OpError](err)
	quiet := !m.wire.http2 || m.wire.writes.quiet() // else it may still be on its way: see outbox
	silent := quiet && m.wire.writes.noneSince(since)
	unwritten := silent && ok && op.Op == "write"
	if m.wire.http2 {
		unsent = unwritten || m.pool.owner.phrases.sayUnsent(err) || outcome.HTTP(req, nil, err).Retry == outcome.Always
		return mark(err, unsent), unsent
	}
	// The two are the same if the connection ended before the first byte of an
	// answer. They are not if the answer was bad, or if it was we who closed it.
	lost := same(m.cc.Err(), err) && !isTimeout(err)
	// After a write that failed net/http may tell of the read that this has ended.
	end, broken := errors.AsType[*net.OpError](m.cc.Err())
	unsent = unwritten || silent && (lost || broken && end.Op == "write" && errors.Is(err, net.ErrClosed))
	if inner := errors.Unwrap(m.cc.Err()); lost && inner != nil {
		err = inner // as net/http has it
	}
	// From here on as net/http: nobody hangs up on a fresh connection unless he
	// does not like the request.
	return mark(err, unsent), used && (unsent || lost && replayable(req))
}

func mark(err error, unsent bool) error {
	if unsent {
		return &unsentError{err}
	}
	return err
}

// same reports whether err is the connection's error, or wraps it for nothing
// but to say that nothing was written.
func same(conn, err error) bool {
	if conn == nil || !reflect.ValueOf(conn).Comparable() {
		return false
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		if reflect.TypeOf(e) == reflect.TypeOf(conn) {
			return reflect.ValueOf(e).Comparable() && e == conn //nolint:errorlint // identity is the point
		}
	}
	return false
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// replayable reports whether net/http would send req again over another
// connection, when one that it has kept turns out to be dead.
func replayable(req *http.Request) bool {
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return req.Header["Idempotency-Key"] != nil || req.Header["X-Idempotency-Key"] != nil
}

// phrases are what net/http's HTTP/2 says when a request was not sent, or the
// server has said in a GOAWAY that it will not look at it (RFC 9113 §6.8). Those
// errors have no type and no name. Their text is not to be relied on; but net/http
// can be made to say them, to a server that does nothing else, and it is the same
// error each time. Should that change, nothing is known not to have been sent.
type phrases struct {
	once             sync.Once
	unusable, goAway error // nil if not known
}

func (p *phrases) sayUnsent(err error) bool {
	p.once.Do(func() { p.unusable, p.goAway = hearPhrases() })
	return err == p.unusable || err == p.goAway //nolint:errorlint // identity is the point
}

// Of RFC 9113 §4.1 and §6.
const (
	frameHeader   = 9
	frameHeaders  = 1
	frameSettings = 4
	frameGoAway   = 7
	prefaceLength = 24
)

// hearPhrases has net/http speak with a server that answers its first request
// with a GOAWAY.
func hearPhrases() (unusable, goAway error) {
	client, server := net.Pipe()
	var work sync.WaitGroup
	defer work.Wait()
	defer server.Close()
	asked := make(chan struct{})
	work.Go(func() { // listens, since a pipe holds nothing
		defer close(asked)
		if _, err := io.CopyN(io.Discard, server, prefaceLength); err != nil {
			return
		}
		var head [frameHeader]byte
		for seen := false; !seen; {
			if _, err := io.ReadFull(server, head[:]); err != nil {
				return
			}
			seen = head[3] == frameHeaders
			length := binary.BigEndian.Uint32(head[:4]) >> 8
			if _, err := io.CopyN(io.Discard, server, int64(length)); err != nil {
				return
			}
		}
		work.Go(func() { _, _ = io.Copy(io.Discard, server) })
	})
	work.Go(func() { // speaks
		settings := [frameHeader]byte{3: frameSettings}
		if _, err := server.Write(settings[:]); err != nil {
			return
		}
		<-asked
		bye := [frameHeader + 8]byte{2: 8, 3: frameGoAway} // NO_ERROR, and no stream will be looked at
		_, _ = server.Write(bye[:])
	})

	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	t := &http.Transport{
		Protocols:   new(http.Protocols),
		DialContext: func(context.Context, string, string) (net.Conn, error) { return client, nil },
	}
	t.Protocols.SetUnencryptedHTTP2(true)
	cc, err := t.NewClientConn(ctx, "http", "phrases:80")
	if err != nil {
		_ = client.Close()
		return errUnheard, errUnheard
	}
	defer cc.Close()
	say := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://phrases/", http.NoBody)
		if err != nil {
			return errUnheard
		}
		resp, err := cc.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		if err == nil || ctx.Err() != nil {
			return errUnheard
		}
		return err
	}
	goAway = say()
	unusable = say()
	return unusable, goAway
}

// errUnheard is no error of net/http's.
var errUnheard = errors.New("balancer: net/http did not say")
