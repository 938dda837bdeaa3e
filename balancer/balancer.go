package balancer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/hash"
)

// Balancer spreads the calls to one service over its nodes. It follows a
// resolver, keeps a [Node] for each endpoint, decides which of them are
// eligible, and lets a [Policy] choose. All methods may be called concurrently.
type Balancer struct {
	service  string
	resolver discovery.Resolver
	cfg      Config
	epoch    time.Time
	began    int64    // epoch, by clock.Nanos
	checker  *checker // nil if nodes are not checked
	draw     draw

	tallyShift uint8  // how long nodes' tallies last
	pinned     bool   // contexts may say where a call should go
	closedGate uint64 // the gate of a node whose breaker is closed: gateFree or gateAsk

	current atomic.Pointer[snapshot] // what picks use; nil until the first set
	typical atomic.Uint64            // the median of the nodes' latencies, as the bits of a float64
	failing atomic.Uint64            // the nodes' common failure rate, likewise
	renewAt atomic.Int64             // when refresh is due
	room    atomic.Int32             // how many more nodes may be ejected
	fleet   fleetReports             // what the nodes report, on average
	reads   bool                     // whether reports of load are wanted

	hints  chan struct{}
	ctx    context.Context //nolint:containedctx // the life of the balancer's goroutines
	cancel context.CancelCauseFunc
	work   sync.WaitGroup
	dials  dials

	mu        sync.Mutex // guards what follows; never held while picking or calling out
	nodes     map[string]*Node
	order     []*Node // as the resolver yielded them
	leaving   map[*Node]*time.Timer
	timer     *time.Timer
	sweepAt   int64 // when failure rates are looked at
	closed    bool
	lastErr   error
	staleErr  error // since lastSet
	lastSet   time.Time
	changed   chan struct{} // closed and replaced at the first set and at each error before it
	resolving bool
	resolveAt time.Time // OnDemand: not before
	failures  int       // OnDemand: in a row
	watchers  map[int]func()
	watcherID int
	leavers   map[int]func(*Node) // see OnLeave
	layers    []*transport
	events    event.Queue

	tables tables // of Maglev
}

// snapshot is what a pick sees. It is immutable.
type snapshot struct {
	group            // what a pick chooses from, if there is but one; no picker if nobody is eligible
	groups   []group // if there are several
	eligible []*Node // those of all groups
	standby  []*Node // well, and without a share of the calls
	probing  []*Node // half-open: a few calls each, beside the policy
	ejected  []*Node // a call now and then, to see whether they are well again
	bad      []*Node // ejected or unhealthy, and not used
	refusing []*Node // open: asked only if there is nobody else
	earliest *Node   // the one of refusing that may be tried first
	nextTry  int64   // and when
	expires  int64   // OnDemand: when to ask the resolver again

	subsets map[string]*snapshot // one for each of Config.Subsets

	panicking bool // ejections are being ignored
	closed    bool // or rather the calls refused
	unmatched bool // a subset that no endpoint belongs to
}

// New returns a balancer for a service whose endpoints r finds. It supervises r
// (see [discovery.Supervise]). A nil cfg means every default. Close it when it
// is no longer needed.
func New(service string, r discovery.Resolver, cfg *Config) (*Balancer, error) {
	if cfg == nil {
		cfg = new(Config)
	}
	var errs []error
	if service == "" {
		errs = append(errs, errors.New(`balancer: service is "", want a name`))
	}
	if r == nil {
		errs = append(errs, errors.New("balancer: resolver is nil, want one, such as discovery.DNS(nil)"))
	}
	if v, ok := r.(interface{ Validate() error }); ok {
		errs = append(errs, v.Validate())
	}
	if err := errors.Join(append(errs, cfg.Validate())...); err != nil {
		return nil, err
	}
	return start(service, r, cfg.withDefaults()), nil
}

// start returns a balancer of valid arguments and a config with its defaults.
func start(service string, r discovery.Resolver, cfg Config) *Balancer {
	b := &Balancer{
		service: service, resolver: discovery.Supervise(r, nil), cfg: cfg, epoch: clock.Now(),
		hints: make(chan struct{}, 1), nodes: make(map[string]*Node), leaving: make(map[*Node]*time.Timer),
		watchers: make(map[int]func()), changed: make(chan struct{}),
	}
	b.began, b.reads = clock.Nanos(b.epoch), readsReports(b.cfg.Policy)
	b.tallyShift = tallyShift(cmp.Or(b.cfg.Breaker.Window, 10*time.Second))
	b.pinned = readsKeys(b.cfg.Policy) || b.cfg.Override || len(b.cfg.Subsets) > 0
	if b.cfg.Breaker.SlowTime > 0 || b.cfg.Breaker.Consecutive > 0 || b.cfg.Breaker.RampUp > 0 {
		b.closedGate = gateAsk // these want to see every call
	}
	b.ctx, b.cancel = context.WithCancelCause(discovery.WithHints(context.Background(), b.hints))
	if b.cfg.Health.enabled() {
		b.startChecks()
	}
	if !b.cfg.OnDemand {
		b.work.Go(b.follow)
	}
	return b
}

