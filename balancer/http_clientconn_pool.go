package balancer

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/internal/attempt"
)

// pool is a node's connections for one scheme and host.
//
// A member is in free while it has room for a call: one of HTTP/1.1 until it is picked,
// one of HTTP/2 until it is found to be full. Net/http's state hook says when there is
// room again. For HTTP/2 it is costly, as it looks at the connection's state thrice a
// call or more, and so it is set only where somebody has to know: see listen.
// Nothing of net/http's is called with mu held: it answers with the state hook, on
// the same goroutine (golang/go#80680), and with locks of its own.
type pool struct {
	owner *clientConns
	conn  *conn
	key   hostKey
	addr  string          // host and port, in ASCII
	t     *http.Transport // makes connections
	http1 *http.Transport // for calls that need HTTP/1.1 where the pool may speak HTTP/2; else nil
	quota int             // calls for each connection, before jitter; 0: no limit
	most  int             // connections; 0: no limit
	lanes int             // over how many connections of HTTP/2 calls are spread
	h2c   bool            // HTTP/2 without TLS
	idle  time.Duration   // how long an HTTP/1.1 connection may be; 0: for ever
	keep  int             // how many of them may be idle; 0: all

	ctx    context.Context //nolint:containedctx // of the dials
	cancel context.CancelFunc

	mu      sync.Mutex
	ended   error // why it takes no more calls
	known   bool  // by a first connection, whether
	shared  bool  // it is HTTP/2, whose connections carry many calls
	members map[*clientConn]struct{}
	free    []*clientConn // of which the first is the next one
	waiting []*waiter
	dialing int
	landed  int         // dials under way whose connection is a member already
	inHand  int         // HTTP/2 connections that calls have waited for and are about to give back
	sweeper *time.Timer // closes what is idle; nil if nothing is
	looker  *time.Timer // looks at connections that calls wait for; nil if none do

	filling, asleep bool
	failures        int // in a row: dials ahead, and connections lost that had never been used
}

// clientConn is one connection.
type clientConn struct {
	pool  *pool
	cc    *http.ClientConn
	wire  *wire
	since int64       // when it was made
	quota int         // calls that it takes; 0: no limit
	age   *time.Timer // at which it is retired; may be nil

	streams int          // of HTTP/2: how many there may be at once, as the server said at first
	used    atomic.Bool  // has answered a call
	hooked  atomic.Bool  // the state hook of HTTP/2 is set
	picks   atomic.Int32 // calls that it has been picked for and that have no answer yet
	retired atomic.Bool  // it gets no more, and is closed when it is idle

	// Guarded by pool.mu.
	queued bool  // it is in free
	calls  int   // it was picked for
	put    int64 // when it was put there

	seat attempt.Seat // for the bounds of calls that have the connection for themselves
	// turn tells such calls apart. Each adds 2 when net/http has reserved the connection
	// for it: that m was picked for a call says little, as the hook may be late and offer
	// it again. It is odd when the call has been cut.
	turn atomic.Int64
}

// waiter is a call that waits for a connection.
type waiter struct {
	ctx   context.Context //nolint:containedctx // for the dial
	ready chan struct{}   // closed when one of these is set
	m     *clientConn
	err   error
}

// errReplaced means that the pool has been replaced meanwhile.
var errReplaced = errors.New("balancer: these connections have been replaced")

// acquire returns a connection for one call, which has a place there and either
// uses or releases it. An error has not touched the request. See send for r.
func (p *pool) acquire(req *http.Request, r *ridden) (*clientConn, error) {
	ctx := req.Context()
	if err := canceled(req); err != nil {
		return nil, err
	}
	for again := false; ; again = true {
		p.mu.Lock()
		if p.ended != nil {
			p.mu.Unlock()
			return nil, p.ended
		}
		if len(p.free) > 0 && (!p.shared || len(p.members)+p.dialing-p.landed >= p.lanes) {
			m := p.next()
			p.mu.Unlock()
			if m.reserve() {
				return m, nil
			}
			continue
		}
		p.asleep = false
		w := &waiter{ctx: ctx, ready: make(chan struct{})}
		if again { // it has waited before
			p.waiting = slices.Insert(p.waiting, 0, w)
		} else {
			p.waiting = append(p.waiting, w)
		}
		p.dialMore()
		p.lookLater()
		p.mu.Unlock()
		select {
		case <-w.ready:
		case <-ctx.Done():
			return nil, p.leave(w, req)
		case <-req.Cancel: //nolint:staticcheck // deprecated, but not gone
			return nil, p.leave(w, req)
		case <-r.aborting():
			return nil, p.leave(w, req)
		}
		if w.err != nil {
			return nil, w.err
		}
		reserved := w.m.reserve()
		if w.m.wire.http2 {
			room := reserved && w.m.cc.Available() > 0
			if reserved && !room {
				w.m.full() // else the next one that waits would wake up to find that out
			}
			w.m.handBack(room)
		}
		if reserved {
			return w.m, nil
		}
	}
}

