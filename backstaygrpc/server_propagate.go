package backstaygrpc

import (
	"cmp"
	"context"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/propagate"
)

// ServerPropagateConfig is what [ServerPropagate] makes of what callers say. The zero
// value is the default in every field.
type ServerPropagateConfig struct {
	// Trust says whether a call's metadata counts. It must be safe for concurrent use.
	// Calls that are not trusted are served as if ServerPropagate were not there.
	// Default: all calls.
	Trust func(ctx context.Context, method string) bool `json:"-"`
	// Max is the longest time that a call may claim; more counts as so much. It bounds
	// no call that has no deadline. Negative is no limit. Default: 24h.
	Max time.Duration `json:"max,omitempty"`
	// Margin is taken off the time, at most half of it, so that the answer is with the
	// caller before it stops waiting. Default: none.
	Margin time.Duration `json:"margin,omitempty"`
}

// envoyAttemptKey is the attempt's number, from 1, as Envoy has it.
const envoyAttemptKey = "x-envoy-attempt-count"

// ServerPropagate has calls served under a context that heeds what their callers say, as
// propagate.Handler does for HTTP:
//
//   - gRPC itself ends the context at the caller's deadline, and hands the deadline on to
//     what is called under it. Margin and Max bring it forward; the context's cause is
//     then a [*propagate.DeadlineError].
//   - The context bears a [call.Inbound], so that calls made under it are not repeated
//     where that would multiply attempts: the caller is repeating the call itself
//     (grpc-previous-rpc-attempts, x-envoy-attempt-count), or forbids it
//     (backstay-retry: no).
//   - If the call fails after one made under it has been tried again in vain, the
//     trailer says that it is not to be repeated: "backstay-retry: no", and for gRPC's
//     own clients a pushback of -1 (gRFC A6).
//
// A nil cfg is every default; it is copied.
func ServerPropagate(cfg *ServerPropagateConfig) ServerInterceptor {
	var set ServerPropagateConfig
	if cfg != nil {
		set = *cfg
	}
	set.Max = cmp.Or(set.Max, 24*time.Hour)
	set.Margin = max(set.Margin, 0)
	return around(func(c *serverCall, next func(context.Context) error) error {
		if set.Trust != nil && !set.Trust(c.ctx, c.method) {
			return next(c.ctx)
		}
		in := c.inbound()
		ctx := call.WithInbound(c.ctx, in)
		if deadline, ok := ctx.Deadline(); ok {
			left := time.Until(deadline)
			bound := left
			if set.Max > 0 {
				bound = min(bound, set.Max)
			}
			if bound -= min(set.Margin, bound/2); bound < left {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, bound, &propagate.DeadlineError{After: bound})
				defer cancel()
			}
		}
		err := next(ctx)
		if in.Exhausted() && again(err) {
			c.setTrailer(metadata.MD{retryKey: {retryNo}, pushbackKey: {"-1"}})
		}
		return err
	})
}

// inbound reads what the caller says of its attempt.
func (c *serverCall) inbound() *call.Inbound {
	in := new(call.Inbound)
	for _, v := range c.incoming(retryKey) {
		in.NoRetry = in.NoRetry || strings.EqualFold(v, retryNo)
	}
	if n, ok := number(c.incoming(attemptsKey)); ok {
		in.Attempt = n + 1
	}
	if n, ok := number(c.incoming(envoyAttemptKey)); ok {
		in.Attempt = max(in.Attempt, n)
	}
	return in
}

// number reads the one value that there should be.
func number(values []string) (int, bool) {
	if len(values) != 1 {
		return 0, false
	}
	n, err := strconv.ParseUint(values[0], 10, 30)
	return int(n), err == nil //nolint:gosec // 30 bits
}

// again reports whether a caller might take an error for one that passes.
func again(err error) bool {
	class := Classify(err, nil).Class
	return class == outcome.Failure || class == outcome.Throttled
}
