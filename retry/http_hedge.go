package retry

import (
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
	fl := new(flight)
	r.first, r.hedger, r.delay, r.percentile, r.begun, r.room = fl, c.hedger, delay, percentile, c.hedged, room
	r.budget, r.observer, r.ctx, r.frame = c.budget, c.cfg.Observer, c.ctx, c.frame
	r.stop = c.req.Cancel //nolint:staticcheck // deprecated, but net/http honours it too
	r.cfg, r.t, r.req, r.limits = c.cfg, c.t, c.req, c.limits
	settled := false
	defer func() {
		c.lane = nil
		if !settled { // a panic or Goexit
			r.abandon()
		}
	}()
	r.start()
	c.lane, c.now = fl, start
	c.try(a, body, getBody)
	c.hedger.observe(start, &a.o)
	begun, sent, idle := r.settle(a, c.good(a))
	settled = true
	c.hedged += begun
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

func (r *httpRace) lane() canceler { return new(flight) }

func (r *httpRace) dispose(resp *http.Response) { layer.CloseResponse(resp) }

func (r *httpRace) subject() subject {
	return (&exchange{series: series{cfg: r.cfg}, req: r.req, frame: r.frame}).subject()
}

// run makes a hedge's attempt.
func (r *httpRace) run(h *hedge[*http.Response]) {
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
	c.lane, _ = h.lane.(*flight)
	c.now = clock.Now()
	c.try(&h.answer, body, r.req.GetBody)
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
