package retry

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/outcome"
)

// httpRace is a race of requests.
type httpRace struct {
	race[*http.Response]
	cfg    *Config
	t      *transport
	req    *http.Request
	limits attempt.Limits

	// What the attempt itself is sent with.
	body    io.ReadCloser
	getBody func() (io.ReadCloser, error)
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
	start := clock.Now()
	delay, percentile, room := c.plan(&c.series, start)
	if room <= 0 {
		c.try(a, body, getBody)
		c.hedger.observe(start, &a.o)
		return
	}
	pool := &c.t.r.races
	r, _ := pool.Get().(*httpRace)
	if r == nil {
		r = new(httpRace)
		r.by = r
	}
	r.cfg, r.t, r.req, r.limits, r.body, r.getBody = c.cfg, c.t, c.req, c.limits, body, getBody
	fl := new(flight)
	if c.cfg.Hedge.LoserGrace > 0 {
		fl.req = detach(c.req)
	}
	r.first, r.hedger, r.delay, r.percentile, r.begun, r.room = fl, c.hedger, delay, percentile, c.hedged, room
	r.budget, r.observer, r.ctx, r.frame = c.budget, c.cfg.Observer, c.ctx, c.frame
	r.stop = c.req.Cancel //nolint:staticcheck // deprecated, but net/http honours it too
	settled := false
	defer func() {
		c.lane = nil
		if !settled { // a panic or Goexit
			r.abandon()
		}
	}()
	if c.cfg.Hedge.LoserGrace > 0 {
		r.apart(a)
	} else {
		r.start()
		c.lane, c.now = fl, start
		c.try(a, body, getBody)
	}
	c.hedger.observe(start, &a.o)
	begun, sent, idle := r.settle(a, c.good(a))
	settled = true
	c.hedged += begun
	c.judged = begun > 0
	c.attempts += sent
	if idle {
		begin := r.begin
		*r = httpRace{}
		r.begin, r.by = begin, r
		pool.Put(r)
	}
}

// good reports whether an answer is given to the caller without waiting for
// another one.
func (c *exchange) good(a *answer) bool {
	return a.err == nil && a.o.Class == outcome.Success && !c.alsoRetried(a.value)
}

func (r *httpRace) lane() canceler { return &flight{req: detach(r.req)} }

// detach returns a copy of req for an attempt that may outlive the call: then the
// caller may do what he likes with his request.
func detach(req *http.Request) *http.Request {
	out := req.WithContext(req.Context())
	out.Header = req.Header.Clone()
	if req.URL != nil {
		u := *req.URL
		out.URL = &u
	}
	return out
}

func (r *httpRace) dispose(resp *http.Response) {
	if r.cfg.Hedge.LoserGrace > 0 && resp != nil && hasBody(resp.Body) && r.cfg.DrainLimit > 0 && r.cfg.DrainTime > 0 &&
		resp.ContentLength <= int64(r.cfg.DrainLimit) {
		go drain(resp.Body, r.cfg.DrainLimit, r.cfg.DrainTime)
		return
	}
	layer.CloseResponse(resp)
}

// drain reads up to limit bytes of a body, for a while, and closes it: so that its
// connection can be used again.
func drain(body io.ReadCloser, limit int, patience time.Duration) {
	defer func() { _ = recover() }() // there is nobody whom a panic could concern
	timer := time.AfterFunc(patience, func() { _ = body.Close() })
	_, _ = io.CopyN(io.Discard, body, int64(limit)+1) // to the end, and not just to the last byte
	timer.Stop()
	_ = body.Close()
}

func (r *httpRace) subject() subject {
	return (&exchange{series: series{cfg: r.cfg}, req: r.req, frame: r.frame}).subject()
}

// run makes a hedge's attempt, or that of the call where it runs apart.
func (r *httpRace) run(h *hedge[*http.Response]) {
	fl, _ := h.lane.(*flight)
	req, body, getBody := fl.req, r.body, r.getBody
	if h.lane != r.first {
		body, getBody = req.Body, req.GetBody
		if hasBody(body) {
			var err error
			if body, err = getBody(); err != nil {
				h.answer.err, h.answer.o = err, outcome.Outcome{Class: outcome.Neutral, Err: err}
				h.whole = true
				h.free()
				return
			}
		}
	}
	var c exchange
	c.cfg, c.t, c.req, c.ctx, c.frame, c.limits = r.cfg, r.t, req, h.ctx, h.frame, r.limits
	c.lane, c.now = fl, clock.Now()
	c.try(&h.answer, body, getBody)
	switch {
	case h.answer.err != nil:
		h.free()
	case r.cfg.Hedge.LoserGrace > 0:
		context.AfterFunc(fl.Context(), h.free)
	}
	h.good, h.whole = c.good(&h.answer), true
}

// dispose releases a value of a function that nobody gets: one that is to be closed
// is closed.
func dispose(value any) {
	switch v := value.(type) {
	case *http.Response:
		layer.CloseResponse(v)
	case io.Closer:
		_ = v.Close()
	}
}
