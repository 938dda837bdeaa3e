package balancer

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"
)

// lastCall sends a request and, if the connection that net/http gives it is too old
// or has taken enough calls, makes it the last one there.
//
// net/http tells which connection a call has been given only to a trace, and before
// the request is written. Over HTTP/1.1 it is then asked to close the connection
// after the answer (RFC 9112 §9.6), as any call may ask. So a connection is never
// closed under a call, whatever its method, and not before the next call comes; what
// no call is given is closed by IdleConnTimeout. Over HTTP/2 that would not do: a
// call that has been given the connection at the same moment would have to be sent
// again. There the whole generation is replaced.
//
// A trace costs more than the rest of a call, so calls come here only while there is
// a connection past its age, or where calls are counted.
type lastCall struct {
	g    *generation
	next *http.Transport
}

func (l lastCall) RoundTrip(req *http.Request) (*http.Response, error) {
	c := &tracedCall{g: l.g}
	c.trace.GotConn = c.gotConn
	c.req = req.WithContext(httptrace.WithClientTrace(req.Context(), &c.trace))
	if req.Body != nil && req.Body != http.NoBody {
		// net/http goes on with a copy of such a request: what reaches the copy is the
		// header.
		c.header = req.Header.Clone() // a nil one is refused
		c.req.Header = c.header
	}
	return l.next.RoundTrip(c.req)
}

// tracedCall is a call that may be the last of its connection.
type tracedCall struct {
	g      *generation
	req    *http.Request
	header http.Header // that of net/http's copy; nil if there is none
	trace  httptrace.ClientTrace
	got    bool // a connection, before
}

// gotConn is called on the goroutine of the call, before the request is written.
func (c *tracedCall) gotConn(info httptrace.GotConnInfo) {
	first := !c.got
	c.got = true
	nc, http2 := beneath(info.Conn)
	switch {
	case nc == nil || !nc.spent():
	case http2 || c.g.conn.layer.b.cfg.H2C:
		c.g.conn.shares()
		c.g.conn.replace(c.g, false)
	case !first: // what has sent it before may still be reading it
	case c.req.Header["Upgrade"] != nil: // such a connection has no next call anyway
	case c.header == nil:
		c.req.Close = true
	default:
		also := c.header.Get("Connection")
		if also == "" || strings.EqualFold(also, "keep-alive") {
			c.header.Set("Connection", "close")
		} else {
			c.header.Set("Connection", "close, "+also)
		}
	}
}

// beneath returns our connection beneath one of net/http's, and whether it has been
// agreed there to speak HTTP/2.
func beneath(nc net.Conn) (ours *nodeConn, http2 bool) {
	for {
		switch c := nc.(type) {
		case *nodeConn:
			return c, http2
		case *tls.Conn:
			http2 = http2 || c.ConnectionState().NegotiatedProtocol == "h2"
			nc = c.NetConn()
		case interface{ NetConn() net.Conn }:
			nc = c.NetConn()
		default:
			return nil, http2
		}
	}
}

// life is how long a connection lives.
type life struct {
	age   *time.Timer  // that makes it old; may be nil
	quota int64        // calls that it takes; 0: no limit
	calls atomic.Int64 // that it has been given, where they are counted
	due   bool         // it is past its age; guarded by conn.mu
	old   atomic.Bool  // and its next call is its last
}

// begin begins the connection's life. conn.mu is held.
func (nc *nodeConn) begin() {
	conns := &nc.conn.layer.b.cfg.Conns
	nc.life.quota = jitter(int64(conns.MaxRequests))
	if conns.MaxAge > 0 {
		nc.life.age = time.AfterFunc(time.Duration(jitter(int64(conns.MaxAge))), nc.expire)
	}
}

// expire is called at the connection's age: it is replaced, where connections are
// wanted ahead as soon as there is another one.
func (nc *nodeConn) expire() {
	c, g := nc.conn, nc.gen
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, open := c.open[nc]; !open || c.closed || g.retired {
		return
	}
	nc.life.due = true
	g.due++
	to := c.layer.target.Load()
	switch {
	case c.http2:
		c.layer.b.dials.start(func() {
			if !c.replace(g, true) { // it is the next one, perhaps, and has not had a call yet
				c.mu.Lock()
				defer c.mu.Unlock()
				nc.outlive()
			}
		})
	case to == nil:
		nc.outlive()
	default:
		c.layer.b.dials.start(func() {
			g.fillOne(*to) // or not: then calls will see to it
			c.mu.Lock()
			defer c.mu.Unlock()
			nc.outlive()
		})
	}
}

// outlive has the next call be the last. conn.mu is held.
func (nc *nodeConn) outlive() {
	if _, open := nc.conn.open[nc]; open && nc.life.old.CompareAndSwap(false, true) {
		nc.gen.old.Add(1)
	}
}

// end ends the connection's life. conn.mu is held.
func (nc *nodeConn) end() {
	if nc.life.age != nil {
		nc.life.age.Stop()
	}
	nc.gen.open--
	if nc.life.due {
		nc.gen.due--
	}
	if nc.life.old.Load() {
		nc.gen.old.Add(-1)
	}
}

// spent takes note of a call and reports whether it must be the last.
func (nc *nodeConn) spent() bool {
	n := nc.life.calls.Add(1)
	return nc.life.old.Load() || nc.life.quota > 0 && n >= nc.life.quota
}
