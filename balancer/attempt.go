package balancer

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/outcome"
)

// Attempt is one attempt of a call on a node, for those who bring a protocol of
// their own: a [Lease] together with its place in the call's frame. It is what the
// layer for HTTP does, without HTTP:
//
//	var a balancer.Attempt
//	if err := b.Begin(ctx, frame, &balancer.Call{}, &a); err != nil {
//		return err
//	}
//	defer a.Done(time.Time{}, aborted) // for a panic; does nothing after the one below
//	a.Send(time.Time{})
//	err := send(ctx, a.Node())
//	a.Done(time.Time{}, classify(err))
//
// The zero value is ready for [Balancer.Begin]. An Attempt must not be copied once in
// use; as for a Lease, its methods may be called from different goroutines, one after
// the other.
type Attempt struct {
	lease Lease
	frame *call.Frame

	subset string
	only   bool // on a node that the call has named
}

// Begin takes the lease for an attempt of frame's call, which may be nil: on a node
// that the call has not been sent to, and none of c.Avoid, if there is another. What
// the frame's subset and ctx ([WithKey], [WithSubset], [WithNode]) say has priority
// over c, which is changed. Until the first endpoints are known it waits, within ctx
// and the frame's deadline. A zero c.Now is set to the time at which the lease was taken.
//
// Each node that refuses is noted in the frame. The error is that of
// [Balancer.Acquire]; for a hedge that has no other node to go to it is an [*Error]
// around [ErrNoOther].
func (b *Balancer) Begin(ctx context.Context, frame *call.Frame, c *Call, a *Attempt) error {
	a.frame = frame
	for _, n := range b.tried(frame) {
		if !c.avoids(n) {
			c.Avoid = append(slices.Clip(c.Avoid), n)
		}
	}
	c.LatencyNeutral = c.LatencyNeutral || frame.LatencyNeutral()
	if subset := frame.Subset(); subset != "" {
		c.Subset = subset
	}
	b.Aim(ctx, c)
	a.subset, a.only = c.Subset, c.Node != ""
	if b.current.Load() == nil { // the first endpoints may be waited for
		if deadline := frame.Deadline(); !deadline.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadlineCause(ctx, deadline,
				&outcome.TimeoutError{Kind: outcome.ErrCallTimeout, After: deadline.Sub(frame.Start())})
			defer cancel()
		}
	}
	err := b.leaseFor(ctx, c, frame, &a.lease)
	if err == nil && c.Now.IsZero() {
		c.Now = b.at(a.lease.start)
	}
	return err
}

// leaseFor takes the lease for an attempt of frame's call, which has been sent to the nodes
// in c.Avoid.
func (b *Balancer) leaseFor(ctx context.Context, c *Call, frame *call.Frame, l *Lease) error {
	first := len(c.Avoid) == 0
	for tries := 0; ; tries++ {
		if err := b.acquire(ctx, c, frame, l); err != nil {
			if _, none := errors.AsType[*Error](err); none {
				frame.Refused("", "", err)
			}
			return err
		}
		n := l.node
		// There is no other node, or the attempt that this one is to hedge has not got
		// one yet.
		refused := frame.Elsewhere() && (first || c.avoids(n))
		if !refused && (tries >= 2 || !n.hasLeft()) && frame.Claim(n) {
			return nil
		}
		l.Done(c.Now, outcome.Outcome{Class: outcome.Neutral})
		*l = Lease{}
		if refused {
			return &Error{Service: b.service, Err: ErrNoOther}
		}
		// It has left since it was picked, and its connections may be closed: from here
		// on a node that leaves sees the lease and waits for it. Or another hedge of the
		// call has chosen it at the same time.
		c.Avoid = append(slices.Clip(c.Avoid), n)
	}
}

// Node returns the node that the attempt goes to; nil before Begin.
func (a *Attempt) Node() *Node { return a.lease.node }

