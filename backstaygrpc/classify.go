package backstaygrpc

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

// Classifier decides how an attempt ended: by its error, which is nil for a success
// and otherwise mostly bears a status, and by the trailer, which is nil if none came.
// It must be safe for concurrent use and must not block. One of the user's own
// usually decides its own cases and returns [Classify] for the rest.
type Classifier func(err error, trailer metadata.MD) outcome.Outcome

// Classify judges an attempt by its status code, as HTTP's table in package outcome
// does by the status that Envoy takes the code for:
//
//	code                                        Class      Retry
//	OK, and those that are not listed           Success    Never
//	Unavailable                                 Failure    IfIdempotent
//	Unavailable, ResourceExhausted that says
//	when to come again                          Throttled  IfIdempotent
//	ResourceExhausted; Unavailable whose
//	pushback forbids to try again               Throttled  Never
//	DeadlineExceeded, said by the server        Failure    IfIdempotent
//	Internal, Unknown, DataLoss                 Failure    Never
//	Canceled                                    Neutral    Never
//
// So an Unavailable is not repeated where nobody says that the method may be: the
// code says that the service is not there, and not that nothing was done; connections
// break after a request has been acted on, too. What was never sent is always tried
// again: see [outcome.NotSent].
//
// A server says when to come again by "grpc-retry-pushback-ms" in the trailer, or by
// a google.rpc.RetryInfo in the status. A pushback that is not one number from 0, and
// "backstay-retry: no", forbid to try again (gRFC A6, package propagate).
//
// Errors without a status, those of contexts among them, are judged by [outcome.Of].
func Classify(err error, trailer metadata.MD) outcome.Outcome {
	if err == nil {
		return outcome.Outcome{}
	}
	st, ok := statusOf(err)
	if !ok {
		return outcome.Of(err)
	}
	o := outcome.Outcome{Class: outcome.Failure, Err: err}
	switch st.Code() {
	case codes.Canceled:
		o.Class = outcome.Neutral
	case codes.Unavailable:
		o.Retry = outcome.IfIdempotent
		if after, ok := pushback(st, trailer); ok {
			o.Class, o.After = outcome.Throttled, after
		}
	case codes.ResourceExhausted:
		o.Class = outcome.Throttled
		if after, ok := pushback(st, trailer); ok {
			o.Retry, o.After = outcome.IfIdempotent, after
		}
	case codes.DeadlineExceeded:
		o.Retry = outcome.IfIdempotent
	case codes.Internal, codes.Unknown, codes.DataLoss:
	default:
		o.Class = outcome.Success
	}
	if o.Retry == outcome.Never {
		return o
	}
	if values := trailer[pushbackKey]; len(values) > 0 {
		if _, ok := milliseconds(values); !ok {
			// Less load is what it asks for; budgets are charged for it (gRFC A6).
			o.Class, o.Retry, o.After = outcome.Throttled, outcome.Never, 0
		}
	}
	if forbidden(trailer) {
		o.Retry = outcome.Never
	}
	return o
}

// statusOf returns the status that err itself or what it wraps bears. The timeouts of
// ours may be around an earlier attempt's status, and the refusal of an open breaker is
// around that of an earlier call: those are not theirs.
func statusOf(err error) (*status.Status, bool) {
	if _, ours := errors.AsType[*outcome.TimeoutError](err); ours {
		return nil, false
	}
	return bornBy(err)
}

func bornBy(err error) (*status.Status, bool) {
	for err != nil {
		//nolint:errorlint // this is errors.As, but for what it must not see through
		switch e := err.(type) {
		case *breaker.OpenError:
			return nil, false
		case interface{ GRPCStatus() *status.Status }:
			st := e.GRPCStatus()
			return st, st != nil
		case interface{ Unwrap() []error }:
			for _, joined := range e.Unwrap() {
				if st, ok := bornBy(joined); ok {
					return st, true
				}
			}
			return nil, false
		}
		err = errors.Unwrap(err)
	}
	return nil, false
}

// The keys of metadata, which are HTTP's header in lower case.
const (
	pushbackKey = "grpc-retry-pushback-ms"
	attemptsKey = "grpc-previous-rpc-attempts"
	retryKey    = "backstay-retry"
	retryNo     = "no"
)

// atOnce is a wait of no length: 0 would mean that nobody has asked for one.
const atOnce = time.Nanosecond

