package retry

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/outcome"
)

// race is an attempt that may get hedges. The attempt itself runs on the caller's
// goroutine; a hedge runs on the timer's, if it comes to that.
type race struct {
	begin      func()  // fire, bound once
	first      *flight // the attempt's own
	hedger     *hedger
	delay      time.Duration
	percentile float64 // that the delay is, if it is one
	begun      int     // hedges of the call before this race
	room       int     // how many there may be now

	// What a hedge needs of the exchange, which is not to leave its goroutine's
	// stack for those calls that have none.
	cfg    *Config
	budget *Budget
	t      *transport
	req    *http.Request
	ctx    context.Context //nolint:containedctx // the request's
	frame  *call.Frame
	limits attempt.Limits

	mu       sync.Mutex
	timer    *time.Timer
	closed   bool // no further hedge begins
	decided  bool // what ends from now on is too late
	hedges   []*hedge
	living   int
	won      *hedge
	panicked any           // what a hedge panicked with
	changed  chan struct{} // of who waits until it is decided or nothing lives; may be nil
}

// hedge is one of them.
type hedge struct {
	flight
	frame  *call.Frame
	answer answer
	whole  bool // the attempt was made to its end, without a panic or Goexit
	good   bool // the answer is one to give to the caller at once
	ended  bool // before the race was decided, or by deciding it
}

// prepare has the call hedged if it may be.
func (c *exchange) prepare(start time.Time) {
	if !c.cfg.Hedge.on() || c.frame.LatencyNeutral() || !c.cfg.repeatable(c.req) ||
		hasBody(c.req.Body) && c.req.GetBody == nil || call.InboundOf(c.ctx).Final() {
		return
	}
	c.hedger = c.t.r.hedgers.get(c.subject().service)
	c.hedger.called(start)
}

// race is try with hedges.
func (c *exchange) race(a *answer, body io.ReadCloser, getBody func() (io.ReadCloser, error)) {
	h, start := c.hedger, clock.Now()
	delay, percentile := h.delay()
	room := min(h.cfg.MaxHedges-c.hedged, c.cfg.MaxAttempts-c.attempts-1)
	if delay <= 0 || room <= 0 || h.idles(start) || !c.deadline.IsZero() && delay >= c.deadline.Sub(start) {
		c.try(a, body, getBody)
		h.observe(start, &a.o)
		return
	}
	r, _ := c.t.r.races.Get().(*race)
	if r == nil {
		r = new(race)
		r.begin = r.fire
	}
	r.first, r.hedger, r.delay, r.percentile, r.begun, r.room = new(flight), h, delay, percentile, c.hedged, room
	r.cfg, r.budget, r.t, r.req, r.ctx, r.frame, r.limits = c.cfg, c.budget, c.t, c.req, c.ctx, c.frame, c.limits
	c.frame.Lend()
	settled := false
	defer func() {
		c.lane = nil
		if !settled { // a panic or Goexit
			r.end()
			r.cancel(nil)
			r.discard(nil)
		}
	}()
	r.mu.Lock()
	r.timer = time.AfterFunc(delay, r.begin)
	r.mu.Unlock()
	c.lane, c.now = r.first, start
	c.try(a, body, getBody)
	h.observe(start, &a.o)
	good := c.good(a)
	if !good {
		r.wait()
	}
	stopped := r.end()
	switch {
	case len(r.hedges) == 0:
		c.frame.Reclaim()
		if stopped { // else its timer may be about to look at it
			begin := r.begin
			*r = race{}
			r.begin = begin
			c.t.r.races.Put(r)
		}
		settled = true
		return
	case r.panicked != nil:
		layer.CloseResponse(a.resp)
		panic(r.panicked) //nolint:forbidigo // handed on
	case r.won != nil:
		layer.CloseResponse(a.resp)
		*a = r.won.answer
		c.frame.Adopt(r.won.frame)
		r.discard(r.won)
	case good:
		r.cancel(nil)
		r.discard(nil)
	default:
		r.cancel(nil) // if it is the caller who has gone
		r.discard(r.best(a))
	}
	settled = true
	c.hedged += len(r.hedges)
	c.attempts += r.sent()
}

// good reports whether an answer is given to the caller without waiting for
// another one.
func (c *exchange) good(a *answer) bool {
	return a.err == nil && a.o.Class == outcome.Success && !c.alsoRetried(a.resp)
}

// fire begins a hedge. It runs on the timer's goroutine.
func (r *race) fire() {
	now := clock.Now()
	if r.over() || !r.hedger.pay(now, r.budget) {
		return
	}
	h := new(hedge)
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		r.budget.Return()
		r.hedger.refund()
		return
	}
	r.hedges = append(r.hedges, h)
	r.living++
	n := len(r.hedges)
	if n < r.room {
		r.timer.Reset(r.delay)
	}
	r.mu.Unlock()
	defer r.finish(h)
	h.frame = r.frame.Beside(r.hedger.cfg.SameNode != On)
	if r.cfg.Observer != nil {
		of := (&exchange{series: series{cfg: r.cfg}, req: r.req, frame: r.frame}).subject()
		event.Emit(r.ctx, r.cfg.Observer, Hedged{
			Service: of.service, Route: of.route, Hedge: r.begun + n, Delay: r.delay, Percentile: r.percentile,
		})
	}
	r.send(h)
}

