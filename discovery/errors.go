package discovery

import (
	"context"
	"errors"
	"iter"
)

// What a [*ResolveError] may wrap, for errors.Is.
var (
	// ErrNotFound means that the source answered, and does not know the service:
	// NXDOMAIN, or no entry in a registry. It is a failure like any other: an
	// earlier set keeps holding.
	ErrNotFound = errors.New("service not found")
	// ErrNoEndpoints means that the source knows the service and lists nobody.
	ErrNoEndpoints = errors.New("no endpoints")
)

// ResolveError says that a service's endpoints could not be found out. The set
// before, if there was one, keeps holding.
type ResolveError struct {
	// Service is the name that was watched.
	Service string
	// Err is what went wrong: the source's own error, or one around ErrNotFound
	// or ErrNoEndpoints.
	Err error
}

// Error names the service and what went wrong.
func (e *ResolveError) Error() string { return "discovery: " + e.Service + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *ResolveError) Unwrap() error { return e.Err }

// NotSent is true: a call that fails for want of endpoints has reached nobody.
func (e *ResolveError) NotSent() bool { return true }

// Warning is an error yield that puts no set in doubt: the sets around it are
// complete and current, but for what it says. An endpoint with an impossible
// weight was left out, an SRV record's target has no address, a fallback of
// [Failover] is out of reach.
type Warning struct {
	// Service is the name that was watched.
	Service string
	// Err is what there is to know.
	Err error
}

// Error names the service and what there is to know.
func (w *Warning) Error() string { return "discovery: " + w.Service + ": warning: " + w.Err.Error() }

// Unwrap returns Err.
func (w *Warning) Unwrap() error { return w.Err }

func isWarning(err error) bool {
	var w *Warning
	return errors.As(err, &w)
}

// resolveError returns err as a *ResolveError.
func resolveError(service string, err error) error {
	if _, already := errors.AsType[*ResolveError](err); already {
		return err
	}
	return &ResolveError{Service: service, Err: err}
}

// broken is a resolver that was configured wrongly.
type broken struct{ err error }

// Validate returns the error.
func (b broken) Validate() error { return b.err }

// Watch yields the error and waits, for nothing will mend it.
func (b broken) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		if ctx.Err() == nil && yield(Set{}, &ResolveError{Service: service, Err: b.err}) {
			<-ctx.Done()
		}
	}
}
