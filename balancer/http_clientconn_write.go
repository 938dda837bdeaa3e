package balancer

import (
	"io"
	"net"
	"runtime"
	"sync"
	"time"
)

// outbox is where an HTTP/2 connection without TLS puts what net/http writes to it, which
// flushes each request's head and each piece of its body by itself. A goroutine of the
// connection sends what is there, and if there are more than a few calls, after those
// that are ready to run have had their turn. So the calls of a moment, and a head and
// its body, are one write and not many, as in grpc-go; with many callers a call over
// loopback takes a tenth less time.
//
// An error of sending ends the connection, and is that of all Writes and Reads from then
// on. What is in the outbox then has not been sent, and never will be.
type outbox struct {
	nc *nodeConn

	mu      sync.Mutex
	room    sync.Cond // for those who wait until there is less in it
	pending batch
	sender  bool          // there is one
	woken   bool          // and it has something to do
	sending bool          // somebody is at it
	wake    chan struct{} // closed with the connection
	broken  error         // what sending has come to
	ended   error         // what Writes come to from now on
}

const (
	// outboxSize is how much may be in an outbox before a Write has to wait.
	outboxSize = 64 << 10
	// outboxLarge is what is not worth a wait, and outboxHuge not even a copy.
	outboxLarge = 4 << 10
	outboxHuge  = 32 << 10
	// few calls in flight to a node are no crowd that it would be worth waiting for:
	// where the processors are busy with something else, that wait could be a long one.
	few = 2
	// lastReads is how long there is to read what had come before sending failed.
	lastReads = 50 * time.Millisecond
)

// outboxes are buffers for what is pending: those of a connection that is idle, or that
// waits, have better things to do.
var outboxes = sync.Pool{New: func() any { return new([]byte) }} //nolint:gochecknoglobals // it holds nothing that anybody could see

func newOutbox(nc *nodeConn) *outbox {
	o := &outbox{nc: nc, wake: make(chan struct{}, 1)}
	o.room.L = &o.mu
	return o
}

// Write puts p in. It waits only if the peer has left too much unread. A large p is
// sent at once, with what is there before it.
func (o *outbox) Write(p []byte) (int, error) {
	large := len(p) >= outboxLarge
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.ended == nil && (len(o.pending.bytes) >= outboxSize || large && o.sending) {
		o.room.Wait()
	}
	if o.ended != nil {
		return 0, o.ended
	}
	if large && (len(o.pending.bytes) == 0 || len(p) >= outboxHuge) {
		if len(o.pending.bytes) > 0 {
			if _, err := o.send(o.take()); err != nil {
				return 0, err
			}
			if o.ended != nil {
				return 0, o.ended
			}
		}
		return o.send(batch{bytes: p, count: 1, last: o.nc.wire.writes.begin()})
	}
	before := len(o.pending.bytes)
	o.pending.add(p, o.nc.wire.writes.begin())
	if large {
		n, err := o.send(o.take())
		return max(n-before, 0), err
	}
	if !o.sender {
		o.sender = true
		go o.run()
	}
	if !o.woken {
		o.woken = true
		o.wake <- struct{}{} // there is room for one
	}
	return len(p), nil
}

// run sends what is in the outbox, until the connection is closed.
func (o *outbox) run() {
	for range o.wake {
		if o.nc.conn.node.InFlight() > few {
			runtime.Gosched()
		}
		for o.flush() {
		}
	}
}

// flush sends what is pending, and returns false if that is nothing.
func (o *outbox) flush() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.sending {
		o.room.Wait()
	}
	if len(o.pending.bytes) == 0 {
		o.woken = false
		return false
	}
	_, _ = o.send(o.take())
	return true
}

// batch is what is sent at once.
type batch struct {
	bytes       []byte
	buffer      *[]byte // that they lie in; nil if it is the writer's
	count, last int64   // of the writes it comes of: how many, and the last one's number
}

// add adds the bytes of the write with that number.
func (b *batch) add(p []byte, number int64) {
	if b.buffer == nil {
		b.buffer = outboxes.Get().(*[]byte) //nolint:errcheck,forcetypeassert // only those are in it
		b.bytes = *b.buffer
	}
	b.bytes = append(b.bytes, p...)
	b.count++
	b.last = number
}

// take returns what is pending. o.mu is held.
func (o *outbox) take() batch {
	b := o.pending
	o.pending = batch{}
	o.room.Broadcast()
	return b
}

// send sends b. o.mu is held, but not while it does so.
func (o *outbox) send(b batch) (n int, err error) {
	o.sending = true
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.sending = false
		o.room.Broadcast()
	}()
	if n, err = o.nc.Conn.Write(b.bytes); err == nil && n < len(b.bytes) {
		err = io.ErrShortWrite // as net/http's own buffer has it
	}
	b.done(o.nc, n)
	if err != nil {
		o.end(err, err)
		// Net/http hears of it by its Read, and closes the rest. But first there may be
		// answers to read, of a peer that is gone.
		time.AfterFunc(lastReads, func() { _ = o.nc.Conn.Close() })
	}
	return n, err
}

// done takes note that n bytes of the batch have been sent, and no more will be.
func (b *batch) done(nc *nodeConn, n int) {
	nc.wire.wrote(b.count, nc.wire.writes.ends(b.last, b.count, int64(n)))
	if b.buffer != nil && cap(b.bytes) <= outboxSize {
		*b.buffer = b.bytes[:0]
		outboxes.Put(b.buffer)
	}
}

// end has nothing more be put in, and drops what is pending.
func (o *outbox) end(broken, ended error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended == nil {
		o.broken, o.ended = broken, ended
	}
	b := o.take()
	b.done(o.nc, 0)
}

// failure returns what sending has come to.
func (o *outbox) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.broken
}

// close ends the sender. What is pending then is of nobody who still waits for an
// answer. It is called once.
func (o *outbox) close() {
	o.end(nil, &net.OpError{Op: "write", Net: "tcp", Addr: o.nc.RemoteAddr(), Err: net.ErrClosed})
	close(o.wake)
}
