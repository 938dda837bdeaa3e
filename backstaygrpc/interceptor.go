package backstaygrpc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/propagate"
	"github.com/backstay/backstay/retry"
)

// Interceptor is one policy around the calls of any *grpc.ClientConn:
//
//	grpc.NewClient(target, grpc.WithChainUnaryInterceptor(i.Unary), grpc.WithChainStreamInterceptor(i.Stream))
//
// Several are chained outermost first: [Record], [Rate] and [Concurrency], [Retry],
// [Breaker], [Propagate]. What is inside of Retry is run for each attempt. A [Conn]
// needs none of them.
type Interceptor struct {
	// Unary is for unary calls, Stream for the others.
	Unary  grpc.UnaryClientInterceptor
	Stream grpc.StreamClientInterceptor
}

// Retry returns an interceptor that tries calls again, and hedges them, by a
// retrier's settings: see [Conn] for what is tried again. It can choose no node; grpc
// does. Config.Timeout and AttemptTimeout hold, for streams until the header. Nil is
// every default. The errors are those of [retry.New].
//
// Where a service config has a retryPolicy for the method, its retries are switched off
// for the call, so that the attempts of the two do not multiply. With them goes gRPC's
// own, transparent retry of what a server has not processed.
func Retry(cfg *retry.Config) (Interceptor, error) {
	if _, err := retry.New(cfg); err != nil {
		return Interceptor{}, err
	}
	r := new(retries)
	if cfg != nil {
		r.cfg = *cfg
	}
	own := r.cfg
	own.AttemptTimeout = -1 // that of a stream ends with the header
	var err error
	if r.retrier, err = retry.New(&own); err != nil {
		return Interceptor{}, err
	}
	r.chain = call.NewChain(r.retrier)
	return Interceptor{Unary: r.unary, Stream: r.stream}, nil
}

// retries is what Retry returns.
type retries struct {
	cfg     retry.Config
	retrier *retry.Retrier
	chain   *call.Chain
}

// prepare fills in what a call's attempts have in common.
func (r *retries) prepare(ctx context.Context, x *trials, cc *grpc.ClientConn, name string, opts []grpc.CallOption) {
	x.terms = &terms{service: serviceOf(cc)}
	x.name, x.ctx = name, ctx
	x.method = &method{
		settings:   &backstay.Settings{Retry: r.cfg, Retrier: r.retrier},
		idempotent: r.cfg.RetryNonIdempotent == retry.On || declaredIdempotent(name),
	}
	x.opts.take(opts, false)
	if cc != nil && (cc.GetState() == connectivity.Idle || cc.GetMethodConfig(name).RetryPolicy != nil) {
		// A request that is not kept is not sent again. While the connection is idle
		// the service config may not be there yet.
		x.opts.down = append(slices.Clip(x.opts.down), grpc.MaxRetryRPCBufferSize(0))
	}
	x.frame = call.New(ctx, r.chain, call.Info{Service: x.service, Method: protocol, Path: name, Start: time.Now()})
	x.frame.SetAttemptTimeout(r.cfg.AttemptTimeout)
}

func (r *retries) unary(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	x := newInvocation()
	x.messages.request, x.messages.reply = req, reply
	r.prepare(ctx, &x.trials, cc, name, opts)
	x.invoke = func(ctx context.Context, request, reply any, opts ...grpc.CallOption) error {
		return invoker(ctx, name, request, reply, cc, opts...)
	}
	return x.end(x.make())
}

func (r *retries) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, name string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	x := &stream{desc: desc}
	r.prepare(ctx, &x.trials, cc, name, opts)
	x.again = func(ctx context.Context, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		return streamer(ctx, desc, cc, name, opts...)
	}
	if err := x.make(); err != nil {
		return nil, err
	}
	return x, nil
}

// serviceOf names what is behind a connection, for events, budgets and errors.
func serviceOf(cc *grpc.ClientConn) string {
	if cc == nil {
		return ""
	}
	return cc.Target()
}

// Breaker returns an interceptor with a breaker of the group for each method of each
// target, whose key is such as "dns:///orders/orders.v1.Orders/Get". An open one
// refuses calls with an [*Error] around [breaker.ErrOpen]. What counts as a failure
// [Classify] says; a stream is judged at its header, and if it breaks later counts as
// one failure more.
func Breaker(g *breaker.Group) Interceptor {
	return intercept(func(ctx context.Context, cc *grpc.ClientConn, name string) (context.Context, passage, error) {
		lease, err := g.Get(serviceOf(cc) + name).Acquire(time.Now())
		return ctx, passage{answered: lease.Answered, done: lease.Done}, err
	})
}

// Rate returns an interceptor that has calls wait for, or refused by, a rate:
// [limit.Rate.Wait].
func Rate(r *limit.Rate) Interceptor {
	return intercept(func(ctx context.Context, _ *grpc.ClientConn, _ string) (context.Context, passage, error) {
		return ctx, passage{}, r.Wait(ctx)
	})
}

// Concurrency returns an interceptor that bounds the calls under way:
// [limit.Concurrency.Acquire]. A stream is under way until its end.
func Concurrency(c *limit.Concurrency) Interceptor {
	return intercept(func(ctx context.Context, _ *grpc.ClientConn, _ string) (context.Context, passage, error) {
		lease, err := c.Acquire(ctx)
		return ctx, passage{done: func(time.Time, outcome.Outcome) { lease.Done() }}, err
	})
}

