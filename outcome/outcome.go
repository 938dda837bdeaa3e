// Package outcome says how an attempt ended. One classifier serves every layer
// of a service, so that the retry, the breaker, the balancer and the limits
// never disagree about what happened:
//
//	what happened                                   Class      Retry
//	1xx to 4xx but those below, 501                 Success    Never
//	502, 503, 504                                   Failure    IfIdempotent
//	other 5xx                                       Failure    Never
//	429; 503 with Retry-After                       Throttled  IfIdempotent
//	408, reset, truncated headers, attempt timeout,
//	body idle timeout                               Failure    IfIdempotent
//	dial or connect failure, REFUSED_STREAM         Failure    Always
//	TLS verification, wrong protocol                Failure    Elsewhere
//	malformed request, unsupported scheme           Neutral    Never
//	caller's cancel or deadline, call timeout,
//	our own refusal, the caller's body failing      Neutral    Never
//
// [HTTP] is that table. The package also holds the marks that errors can bear
// ([Refused], [NotSent], [RetryAfter]): small interfaces that any package's
// errors can satisfy. Nothing is ever classified by an error's text.
package outcome

import "time"

// Class is what an attempt says about the node that it was sent to.
type Class uint8

const (
	// Success means the node did its work, whatever the answer says: a 404 is
	// a success.
	Success Class = iota
	// Failure means the node, or the way to it, did not do its work.
	Failure
	// Throttled means the node is well and asks for less. Breakers take it as
	// neutral, retries wait longer.
	Throttled
	// Neutral says nothing about the node: the caller went away, we refused,
	// or the request could not be sent at all.
	Neutral
)

// String returns the class's name in lower case.
func (c Class) String() string {
	switch c {
	case Success:
		return "success"
	case Failure:
		return "failure"
	case Throttled:
		return "throttled"
	default:
		return "neutral"
	}
}

// Retry says when the call may be tried again.
type Retry uint8

const (
	// Never means another attempt would not help, or must not be made.
	Never Retry = iota
	// IfIdempotent means the request may have been acted on: only a call that
	// may be repeated is tried again.
	IfIdempotent
	// Always means that nothing reached the peer, or that the peer guarantees
	// not to have acted: any call may be tried again.
	Always
	// Elsewhere is Always, but once per call and only on another node: this
	// one would fail in the same way.
	Elsewhere
)

// String returns the name in lower case.
func (r Retry) String() string {
	switch r {
	case Never:
		return "never"
	case IfIdempotent:
		return "if idempotent"
	case Always:
		return "always"
	default:
		return "elsewhere"
	}
}

// Outcome is how one attempt ended. The zero value is a plain success.
type Outcome struct {
	// Class is what the attempt says about the node.
	Class Class
	// Retry is when the call may be tried again.
	Retry Retry
	// After is how long the peer asked to be left alone; 0 if it did not.
	// It is not capped here.
	After time.Duration
	// Err is what went wrong; nil for a success. For a failing HTTP answer it
	// is a [StatusError].
	Err error
}

// Failed reports whether the outcome counts against the node.
func (o Outcome) Failed() bool { return o.Class == Failure }

// Of classifies the result of a function that is not an HTTP request: a nil
// error is a success, our own refusals, timeouts of the call and the caller's
// cancellation are neutral, an attempt's timeout is a failure, and every other
// error is a failure that is retried only where repeating is allowed. The marks
// an error bears are honoured: [NotSent] makes it Always, [RetryAfter] fills
// After.
func Of(err error) Outcome {
	if err == nil {
		return Outcome{}
	}
	return ofError(err)
}