// Service returns the service's name.
func (b *Balancer) Service() string { return b.service }

// since returns the nanoseconds from the balancer's beginning to now; a zero now is the
// present, which then is never made a time.Time.
func (b *Balancer) since(now time.Time) int64 {
	if now.IsZero() {
		return clock.Present() - b.began
	}
	return int64(now.Sub(b.epoch))
}

// at is the inverse of since.
func (b *Balancer) at(ns int64) time.Time { return b.epoch.Add(time.Duration(ns)) }

// Acquire takes a lease on the node that the policy chooses for c. A node
// that refuses – its breaker is open, or it is full – is passed over for
// another, at once. Until the first endpoints are known it waits, within ctx;
// with them known it never blocks.
//
// If every node refuses, the error is the [*breaker.OpenError] that will pass
// first, around that node's last real error, or a [*limit.FullError]. Otherwise
// it is an [*Error].
func (b *Balancer) Acquire(ctx context.Context, c Call) (l Lease, err error) {
	err = b.acquire(ctx, &c, nil, &l)
	return l, err
}

// acquire is Acquire that puts the lease where it will stay: it has the size of
// a cache line, and handing it from function to function cost a third of a pick.
// It may change *c.
func (b *Balancer) acquire(ctx context.Context, c *Call, frame *call.Frame, l *Lease) error {
	s, at := b.current.Load(), b.since(c.Now)
	if s == nil || b.cfg.OnDemand {
		known, err := b.await(ctx, s, at)
		if err != nil {
			return err
		}
		if s == nil { // the wait is nothing that a node could be blamed for
			s, c.Now = known, clock.Now()
			at = b.since(c.Now)
		}
	}
	switch {
	case c.Node != "":
		b.mu.Lock()
		n := b.nodes[c.Node]
		b.mu.Unlock()
		return b.only(n, c, at, frame, l)
	case c.Subset != "":
		return b.chooseSubset(s, c, at, frame, l)
	}
	return b.choose(s, c, at, frame, l)
}

// only takes a lease on the node that the call asks for, which is nil if there is no
// such node.
func (b *Balancer) only(n *Node, c *Call, at int64, frame *call.Frame, l *Lease) error {
	if n == nil {
		return &Error{Service: b.service, Err: fmt.Errorf("%w: there is no node %q", ErrNoNodes, c.Node)}
	}
	err := n.acquire(b, c, at, l)
	if err != nil {
		frame.Refused(n.key, refuser(err), err)
	}
	return err
}

// groupSeed makes the group that a key falls to independent of its node there: else
// a group would have the use of a part of Maglev's table only.
const groupSeed = 0xba15

// choose takes a lease from s, of whatever subset, at a time since the balancer's
// beginning. Call.Now may be zero, until somebody wants it.
func (b *Balancer) choose(s *snapshot, c *Call, at int64, frame *call.Frame, l *Lease) error {
	if b.probes(s, c, at, l) {
		return nil
	}
	if s.picker == nil {
		return b.lastResort(s, c, at, nil, &refusals{frame: frame}, l)
	}
	g := &s.group
	if s.groups != nil {
		point := b.draw.uint64()
		if c.Key != "" {
			point = hash.String(groupSeed, c.Key)
		}
		g = s.draw(point >> 32)
	}
	var first *Node
	if g.peak != nil {
		// Not by way of the interface: copying the call costs a tenth of a pick.
		first = g.peak.pick(c, at)
	} else {
		now := c.Now
		if now.IsZero() {
			c.Now = b.at(at)
		}
		first = g.picker.Pick(*c)
		c.Now = now // c may be used again, at another time
	}
	if first == nil || (len(c.Avoid) > 0 && c.avoids(first)) {
		first = b.another(s.eligible, c, first)
		if len(s.standby) > 0 && c.avoids(first) {
			first = b.another(s.standby, c, first)
		}
	}
	err := first.acquire(b, c, at, l)
	if err == nil {
		return nil
	}
	why := refusals{frame: frame}
	why.add(first, err)
	// Not the policy's turn any more: it might insist.
	start := b.draw.below(len(s.eligible))
	for i := range s.eligible {
		n := s.eligible[(start+i)%len(s.eligible)]
		if n == first || c.avoids(n) {
			continue
		}
		if err = n.acquire(b, c, at, l); err == nil {
			return nil
		}
		why.add(n, err)
	}
	return b.lastResort(s, c, at, first, &why, l)
}

