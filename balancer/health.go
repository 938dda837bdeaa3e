package balancer

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/internal/clock"
)

// checker checks the nodes of a balancer. One goroutine owns the schedule, and each
// check that is under way is another.
type checker struct {
	b     *Balancer
	cfg   *HealthConfig
	check func(ctx context.Context, n *Node) error

	ready   chan struct{}             // closed when checks can be made
	once    sync.Once                 // closes it
	layer   atomic.Pointer[transport] // whose connections and dialer checks use; set before ready where they must
	told    atomic.Pointer[string]    // Scheme; nil if it is left to what calls use, until one has told
	joined  chan struct{}             // tells that there are nodes in fresh, or that all is to start anew
	results chan *checked

	mu    sync.Mutex
	fresh []*Node // that have joined
	anew  bool    // what was found out so far says nothing

	// The rest belongs to run.
	queue schedule
	under []underWay // oldest first; some have ended
	busy  int        // those that are neither ended nor overdue
}

// underWay is a check that has begun.
type underWay struct {
	*checked
	at int64
}

// awaited reports whether the check is neither ended nor overdue.
func (u underWay) awaited() bool { return u.running && !u.overdue && u.began == u.at }

// checked is a node's place in the schedule.
type checked struct {
	*Node
	due     int64
	began   int64
	row     int   // results of one kind, in a row
	well    bool  // what kind
	known   bool  // there has been a result
	running bool  // a check is under way
	void    bool  // which says nothing
	overdue bool  // which has been counted as a failure already
	err     error // of the check that has ended
}

// startChecks begins to check the nodes.
func (b *Balancer) startChecks() {
	c := &checker{
		b: b, cfg: &b.cfg.Health, check: b.cfg.Health.Check,
		ready: make(chan struct{}), joined: make(chan struct{}, 1), results: make(chan *checked, b.cfg.Health.Concurrency),
	}
	if c.cfg.Scheme != "" {
		c.told.Store(&c.cfg.Scheme)
	}
	switch {
	case c.check != nil:
	case c.cfg.TCP == On:
		c.check = c.connect
	default:
		c.check = c.request
	}
	if c.cfg.Path == "" {
		close(c.ready)
	}
	b.checker = c
	b.work.Go(c.run)
}

// add has nodes that have joined checked. b.mu is held.
func (c *checker) add(n *Node) {
	if c.cfg.InitialUnhealthy == On {
		n.unhealthy.Store(true)
		n.sick = reason{kind: notChecked}
	}
	c.mu.Lock()
	c.fresh = append(c.fresh, n)
	c.mu.Unlock()
	c.wake()
}

func (c *checker) wake() {
	select {
	case c.joined <- struct{}{}:
	default: // it is told already
	}
}

// startAnew has all nodes checked at once, as if they had just joined.
func (c *checker) startAnew() {
	c.mu.Lock()
	c.anew = true
	c.mu.Unlock()
	c.wake()
}

// forget is startAnew in run.
func (c *checker) forget(now int64) {
	for _, k := range c.queue {
		k.due, k.known = now, false
	}
	for _, u := range c.under {
		if u.running {
			u.known, u.void = false, true
		}
	}
}

// run keeps the schedule until the balancer is closed.
func (c *checker) run() {
	select {
	case <-c.ready:
	case <-c.b.ctx.Done():
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := c.b.since(clock.Now())
		for c.busy < c.cfg.Concurrency && len(c.queue) > 0 && c.queue[0].due <= now {
			c.begin(heap.Pop(&c.queue).(*checked), now) //nolint:forcetypeassert,errcheck // there is nothing else
		}
		timer.Reset(c.wait(now))
		select {
		case <-c.joined:
			c.mu.Lock()
			fresh, anew := c.fresh, c.anew
			c.fresh, c.anew = nil, false
			c.mu.Unlock()
			if anew {
				c.forget(c.b.since(clock.Now()))
			}
			for _, n := range fresh {
				heap.Push(&c.queue, &checked{Node: n, due: now})
			}
		case k := <-c.results:
			changed := c.ended(k)
			for more := true; more; { // who is eligible is thought over once for all of them
				select {
				case k = <-c.results:
					changed = c.ended(k) || changed
				default:
					more = false
				}
			}
			c.tell(changed)
		case <-timer.C:
			c.tell(c.expire(c.b.since(clock.Now())))
		case <-c.b.ctx.Done():
			return
		}
	}
}

// wait returns how long there is nothing to do but to wait for results and nodes.
func (c *checker) wait(now int64) time.Duration {
	next := now + int64(time.Hour)
	if len(c.queue) > 0 && c.busy < c.cfg.Concurrency {
		next = min(next, c.queue[0].due)
	}
	for len(c.under) > 0 && !c.under[0].awaited() {
		c.under = c.under[1:]
	}
	if len(c.under) > 0 {
		next = min(next, c.under[0].at+int64(c.cfg.Timeout))
	}
	return time.Duration(max(next-now, 0))
}

