// Package layer holds what the HTTP layers have in common.
package layer

import (
	"context"
	"net/http"
	"strings"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/outcome"
)

// Framed is a layer that gets a call's frame from hand to hand: that saves a copy
// of the request for the context that would carry it.
type Framed interface {
	http.RoundTripper
	// RoundTripFrame is RoundTrip within a frame of a chain that the layer belongs
	// to; nil for none.
	RoundTripFrame(req *http.Request, f *call.Frame) (*http.Response, error)
}

// Down is the way from a layer, or from the entry to all of them, to what is
// below.
type Down struct {
	Next http.RoundTripper

	framed Framed // Next, if it is one of ours
	last   bool   // nobody below wants to see a frame
}

// To returns the way down to next.
func To(next http.RoundTripper) Down {
	d := Down{Next: next}
	d.framed, _ = next.(Framed)
	_, d.last = next.(*http.Transport)
	return d
}

// Strange reports whether a layer of somebody else's is next, and no
// *http.Transport.
func (d *Down) Strange() bool { return d.framed == nil && !d.last }

// Forward hands a request and its frame down. The layer below has to belong to
// the chain of the frame if it is one of ours.
func (d *Down) Forward(req *http.Request, f *call.Frame) (*http.Response, error) {
	switch {
	case f == nil || d.last:
		return d.Next.RoundTrip(req)
	case d.framed != nil:
		return d.framed.RoundTripFrame(req, f)
	}
	// A stranger: beyond there may be others of us.
	if ctx := call.Carry(req.Context(), f); ctx != req.Context() {
		req = req.WithContext(ctx)
	}
	return d.Next.RoundTrip(req)
}

// Base is the part of a layer that is the same in all of them: what it wraps,
// the chain it belongs to, and the frame of each call. It is embedded in what a
// Layer method returns.
type Base struct {
	Down

	self  Framed
	chain *call.Chain
}

// Around makes self, which embeds b, the layer around next; a nil next is
// http.DefaultTransport. It returns self.
func (b *Base) Around(self Framed, next http.RoundTripper) http.RoundTripper {
	if next == nil {
		next = http.DefaultTransport
	}
	b.Down, b.self = To(next), self
	b.chain = call.ChainOf(self)
	return self
}

// Know adds members to the layer's chain: those that are below a stranger, who does
// not say what he wraps.
func (b *Base) Know(members ...any) {
	b.chain = call.NewChain(append(b.chain.Members(), members...)...)
}

// Unwrap returns the RoundTripper that the layer is around.
func (b *Base) Unwrap() http.RoundTripper { return b.Next }

// CloseIdleConnections passes the wish on.
func (b *Base) CloseIdleConnections() { CloseIdle(b.Next) }

// RoundTrip makes the call within its frame: the one that a layer above has
// handed down, or else, if anybody would look at it, one of this layer's own.
func (b *Base) RoundTrip(req *http.Request) (*http.Response, error) {
	frame, fresh := call.Enter(req, b.self, b.chain)
	resp, err := b.self.RoundTripFrame(req, frame)
	if fresh {
		Finish(frame, req, resp, err)
	}
	return resp, err
}

// Within returns ctx, bounded by the deadline of the frame's call if it has one:
// that is ours and so no part of the call's context, but whoever waits before an
// attempt keeps to it.
func Within(ctx context.Context, f *call.Frame) (context.Context, context.CancelFunc) {
	deadline := f.Deadline()
	if deadline.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadlineCause(ctx, deadline,
		&outcome.TimeoutError{Kind: outcome.ErrCallTimeout, After: deadline.Sub(f.Start())})
}

// Finish ends the call of a frame that was pushed for req, with what its caller
// gets.
func Finish(frame *call.Frame, req *http.Request, resp *http.Response, err error) {
	status := 0
	if resp != nil {
		status = resp.StatusCode
		resp.Request = req
	}
	if frame.Watched() != nil {
		frame.Finish(clock.Now(), status, err)
	}
	frame.Free()
}

// CloseIdle closes rt's idle connections, if it can do that.
func CloseIdle(rt http.RoundTripper) {
	if c, ok := rt.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// CloseBody closes the body of a request that is not sent.
func CloseBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

// CloseResponse closes the body of a response that is not handed on, if there is
// one.
func CloseResponse(resp *http.Response) {
	if resp != nil && resp.Body != nil {
		_ = resp.Body.Close()
	}
}

// HostOf returns the host of req's URL in lower case, with its port if it has
// one: the key of what is kept for each host.
func HostOf(req *http.Request) string {
	if req.URL == nil {
		return "" // the transport will have something to say about it
	}
	return strings.ToLower(req.URL.Host)
}
