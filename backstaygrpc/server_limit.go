package backstaygrpc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

// ServerDomain is the domain of the google.rpc.ErrorInfo in a status by which a server
// says that it has not served a call: see [ServerLimit]. Its reasons are
// [ReasonConcurrency] and [ReasonRate].
const ServerDomain = "backstay-server"

// ServerLimitConfig is what [ServerLimit] admits. At least one limit must be given.
type ServerLimitConfig struct {
	// Concurrency bounds the calls that are served at a time, streams until their end.
	// Default: none.
	Concurrency *limit.Concurrency `json:"-"`
	// Rate bounds how many calls begin. Default: none.
	Rate *limit.Rate `json:"-"`
	// Priority returns the priority that a call has where it waits. It must be safe for
	// concurrent use. Default: as PriorityMetadata says.
	Priority func(ctx context.Context, method string) limit.Priority `json:"-"`
	// PriorityMetadata is the key of the callers' metadata that says their calls'
	// priority: low, normal or high. Name one that only callers can set who are to be
	// believed. Default: none, all are normal.
	PriorityMetadata string `json:"priorityMetadata,omitempty"`
	// RetryAfter is how long a call that has found no room is told to stay away, where
	// the limit does not know. A client of ours goes to another server meanwhile.
	// Negative: it is told nothing. Default: 100ms.
	RetryAfter time.Duration `json:"retryAfter,omitempty"`
}

// ServerLimit admits calls by limits, before anything is done for them. A call that is
// not admitted ends with a status that says so in a google.rpc.ErrorInfo of
// [ServerDomain], and when to come again in a google.rpc.RetryInfo and in
// grpc-retry-pushback-ms: ResourceExhausted where there were too many calls of late,
// Unavailable where too many are being served. It counts against no breaker of ours
// ([Classify]). The error says what is wrong with cfg; it is copied.
func ServerLimit(cfg *ServerLimitConfig) (ServerInterceptor, error) {
	var set ServerLimitConfig
	if cfg != nil {
		set = *cfg
	}
	var errs []error
	if set.Concurrency == nil && set.Rate == nil {
		errs = append(errs, errors.New("backstaygrpc: there is neither Concurrency nor Rate, want at least one"))
	}
	if set.PriorityMetadata != strings.ToLower(set.PriorityMetadata) {
		errs = append(errs, fmt.Errorf("backstaygrpc: PriorityMetadata is %q, want a key of metadata in lower case", set.PriorityMetadata))
	}
	if set.PriorityMetadata != "" && set.Priority != nil {
		errs = append(errs, errors.New("backstaygrpc: there are both Priority and PriorityMetadata, want one"))
	}
	if err := errors.Join(errs...); err != nil {
		return ServerInterceptor{}, err
	}
	if set.RetryAfter == 0 {
		set.RetryAfter = 100 * time.Millisecond
	}
	return around(set.serve), nil
}

func (s *ServerLimitConfig) serve(c *serverCall, next func(context.Context) error) error {
	ctx := c.ctx
	switch {
	case s.Priority != nil:
		ctx = limit.WithPriority(ctx, s.Priority(ctx, c.method))
	case s.PriorityMetadata != "":
		if p := c.priority(s.PriorityMetadata); p != limit.Normal {
			ctx = limit.WithPriority(ctx, p)
		}
	}
	if s.Rate != nil {
		if err := s.Rate.Wait(ctx); err != nil {
			return s.refuse(c, err)
		}
	}
	if s.Concurrency != nil {
		lease, err := s.Concurrency.Acquire(ctx)
		if err != nil {
			return s.refuse(c, err)
		}
		defer lease.Done() // also in a panic
	}
	return next(ctx)
}

func (c *serverCall) priority(key string) limit.Priority {
	values := c.incoming(key)
	if len(values) == 1 {
		switch values[0] {
		case "high":
			return limit.High
		case "low":
			return limit.Low
		}
	}
	return limit.Normal
}

// refuse returns what the caller gets to hear.
func (s *ServerLimitConfig) refuse(c *serverCall, err error) error {
	if !outcome.Refused(err) {
		return status.FromContextError(c.ctx.Err()).Err() // it went away while it waited
	}
	code := codes.Unavailable
	if errors.Is(err, limit.ErrLimited) {
		code = codes.ResourceExhausted
	}
	info := &errdetails.ErrorInfo{Domain: ServerDomain}
	info.Reason, info.Metadata = reasonOf(err)
	st, detailErr := status.New(code, err.Error()).WithDetails(info)
	after, known := outcome.RetryAfter(err)
	if !known {
		after = s.RetryAfter
	}
	if after > 0 && detailErr == nil {
		c.setTrailer(metadata.MD{pushbackKey: {strconv.FormatInt(max(after.Milliseconds(), 1), 10)}})
		st, detailErr = st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
	}
	if detailErr != nil {
		return status.Error(code, err.Error())
	}
	return st.Err()
}