// next picks the member whose turn it is. p.mu is held, and free is not empty.
func (p *pool) next() *clientConn {
	m := p.free[0]
	switch {
	case !m.wire.http2:
		p.remove(0)
	case len(p.free) > 1 && len(p.members) <= p.lanes:
		copy(p.free, p.free[1:])
		p.free[len(p.free)-1] = m
	}
	p.pick(m)
	return m
}

// leave gives back what w may have got, and returns why it goes.
func (p *pool) leave(w *waiter, req *http.Request) error {
	p.mu.Lock()
	if i := slices.Index(p.waiting, w); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
	m := w.m
	p.mu.Unlock()
	if m != nil {
		m.unused()
		m.handBack(true)
	}
	return cmp.Or(canceled(req), errTimeUp)
}

// errTimeUp is what a call gets whose attempt is over; the attempt knows better.
var errTimeUp = errors.New("balancer: no connection within the attempt's bounds")

// remove takes the i-th member out of free. p.mu is held.
func (p *pool) remove(i int) {
	p.free[i].queued = false
	p.free = slices.Delete(p.free, i, i+1)
}

// withdraw takes m out of free, if it is there. p.mu is held.
func (p *pool) withdraw(m *clientConn) {
	if m.queued {
		p.remove(slices.Index(p.free, m))
	}
}

// pick gives m a call. p.mu is held.
func (p *pool) pick(m *clientConn) {
	m.picks.Add(1)
	m.calls++
	if m.calls == m.quota {
		p.spend(m)
	}
}

// spend sees to it that m gets no more calls. p.mu is held; the caller sees to
// it that m is closed when it is idle.
func (p *pool) spend(m *clientConn) {
	m.retired.Store(true)
	if m.age != nil {
		m.age.Stop()
	}
	delete(p.members, m)
	p.withdraw(m)
	p.dialMore() // it may have been one too many
}

// offer gives m, which has room, to a call that waits, or keeps it for the next.
func (p *pool) offer(m *clientConn, first bool) {
	p.mu.Lock()
	p.place(m, first)
}

// place is offer with p.mu held, which it gives back.
func (p *pool) place(m *clientConn, first bool) {
	if m.queued || m.retired.Load() {
		p.dialMore()
		p.mu.Unlock()
		return
	}
	if len(p.waiting) > 0 {
		w := p.waiting[0]
		p.waiting = slices.Delete(p.waiting, 0, 1)
		w.m = m
		p.pick(m)
		if m.wire.http2 {
			p.inHand++
		}
		p.mu.Unlock()
		close(w.ready)
		return
	}
	if p.keep > 0 && !m.wire.http2 && len(p.free) >= p.keep {
		p.mu.Unlock()
		m.retire()
		return
	}
	m.queued = true
	if p.idle > 0 {
		m.put = p.conn.layer.b.since(time.Time{})
	}
	if first || m.wire.http2 && len(p.members) > p.lanes { // the more there are, the sooner are some idle
		p.free = slices.Insert(p.free, 0, m)
	} else {
		p.free = append(p.free, m)
	}
	p.sweepLater()
	p.mu.Unlock()
}

// reserve has net/http keep a place for a call that m was picked for, or lets m go.
func (m *clientConn) reserve() bool {
	if m.cc.Reserve() == nil {
		return m.wire.http2 || m.begin()
	}
	switch {
	case m.wire.http2:
		m.full()
	case m.dead():
		m.retire()
	case m.cc.Available() > 0: // a place has become free just now
		m.pool.offer(m, false)
	}
	m.unused()
	return false
}

