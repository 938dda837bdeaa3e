package retry

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/outcome"
)

// Layer puts the retrier around next; nil is http.DefaultTransport. What comes
// back is what the last attempt came to: its response, with err == nil whatever
// the status, or its error.
//
// A request is tried again as the outcome of the attempt says: after failures
// and throttling if [outcome.Idempotent] holds for it (or Config allows it), and
// in any case if nothing of it was sent. A body needs a GetBody, as
// http.NewRequest provides for the usual ones; without it up to Config.BodyLimit
// bytes are kept while the first attempt streams them. A request whose body
// cannot be sent again is not tried again.
//
// A failed response is kept until the next attempt has an answer: if a layer
// below refuses that attempt, the caller gets the response, whole.
//
// Of two retry layers in one chain only the outer one repeats.
func (r *Retrier) Layer(next http.RoundTripper) http.RoundTripper {
	t := &transport{r: r}
	return t.Around(t, next)
}

// transport is what Layer returns.
type transport struct {
	layer.Base
	r *Retrier
}

// exchange is one call over HTTP.
type exchange struct {
	series
	t      *transport
	req    *http.Request
	ctx    context.Context //nolint:containedctx // the request's
	frame  *call.Frame
	limits attempt.Limits

	watched bool // attempts have bounds of ours, or their bodies are of interest
	reached bool // an attempt may have reached the peer
	replay  *replay
	held    *held // the last answer's response while there is another attempt

	hedging
	lane *flight   // what to make the next attempt with, if it can be superseded
	now  time.Time // when the next attempt begins; zero if the clock has not been read for it
}

// RoundTripFrame makes the call's attempts.
func (t *transport) RoundTripFrame(req *http.Request, f *call.Frame) (*http.Response, error) {
	if !f.BeginRetries() {
		return t.Forward(req, f)
	}
	ctx, cfg := req.Context(), t.r.cfg
	if ctx.Err() != nil {
		layer.CloseBody(req)
		return nil, context.Cause(ctx)
	}
	var c exchange // set field by field: a copy of the whole has to wait for its parts
	c.cfg, c.t, c.req, c.ctx, c.frame = cfg, t, req, ctx, f
	if cfg.GenerateKey == On {
		c.req = cfg.keyed(req)
	}
	start := f.Start()
	if start.IsZero() {
		start = clock.Now()
		c.now = start
	}
	cfg.limit(&c.limits, start, cfg.httpAttemptTimeout())
	if d := f.Deadline(); !d.IsZero() && (c.limits.Deadline.IsZero() || d.Before(c.limits.Deadline)) {
		c.deadline = d // whoever set it enforces it
		if t.Strange() {
			// But not on a stranger on the way there, who may wait, too.
			c.limits.Deadline, c.limits.Call = d, d.Sub(start)
		}
	} else {
		c.deadline = c.limits.Deadline
		f.SetDeadline(c.deadline)
	}
	c.deadline = nearest(ctx, c.deadline)
	c.watched = c.limits.Attempt > 0 || !c.limits.Deadline.IsZero() || cfg.BufferBody == On || f.Watched() != nil
	c.budget = t.r.budgets.get(c.subject().service)
	c.budget.Deposit(start)
	c.prepare(start)
	return c.run()
}

// httpAttemptTimeout is AttemptTimeout with HTTP's default.
func (c *Config) httpAttemptTimeout() time.Duration {
	switch {
	case c.AttemptTimeout >= 0:
		return c.AttemptTimeout
	case c.Timeout > 0:
		return min(httpAttemptTimeout, c.Timeout)
	}
	return httpAttemptTimeout
}