// Lease returns the attempt's lease, to report load by.
func (a *Attempt) Lease() *Lease { return &a.lease }

// Pass gives the lease back without an attempt, because by names a reason why the
// node would not do, such as "connection". The outcome is what the node is judged by.
// The frame notes it as a refusal.
func (a *Attempt) Pass(now time.Time, by string, o outcome.Outcome) {
	if n := a.lease.node; n != nil {
		a.frame.Refused(n.key, by, o.Err)
		a.lease.Done(now, o)
		a.lease = Lease{}
	}
}

// Send notes in the frame that the attempt is now being sent.
func (a *Attempt) Send(now time.Time) {
	a.lease.send(a.frame, clock.Or(now))
}

// Answered tells what came of the attempt when the answer's headers are there: see
// [Lease.Answered]. Answer and status are what the frame is to show, see
// [call.Frame.Answered].
func (a *Attempt) Answered(now time.Time, answer any, status int, o outcome.Outcome) outcome.Outcome {
	return a.lease.answer(a.frame, clock.Or(now), answer, status, o)
}

// Fail ends an attempt that came to nothing but the outcome's error.
func (a *Attempt) Fail(now time.Time, o outcome.Outcome) {
	if a.lease.state&leaseOpen == 0 {
		return
	}
	b := a.lease.owner
	now = clock.Or(now)
	o = a.Answered(now, nil, 0, o)
	a.Done(now, o)
	a.frame.SetOthers(!a.only && b.untried(a.frame, a.subset))
}

// untried reports whether there is a node in a subset that the call has not been sent
// to.
func (b *Balancer) untried(frame *call.Frame, subset string) bool {
	s := b.current.Load()
	if s == nil {
		return false
	}
	if b.cfg.Subsets[subset].Strict {
		s = s.subsets[subset]
	}
	fresh := func(n *Node) bool { return !frame.Tried(n) }
	return slices.ContainsFunc(s.eligible, fresh) || slices.ContainsFunc(s.standby, fresh)
}

// Done gives the lease back at the end of the answer: see [Lease.Done]. A later call
// does nothing.
func (a *Attempt) Done(now time.Time, o outcome.Outcome) {
	if a.lease.state&leaseOpen != 0 {
		a.lease.end(a.frame, now, o)
	}
}

// Watched has the attempt keep no more of its frame than what a log looks at, for
// answers whose end comes after that of the call: see [call.Frame.Free].
func (a *Attempt) Watched() { a.frame = a.frame.Watched() }

// DialNode connects to a node by base, at its address and for as long as that comes
// to nothing at its other ones, each in no more than Config.ConnectTimeout. The port
// is for endpoints that have none; a nil base is Config.Dial.
func (b *Balancer) DialNode(ctx context.Context, n *Node, base func(ctx context.Context, network, addr string) (net.Conn, error), port string) (net.Conn, error) {
	if base == nil {
		base = b.cfg.Dial
	}
	return b.dialAny(ctx, n, func(ctx context.Context, addr string) (net.Conn, error) {
		network, addr, err := discovery.DialAddr(addr, port)
		if err != nil {
			return nil, err
		}
		return b.dialWithin(ctx, base, network, addr)
	})
}

// OnLeave has left called for each node that leaves the set, when it has nothing more
// to do or its time is over, and for each node when the balancer is closed: whoever
// keeps connections to nodes closes them. Calls may come from several goroutines at
// once; for one node there may be two. It holds until stop is called. It returns false
// if the balancer has been closed.
func (b *Balancer) OnLeave(left func(*Node)) (stop func(), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return func() {}, false
	}
	b.watcherID++
	id := b.watcherID
	if b.leavers == nil {
		b.leavers = make(map[int]func(*Node))
	}
	b.leavers[id] = left
	return func() {
		b.mu.Lock()
		delete(b.leavers, id)
		b.mu.Unlock()
	}, true
}
