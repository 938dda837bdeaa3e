package backstaygrpc

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

// terms are how the calls of a connection, or of an interceptor, are made.
type terms struct {
	service   string
	classify  Classifier
	hashKey   string // the key of metadata that policies hash by
	propagate bool
}

// trials is what the attempts of one call have in common.
type trials struct {
	*terms
	conn   *Conn           // nil for an interceptor, which has no nodes to choose from
	name   string          // the method's full one
	ctx    context.Context //nolint:containedctx // the caller's
	method *method
	opts   callOptions
	frame  *call.Frame
	call   backstay.Call // of a Conn
	open   bool          // the server may have nothing to say for long

	// How an interceptor goes on.
	invoke func(ctx context.Context, request, reply any, opts ...grpc.CallOption) error
	again  func(ctx context.Context, opts ...grpc.CallOption) (grpc.ClientStream, error) // of a stream
}

// trial is one of them: a lease, a connection and a context.
type trial struct {
	balancer.Attempt
	of      *trials
	frame   *call.Frame
	index   int       // in the frame, where there is no lease
	conn    *nodeConn // nil for an interceptor
	number  int       // from 1
	start   time.Time
	ctx     context.Context //nolint:containedctx // the attempt's own
	cancel  context.CancelFunc
	timeout *outcome.TimeoutError // why ctx ends at its deadline, unless that is the caller's
	over    bool
}

// finish ends the call, with what its caller gets.
func (x *trials) finish(status int, err error) {
	if x.conn != nil {
		x.call.Finish(x.ctx, status, err)
		return
	}
	x.frame.Finish(time.Now(), status, err)
}

// maxPasses bounds how many nodes without a connection are passed over for another.
const maxPasses = 16

// begin gets an attempt a node with a connection: within ctx, which is the attempt's.
// Waits is whether it waits for one that is ready.
func (x *trials) begin(ctx context.Context, frame *call.Frame, t *trial, waits bool) error {
	c := x.conn
	if c == nil {
		return x.start(frame, t, nil, time.Now())
	}
	var unknown time.Time
	pick := balancer.Call{Now: call.Now(frame), LatencyNeutral: x.open}
	if x.hashKey != "" {
		pick.Key = keyOf(ctx, x.hashKey)
	}
	wait := newPause(ctx, frame)
	defer wait.end()
	for passes := 0; ; pick.Now = unknown {
		err := c.b.Begin(ctx, frame, &pick, &t.Attempt)
		switch {
		case err == nil:
		case waits && (errors.Is(err, breaker.ErrOpen) || errors.Is(err, balancer.ErrNoNodes)):
			if err := wait.pause(err); err != nil {
				return err
			}
			pick.Avoid, passes = nil, 0
			continue
		default:
			return err
		}
		n := t.Node()
		conn, err := c.conn(n)
		if err != nil {
			t.Pass(time.Time{}, "connection", outcome.Outcome{Class: outcome.Neutral, Err: err})
			return err
		}
		last := slices.Contains(pick.Avoid, n) || passes == maxPasses // there is no other
		switch {
		case waits:
			// A call that may wait for a node does not have it judged for that.
			if conn.ready(wait.context()) {
				return x.start(frame, t, conn, time.Now())
			}
			err := &notSentError{status.Error(codes.Unavailable, "the connection to node "+n.Key()+" is not ready")}
			t.Pass(time.Time{}, "connection", outcome.Outcome{Class: outcome.Neutral, Err: err})
			if !last {
				break
			}
			if err := wait.pause(err); err != nil {
				return err
			}
			pick.Avoid, passes = nil, 0
			continue
		case !conn.failing() || last:
			return x.start(frame, t, conn, pick.Now)
		default:
			err := &notSentError{status.Error(codes.Unavailable, "the connection to node "+n.Key()+" has failed")}
			t.Pass(time.Time{}, "connection", outcome.Outcome{Class: outcome.Failure, Retry: outcome.Always, Err: err})
		}
		pick.Avoid = append(slices.Clip(pick.Avoid), n)
		passes++
	}
}

// start begins the attempt on the node that it has got.
func (x *trials) start(frame *call.Frame, t *trial, conn *nodeConn, now time.Time) error {
	t.of, t.frame, t.conn, t.number, t.start = x, frame, conn, max(frame.Number(), 1), now
	return nil
}

