package balancer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/outcome"
)

// DialContext connects to a node of the service, so that clients of any protocol
// over TCP, such as those of databases, have discovery, ejection and failover. It
// has the shape of net.Dialer's and goes wherever a client asks for one:
//
//	redis.NewClient(&redis.Options{Addr: "cache:6379", Dialer: b.DialContext})
//
// The policy chooses the node, by what [WithKey], [WithSubset] and [WithNode] have
// put into ctx. Of addr only the port counts, for endpoints that have none; network
// is tcp, tcp4, tcp6 or unix, and whether it will be TCP or a unix socket the
// endpoint says. Each address has Config.ConnectTimeout, and an endpoint's Fallback
// is tried as for HTTP. A node that cannot be connected to has failed, and another
// is tried, each once; the error then is the last one's [*ConnectError]. If there is
// nobody to try it is that of [Balancer.Acquire]. If ctx ends meanwhile, which is
// nobody's failure, the error wraps ctx's.
//
// The time that connecting takes is the node's latency. The connection is one call
// in flight until it is closed, or breaks: a read or write fails other than by EOF,
// by a deadline or because the connection had been closed. That is one more
// failure of the node. What goes over the connection is not looked at. So the
// default policy prefers the nodes that are quick to connect to; where connections
// live long, P2C with the cost [Connections] spreads them evenly.
//
// A connection stays with its node: a pool of long-lived ones that should follow
// ejections and new nodes needs a bound on their life. When the node leaves the
// set, its connections are closed after Config.DrainTimeout; [Balancer.Close] closes
// all at once.
//
// Connections over TCP have the methods of *[net.TCPConn], those over unix sockets
// the ones of *[net.UnixConn]. NetConn returns the connection beneath; whatever
// happens past the Read, Write and Close of the one returned here is not noticed.
func (b *Balancer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
	}
	_, port, _ := net.SplitHostPort(addr)
	c := Call{}
	if b.pinned {
		p := pinsOf(ctx)
		c.Key, c.Subset = p.key, p.subset
		if b.cfg.Override {
			c.Node = p.node
		}
	}
	var last error
	for {
		l := new(link)
		c.Now = time.Time{}
		if err := b.acquire(ctx, &c, nil, &l.lease); err != nil {
			if last != nil && !hasEnded(ctx) && !errors.Is(err, ErrClosed) {
				err = last // what a node said, not what we think of the others
			}
			return nil, err
		}
		n := l.lease.node
		if c.avoids(n) { // there is no other
			l.lease.Done(time.Time{}, outcome.Outcome{Class: outcome.Neutral})
			return nil, last
		}
		conn, err := l.dial(ctx, network, port)
		if err == nil || hasEnded(ctx) {
			return conn, err
		}
		last, c.Avoid = err, append(c.Avoid, n)
	}
}

// dial makes l's connection to the node that it has a lease on, and gives that back
// if there is none.
func (l *link) dial(ctx context.Context, network, port string) (net.Conn, error) {
	n, b := l.lease.node, l.lease.owner
	o := outcome.Outcome{Class: outcome.Failure, Err: errAborted} // a panic or Goexit in the dialer
	defer func() {
		if l.conn == nil {
			l.lease.Done(clock.Now(), o)
		}
	}()
	if at := n.endpoint.Load().Addr; port == "" {
		if _, _, err := discovery.DialAddr(at, port); err != nil { // the caller's mistake, no failure
			o = outcome.Outcome{Class: outcome.Neutral}
			return nil, &ConnectError{Node: n.key, Addr: at, Err: err}
		}
	}
	conn, err := b.dialAny(ctx, n, func(ctx context.Context, addr string) (net.Conn, error) {
		own, addr, err := discovery.DialAddr(addr, port)
		if err != nil {
			return nil, err
		}
		if own == "tcp" && network != "unix" {
			own = network
		}
		return b.dialWithin(ctx, b.cfg.Dial, own, addr)
	})
	switch {
	case err == nil:
	case hasEnded(ctx):
		if cause := cmp.Or(ctx.Err(), context.DeadlineExceeded); !errors.Is(err, cause) {
			err = fmt.Errorf("balancer: connecting to node %s: %w: %w", n.key, cause, err)
		}
		o = outcome.Outcome{Class: outcome.Neutral, Err: err}
		return nil, err
	default:
		o = outcome.Outcome{Class: outcome.Failure, Retry: outcome.Always, Err: err}
		return nil, err
	}
	l.conn = conn
	l.lease.Answered(clock.Now(), outcome.Outcome{})
	if !n.links.add(l) { // its time was over, or ours, while it was being dialed
		_ = l.close()
		return nil, &ConnectError{Node: n.key, Addr: n.endpoint.Load().Addr, Err: errLeft}
	}
	return l.wrap(), nil
}

var errLeft = errors.New("the node has left the set")

// Connections is a [Cost] for balancers whose connections are made by
// [Balancer.DialContext]: the number of those that are open, by weight (least
// connections). It knows nothing of latency. Of calls, it counts those whose
// response is still being read, too.
type Connections struct{}

// Cost returns the number of leases that are not done plus one, by weight.
func (Connections) Cost(n *Node, now time.Time) float64 {
	return float64(n.InFlight()+1) * n.inverseWeight(n.owner, n.owner.since(now))
}