// full takes m of HTTP/2, which was found to have no room, out of where it can be picked
// until it has.
func (m *clientConn) full() {
	m.pool.mu.Lock()
	m.pool.withdraw(m)
	m.pool.mu.Unlock()
	m.listen()
	m.changed(m.cc)
}

// dead reports whether m has no room though it carries fewer calls than it may: it is
// lost, or the server has said GOAWAY, which no hook tells. As calls come and go between
// two looks, one pair of them says little.
func (m *clientConn) dead() bool {
	for range 3 {
		calls := m.cc.InFlight()
		if calls > 0 && calls >= m.streams || m.cc.Available() > 0 {
			return false
		}
	}
	return true
}

// listen has the hook of HTTP/2 say when there is room on m again, which is full, or
// when m, which is retired, is idle. Whoever calls it looks whether that is so already.
func (m *clientConn) listen() {
	m.hooked.Store(true)
	m.cc.SetStateHook(m.changed)
}

// begin makes m the call's that it is reserved for, unless the one before has been cut:
// that had its answer, but not quite the end of it.
func (m *clientConn) begin() bool {
	if m.turn.Add(2)&1 == 0 {
		return true
	}
	m.retire()
	m.unsent()
	return false
}

// unsent gives back m, which has been reserved, without a call.
func (m *clientConn) unsent() {
	m.cc.Release()
	m.recall()
	m.release()
}

// recall offers m if it has room. It comes after Release, which runs the hook on its
// caller's goroutine: what net/http then does on others meanwhile it tells nobody.
func (m *clientConn) recall() {
	if !m.wire.http2 && m.cc.Available() > 0 {
		m.pool.offer(m, false)
	}
}

// unused takes note that m has not got the call that it was picked for.
func (m *clientConn) unused() {
	m.pool.mu.Lock()
	m.calls--
	m.pool.mu.Unlock()
	m.release()
}

// handBack gives m, which a call has waited for, to others, if there may be room.
func (m *clientConn) handBack(room bool) {
	p := m.pool
	p.mu.Lock()
	if m.wire.http2 {
		p.inHand--
	}
	if room {
		p.place(m, false)
		return
	}
	p.dialMore()
	p.mu.Unlock()
}

// changed is m's state hook.
func (m *clientConn) changed(cc *http.ClientConn) {
	switch {
	case cc.Err() != nil:
		m.lost()
	case m.retired.Load():
		m.closeIdle()
	case cc.Available() == 0:
		if m.wire.http2 && m.dead() {
			m.retire()
		}
	case m.wire.http2:
		// While it runs, net/http remembers nothing of what becomes of m.
		for again := true; again; again = m.hooked.Load() && cc.Available() > 0 {
			m.hooked.Store(false)
			cc.SetStateHook(nil)
			if m.retired.Load() { // perhaps just before that, by one who relies on the hook
				m.closeIdle()
				return
			}
			m.pool.offer(m, false)
		}
	default:
		m.pool.offer(m, false)
	}
}

// answered takes note that m is of use.
func (m *clientConn) answered() {
	if !m.used.Load() {
		m.used.Store(true)
		m.pool.mu.Lock()
		m.pool.failures = 0
		m.pool.mu.Unlock()
	}
}

// cut closes m if it still carries the call whose turn that was. If the answer is
// complete, it may carry another one's, or wait for it.
func (m *clientConn) cut(turn int64) {
	if m.cc.InFlight() > 0 && m.turn.CompareAndSwap(turn, turn+1) {
		m.lost()
	}
}

// release is called when a call has its answer, or does without.
func (m *clientConn) release() {
	if m.picks.Add(-1) == 0 && m.retired.Load() {
		m.closeIdle()
	}
}

// retire sees to it that m gets no more calls and is closed when it is idle.
func (m *clientConn) retire() {
	p := m.pool
	p.mu.Lock()
	if !m.retired.Load() {
		p.spend(m)
	}
	p.mu.Unlock()
	m.closeIdle()
}

