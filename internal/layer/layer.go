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

// Base is the part of a layer that is the same in all of them: what it wraps,
// the chain it belongs to, and the frame of each call. It is embedded in what a
// Layer method returns.
type Base struct {
	Next http.RoundTripper

	self  http.RoundTripper
	chain *call.Chain
}

// Around makes self, which embeds b, the layer around next; a nil next is
// http.DefaultTransport. It returns self.
func (b *Base) Around(self, next http.RoundTripper) http.RoundTripper {
	if next == nil {
		next = http.DefaultTransport
	}
	b.Next, b.self = next, self
	b.chain = call.ChainOf(self)
	return self
}

// Unwrap returns the RoundTripper that the layer is around.
func (b *Base) Unwrap() http.RoundTripper { return b.Next }

// CloseIdleConnections passes the wish on.
func (b *Base) CloseIdleConnections() { CloseIdle(b.Next) }

// Enter has do make the call within its frame: the one that a layer above has
// pushed, or else, if anybody would look at it, one of this layer's own.
func (b *Base) Enter(
	req *http.Request, do func(*http.Request, *call.Frame) (*http.Response, error),
) (*http.Response, error) {
	entered, frame := call.Enter(req, b.self, b.chain)
	resp, err := do(entered, frame)
	if entered != req {
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
	frame.Finish(clock.Now(), status, err)
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

// HostOf returns the host of req's URL in lower case, with its port if it has
// one: the key of what is kept for each host.
func HostOf(req *http.Request) string {
	if req.URL == nil {
		return "" // the transport will have something to say about it
	}
	return strings.ToLower(req.URL.Host)
}
