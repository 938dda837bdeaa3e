package balancer

import (
	"errors"
	"fmt"
)

// Sentinels for errors.Is.
var (
	// ErrNoNodes means that the service has no endpoint to send to.
	ErrNoNodes = errors.New("balancer: no nodes")
	// ErrNoOther means that a hedge was not sent, because its call has tried all
	// nodes already.
	ErrNoOther = errors.New("balancer: no other node")
	// ErrPanic means that so few nodes are healthy that the balancer refuses
	// calls: see Config.FailClosed.
	ErrPanic = errors.New("balancer: too few healthy nodes")
	// ErrClosed means that the balancer has been closed.
	ErrClosed = errors.New("balancer: closed")
)

// Error is why no node could be found for a call to a service; nothing was sent.
// Wrapped in it is the cause: [ErrNoNodes], [ErrNoOther], [ErrPanic], [ErrClosed], the resolver's error,
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

// Refused is true if the balancer has been closed, fails closed, or does not send a
// hedge.
func (e *Error) Refused() bool {
	return errors.Is(e.Err, ErrClosed) || errors.Is(e.Err, ErrPanic) || errors.Is(e.Err, ErrNoOther)
}