// begin begins a check.
func (c *checker) begin(k *checked, now int64) {
	if k.hasLeft() {
		return
	}
	k.began, k.running, k.overdue, k.void = now, true, false, false
	c.under = append(c.under, underWay{k, now})
	c.busy++
	start := c.b.dials.start
	if c.cfg.Check != nil {
		start = c.b.work.Go
	}
	start(func() {
		ctx, cancel := context.WithTimeoutCause(c.b.ctx, c.cfg.Timeout, errCheckTimeout)
		k.err = errCheckEnded
		defer func() { // also if it panics, or ends the goroutine
			if v := recover(); v != nil {
				k.err = fmt.Errorf("it panicked: %v", v)
			}
			if k.err != nil && context.Cause(ctx) == errCheckTimeout { //nolint:errorlint // that very one
				k.err = c.timedOut()
			}
			cancel()
			select {
			case c.results <- k:
			case <-c.b.ctx.Done():
			}
		}()
		k.err = c.check(ctx, k.Node)
	})
}

var (
	errCheckTimeout = errors.New("balancer: the health check took too long")
	errCheckEnded   = errors.New("it ended its goroutine")
)

func (c *checker) timedOut() error { return fmt.Errorf("no answer within %v", c.cfg.Timeout) }

// expire counts checks that go on for too long as failures, and reports whether that
// changes anything.
func (c *checker) expire(now int64) (changed bool) {
	for _, u := range c.under {
		if u.at+int64(c.cfg.Timeout) > now {
			break
		}
		if u.awaited() {
			u.overdue = true
			c.busy--
			if !u.void {
				changed = c.judge(u.checked, c.timedOut()) || changed
			}
		}
	}
	return changed
}

// ended takes the result of a check, and reports whether that changes anything.
func (c *checker) ended(k *checked) (changed bool) {
	k.running = false
	if !k.overdue {
		c.busy--
		if !k.void {
			changed = c.judge(k, k.err)
		}
	}
	interval := c.cfg.Interval
	if k.unhealthy.Load() {
		interval = c.cfg.UnhealthyInterval
	}
	vary := c.cfg.Jitter * (2*float64(c.b.draw.below(1<<20))/(1<<20) - 1)
	k.due = c.b.since(clock.Now()) + int64(float64(interval)*(1+vary))
	if k.void {
		k.due = c.b.since(clock.Now())
	}
	if !k.hasLeft() {
		heap.Push(&c.queue, k)
	}
	return changed
}

// judge takes a result into account, and reports whether somebody else is healthy
// now.
func (c *checker) judge(k *checked, err error) bool {
	b := c.b
	if k.hasLeft() {
		return false
	}
	well := err == nil
	if well != k.well || !k.known {
		k.row = 0
	}
	k.row++
	enough := !k.known || well && k.row >= c.cfg.Healthy || !well && k.row >= c.cfg.Unhealthy
	k.well, k.known = well, true
	if well && k.ejectedAt.Load() <= k.began && k.ejected.Load() > k.began {
		b.release(k.Node, b.since(clock.Now()))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !well {
		k.sick = reason{kind: badHealth, err: err}
	}
	if !enough || k.unhealthy.Load() != well {
		return false
	}
	if k.unhealthy.Store(!well); well && b.cfg.SlowStart > 0 {
		k.warmUp(b.since(clock.Now()))
	}
	return true
}

// tell has the balancer think anew.
func (c *checker) tell(changed bool) {
	if changed {
		c.b.reconsider()
	}
}

// connect is a check by a connection.
func (c *checker) connect(ctx context.Context, n *Node) error {
	port := "80"
	if c.scheme(n) == "https" {
		port = "443"
	}
	base := c.b.cfg.Dial
	if l := c.layer.Load(); l != nil && l.template != nil {
		base = l.dialer() // as the calls go
	}
	conn, err := c.dial(ctx, n, base, port)
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial connects to where n is checked. The port is for endpoints without one.
func (c *checker) dial(ctx context.Context, n *Node, base dialFunc, port string) (net.Conn, error) {
	return c.b.dialAny(ctx, n, func(ctx context.Context, addr string) (net.Conn, error) {
		network, addr, err := c.addr(addr, port)
		if err != nil {
			return nil, err
		}
		return c.b.dialWithin(ctx, base, network, addr)
	})
}

// addr returns what to dial for an endpoint's address.
func (c *checker) addr(addr, port string) (network, hostport string, err error) {
	if c.cfg.Port == 0 {
		return discovery.DialAddr(addr, port)
	}
	port = strconv.Itoa(c.cfg.Port)
	if network, hostport, err = discovery.DialAddr(addr, port); network == "tcp" {
		host, _, _ := net.SplitHostPort(hostport)
		hostport = net.JoinHostPort(host, port)
	}
	return network, hostport, err
}

// schedule is a heap of what is to be checked, the next first.
type schedule []*checked

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(i, j int) bool { return s[i].due < s[j].due }
func (s schedule) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }
func (s *schedule) Push(x any)        { *s = append(*s, x.(*checked)) } //nolint:forcetypeassert,errcheck // as above
func (s *schedule) Pop() any {
	last := len(*s) - 1
	k := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	return k
}
