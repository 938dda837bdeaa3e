package backstay

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/backstay/backstay/outcome"
)

// ErrClosed is the cause of the error of calls through a client that has been
// closed, or is being shut down.
var ErrClosed = errors.New("backstay: client closed")

// RequestError is why a request could not be sent at all: something is wrong
// with it, or the client has been closed. Nothing reached any server.
type RequestError struct {
	// Target is the request's URL, without user, password and query.
	Target string
	// Err is what is wrong.
	Err error
}

// Error names the target and the reason.
func (e *RequestError) Error() string {
	return fmt.Sprintf("backstay: request to %q: %s", e.Target, strings.TrimPrefix(e.Err.Error(), "backstay: "))
}

// Unwrap returns the reason.
func (e *RequestError) Unwrap() error { return e.Err }

// Refused is true.
func (e *RequestError) Refused() bool { return true }

// NotSent is true.
func (e *RequestError) NotSent() bool { return true }

// Refused reports whether err says that Backstay refused a call and the peer did
// not: an open breaker, a full limit, an exhausted rate.
func Refused(err error) bool { return outcome.Refused(err) }

// NotSent reports whether err guarantees that nothing of the request reached the
// peer, so that even a call that must not be repeated may be tried again.
func NotSent(err error) bool { return outcome.NotSent(err) }

// RetryAfter returns how long to wait before err may have gone away, if it knows.
func RetryAfter(err error) (time.Duration, bool) { return outcome.RetryAfter(err) }