// closeIdle closes m, which has been retired, unless calls are under way.
func (m *clientConn) closeIdle() {
	idle := func() bool { return m.picks.Load() == 0 && m.cc.InFlight() == 0 }
	if m.wire.http2 && !idle() {
		m.listen()
	}
	if idle() {
		m.lost()
	}
}

// gone is called when an HTTP/2 connection has been closed, by whoever it is, with locks
// of his.
func (m *clientConn) gone() {
	if !m.retired.Load() {
		m.pool.conn.layer.b.dials.start(m.lost)
	}
}

// lost forgets m, and has another connection made if there should be one.
func (m *clientConn) lost() {
	p := m.pool
	p.mu.Lock()
	if !m.retired.Load() {
		if p.conn.layer.b.since(time.Time{})-m.since > int64(maxFillRetry) {
			p.failures = 0 // it was good for something
		}
		if m.calls == 0 && !p.filling { // else it went along with others
			p.failures++
		}
		p.spend(m)
	}
	p.mu.Unlock()
	p.conn.node.watch.Remove(&m.seat)
	_ = m.cc.Close()
	p.fill()
}

// sweepLater arranges for idle connections to be closed. p.mu is held.
func (p *pool) sweepLater() {
	if p.idle <= 0 || p.sweeper != nil || p.shared || len(p.free) == 0 {
		return // net/http watches those of HTTP/2
	}
	first := slices.MinFunc(p.free, func(a, b *clientConn) int { return cmp.Compare(a.put, b.put) })
	in := p.idle - time.Duration(p.conn.layer.b.since(time.Time{})-first.put)
	p.sweeper = time.AfterFunc(max(in, 1), p.sweep)
}

func (p *pool) sweep() {
	p.mu.Lock()
	p.sweeper = nil
	if p.ended != nil {
		p.mu.Unlock()
		return
	}
	before := p.conn.layer.b.since(time.Time{}) - int64(p.idle)
	var old []*clientConn
	for _, m := range p.free {
		if m.put <= before {
			old = append(old, m)
		}
	}
	for _, m := range old {
		p.spend(m)
	}
	p.sweepLater()
	p.mu.Unlock()
	for _, m := range old {
		m.closeIdle()
	}
}

// lookAgain is how often members are looked at while calls wait.
const lookAgain = 50 * time.Millisecond

// lookLater has the members looked at while calls wait for them: net/http forgets what
// happens between the end of a hook and its next look at the connection, and no hook
// tells of a GOAWAY. p.mu is held.
func (p *pool) lookLater() {
	if p.looker == nil && len(p.waiting) > 0 && len(p.members) > 0 {
		p.looker = time.AfterFunc(lookAgain, p.look)
	}
}

func (p *pool) look() {
	p.mu.Lock()
	var busy []*clientConn
	for m := range p.members {
		if !m.queued && (m.hooked.Load() || p.most > 0 && !m.wire.http2) { // else it is about to be offered
			busy = append(busy, m)
		}
	}
	p.mu.Unlock()
	for _, m := range busy {
		m.changed(m.cc)
	}
	p.mu.Lock()
	p.looker = nil
	p.lookLater()
	p.mu.Unlock()
}

// closeIdle closes the connections that are idle. None are made ahead of calls
// until the next one.
func (p *pool) closeIdle() {
	p.mu.Lock()
	p.asleep = true
	free := slices.Clone(p.free)
	p.mu.Unlock()
	for _, m := range free {
		if m.cc.InFlight() == 0 {
			m.retire()
		}
	}
	if p.http1 != nil {
		p.http1.CloseIdleConnections()
	}
}

// end has the pool take no more calls, because of err, and closes its connections
// as they get idle.
func (p *pool) end(err error) {
	p.mu.Lock()
	if p.ended == nil {
		p.ended = err
	}
	waiting := p.waiting
	p.waiting = nil
	members := make([]*clientConn, 0, len(p.members))
	for m := range p.members {
		members = append(members, m)
	}
	if p.sweeper != nil {
		p.sweeper.Stop()
	}
	if p.looker != nil {
		p.looker.Stop()
	}
	p.mu.Unlock()
	p.cancel()
	for _, w := range waiting {
		w.err = err
		close(w.ready)
	}
	for _, m := range members {
		m.retire()
	}
	if p.http1 != nil {
		p.http1.CloseIdleConnections()
	}
}
