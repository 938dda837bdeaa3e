package balancer

import (
	"errors"
	"fmt"
)

// Sentinels for errors.Is.
var (
	// ErrNoNodes means that the service has no endpoint to send to.
	ErrNoNodes = errors.New("balancer: no nodes")
	// ErrClosed means that the balancer has been closed.
	ErrClosed = errors.New("balancer: closed")
)

// Error is why no node could be found for a call to a service; nothing was sent.
// Wrapped in it is the cause: [ErrNoNodes], [ErrClosed], the resolver's error,
// or the context's if that ended while the first endpoints were awaited.
type Error struct {
	// Service is the name that was asked for.
	Service string
	// Err is the cause.
	Err error
}

// Error names the service and the cause.
func (e *Error) Error() string { return fmt.Sprintf("balancer: service %q: %v", e.Service, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// NotSent is true.
func (e *Error) NotSent() bool { return true }

// Refused is true if the balancer has been closed.
func (e *Error) Refused() bool { return errors.Is(e.Err, ErrClosed) }
