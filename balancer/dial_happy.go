package balancer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"time"
)

// dialAny connects to the instance behind n: to its Addr, and for as long as that
// has not come to anything, after each Conns.FallbackDelay or as soon as a dial has
// failed, to the next of its Fallback as well (RFC 8305 §5). The first connection is
// the instance's; what else is under way is given up, and closed if it comes about.
// Where there is one address only, dial runs on the caller's goroutine.
//
// The error is the [*ConnectError] of the dial that failed last, or dial's own if
// ctx has ended.
func (b *Balancer) dialAny(ctx context.Context, n *Node, dial func(ctx context.Context, addr string) (net.Conn, error)) (net.Conn, error) {
	e := n.endpoint.Load()
	dialing, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	var tried dialed
	if len(e.Fallback) == 0 {
		tried.addr = e.Addr
		tried.conn, tried.err = dial(dialing, e.Addr)
	} else {
		tried = b.race(dialing, append([]string{e.Addr}, e.Fallback...), dial)
	}
	switch {
	case tried.err == nil:
		return tried.conn, nil
	case hasEnded(ctx):
		return nil, tried.err
	case b.ctx.Err() != nil:
		return nil, &Error{Service: b.service, Err: ErrClosed}
	}
	b.hint()
	return nil, &ConnectError{Node: n.key, Addr: tried.addr, Err: tried.err}
}

// dialed is what came of one dial.
type dialed struct {
	addr string
	conn net.Conn
	err  error
	// The dialer did not return: it panicked with this, or called Goexit.
	panicked any
	exited   bool
}

// race dials the addresses one after another, without waiting longer than
// Conns.FallbackDelay for each, and returns the first connection, or the last error.
// Each dial has a goroutine, which ends with it; [Balancer.Close] waits for those.
func (b *Balancer) race(ctx context.Context, addrs []string, dial func(ctx context.Context, addr string) (net.Conn, error)) dialed {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results, decided := make(chan dialed), make(chan struct{})
	defer close(decided)
	start := func(addr string) {
		d := dialed{addr: addr, exited: true}
		defer func() {
			if d.exited {
				d.panicked = recover()
			}
			select {
			case results <- d:
			case <-decided:
				if d.conn != nil {
					_ = d.conn.Close()
				}
			}
		}()
		d.conn, d.err = dial(ctx, addr)
		d.exited = false
	}
	delay := b.cfg.Conns.FallbackDelay
	if delay <= 0 {
		delay = math.MaxInt64 // one after another
	}
	next := time.NewTimer(delay)
	defer next.Stop()
	last := dialed{addr: addrs[0]}
	for running := 0; running > 0 || len(addrs) > 0; {
		if len(addrs) > 0 {
			addr := addrs[0]
			b.dials.start(func() { start(addr) })
			addrs = addrs[1:]
			running++
			next.Reset(delay)
		}
		select {
		case <-next.C:
		case <-ctx.Done(): // a dialer might not look at it
			last.err = ctx.Err()
			return last
		case d := <-results:
			running--
			switch {
			case d.panicked != nil:
				panic(d.panicked) //nolint:forbidigo // the dialer's own, on the goroutine that it would have been on
			case d.exited:
				d.err = fmt.Errorf("balancer: the dialer to %s ended its goroutine", d.addr)
			case d.err == nil:
				return d
			}
			last = d
		}
	}
	return last
}

// dials are goroutines that dial, and so may go on for as long as a dialer likes that
// does not heed its context.
type dials struct {
	mu      sync.Mutex
	running int
	idle    chan struct{} // closed when there are none; nil if nobody waits
}

func (d *dials) start(f func()) {
	d.mu.Lock()
	d.running++
	d.mu.Unlock()
	go func() {
		defer func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.running--; d.running == 0 && d.idle != nil {
				close(d.idle)
				d.idle = nil
			}
		}()
		f()
	}()
}

// dialersTime is how long dialers are waited for that do not heed their context.
const dialersTime = time.Second

// wait waits until there are none, but not for ever.
func (d *dials) wait(most time.Duration) {
	d.mu.Lock()
	if d.running == 0 {
		d.mu.Unlock()
		return
	}
	if d.idle == nil {
		d.idle = make(chan struct{})
	}
	idle := d.idle
	d.mu.Unlock()
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	}
}

// dialWithin dials one address with base, in no more than Config.ConnectTimeout.
func (b *Balancer) dialWithin(ctx context.Context, base func(ctx context.Context, network, addr string) (net.Conn, error), network, addr string) (net.Conn, error) {
	bound := b.cfg.ConnectTimeout
	dialing := ctx
	if bound > 0 {
		var cancel context.CancelFunc
		dialing, cancel = context.WithTimeout(ctx, bound)
		defer cancel()
	}
	conn, err := base(dialing, network, addr)
	if conn == nil && err == nil {
		err = errNoConn
	}
	if err != nil && dialing.Err() != nil && !hasEnded(ctx) {
		// A dialer may answer with its context's error, and that one would pass
		// for the caller's deadline.
		err = &net.OpError{Op: "dial", Net: network, Err: connectTimeout{addr, bound}}
	}
	return conn, err
}

var errNoConn = errors.New("balancer: the dialer returned neither a connection nor an error")

// hasEnded reports whether ctx has ended, or is just about to: a dialer that leaves
// its deadline to the system may be back before the context's own timer has fired.
func hasEnded(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}
