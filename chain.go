package backstay

import (
	"net/http"
	"slices"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/layer"
)

// Chain puts layers around base, the first outermost:
//
//	Chain(base, a, b, c) = a(b(c(base)))
//
// and has them work together as one: a retry knows of the breaker's refusals
// below it, and each request is one call in the log. A nil base is
// http.DefaultTransport; nil layers are left out.
func Chain(base http.RoundTripper, layers ...func(http.RoundTripper) http.RoundTripper) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	rt := base
	var members []any
	for _, add := range slices.Backward(layers) {
		if add == nil {
			continue
		}
		rt = add(rt)
		members = append(members, call.ChainOf(rt).Members()...)
	}
	return &entry{layer.To(rt), call.NewChain(members...)}
}

// entry is the outer end of a chain: it begins calls.
type entry struct {
	layer.Down
	chain *call.Chain
}

// RoundTrip makes one call.
func (e *entry) RoundTrip(req *http.Request) (*http.Response, error) {
	frame := call.New(req.Context(), e.chain, call.InfoOf(req))
	resp, err := e.Forward(req, frame)
	layer.Finish(frame, req, resp, err)
	return resp, err
}

// Unwrap returns the outermost layer.
func (e *entry) Unwrap() http.RoundTripper { return e.Next }

// CloseIdleConnections passes the wish on.
func (e *entry) CloseIdleConnections() { layer.CloseIdle(e.Next) }
