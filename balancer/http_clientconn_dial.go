package balancer

import (
	"context"
	"io"
	"net"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/net/idna"
)

func newPool(cs *clientConns, key hostKey) *pool {
	c := cs.conn
	cfg := &c.layer.b.cfg
	u := url.URL{Scheme: key.scheme, Host: key.host}
	host, port := u.Hostname(), u.Port()
	if ascii, err := idna.Lookup.ToASCII(host); err == nil {
		host = ascii
	}
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[key.scheme]
	}
	p := &pool{
		owner: cs, conn: c, key: key, addr: net.JoinHostPort(host, port),
		quota: cfg.Conns.MaxRequests, lanes: cfg.Conns.HTTP2Conns, members: make(map[*clientConn]struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(c.layer.b.ctx)
	name := c.node.Endpoint().ServerName
	p.t = fromTemplate(c.layer.template, p.dialPlain, cfg, name)
	p.most, p.t.MaxConnsPerHost = p.t.MaxConnsPerHost, 0 // net/http counts down what it has not counted up, and panics
	p.idle = p.t.IdleConnTimeout
	if p.t.MaxIdleConnsPerHost > 0 && p.t.MaxIdleConnsPerHost != manyIdle {
		p.keep = p.t.MaxIdleConnsPerHost
	}
	if p.most > 0 {
		p.lanes = min(p.lanes, p.most)
	}
	p.t.DialTLSContext = p.dialTLS
	p.t.CloseIdleConnections() // settles its TLS configuration
	if key.scheme == "http" {  // net/http's rule
		p.h2c = p.t.Protocols != nil && p.t.Protocols.UnencryptedHTTP2() && !p.t.Protocols.HTTP1()
	}
	p.shared = p.h2c
	p.known = key.scheme == "http" || !cfg.H2C && !speaksHTTP2(c.layer.template)
	if !p.known {
		p.http1 = fromTemplate(c.layer.template, p.dialPlain, cfg, name)
	}
	return p
}

// wire is what a member knows of its connection.
type wire struct {
	visible net.Conn // what a trace is shown: the connection, with TLS if it has it
	http2   bool
	writes  writes
	// awaited is the number of the write by which net/http acknowledges the
	// settings of an HTTP/2 server: the second, after its own. Only then it knows
	// how many streams there may be (RFC 9113 §6.5.3).
	awaited int64
	settled chan struct{}              // closed then
	lost    chan struct{}              // closed with the connection
	member  atomic.Pointer[clientConn] // of HTTP/2, once it is one; there is no hook to tell it
}

// wrote takes note of writes that have ended, so many of them by now.
func (w *wire) wrote(count, ended int64) {
	if ended-count < w.awaited && w.awaited <= ended {
		close(w.settled)
	}
}

// end is called when the connection has been closed.
func (w *wire) end() {
	close(w.lost)
	if m := w.member.Load(); m != nil {
		m.gone()
	}
}

// speaks takes note of the protocol, before net/http writes the first byte of it.
func (w *wire) speaks(http2 bool) {
	if w.http2 = http2; http2 {
		w.awaited = w.writes.ended.Load() + 2
	}
}

// wireKey is what a dial's context has the place under where the dialer leaves the wire.
type wireKey struct{}

// dialPlain connects to the node, whatever the address.
func (p *pool) dialPlain(ctx context.Context, _, service string) (net.Conn, error) {
	nc, err := p.conn.connect(ctx, service, func(nc net.Conn) (net.Conn, error) {
		w := &wire{settled: make(chan struct{}), lost: make(chan struct{})}
		kept := &nodeConn{Conn: nc, conn: p.conn, wire: w}
		w.visible = kept
		w.speaks(p.h2c)
		if p.h2c && (p.t.HTTP2 == nil || p.t.HTTP2.WriteByteTimeout == 0) { // which an outbox would hide the waits from
			kept.out = newOutbox(kept)
		}
		p.conn.mu.Lock()
		defer p.conn.mu.Unlock()
		if err := p.conn.keep(kept); err != nil {
			return nil, err
		}
		return kept, nil
	})
	if err != nil {
		return nil, err
	}
	if to, ok := ctx.Value(wireKey{}).(**wire); ok {
		*to = nc.(*nodeConn).wire //nolint:errcheck // made above
	}
	return nc, nil
}

// dialTLS is dialPlain for https.
func (p *pool) dialTLS(ctx context.Context, network, service string) (net.Conn, error) {
	nc, err := p.dialPlain(ctx, network, service)
	if err != nil {
		return nil, err
	}
	tc, err := shakeHands(ctx, nc, p.t, service)
	if err != nil {
		return nil, err
	}
	if to, ok := ctx.Value(wireKey{}).(**wire); ok {
		(*to).visible = tc
		(*to).speaks(tc.ConnectionState().NegotiatedProtocol == "h2")
	}
	return tc, nil
}

// dialMore begins to make the connections that calls wait for. p.mu is held.
func (p *pool) dialMore() {
	need := len(p.waiting) - p.dialing
	if p.shared || !p.known {
		need = min(need, 1-p.dialing-p.inHand) // it may do for all of them
	}
	if p.most > 0 {
		need = min(need, p.most-len(p.members)-p.dialing)
	}
	for range need {
		ctx := p.waiting[p.dialing].ctx
		p.dialing++
		p.conn.layer.b.dials.start(func() { p.dial(ctx, false) })
	}
}

// dial makes a connection. Calls wait for it unless it is made ahead. It goes on when the call that it was begun for has left.
func (p *pool) dial(ctx context.Context, ahead bool) {
	p.conn.layer.learn(target{secure: p.key.scheme == "https", service: p.key.host})
	m, err := (*clientConn)(nil), errNoConn
	defer func() { // also when a dialer has called Goexit
		p.dialed(m, err, ahead)
	}()
	m, err = p.connect(ctx)
}

func (p *pool) connect(ctx context.Context) (*clientConn, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	w := new(wire)
	cc, err := p.t.NewClientConn(context.WithValue(ctx, wireKey{}, &w), p.key.scheme, p.addr)
	if err != nil {
		return nil, err
	}
	if w.http2 {
		if err := p.settle(ctx, w); err != nil {
			_ = cc.Close()
			return nil, err
		}
	}
	b := p.conn.layer.b
	m := &clientConn{pool: p, cc: cc, wire: w, since: b.since(time.Time{}), quota: int(jitter(int64(p.quota)))}
	if w.http2 {
		m.streams = cc.Available()
	}
	return m, nil
}

// settle waits until an HTTP/2 server has said how many streams it allows. Calls
// sent before would be too many for some, which refuse them.
func (p *pool) settle(ctx context.Context, w *wire) error {
	b, err := p.conn.layer.b, error(nil)
	var timeout <-chan time.Time
	if b.cfg.ConnectTimeout > 0 {
		timer := time.NewTimer(b.cfg.ConnectTimeout)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-w.settled:
		return nil
	case <-w.lost:
		err = io.ErrUnexpectedEOF
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timeout:
		err = &net.OpError{Op: "handshake", Net: "http2", Err: connectTimeout{p.addr, b.cfg.ConnectTimeout}}
	}
	return &ConnectError{Node: p.conn.node.key, Addr: p.conn.node.endpoint.Load().Addr, Err: err}
}

// dialed takes what came of a dial.
func (p *pool) dialed(m *clientConn, err error, ahead bool) {
	var failed []*waiter
	p.mu.Lock()
	ended := p.ended != nil
	switch {
	case ended:
	case err == nil:
		p.known, p.shared = true, m.wire.http2
		p.members[m] = struct{}{}
		p.landed++
		if age := p.conn.layer.b.cfg.Conns.MaxAge; age > 0 {
			m.age = time.AfterFunc(time.Duration(jitter(int64(age))), m.expire)
		}
	case !ahead && len(p.waiting) > 0:
		n := 1
		if p.shared || !p.known {
			n = len(p.waiting) // all have waited for this one
		}
		failed = slices.Clone(p.waiting[:n])
		p.waiting = slices.Delete(p.waiting, 0, n)
	}
	p.mu.Unlock()
	for _, w := range failed {
		w.err = err
		close(w.ready)
	}
	switch {
	case err != nil:
	case ended:
		_ = m.cc.Close()
	case m.wire.http2:
		m.wire.member.Store(m)
		select {
		case <-m.wire.lost:
			m.lost()
		default:
			p.offer(m, true)
		}
	default:
		p.conn.node.watch.Add(&m.seat)
		m.cc.SetStateHook(m.changed)
		p.offer(m, true)
	}
	p.mu.Lock()
	p.dialing-- // not before: whom it is offered to needs no other one
	if !ended && err == nil {
		p.landed--
	}
	p.dialMore()
	p.mu.Unlock()
	if err == nil && !ahead {
		p.fill()
	}
}

// expire retires m at its age, where connections are wanted ahead as soon as there
// is another one.
func (m *clientConn) expire() {
	p, b := m.pool, m.pool.conn.layer.b
	p.mu.Lock()
	replace := p.ended == nil && !p.asleep && !m.retired.Load() && len(p.members) <= p.wanted()
	if replace {
		p.dialing++
		b.dials.start(func() {
			p.dial(b.ctx, true)
			m.retire()
		})
	}
	p.mu.Unlock()
	if !replace {
		m.retire()
	}
}

// wanted is how many connections should be open at least. p.mu is held.
func (p *pool) wanted() int {
	want := p.conn.layer.b.cfg.Conns.Min
	if p.shared {
		want = min(want, p.lanes)
	}
	if p.most > 0 {
		want = min(want, p.most)
	}
	return want
}

// missing is how many connections there should be more. p.mu is held.
func (p *pool) missing() int {
	if p.ended != nil || p.asleep {
		return 0
	}
	return max(0, p.wanted()-len(p.members)-p.dialing)
}

// fill sees to it that there are as many connections as there should be.
func (p *pool) fill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.filling || p.missing() == 0 {
		return
	}
	p.filling = true
	p.conn.layer.b.dials.start(p.keepFilling)
}

// keepFilling makes connections until nothing is missing.
func (p *pool) keepFilling() {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { p.filling = false }()
	for failures := p.failures; ; {
		missing := p.missing()
		if missing == 0 {
			return
		}
		if failures > 0 {
			p.mu.Unlock()
			p.pause(min(fillRetry<<min(failures-1, 10), maxFillRetry))
			p.mu.Lock()
			failures = 0
			continue
		}
		p.dialing++
		p.mu.Unlock()
		p.dial(p.ctx, true)
		p.mu.Lock()
		if p.missing() >= missing {
			p.failures++
			failures = p.failures
		}
	}
}

// pause waits, at most until the pool has ended.
func (p *pool) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.ctx.Done():
	}
}