// Propagate returns an interceptor that tells the server which attempt of a call this
// is, and whether it is of any use to try again on its behalf, as package propagate
// does over HTTP: by "x-envoy-attempt-count" and "backstay-retry". How much time is
// left gRPC tells by itself. It belongs inside of [Retry].
func Propagate() Interceptor {
	return intercept(func(ctx context.Context, _ *grpc.ClientConn, _ string) (context.Context, passage, error) {
		md, _ := metadata.FromOutgoingContext(ctx) // a copy
		if md == nil {
			md = metadata.MD{}
		}
		number := 1
		if previous := md[attemptsKey]; len(previous) == 1 {
			if n, err := strconv.Atoi(previous[0]); err == nil && n > 0 {
				number += n
			}
		}
		tell(ctx, md, number)
		return metadata.NewOutgoingContext(ctx, md), passage{}, nil
	})
}

// tell puts into the metadata what the server is told of an attempt.
func tell(ctx context.Context, md metadata.MD, number int) {
	md.Set(propagate.AttemptHeader, strconv.Itoa(number))
	if call.InboundOf(ctx).Final() {
		md.Set(retryKey, retryNo)
	}
}

// Record returns an interceptor that notes calls in the logs of their contexts
// ([call.WithLog]) and has the observer see a [call.Finished] at the end of each, for
// a stream at the stream's. A nil observer sees nothing. Outside of [Retry] it sees
// calls, inside attempts.
func Record(observer event.Observer) Interceptor {
	return intercept(func(ctx context.Context, cc *grpc.ClientConn, name string) (context.Context, passage, error) {
		frame := call.New(ctx, nil, call.Info{Service: serviceOf(cc), Method: protocol, Path: name, Start: time.Now()})
		if observer == nil && frame.Watched() == nil {
			return ctx, passage{}, nil
		}
		index := frame.Send(time.Now(), nil, "", "")
		return ctx, passage{done: func(now time.Time, o outcome.Outcome) {
			status := 0
			if o.Err == nil {
				status = http.StatusOK
			}
			frame.Answered(now, index, nil, status, o)
			frame.Ended(now, index, o)
			frame.Finish(now, status, o.Err)
			event.Emit(ctx, observer, call.Finished{Record: frame.Record()})
		}}, nil
	})
}

// passage is what a policy wants to hear of a call that it has let through. Both
// functions may be nil. Done is called once, answered at most once and before; never at
// the same time.
type passage struct {
	answered, done func(now time.Time, o outcome.Outcome)
}

// admission lets a call through, or refuses it.
type admission func(ctx context.Context, cc *grpc.ClientConn, name string) (context.Context, passage, error)

// intercept makes an interceptor of an admission.
func intercept(admit admission) Interceptor {
	return Interceptor{Unary: admit.unary, Stream: admit.stream}
}

func (admit admission) unary(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) (err error) {
	under, p, err := admit(ctx, cc, name)
	if err != nil {
		return errorOf(ctx, serviceOf(cc), err)
	}
	if p.done == nil {
		return invoker(under, name, req, reply, cc, opts...)
	}
	w := watched{ctx: ctx, passage: p}
	defer w.end(errAborted)
	err = invoker(under, name, req, reply, cc, w.options(opts)...)
	w.end(err)
	return err
}

func (admit admission) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, name string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	under, p, err := admit(ctx, cc, name)
	if err != nil {
		return nil, errorOf(ctx, serviceOf(cc), err)
	}
	if p.done == nil {
		return streamer(under, desc, cc, name, opts...)
	}
	w := &watched{ctx: ctx, passage: p, single: !desc.ServerStreams}
	begun := false
	defer func() {
		if !begun {
			w.end(errAborted)
		}
	}()
	w.ClientStream, err = streamer(under, desc, cc, name, append(w.options(opts), grpc.OnFinish(func(err error) {
		if err != nil { // a good end is RecvMsg's to tell: see flight
			w.end(err)
		}
	}))...)
	begun = true
	if err != nil {
		w.end(err)
		return nil, err
	}
	return w, nil
}

// watched is a call that a policy has let through, and the stream if it is one.
type watched struct {
	grpc.ClientStream
	ctx     context.Context //nolint:containedctx // the caller's
	passage passage
	single  bool // there is one message to receive
	trailer metadata.MD
	peer    peer.Peer // of a stream; see answer.options

	mu     sync.Mutex
	headed bool
	over   bool
}

func (w *watched) options(opts []grpc.CallOption) []grpc.CallOption {
	return append(slices.Clip(opts), grpc.Trailer(&w.trailer), grpc.Peer(&w.peer))
}

// Header returns the header.
func (w *watched) Header() (metadata.MD, error) {
	md, err := w.ClientStream.Header()
	if md != nil {
		w.head()
	}
	return md, err
}

// RecvMsg receives a message.
func (w *watched) RecvMsg(m any) error {
	err := w.ClientStream.RecvMsg(m)
	if err == nil {
		w.head()
		if w.single {
			w.end(nil)
		}
		return nil
	}
	w.end(err)
	return err
}

// head tells that there is a header.
func (w *watched) head() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.headed || w.over {
		return
	}
	w.headed = true
	if w.passage.answered != nil {
		w.passage.answered(time.Now(), outcome.Outcome{})
	}
}

// end tells how the call has ended.
func (w *watched) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	w.over = true
	var o outcome.Outcome
	switch {
	case errors.Is(err, errAborted):
		o = outcome.Outcome{Class: outcome.Failure, Err: err}
	case outcome.Refused(err):
		o = outcome.Outcome{Class: outcome.Neutral, Err: err} // by another policy
	default:
		end := attemptEnd{ctx: w.ctx, sent: w.headed || w.peer.Addr != nil, trailer: w.trailer}
		if err == io.EOF { //nolint:errorlint // that itself
			err = nil
		}
		o, _ = Classifier(nil).judge(err, &end)
	}
	w.passage.done(time.Now(), o)
}
