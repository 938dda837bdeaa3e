package balancer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/clock"
)

// follow takes what the resolver yields, for as long as the balancer lives.
func (b *Balancer) follow() {
	for set, err := range b.resolver.Watch(b.ctx, b.service) {
		b.take(set, err)
	}
}

// take is one yield of the resolver.
func (b *Balancer) take(set discovery.Set, err error) {
	if b.ctx.Err() != nil {
		return
	}
	if err != nil {
		b.failed(err)
		return
	}
	b.update(set)
}

func (b *Balancer) failed(err error) {
	b.mu.Lock()
	e := ResolveFailed{Service: b.service, Err: err}
	switch {
	case isWarning(err): // no doubt about the set
	case b.lastSet.IsZero():
		b.lastErr = err
		b.wake()
	default:
		b.staleErr = err
		e.Stale = clock.Now().Sub(b.lastSet)
	}
	b.events.Add(b.ctx, b.cfg.Observer, e)
	b.mu.Unlock()
	b.notify()
}

func isWarning(err error) bool {
	var warning *discovery.Warning
	return errors.As(err, &warning)
}

// wake wakes those who wait for the first set. b.mu is held.
func (b *Balancer) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Ready waits until the service's first endpoints are known, within ctx. It
// returns nil then, and at once ever after; the error is an [*Error].
func (b *Balancer) Ready(ctx context.Context) error {
	if b.current.Load() != nil {
		return nil
	}
	_, err := b.await(ctx, nil, b.since(time.Time{}))
	return err
}

// await returns the snapshot to pick from when there is none yet, or when it may
// have to be asked for. The first error of the resolver fails those who wait;
// those who come later, while there still are no endpoints, fail at once: a
// service that cannot be found should not hold up its callers.
func (b *Balancer) await(ctx context.Context, s *snapshot, at int64) (*snapshot, error) {
	if b.cfg.OnDemand {
		if s != nil && at < s.expires {
			return s, nil
		}
		b.demand(b.at(at))
	}
	if s != nil {
		return s, nil
	}
	b.mu.Lock()
	for {
		s = b.current.Load()
		changed, err := b.changed, b.lastErr
		switch {
		case b.closed:
			b.mu.Unlock()
			return nil, &Error{Service: b.service, Err: ErrClosed}
		case s != nil:
			b.mu.Unlock()
			return s, nil
		case err != nil && !b.resolving:
			b.mu.Unlock()
			b.hint()
			return nil, &Error{Service: b.service, Err: err}
		}
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, &Error{Service: b.service, Err: context.Cause(ctx)}
		}
		b.mu.Lock()
	}
}

// demandRetry and demandTTL are, for a balancer that asks on demand, the time
// after a failure before the resolver is asked again (doubled each time, up to
// demandTTL), and how long a set holds whose source does not say.
const (
	demandRetry   = time.Second
	demandTTL     = 30 * time.Second
	demandTimeout = 30 * time.Second
)

// errNoAnswer is not the context's error: that would pass for the caller's.
var errNoAnswer = fmt.Errorf("balancer: no answer from the resolver within %v", demandTimeout)

// demand asks the resolver once, in the background, unless that is under way or
// has just failed.
func (b *Balancer) demand(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.resolving || now.Before(b.resolveAt) {
		return
	}
	b.resolving = true
	b.work.Go(func() {
		ctx, cancel := context.WithTimeoutCause(b.ctx, demandTimeout, errNoAnswer)
		defer cancel()
		got := false
		for set, err := range b.resolver.Watch(ctx, b.service) {
			if isWarning(err) { // neither a set nor a failure
				b.take(set, err)
				continue
			}
			b.demanded(set, err)
			b.take(set, err)
			got = true
			break
		}
		if !got {
			err := context.Cause(ctx)
			b.demanded(discovery.Set{}, err)
			b.take(discovery.Set{}, err)
		}
	})
}

// demanded notes when to ask again.
func (b *Balancer) demanded(set discovery.Set, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.resolving = false
	if err == nil {
		b.failures, b.lastErr = 0, nil // the set is on its way
		b.resolveAt = clock.Now().Add(min(cmp.Or(set.TTL, demandTTL), demandTTL))
		return
	}
	wait := min(demandRetry<<min(b.failures, 5), demandTTL)
	b.failures++
	b.resolveAt = clock.Now().Add(wait)
}

