package propagate

import (
	"cmp"
	"maps"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/internal/layer"
)

// The headers, in the form of http.Header's keys.
const (
	// TimeoutHeader says how long the caller waits for the whole response, as
	// gRPC does over HTTP/2: up to eight digits and a unit, H M S m u or n.
	TimeoutHeader = "Grpc-Timeout"
	// HeadersTimeoutHeader says how long the caller waits for the response's
	// headers, in milliseconds, as Envoy does.
	HeadersTimeoutHeader = "X-Envoy-Expected-Rq-Timeout-Ms"
	// AttemptHeader says which attempt of a call this is, from 1, as Envoy does.
	AttemptHeader = "X-Envoy-Attempt-Count"
	// RetryHeader with the value [RetryNo] in a request asks that nothing be
	// repeated on its behalf, and in a response that the request not be repeated.
	RetryHeader = "Backstay-Retry"
	// RetryNo is RetryHeader's only value.
	RetryNo = "no"
)

// Layer tells the server behind next what is in the package's headers, with each
// attempt anew; a nil next is http.DefaultTransport. It belongs inside whatever
// makes the attempts, next to the balancer or the transport: a layer that signs all
// headers of a request must be inside of it. The composed client has it below the
// PerAttempt layers.
//
// The time left until the headers is the nearest of the attempt's timeout, the
// call's and the caller's deadline, that for the whole call the nearer of the
// latter two. An attempt's timeout is left out where the upload may take long,
// because its progress starts it again. A header of the caller's own that says
// less stays.
//
// The request that Layer is given is not changed.
func Layer(next http.RoundTripper) http.RoundTripper {
	t := new(transport)
	return t.Around(t, next)
}

// transport is what Layer returns.
type transport struct{ layer.Base }

// RoundTripFrame sends req with the headers.
func (t *transport) RoundTripFrame(req *http.Request, f *call.Frame) (*http.Response, error) {
	if req.Header == nil {
		return t.Forward(req, f) // malformed, as whoever sends it will say
	}
	ctx := req.Context()
	out := req.WithContext(ctx)
	out.Header = make(http.Header, len(req.Header)+4)
	maps.Copy(out.Header, req.Header)
	say(out, f)
	if call.InboundOf(ctx).Final() {
		out.Header[RetryHeader] = []string{RetryNo}
	}
	resp, err := t.Forward(out, f)
	if resp != nil {
		resp.Request = req
	}
	return resp, err
}

// none is a time that nothing bounds.
const none = time.Duration(math.MaxInt64)

// say puts the attempt's number and the time that is left into the header, which is
// our own.
func say(req *http.Request, f *call.Frame) {
	ctx, h := req.Context(), req.Header
	h[AttemptHeader] = []string{strconv.Itoa(max(f.Number(), 1))}
	now := call.Now(f)
	whole := cmp.Or(first(h, TimeoutHeader, parseTimeout), none)
	if deadline, ok := ctx.Deadline(); ok {
		whole = min(whole, deadline.Sub(now))
	}
	if deadline := f.Deadline(); !deadline.IsZero() {
		whole = min(whole, deadline.Sub(now))
	}
	headers := min(whole, cmp.Or(first(h, HeadersTimeoutHeader, parseMillis), none))
	if body := req.Body; body == nil || body == http.NoBody || attempt.Small(req) {
		headers = min(headers, cmp.Or(f.AttemptTimeout(), none), attempt.Left(ctx))
	}
	delete(h, TimeoutHeader)
	delete(h, HeadersTimeoutHeader)
	if whole != none {
		h[TimeoutHeader] = []string{formatTimeout(whole)}
	}
	if headers == none {
		return
	}
	if ms, ok := formatMillis(headers); ok {
		h[HeadersTimeoutHeader] = []string{ms}
	}
}

// first returns the time in a header; 0 if there is none, or if it is not as it
// should be.
func first(h http.Header, name string, parse func(string) (time.Duration, bool)) time.Duration {
	values := h[name]
	if len(values) != 1 {
		return 0
	}
	d, _ := parse(values[0])
	return d
}