// pushback returns how long the server wants to be left alone, if it says so.
func pushback(st *status.Status, trailer metadata.MD) (time.Duration, bool) {
	if ms, ok := milliseconds(trailer[pushbackKey]); ok {
		return max(ms, atOnce), true
	}
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok && info.GetRetryDelay().IsValid() {
			return max(info.GetRetryDelay().AsDuration(), atOnce), true
		}
	}
	return 0, false
}

// milliseconds reads the one value that there must be.
func milliseconds(values []string) (time.Duration, bool) {
	if len(values) != 1 {
		return 0, false
	}
	ms, err := strconv.ParseUint(values[0], 10, 31)
	return time.Duration(ms) * time.Millisecond, err == nil //nolint:gosec // 31 bits
}

// forbidden reports whether the server says that to repeat the call is of no use.
func forbidden(trailer metadata.MD) bool {
	for _, v := range trailer[retryKey] {
		if strings.EqualFold(v, retryNo) {
			return true
		}
	}
	return false
}

// attemptEnd is what is known of an attempt besides its error.
type attemptEnd struct {
	// ctx is the caller's, without bounds of ours.
	ctx context.Context //nolint:containedctx // looked at and forgotten
	// cause is what ended the attempt's own context, if that has ended.
	cause error
	// sent is whether a stream was created: else nothing has left this process.
	sent    bool
	trailer metadata.MD
}

// again reports whether an attempt that ended with o is to be made again without more
// ado: nothing was sent, and the call waits for a connection.
func (e *attemptEnd) again(o outcome.Outcome, err error, waits bool) bool {
	if e.ctx.Err() != nil {
		return false
	}
	return errors.Is(err, errNotReady) || waits && !e.sent && o.Retry == outcome.Always
}

// judge returns how an attempt ended, and its error as the caller gets it: one of
// our timeouts in place of what grpc made of it.
func (c Classifier) judge(err error, end *attemptEnd) (outcome.Outcome, error) {
	if err == nil {
		return c.of(nil, end.trailer), nil
	}
	if timeout, ours := errors.AsType[*outcome.TimeoutError](end.cause); ours && byContext(err) {
		timeout := &outcome.TimeoutError{Kind: timeout.Kind, After: timeout.After, Err: timeout.Err}
		o := outcome.Of(timeout)
		if !end.sent && o.Retry == outcome.IfIdempotent {
			o.Retry = outcome.Always
		}
		return o, timeout
	}
	if errors.Is(err, errNotReady) {
		return outcome.Outcome{Class: outcome.Neutral, Err: err}, err
	}
	if byContext(err) && (ended(end.ctx) || end.cause != nil) {
		// The caller's, or a hedge that has lost. grpc's error does not answer to
		// errors.Is, by which the balancer tells a deadline from a cancel.
		if status.Code(err) == codes.DeadlineExceeded {
			err = &deadlineError{err}
		}
		return outcome.Outcome{Class: outcome.Neutral, Err: err}, err
	}
	if end.sent {
		return c.of(err, end.trailer), err
	}
	if status.Code(err) == codes.Unavailable {
		err := &notSentError{err}
		return outcome.Outcome{Class: outcome.Failure, Retry: outcome.Always, Err: err}, err
	}
	// grpc itself would not have it: metadata that is not valid, credentials that
	// cannot be had, a compressor that nobody knows.
	return outcome.Outcome{Class: outcome.Neutral, Err: err}, err
}

func (c Classifier) of(err error, trailer metadata.MD) outcome.Outcome {
	if c == nil {
		return Classify(err, trailer)
	}
	return c(err, trailer)
}

// byContext reports whether err is what grpc makes of a context that has ended.
func byContext(err error) bool {
	code := status.Code(err)
	return code == codes.Canceled || code == codes.DeadlineExceeded ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// ended reports whether ctx has ended, or is just about to: the server may be quicker
// to say so than the context's own timer.
func ended(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// deadlineError has grpc's DeadlineExceeded answer to context.DeadlineExceeded.
type deadlineError struct{ error }

func (e *deadlineError) Unwrap() error              { return e.error }
func (e *deadlineError) Is(target error) bool       { return target == context.DeadlineExceeded }
func (e *deadlineError) GRPCStatus() *status.Status { return status.Convert(e.error) }

// notSentError marks a status as one of which nothing reached the server.
type notSentError struct{ error }

func (e *notSentError) Unwrap() error              { return e.error }
func (e *notSentError) NotSent() bool              { return true }
func (e *notSentError) GRPCStatus() *status.Status { return status.Convert(e.error) }
