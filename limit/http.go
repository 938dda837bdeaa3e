package limit

import (
	"context"
	"io"
	"net/http"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/outcome"
)

// Layer lets requests through to next as [Rate.Wait] does; nil is
// http.DefaultTransport. A refused request's body is closed.
func (r *Rate) Layer(next http.RoundTripper) http.RoundTripper {
	return newTransport(next, "rate", func(ctx context.Context, req *http.Request) (Lease, error) {
		return Lease{}, r.wait(ctx, req.Cancel) //nolint:staticcheck // deprecated, but not gone
	})
}

// Layer is [Rate.Layer] with a rate for each URL's host, in lower case and with
// its port if it has one.
func (g *RateGroup) Layer(next http.RoundTripper) http.RoundTripper {
	return g.LayerBy(layer.HostOf)(next)
}

// LayerBy is Layer with a key of the caller's choice for each request. The
// function must be safe for concurrent use and leave the request alone.
func (g *RateGroup) LayerBy(key func(*http.Request) string) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		return newTransport(next, "rate", func(ctx context.Context, req *http.Request) (Lease, error) {
			return Lease{}, g.Get(key(req)).wait(ctx, req.Cancel) //nolint:staticcheck // as above
		})
	}
}

// Layer lets requests through to next as [Concurrency.Acquire] does; nil is
// http.DefaultTransport. A call is under way until its response's body was read
// to the end or closed: that of an upgraded connection (101) until it is closed.
// A refused request's body is closed.
func (c *Concurrency) Layer(next http.RoundTripper) http.RoundTripper {
	return newTransport(next, "concurrency", func(ctx context.Context, req *http.Request) (Lease, error) {
		return c.acquire(ctx, req.Cancel) //nolint:staticcheck // as above
	})
}

// transport is what Layer returns.
type transport struct {
	layer.Base
	by    string
	admit func(context.Context, *http.Request) (Lease, error)
}

func newTransport(next http.RoundTripper, by string, admit func(context.Context, *http.Request) (Lease, error)) http.RoundTripper {
	t := &transport{by: by, admit: admit}
	return t.Around(t, next)
}

// RoundTripFrame waits or refuses, and hands the request on.
func (t *transport) RoundTripFrame(req *http.Request, f *call.Frame) (*http.Response, error) {
	ctx, cancel := layer.Within(req.Context(), f)
	defer cancel()
	lease, err := t.admit(ctx, req)
	f.SetYoung(false) // it may have waited
	if err != nil {
		if outcome.Refused(err) {
			f.Refused("", t.by, err)
		}
		layer.CloseBody(req)
		return nil, err
	}
	defer lease.Done() // of what the body has not taken over, also in a panic

	resp, err := t.Forward(req, f)
	if resp == nil || resp.Body == nil || resp.Body == http.NoBody ||
		lease.c == nil || lease.c.set.Load().UntilHeaders == On {
		return resp, err
	}
	b := &body{ReadCloser: resp.Body}
	b.lease.Store(lease.c)
	lease = Lease{}
	resp.Body = b
	if w, ok := b.ReadCloser.(io.Writer); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = &upgraded{b, w}
	}
	return resp, err
}