// refusals is what a call hears from nodes that will not have it.
type refusals struct {
	frame *call.Frame // hears of them; may be nil
	open  *breaker.OpenError
	full  error
}

func (r *refusals) add(n *Node, err error) {
	r.frame.Refused(n.key, refuser(err), err)
	var e *breaker.OpenError
	switch {
	case !errors.As(err, &e):
		r.full = err
	case r.open == nil || r.open.RetryAfter == 0 || 0 < e.RetryAfter && e.RetryAfter < r.open.RetryAfter:
		r.open = e // whose RetryAfter may be unknown, if it is held open by hand
	}
}

// refuser names what refused, for the call's log.
func refuser(err error) string {
	if errors.Is(err, breaker.ErrOpen) {
		return "breaker"
	}
	return "concurrency"
}

func (r *refusals) err() error {
	if r.full != nil {
		return r.full
	}
	return r.open
}

// another returns a random node of nodes that c does not avoid, or else
// fallback, or else any.
func (b *Balancer) another(nodes []*Node, c *Call, fallback *Node) *Node {
	start := b.draw.below(len(nodes))
	for i := range nodes {
		if n := nodes[(start+i)%len(nodes)]; !c.avoids(n) {
			return n
		}
	}
	if fallback != nil {
		return fallback
	}
	return nodes[start]
}

// probes takes a lease on a node that is to be looked at, if this call is the one for
// it.
func (b *Balancer) probes(s *snapshot, c *Call, at int64, l *Lease) bool {
	return len(s.probing)+len(s.ejected) > 0 && b.probe(s, c, at, l)
}

// probe gives half-open nodes their share of the calls. Their cost may be
// anything, so the policy alone might never choose them, and they would never
// be found well again.
//
// Ejected nodes get one when it is due; a retry has better chances elsewhere.
func (b *Balancer) probe(s *snapshot, c *Call, at int64, l *Lease) bool {
	if len(c.Avoid) == 0 { // a retry is no probe
		for _, n := range s.ejected {
			if n.dueProbe(b, at) {
				return n.acquire(b, c, at, l) == nil
			}
		}
	}
	i := b.draw.below(len(s.eligible) + len(s.probing))
	if i >= len(s.probing) || c.avoids(s.probing[i]) {
		return false
	}
	return s.probing[i].acquire(b, c, at, l) == nil
}

// lastResort asks those that stand by, are half-open or open when no eligible node
// would do, and then those that the call wanted to avoid; first has been asked. It says
// why if that is in vain.
func (b *Balancer) lastResort(s *snapshot, c *Call, at int64, first *Node, why *refusals, l *Lease) error {
	refusing := s.refusing
	switch {
	case s.closed:
		return &Error{Service: b.service, Err: ErrPanic}
	case len(s.eligible)+len(s.probing)+len(s.refusing) == 0:
		return &Error{Service: b.service, Err: ErrNoNodes}
	case len(s.eligible)+len(s.probing) == 0 && at < s.nextTry:
		// All are open, and for some time yet. One of them can say so: a dead
		// service should cost its callers nothing.
		refusing = []*Node{s.earliest}
	}
	for i, nodes := range [...][]*Node{s.standby, s.probing, refusing, s.eligible} {
		for _, n := range nodes {
			if i == 3 && (n == first || !c.avoids(n)) {
				continue
			}
			err := n.acquire(b, c, at, l)
			if err == nil {
				return nil
			}
			why.add(n, err)
		}
	}
	return why.err()
}

// refreshEvery is how often the figures that all nodes have in common are made
// anew, and refreshSample how many nodes are asked for them: so many that it
// does not matter, and so few that it costs nothing.
const (
	refreshEvery  = int64(100 * time.Millisecond)
	refreshSample = 128
)

