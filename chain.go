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
	members := call.ChainOf(base).Members()
	for _, add := range slices.Backward(layers) {
		if add == nil {
			continue
		}
		rt = add(rt)
		members = append(members, call.ChainOf(rt).Members()...)
	}
	e := new(entry)
	e.Around(e, rt)
	e.Know(members...)
	return e
}

// entry is the outer end of a chain: it begins calls, unless it is a layer of
// another chain.
type entry struct{ layer.Base }

// RoundTripFrame hands the request on.
func (e *entry) RoundTripFrame(req *http.Request, f *call.Frame) (*http.Response, error) {
	return e.Forward(req, f)
}