// Hint tells the resolver that something is wrong with the endpoints that it gave: a
// connection cannot be made, or has ended. It looks again soon, but not for every
// hint: see [discovery.WithHints]. With Config.OnDemand there is nobody to tell, and
// it is asked as calls come.
func (b *Balancer) Hint() { b.hint() }

// hint tells the resolver that something is wrong with what it gave.
func (b *Balancer) hint() {
	select {
	case b.hints <- struct{}{}:
	default: // one is waiting already
	}
}

// update takes a new set: nodes that stay keep their state.
func (b *Balancer) update(set discovery.Set) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	now := clock.Now()
	ns := b.since(now)
	first := b.lastSet.IsZero()
	b.lastErr, b.staleErr, b.lastSet = nil, nil, now
	change := NodesChanged{Service: b.service}
	seen := make(map[string]*Node, len(set.Endpoints))
	order := make([]*Node, 0, len(set.Endpoints))
	var joined []*Node
	var moved []*Node // to another address, or with another name
	anyOld := len(b.nodes) > 0
	for _, e := range set.Endpoints {
		key := e.Key()
		if seen[key] != nil {
			continue
		}
		n := b.nodes[key]
		switch {
		case n == nil:
			n = b.newNode(key, e, ns, anyOld)
			joined = append(joined, n)
			change.Added = append(change.Added, key)
		case !n.Endpoint().Equal(e):
			old := n.Endpoint()
			n.set(e)
			change.Changed++
			if old.Addr != e.Addr || old.ServerName != e.ServerName || !slices.Equal(old.Fallback, e.Fallback) {
				moved = append(moved, n)
			}
		}
		seen[key] = n
		order = append(order, n)
	}
	var gone []*Node
	layers := b.layers
	for key, n := range b.nodes {
		if seen[key] == nil {
			gone = append(gone, n)
			change.Removed = append(change.Removed, key)
		}
	}
	slices.Sort(change.Removed)
	slices.SortFunc(gone, func(a, b *Node) int { return strings.Compare(a.key, b.key) })
	b.nodes, b.order = seen, order
	change.Total = len(order)
	if len(change.Added)+len(change.Removed)+change.Changed > 0 || first {
		b.events.Add(b.ctx, b.cfg.Observer, change)
		b.rebuild(change.Changed > 0)
	} else if s := b.current.Load(); s != nil && b.cfg.OnDemand {
		renewed := *s
		renewed.expires = b.since(b.resolveAt)
		b.current.Store(&renewed)
	}
	for _, n := range gone { // when they are picked no more
		b.retire(n)
	}
	if first {
		b.wake()
	}
	b.mu.Unlock()
	for _, l := range layers {
		for _, n := range moved {
			l.renew(n)
		}
		for _, n := range joined {
			l.warm(n)
		}
	}
	b.notify()
}

// newNode returns the node of a new endpoint. b.mu is held.
func (b *Balancer) newNode(key string, e discovery.Endpoint, now int64, slowStart bool) *Node {
	n := &Node{nodeRest: &nodeRest{owner: b, key: key}}
	n.gate.Store(b.closedGate)
	n.tally.Store(uint32(now >> b.tallyShift)) //nolint:gosec // modular
	n.set(e)
	if b.checker != nil {
		b.checker.add(n)
	}
	if median := b.typicalLatency(); median > 0 {
		n.seed(now, median)
	}
	if slowStart { // with all nodes new there is nobody to take the load meanwhile
		n.warmUp(now)
	}
	cfg := b.cfg.Breaker
	cfg.Observer = event.Tee(event.ObserverFunc(func(_ context.Context, e event.Event) {
		if e, ok := e.(breaker.StateChanged); ok {
			n.breakerChanged(e)
		}
	}), cfg.Observer, b.cfg.Observer)
	name := b.service
	if key != name {
		name += "/" + key
	}
	n.breaker, _ = breaker.New(name, &cfg) // validated by New
	if b.cfg.ObserveOnly {
		n.breaker.Disable()
	}
	return n
}

// set takes an endpoint's properties.
func (n *Node) set(e discovery.Endpoint) {
	n.endpoint.Store(&e)
	weight := e.Weight
	if !(weight > 0) {
		weight = 1
	}
	weight = min(max(weight, 1e-30), 1e30) // nobody means more than that by it
	n.inverse.Store(math.Float32bits(float32(1 / weight)))
}