// refresh renews the common figures if they are due. Whoever comes first does
// it; the others go on.
func (b *Balancer) refresh(now int64) {
	due := b.renewAt.Load()
	if now < due || !b.renewAt.CompareAndSwap(due, now+refreshEvery) {
		return
	}
	s := b.current.Load()
	if s == nil {
		return
	}
	var latencies [refreshSample]float64
	known := 0
	var answers, failures float64
	nodes := s.eligible
	step := max(1, (len(nodes)+refreshSample-1)/refreshSample)
	start := b.draw.below(step)
	guesses := false
	for i := start; i < len(nodes); i += step {
		n := nodes[i]
		estimate, tick := unpackEstimate(n.estimate.Load())
		if estimate <= 0 {
			guesses = true
			continue
		}
		latencies[known] = float64(estimate) * decay(now>>tickShift, tick)
		known++
		a, f := n.rates(b, now)
		answers += a
		failures += f
	}
	if known == 0 {
		return
	}
	slices.Sort(latencies[:known])
	median := latencies[known/2]
	b.typical.Store(math.Float64bits(median))
	if guesses {
		// A guess that did not decay as what is measured does would keep a node
		// from ever being tried while the others have nothing to do.
		for i := start; i < len(nodes); i += step {
			nodes[i].seed(now, median)
		}
	}
	b.failing.Store(math.Float64bits(failures / (answers + doubt)))
}

// typicalLatency is the median of the nodes' latencies in nanoseconds, 0 while
// nothing is known.
func (b *Balancer) typicalLatency() float64 { return math.Float64frombits(b.typical.Load()) }

// failureRate is the rate at which the nodes fail, taken together.
func (b *Balancer) failureRate() float64 { return math.Float64frombits(b.failing.Load()) }

// Nodes returns the nodes of the present set, in the resolver's order.
func (b *Balancer) Nodes() []*Node {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.order)
}

// InFlight returns the number of leases that are not done, those on nodes that
// have left the set among them.
func (b *Balancer) InFlight() int {
	b.mu.Lock()
	nodes := slices.AppendSeq(slices.Clone(b.order), maps.Keys(b.leaving))
	layers := b.layers
	b.mu.Unlock()
	total := 0
	for _, n := range nodes {
		total += n.InFlight()
	}
	for _, l := range layers {
		l.mu.Lock()
		alone := l.alone
		l.mu.Unlock()
		if alone != nil {
			total += alone.InFlight()
		}
	}
	return total
}

// Eject leaves a node alone for a time, as an operator may want to. It gets
// calls again when the time is over, after [Balancer.Restore], or in panic mode.
// It returns an error if there is no such node or the time is not positive.
func (b *Balancer) Eject(key string, d time.Duration) error {
	if d <= 0 {
		return fmt.Errorf("balancer: ejection of %q for %v, want > 0", key, d)
	}
	now := b.since(time.Time{})
	return b.setEjected(key, now+min(int64(d), math.MaxInt64-now))
}

// Restore ends a node's ejection. It returns an error if there is no such node.
func (b *Balancer) Restore(key string) error { return b.setEjected(key, b.since(time.Time{})) }

func (b *Balancer) setEjected(key string, until int64) error {
	b.mu.Lock()
	n := b.nodes[key]
	if n != nil {
		n.why = reason{kind: byHand}
		n.unwell.And(^(probation | failureMask))
		n.rowAnswers.Store(0)
		n.rowLocal.Store(0)
		n.ejected.Store(until)
	}
	b.mu.Unlock()
	if n == nil {
		return fmt.Errorf("balancer: service %q has no node %q", b.service, key)
	}
	b.reconsider()
	return nil
}

// Close ends the balancer: the resolver is let go, calls that wait for nodes
// fail with ErrClosed, and so do later ones; connections made by its layers are
// closed, whatever is still going on over them, and dials are ended. It waits for
// the balancer's goroutines, which takes as long as the resolver takes to leave its
// watch, and for a second at most for a dialer that does not heed its context. It may
// be called more than once.
func (b *Balancer) Close() error {
	b.mu.Lock()
	first := !b.closed
	b.closed = true
	if first {
		if b.timer != nil {
			b.timer.Stop()
		}
		for _, t := range b.leaving {
			if t != nil {
				t.Stop()
			}
		}
		b.wake()
	}
	layers := b.layers
	leavers := slices.Collect(maps.Values(b.leavers))
	nodes := slices.AppendSeq(slices.Clone(b.order), maps.Keys(b.leaving))
	b.mu.Unlock()
	b.cancel(ErrClosed)
	b.current.Store(nil)
	for _, l := range layers {
		l.close()
	}
	for _, n := range nodes {
		n.links.close()
		for _, left := range leavers {
			left(n)
		}
	}
	b.work.Wait()
	b.dials.wait(dialersTime)
	b.notify()
	return nil
}
