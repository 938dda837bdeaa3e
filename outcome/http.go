package outcome

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Classifier decides how an HTTP attempt ended. It gets the request as the
// caller's context sees it, and either the response (its headers; the body must
// not be touched) or the error. It must be safe for concurrent use and must not
// block.
//
// A nil Classifier means [HTTP]. A custom one usually decides its own cases and
// returns HTTP(req, resp, err) for the rest.
type Classifier func(req *http.Request, resp *http.Response, err error) Outcome

// Classify calls c, or [HTTP] if c is nil.
func (c Classifier) Classify(req *http.Request, resp *http.Response, err error) Outcome {
	if c == nil {
		return HTTP(req, resp, err)
	}
	return c(req, resp, err)
}

// StatusError is the error of an outcome whose failing answer was an HTTP
// response with this status.
type StatusError int

// Error returns the code and its text, such as "503 Service Unavailable".
func (e StatusError) Error() string {
	return strconv.Itoa(int(e)) + " " + http.StatusText(int(e))
}

// HTTP classifies an HTTP attempt by the package's table. The response decides
// if there is one, even if the caller's context has ended meanwhile. A failure is
// never retried where [RetryForbidden] holds for its header.
func HTTP(req *http.Request, resp *http.Response, err error) Outcome {
	if err != nil || resp == nil {
		return httpError(req, err)
	}
	status := resp.StatusCode
	if status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout {
		return Outcome{}
	}
	var o Outcome
	switch status {
	case http.StatusNotImplemented:
		return Outcome{}
	case http.StatusTooManyRequests:
		o.Class, o.Retry = Throttled, IfIdempotent
		o.After, _ = ParseRetryAfter(resp.Header)
	case http.StatusServiceUnavailable:
		var asked bool
		o.Class, o.Retry = Failure, IfIdempotent
		if o.After, asked = ParseRetryAfter(resp.Header); asked {
			o.Class = Throttled
		}
	case http.StatusRequestTimeout, http.StatusBadGateway, http.StatusGatewayTimeout:
		o.Class, o.Retry = Failure, IfIdempotent
	default:
		o.Class = Failure
	}
	if RetryForbidden(resp.Header) {
		o.Retry = Never
	}
	o.Err = StatusError(status)
	return o
}

// RetryForbidden reports whether a response's header says that its request is not
// to be sent again: "Backstay-Retry: no" (package propagate), Envoy's
// X-Envoy-Overloaded and X-Envoy-Ratelimited, or a Grpc-Retry-Pushback-Ms that is
// not one number of milliseconds from 0 (gRFC A6).
func RetryForbidden(h http.Header) bool {
	if h["X-Envoy-Overloaded"] != nil || h["X-Envoy-Ratelimited"] != nil {
		return true
	}
	for _, v := range h["Backstay-Retry"] {
		if strings.EqualFold(v, "no") {
			return true
		}
	}
	pushback := h["Grpc-Retry-Pushback-Ms"]
	if len(pushback) == 0 {
		return false
	}
	_, err := strconv.ParseUint(pushback[0], 10, 31)
	return len(pushback) > 1 || err != nil
}

func httpError(req *http.Request, err error) Outcome {
	if err == nil {
		err = errNoResponse
	}
	if req != nil {
		// net/http hands on the cause of a cancelled context, which may be any
		// error of the caller's: it is the caller that speaks, not the peer.
		ctx := req.Context()
		if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) && !ourTimeout(err) {
			return Outcome{Class: Neutral, Err: err}
		}
		if cancelled(req) && !ourTimeout(err) {
			return Outcome{Class: Neutral, Err: err}
		}
		if !wellFormed(req) {
			return Outcome{Class: Neutral, Err: err}
		}
	}
	return ofError(err)
}

var errNoResponse = errors.New("backstay: the transport returned neither a response nor an error")

func ourTimeout(err error) bool {
	var timeout *TimeoutError
	return errors.As(err, &timeout)
}

// cancelled reports whether the caller's Request.Cancel is closed, which is also
// how http.Client ends a request at its Timeout. net/http's error for it has no
// type.
func cancelled(req *http.Request) bool {
	select {
	case <-req.Cancel: //nolint:staticcheck // deprecated, and still in use
		return true
	default:
		return false
	}
}

// schemeMismatch reports whether the server spoke HTTP where HTTPS was asked.
func schemeMismatch(err error) bool { return errors.Is(err, http.ErrSchemeMismatch) }

// wellFormed reports whether net/http would try to send req at all. Its own
// refusals are untyped errors, and to classify them by their text is out of the
// question, so the checks are made again: only after an error, never on the way.
func wellFormed(req *http.Request) bool {
	if req.URL == nil || req.URL.Host == "" || (req.URL.Scheme != "http" && req.URL.Scheme != "https") {
		return false
	}
	if req.Method != "" && !httpguts.ValidHeaderFieldName(req.Method) {
		return false // a method is a token, as a field name is
	}
	if req.Header == nil || req.ContentLength != 0 && req.Body == nil {
		return false
	}
	// Not Trailer: whoever reads the body may be writing to it just now.
	for name, values := range req.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			return false
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return false
			}
		}
	}
	return true
}

// Idempotent reports whether req may be repeated: by its method (GET, HEAD,
// OPTIONS, TRACE, PUT, DELETE: RFC 9110 §9.2.2), or because it bears an
// Idempotency-Key or X-Idempotency-Key, as net/http itself has it.
func Idempotent(req *http.Request) bool {
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return req.Header["Idempotency-Key"] != nil || req.Header["X-Idempotency-Key"] != nil
}
