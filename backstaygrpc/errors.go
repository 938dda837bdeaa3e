package backstaygrpc

import (
	"context"
	"errors"
	"maps"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

// Domain is the domain of the google.rpc.ErrorInfo in the status of an [*Error] that
// no server has a part in.
const Domain = "backstay"

// The reasons in that ErrorInfo.
const (
	// ReasonBreaker means that the breakers of all nodes are open.
	ReasonBreaker = "BREAKER_OPEN"
	// ReasonConcurrency means that too many calls are under way.
	ReasonConcurrency = "CONCURRENCY_LIMIT"
	// ReasonRate means that there were too many calls of late.
	ReasonRate = "RATE_LIMIT"
	// ReasonNoEndpoints means that the service has no endpoint, or that nobody knows
	// which it has.
	ReasonNoEndpoints = "NO_ENDPOINTS"
	// ReasonPanic means that so few nodes are well that calls are refused.
	ReasonPanic = "TOO_FEW_NODES"
	// ReasonClosed means that the client or the connection has been closed.
	ReasonClosed = "CLOSED"
	// ReasonRefused is any other refusal of ours.
	ReasonRefused = "REFUSED"
)

// Error is what a call ends with where something of ours has a part in it. What a
// server says is returned as it is.
//
// It bears a status: status.FromError and status.Code see the server's own if there
// is one in Err (a call that is not tried again because the budget is exhausted);
// DeadlineExceeded for our timeouts, Canceled for a caller that went away, and for
// our refusals Unavailable, with a google.rpc.ErrorInfo that says who and why, and
// with a google.rpc.RetryInfo where it is known when to come again.
//
// errors.Is and errors.As see through it: [breaker.ErrOpen], [limit.ErrFull],
// [outcome.ErrCallTimeout] and their like, and what [outcome.Refused],
// [outcome.NotSent] and [outcome.RetryAfter] look for.
type Error struct {
	// Service is the name of the service that was called.
	Service string
	// Err is what happened. It is not nil.
	Err error

	ended error // the caller's context's, if it is that which ended the call
}

// Error names the service and says what happened.
func (e *Error) Error() string { return "backstaygrpc: service " + e.Service + ": " + e.Err.Error() }

// Unwrap returns what happened.
func (e *Error) Unwrap() error { return e.Err }

// Is matches the error of the caller's context, if it is that which ended the call,
// whatever its cause.
func (e *Error) Is(target error) bool { return e.ended != nil && target == e.ended }

// GRPCStatus returns the status: see [Error].
func (e *Error) GRPCStatus() *status.Status {
	if e.ended != nil {
		return status.New(status.FromContextError(e.ended).Code(), e.Error())
	}
	if st, ok := statusOf(e.Err); ok {
		return st
	}
	switch {
	case outcome.Refused(e.Err): // first, for a rate that would take too long is a deadline, too
	case errors.Is(e.Err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, e.Error())
	case errors.Is(e.Err, context.Canceled):
		return status.New(codes.Canceled, e.Error())
	}
	st := status.New(codes.Unavailable, e.Error())
	info := &errdetails.ErrorInfo{Domain: Domain, Metadata: map[string]string{"service": e.Service}}
	var more map[string]string
	info.Reason, more = reasonOf(e.Err)
	maps.Copy(info.Metadata, more)
	details := []protoadapt.MessageV1{info}
	if after, ok := outcome.RetryAfter(e.Err); ok {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
	}
	if with, err := st.WithDetails(details...); err == nil {
		return with
	}
	return st
}

// reasonOf returns the reason for a refusal, and whose it is.
func reasonOf(err error) (string, map[string]string) {
	if open, ok := errors.AsType[*breaker.OpenError](err); ok {
		return ReasonBreaker, map[string]string{"breaker": open.Key}
	}
	if full, ok := errors.AsType[*limit.FullError](err); ok {
		return ReasonConcurrency, map[string]string{"limit": full.Key}
	}
	if limited, ok := errors.AsType[*limit.RateError](err); ok {
		return ReasonRate, map[string]string{"limit": limited.Key}
	}
	switch {
	case errors.Is(err, balancer.ErrClosed), errors.Is(err, backstay.ErrClosed):
		return ReasonClosed, nil
	case errors.Is(err, balancer.ErrPanic):
		return ReasonPanic, nil
	}
	if _, ok := errors.AsType[*balancer.Error](err); ok {
		return ReasonNoEndpoints, nil
	}
	return ReasonRefused, nil
}

// errorOf returns err with a status: as it is if it bears one itself. The context is
// the caller's.
func errorOf(ctx context.Context, service string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok { // not one within
		return err
	}
	e := &Error{Service: service, Err: err}
	if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
		e.ended = ctx.Err()
	}
	return e
}
