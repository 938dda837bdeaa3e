package balancer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
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
	var tried dialed
	if len(e.Fallback) == 0 {
		tried.addr = e.Addr
		tried.conn, tried.err = dial(ctx, e.Addr)
	} else {
		tried = race(ctx, append([]string{e.Addr}, e.Fallback...), b.cfg.Conns.FallbackDelay, dial)
	}
	switch {
	case tried.err == nil:
		return tried.conn, nil
	case hasEnded(ctx):
		return nil, tried.err
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

// race dials the addresses one after another, without waiting longer than delay
// for each, and returns the first connection, or the last error. Each dial has a
// goroutine, which ends with it.
func race(ctx context.Context, addrs []string, delay time.Duration, dial func(ctx context.Context, addr string) (net.Conn, error)) dialed {
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
	if delay <= 0 {
		delay = math.MaxInt64 // one after another
	}
	next := time.NewTimer(delay)
	defer next.Stop()
	last := dialed{addr: addrs[0]}
	for running := 0; running > 0 || len(addrs) > 0; {
		if len(addrs) > 0 {
			go start(addrs[0])
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