// unary makes the context of a unary attempt. Its own timeout and that of the call
// bound it, of which grpc tells the server.
func (t *trial) unary(ctx context.Context, frame *call.Frame) {
	t.ctx = t.of.outgoing(ctx, t.number)
	deadline, kind, after := frame.Deadline(), outcome.ErrCallTimeout, time.Duration(0)
	if !deadline.IsZero() {
		after = deadline.Sub(frame.Start())
	}
	if d := frame.AttemptTimeout(); d > 0 && (deadline.IsZero() || t.start.Add(d).Before(deadline)) {
		deadline, kind, after = t.start.Add(d), outcome.ErrAttemptTimeout, d
	}
	if !deadline.IsZero() {
		t.timeout = &outcome.TimeoutError{Kind: kind, After: after}
		t.ctx, t.cancel = context.WithDeadlineCause(t.ctx, deadline, t.timeout)
	}
}

// cause returns what has ended the attempt's context, if that is so: err is what grpc
// says. The server has been told of the deadline, and may be quicker to say so than the
// context's own timer.
func (t *trial) cause(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case t.timeout != nil && byContext(err) && ended(ctx) && !ended(t.of.ctx):
		return t.timeout
	}
	return nil
}

// end ends the attempt with what grpc says of it, and returns the error as the caller
// gets it. Again is whether nothing was sent and the call waits for a connection, as it
// says of itself (waits) or as is found out on the way to grpc.
func (t *trial) end(err error, a *answer, waits bool) (again bool, _ error) {
	end := attemptEnd{ctx: t.of.ctx, cause: t.cause(t.ctx, err), sent: a.sent(), trailer: a.trailer}
	if t.cancel != nil {
		t.cancel()
	}
	o, err := t.judge(err, &end) // if the classifier panics, abort ends the attempt
	t.over = true
	var now time.Time // the present, for whoever asks
	reportFrom(t.Lease(), now, a.trailer)
	if err != nil {
		t.Fail(now, o)
		return end.again(o, err, waits), err
	}
	o = t.Answered(now, a, http.StatusOK, o)
	t.Done(now, o)
	return false, nil
}

// Send notes in the frame that the attempt is being sent.
func (t *trial) Send(now time.Time) {
	if t.conn != nil {
		t.Attempt.Send(now)
		return
	}
	t.index = t.frame.Send(now, nil, "", "")
}

// Answered notes the header, or that there is none.
func (t *trial) Answered(now time.Time, answer any, status int, o outcome.Outcome) outcome.Outcome {
	if t.conn != nil {
		return t.Attempt.Answered(now, answer, status, o)
	}
	t.frame.Answered(orNow(now), t.index, answer, status, o)
	return o
}

// Fail ends an attempt that came to nothing but an error.
func (t *trial) Fail(now time.Time, o outcome.Outcome) {
	if t.conn != nil {
		t.Attempt.Fail(now, o)
		return
	}
	now = orNow(now)
	t.frame.Answered(now, t.index, nil, 0, o)
	t.frame.Ended(now, t.index, o)
}

func orNow(now time.Time) time.Time {
	if now.IsZero() {
		return time.Now()
	}
	return now
}

// Done ends an attempt that has been answered.
func (t *trial) Done(now time.Time, o outcome.Outcome) {
	if t.conn != nil {
		t.Attempt.Done(now, o)
		return
	}
	t.frame.Ended(now, t.index, o)
}

// judge returns how the attempt ended, and the error as the caller gets it.
func (t *trial) judge(err error, end *attemptEnd) (outcome.Outcome, error) {
	o, err := t.of.classify.judge(err, end)
	if most := t.of.opts.attempts; most > 0 && t.number >= most {
		o.Retry = outcome.Never
	}
	return o, err
}

// abort ends an attempt that nobody has ended: something panics, or ends its
// goroutine.
func (t *trial) abort() {
	if t.over {
		return
	}
	t.over = true
	if t.cancel != nil {
		t.cancel()
	}
	t.Fail(time.Now(), outcome.Outcome{Class: outcome.Failure, Err: errAborted})
}

// outgoing returns the attempt's context: ctx, with what the server is told.
func (x *trials) outgoing(ctx context.Context, number int) context.Context {
	if number <= 1 && !x.propagate {
		return ctx
	}
	md, _ := metadata.FromOutgoingContext(ctx) // a copy
	if md == nil {
		md = metadata.MD{}
	}
	if number > 1 {
		md.Set(attemptsKey, strconv.Itoa(number-1)) // gRFC A6
	}
	if x.propagate {
		tell(ctx, md, number)
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// metadataKey returns the key of metadata that a header of HTTP is.
func metadataKey(header string) string { return strings.ToLower(header) }

// keyOf returns the first value of a key in the metadata that is sent with ctx; "" if
// there is none.
func keyOf(ctx context.Context, key string) string {
	md, _ := metadata.FromOutgoingContext(ctx)
	if values := md[key]; len(values) > 0 {
		return values[0]
	}
	return ""
}
