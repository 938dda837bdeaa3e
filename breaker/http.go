package breaker

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/outcome"
)

// Layer puts the breaker around next; nil is http.DefaultTransport. A refused
// request is answered with an [*OpenError], its body closed. The verdict on an
// attempt is that on its response's headers, by an inner layer or else by
// Config.Classifier; a body that breaks afterwards is one failure.
func (b *Breaker) Layer(next http.RoundTripper) http.RoundTripper {
	return newTransport(next, func(*http.Request) *Breaker { return b })
}

// Layer is [Breaker.Layer] with a breaker for each URL's host, in lower case
// and with its port if it has one.
func (g *Group) Layer(next http.RoundTripper) http.RoundTripper {
	return g.LayerBy(layer.HostOf)(next)
}

// LayerBy is Layer with a key of the caller's choice for each request. The
// function must be safe for concurrent use and leave the request alone.
func (g *Group) LayerBy(key func(*http.Request) string) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		return newTransport(next, func(req *http.Request) *Breaker { return g.Get(key(req)) })
	}
}

// transport is what Layer returns.
type transport struct {
	layer.Base
	of func(*http.Request) *Breaker
}

func newTransport(next http.RoundTripper, of func(*http.Request) *Breaker) http.RoundTripper {
	t := &transport{of: of}
	return t.Around(t, next)
}

// RoundTripFrame asks the breaker, and tells it what came of the attempt.
func (t *transport) RoundTripFrame(req *http.Request, f *call.Frame) (*http.Response, error) {
	b := t.of(req)
	lease, err := b.Acquire(time.Time{})
	if err != nil {
		f.Refused("", "breaker", err)
		layer.CloseBody(req)
		return nil, err
	}
	var start time.Time
	if f != nil {
		start = clock.Now()
	}
	sent := f.Attempts()
	returned := false
	defer lease.unwind(&returned)
	var resp *http.Response
	defer func() {
		if !returned {
			layer.CloseResponse(resp) // nobody else gets it
		}
	}()

	resp, err = t.Forward(req, f)
	if err != nil {
		layer.CloseResponse(resp) // there should be none
		resp = nil
	}

	now := clock.Now()
	end := ending{classifier: b.cur.Load().set.Classifier, req: req}
	var o outcome.Outcome
	known, inner := false, f.Attempts() > sent
	if inner { // another layer keeps the log of the attempt, and should know
		o, known = f.Outcome(resp, err)
	}
	if !known {
		o = end.classifier.Classify(req, resp, err)
	}
	if f != nil && !inner && !outcome.Refused(o.Err) { // if refused, nothing was attempted
		end.frame, end.attempt = f.Watched(), f.Send(start, nil, "", "")
		if resp == nil {
			f.Answered(now, end.attempt, nil, 0, o)
		} else {
			f.Answered(now, end.attempt, resp, resp.StatusCode, o)
		}
	}
	lease.Answered(now, o)
	returned = true
	if resp == nil || !streams(resp) || (o.Class != outcome.Success && end.frame == nil) {
		lease.Done(now, o)
		end.frame.Ended(now, end.attempt, o)
		return resp, err
	}
	end.lease, end.answer = lease, o // the lease moves: nobody returns it here any more
	resp.Body = &body{ReadCloser: resp.Body, ending: end}
	return resp, err
}

// streams reports whether the response has a body whose end is yet to come. An
// upgraded connection is none of the breaker's business any more.
func streams(resp *http.Response) bool {
	return resp.Body != nil && resp.Body != http.NoBody && resp.StatusCode != http.StatusSwitchingProtocols
}

// ending is what is to be told when an attempt is over.
type ending struct {
	lease      Lease
	answer     outcome.Outcome
	classifier outcome.Classifier
	req        *http.Request
	frame      *call.Frame // nil if there is none, or an inner layer tells it
	attempt    int
}

// body returns the lease at the end of a response's body.
type body struct {
	io.ReadCloser
	ending
	over atomic.Bool // Close may come while Read is under way
}

// Read returns the lease with what the body ends with.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.finish(err)
	}
	return n, err
}

// Close returns the lease. Whoever closes early has had enough, which is no
// fault of the peer's.
func (b *body) Close() error {
	b.finish(nil)
	return b.ReadCloser.Close()
}

func (b *body) finish(err error) {
	if !b.over.CompareAndSwap(false, true) {
		return
	}
	o := b.answer
	if err != nil && !errors.Is(err, io.EOF) {
		defer b.lease.Done(time.Time{}, outcome.Outcome{Class: outcome.Failure, Err: err}) // if the classifier panics
		o = b.classifier.Classify(b.req, nil, err)
	}
	now := clock.Now()
	b.lease.Done(now, o)
	b.frame.Ended(now, b.attempt, o)
}
