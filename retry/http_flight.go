package retry

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/outcome"
)

// flight is an attempt that something of ours is put around: its context, its
// bodies, its place in the call's log.
type flight struct {
	attempt.Attempt
	out http.Request
	req *http.Request // what a hedge sends, and an attempt that may outlive its call
	log *logged       // nil if nobody looks, or an inner layer keeps the log
}

// logged is a flight's place in the call's log.
type logged struct {
	cfg   *Config
	req   *http.Request
	frame *call.Frame
	index int
}

// ender is who is told of the end of the response's body; nil for nobody.
func (fl *flight) ender() attempt.Ender {
	if fl.log == nil {
		return nil
	}
	return fl.log
}

// Ended notes the end of the response's body in the log.
func (l *logged) Ended(err error) {
	var o outcome.Outcome
	if err != nil && !errors.Is(err, attempt.ErrClosed) {
		o = l.cfg.Classifier.Classify(l.req, nil, err)
	}
	l.frame.Ended(time.Time{}, l.index, o)
}

// answer is how an attempt ended. Either its value or its error is nil.
type answer = result[*http.Response]

// failure is what the attempt failed with, in words.
func failure(a *answer) error {
	switch {
	case a.err != nil:
		return a.err
	case a.o.Err != nil:
		return a.o.Err
	case a.value != nil:
		return outcome.StatusError(a.value.StatusCode)
	}
	return nil // there was none
}

var errNoAnswer = errors.New("retry: the transport returned neither a response nor an error")

// try makes one attempt with the given body, for an answer in a. On a panic or runtime.Goexit below
// or in a classifier, nothing stays open.
func (c *exchange) try(a *answer, body io.ReadCloser, getBody func() (io.ReadCloser, error)) {
	var (
		fl    *flight
		start time.Time
		over  bool
	)
	defer func() {
		if over {
			return
		}
		layer.CloseResponse(a.value)
		if fl != nil {
			fl.End()
		}
	}()
	sent, refused, req, now := c.frame.Attempts(), c.frame.Refusals(), c.req, c.now
	c.now = time.Time{} // of the next one
	if c.lane != nil || c.watched || hasBody(body) && (c.attempts > 0 || getBody == nil || !attempt.Small(req)) {
		if fl = c.lane; fl == nil {
			fl = new(flight)
		}
		if start = now; start.IsZero() {
			start = call.Now(c.frame)
		}
		fl.Start(c.ctx, start, &c.limits)
		if c.lane != nil {
			fl.Cancelable()
		}
		req = fl.RequestWith(&fl.out, req, body, getBody)
	} else if c.attempts > 0 {
		req = req.WithContext(c.ctx) // the transport may hold on to the one before
	}

	a.value, a.err = c.t.Forward(req, c.frame) //nolint:bodyclose // it is handed on, or closed by whoever sees that it cannot be

	switch {
	case a.err != nil && a.value != nil: // against net/http's contract
		layer.CloseResponse(a.value)
		a.value = nil
	case a.err == nil && a.value == nil:
		a.err = errNoAnswer
	}
	if fl != nil {
		c.land(fl, a)
	}
	c.judge(a, fl, start, c.frame.Attempts() > sent, c.frame.Refusals() > refused)
	if a.o.Retry == outcome.Never && c.alsoRetried(a.value) {
		a.o.Retry = outcome.IfIdempotent
	}
	if fl != nil && a.value != nil {
		a.value.Body = fl.Wrap(a.value.Body, fl.ender())
	}
	over = true
}

// judge fills in the answer's outcome: what an inner layer made of it, or else
// what we do. Where no inner layer has logged the attempt, we do that too, unless
// one has refused it: then there was none.
func (c *exchange) judge(a *answer, fl *flight, start time.Time, inner, refused bool) {
	if inner {
		if o, known := c.frame.Outcome(a.value, a.err); known {
			a.o = o
			return
		}
	}
	a.o = c.cfg.Classifier.Classify(c.req, a.value, a.err)
	if inner || c.frame == nil || a.err != nil && (refused || outcome.Refused(a.err)) {
		return
	}
	now := clock.Now()
	if start.IsZero() {
		start = now // nobody reads the log
	}
	i := c.frame.Send(start, nil, "", "")
	if a.value != nil {
		c.frame.Answered(now, i, a.value, a.value.StatusCode, a.o)
	} else {
		c.frame.Answered(now, i, nil, 0, a.o)
	}
	if frame := c.frame.Watched(); fl != nil && frame != nil {
		fl.log = &logged{c.cfg, c.req, frame, i}
	}
}

// land settles what the flight's bounds and bodies have to say to its answer.
func (c *exchange) land(fl *flight, a *answer) {
	if a.err == nil && c.cfg.BufferBody == On && c.cfg.repeatable(c.req) {
		a.err = buffer(a.value)
	}
	if a.err == nil {
		a.err = fl.Headers()
	} else {
		a.err = fl.Error(a.err)
	}
	if a.err == nil {
		return
	}
	layer.CloseResponse(a.value)
	a.value = nil
	fl.End()
}

// buffer reads a response of up to bufferLimit bytes into memory, and returns
// the error that breaks it.
func buffer(resp *http.Response) error {
	body := resp.Body
	if !hasBody(body) || resp.ContentLength > bufferLimit ||
		resp.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	start, err := io.ReadAll(io.LimitReader(body, bufferLimit+1))
	if err != nil {
		return err
	}
	if len(start) <= bufferLimit {
		_ = body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(start))
		return nil
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(start), body), body}
	return nil
}

func hasBody(body io.ReadCloser) bool { return body != nil && body != http.NoBody }
