package call

import (
	"net/http"
	"reflect"
	"strings"

	"github.com/backstay/backstay/internal/clock"
)

// wrapper is what every layer of ours satisfies: it says what it wraps.
type wrapper interface {
	http.RoundTripper
	Unwrap() http.RoundTripper
}

// ChainOf returns the chain of the layers from rt down, as far as they say what
// they wrap (a method Unwrap() http.RoundTripper). Layers use it when they are
// made, for the case that they turn out to be an entry.
func ChainOf(rt http.RoundTripper) *Chain {
	var members []any
	for {
		layer, ok := rt.(wrapper)
		if !ok {
			return &Chain{members: members}
		}
		// What == would panic on, such as a struct with a func in it, is not
		// one of ours.
		if reflect.ValueOf(layer).Comparable() {
			members = append(members, layer)
		}
		rt = layer.Unwrap()
	}
}

// Enter is how an HTTP layer comes by its frame. If the request's innermost
// frame belongs to a chain that self is part of, it is that one, and not fresh.
// Otherwise, or if that frame was made for self (then this is another call, made
// with the context of the first), self is an entry: it gets a fresh frame for
// chain, to hand down or [Carry] – if anybody would see it: other layers in the
// chain, or a log. If not, the frame is nil. A layer enters once for each request
// that it is given.
func Enter(req *http.Request, self http.RoundTripper, chain *Chain) (f *Frame, fresh bool) {
	ctx := req.Context()
	if f := Join(ctx, self); f != nil && f.entry != self {
		return f, false
	}
	if chain.Len() < 2 && !Logged(ctx) {
		return nil, false
	}
	f = New(ctx, chain, InfoOf(req))
	f.entry = self
	return f, true
}

// InfoOf describes a request: the service is its URL's host in lower case.
func InfoOf(req *http.Request) Info {
	info := Info{Method: req.Method, Start: clock.Now()}
	if info.Method == "" {
		info.Method = http.MethodGet
	}
	if req.URL != nil {
		info.Service, info.Path = strings.ToLower(req.URL.Host), req.URL.Path
	}
	return info
}