func (c *exchange) run() (*http.Response, error) {
	body, getBody := c.req.Body, c.req.GetBody
	if hasBody(body) && getBody == nil && c.cfg.MaxAttempts > 1 {
		limit := 0
		if c.cfg.repeatable(c.req) && !call.InboundOf(c.ctx).Final() {
			limit = c.cfg.BodyLimit
		}
		c.replay = newReplay(c.req, limit, &c.t.r.bodies)
		body, _ = c.replay.body()
		defer c.replay.finish()
	}
	var last answer
	defer c.end()
	for {
		var a answer
		if c.hedger == nil {
			c.try(&a, body, getBody)
		} else {
			c.race(&a, body, getBody)
		}
		if c.attempts > 0 && a.err != nil && outcome.Refused(a.err) {
			return c.back(last, ReasonRefused, a.err)
		}
		c.attempts++
		a.err = afterLast(a.err, failure(&last))
		switch {
		case a.err == nil || !outcome.NotSent(a.err):
			c.reached = true
		case c.reached:
			a.err = &reachedError{a.err}
		}
		c.drop()
		c.ended(a.o)
		if a.o.Retry == outcome.Never {
			if a.o.Class != outcome.Success {
				c.tell(c.ctx, a.o, a.value != nil && outcome.RetryForbidden(a.value.Header))
			}
			return a.value, a.err
		}
		last = a
		wait, why := c.next(clock.Now(), a.o, facts{
			repeatable: c.cfg.repeatable(c.req),
			resendable: c.replay == nil || c.replay.resendable(),
			elsewhere:  c.frame.Others(),
			others:     c.frame.Others(),
			final:      call.InboundOf(c.ctx).Final(),
		})
		if why == ReasonBudget {
			c.frame.Refused("", "retry budget", ErrBudget)
			return c.back(last, why, ErrBudget)
		}
		if why != "" {
			c.frame.GaveUp(string(why))
			c.gaveUp(c.ctx, c.subject(), a.o, why)
			return a.value, a.err
		}
		if c.frame != nil {
			c.frame.Because(c.why, c.budget.Balance(time.Time{}))
		}
		c.retried(c.ctx, c.subject(), a.o, wait)
		if a.value != nil {
			c.held = hold(a.value, c.cfg.DrainLimit, c.cfg.DrainTime)
		}
		if err := c.sleep(wait); err != nil {
			c.frame.GaveUp(string(ReasonCanceled))
			c.gaveUp(c.ctx, c.subject(), a.o, ReasonCanceled)
			c.drop()
			return nil, canceled(err, failure(&a))
		}
		var err error
		if body, getBody, err = c.nextBody(); err != nil {
			return c.back(last, ReasonBody, err)
		}
	}
}

// alsoRetried reports whether Config.Statuses has the response's status, and
// the server does not forbid it.
func (c *exchange) alsoRetried(resp *http.Response) bool {
	return resp != nil && slices.Contains(c.cfg.Statuses, resp.StatusCode) && !outcome.RetryForbidden(resp.Header)
}

// sleep waits for the next attempt and, within Config.DrainTime, for the
// connection of the last one.
func (c *exchange) sleep(wait time.Duration) error {
	stop := c.req.Cancel //nolint:staticcheck // deprecated, but net/http honours it too
	if err := sleep(c.ctx, wait, stop); err != nil {
		return err
	}
	c.frame.Slept(wait)
	c.held.wait(c.ctx)
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	return nil
}

// nextBody returns the body of an attempt after the first.
func (c *exchange) nextBody() (io.ReadCloser, func() (io.ReadCloser, error), error) {
	switch {
	case !hasBody(c.req.Body):
		return c.req.Body, c.req.GetBody, nil
	case c.replay != nil:
		body, getBody := c.replay.body()
		if body == nil {
			return nil, nil, errTakenUp
		}
		return body, getBody, nil
	}
	body, err := c.req.GetBody()
	return body, c.req.GetBody, err
}

// back gives back the last attempt's answer because there is no other: the
// response as it is, or the error with the reason.
func (c *exchange) back(last answer, why Reason, reason error) (*http.Response, error) {
	c.frame.GaveUp(string(why))
	c.gaveUp(c.ctx, c.subject(), last.o, why)
	if last.value != nil {
		c.held = nil // it is the response's body now, and the caller's
		return last.value, nil
	}
	return nil, &StoppedError{Err: last.err, Reason: reason}
}

// end settles with the budget when the call is over, and leaves nothing open if
// something panics.
func (c *exchange) end() {
	c.settle()
	c.budget.Finish()
	c.held.discard()
}

// drop discards the response of the attempt before.
func (c *exchange) drop() {
	c.held.discard()
	c.held = nil
}

// subject is what events and budgets are about.
func (c *exchange) subject() subject {
	if c.frame != nil {
		return subject{c.frame.Service(), c.frame.Route()}
	}
	if c.req.URL == nil || c.req.URL.Host == "" {
		return subject{service: c.cfg.Name}
	}
	return subject{service: strings.ToLower(c.req.URL.Host)}
}