func (r *race) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// send makes a hedge's attempt.
func (r *race) send(h *hedge) {
	body := r.req.Body
	if hasBody(body) {
		var err error
		if body, err = r.req.GetBody(); err != nil {
			h.answer.err, h.answer.o = err, outcome.Outcome{Class: outcome.Neutral, Err: err}
			h.whole = true
			return
		}
	}
	var c exchange
	c.cfg, c.t, c.req, c.ctx, c.frame, c.limits = r.cfg, r.t, r.req, r.ctx, h.frame, r.limits
	c.lane, c.now = &h.flight, clock.Now()
	c.try(&h.answer, body, r.req.GetBody)
	h.good, h.whole = c.good(&h.answer), true
}

// finish is deferred to the end of a hedge.
func (r *race) finish(h *hedge) {
	panicked := recover()
	a := &h.answer
	if !h.whole {
		*a = answer{err: errGone, o: outcome.Outcome{Class: outcome.Neutral, Err: errGone}}
	}
	r.budget.Return()
	if refused(a.err) {
		r.hedger.refused()
	}
	r.mu.Lock()
	r.living--
	late := r.decided
	if !late {
		h.ended = true
	}
	switch {
	case late:
	case panicked != nil:
		r.panicked = panicked
	case h.good:
		r.won = h
	case a.o.Class == outcome.Throttled:
		r.closed = true // who asks for less does not get more
	}
	won := r.won == h // then the budget is told of it as the call's answer
	first := !late && (r.panicked != nil || r.won != nil)
	r.decided = r.decided || first
	r.closed = r.closed || first
	changed := r.changed
	if changed != nil && (r.decided || r.living == 0) {
		r.changed = nil
	} else {
		changed = nil
	}
	r.mu.Unlock()
	if !won {
		r.budget.Judge(a.o)
	}
	if first {
		r.first.Cancel(supersededError{})
		r.cancel(h)
	}
	if late {
		layer.CloseResponse(a.resp)
	}
	if changed != nil {
		close(changed)
	}
}

// wait waits, after an attempt that failed, until one of its hedges has a good
// answer or none is left, or the caller goes away.
func (r *race) wait() {
	var changed chan struct{}
	r.mu.Lock()
	r.closed = true
	if !r.decided && r.living > 0 {
		changed = make(chan struct{})
		r.changed = changed
	}
	r.mu.Unlock()
	r.timer.Stop()
	if changed == nil {
		return
	}
	select {
	case <-changed:
	case <-r.ctx.Done():
	case <-r.req.Cancel: //nolint:staticcheck // deprecated, but net/http honours it too
	}
}

// end decides the race, if no hedge has: from here on only the caller's goroutine
// touches it, and what ends later is discarded where it ends. It reports whether
// it has stopped the timer before it was due.
func (r *race) end() bool {
	r.mu.Lock()
	r.closed, r.decided = true, true
	r.mu.Unlock()
	return r.timer.Stop()
}

// cancel cancels all hedges but one.
func (r *race) cancel(but *hedge) {
	r.mu.Lock()
	hedges := r.hedges // which does not change any more: the race is closed
	r.mu.Unlock()
	for _, h := range hedges {
		if h != but {
			h.Cancel(supersededError{})
		}
	}
}

// discard closes the responses of all hedges that ended in time, but one's.
func (r *race) discard(but *hedge) {
	for _, h := range r.hedges {
		if h != but && h.ended {
			layer.CloseResponse(h.answer.resp)
		}
	}
}

// sent returns how many hedges ended in time and were not refused.
func (r *race) sent() (n int) {
	for _, h := range r.hedges {
		if h.ended && !refused(h.answer.err) {
			n++
		}
	}
	return n
}

// best makes a the best of answers that are all bad, and returns the hedge that it
// is of, or nil: a response rather than an error, an error rather than a refusal,
// the attempt's own rather than a hedge's.
func (r *race) best(a *answer) *hedge {
	if a.resp != nil || a.o.Class == outcome.Neutral && !refused(a.err) {
		return nil // the latter is the caller's doing, and not the peers'
	}
	var errs []error
	for _, h := range r.hedges {
		if !h.ended || refused(h.answer.err) {
			continue
		}
		if h.answer.resp != nil {
			*a = h.answer
			r.frame.Adopt(h.frame)
			return h
		}
		if refused(a.err) {
			*a = h.answer
			continue
		}
		errs = append(errs, h.answer.err)
		if h.answer.o.Class != outcome.Neutral {
			a.o.Retry = min(a.o.Retry, h.answer.o.Retry)
		}
	}
	if len(errs) > 0 {
		a.err = &HedgedError{Err: a.err, Others: errs}
	}
	return nil
}

func refused(err error) bool { return err != nil && outcome.Refused(err) }
