package backstaygrpc

import (
	"context"
	"errors"
	"net/http"

	"google.golang.org/grpc"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/retry"
)

// protocol is the Method of what a call's frame says of it.
const protocol = "gRPC"

// errAborted is the error of calls and attempts that a panic or runtime.Goexit ended.
var errAborted = errors.New("backstaygrpc: the attempt ended in a panic")

// invocation is one unary call.
type invocation struct {
	trials
	messages messages
	last     *answer // of the attempt that the caller gets

	attempt func(context.Context, *call.Frame) (*answer, error) // try
}

func newInvocation() *invocation {
	x := new(invocation)
	x.attempt = x.try
	return x
}

// Invoke makes a unary call. It is what generated clients call.
func (c *Conn) Invoke(ctx context.Context, name string, args, reply any, opts ...grpc.CallOption) error {
	x, ok := c.free.Get().(*invocation)
	if !ok {
		x = newInvocation()
	}
	x.messages.request, x.messages.reply = args, reply
	x.terms, x.conn, x.name, x.ctx, x.method = &c.terms, c, name, ctx, c.method(name)
	x.opts.take(opts, true)
	err := c.up.Begin(ctx, &x.call, x.method.settings, call.Info{Method: protocol, Path: name})
	if err == nil {
		x.frame = x.call.Frame
		err = x.make()
	}
	err = x.end(err)
	if !x.messages.own { // else a hedge that has lost may still be at it
		*x = invocation{attempt: x.attempt}
		c.free.Put(x)
	}
	return err
}

// end returns the call's error as its caller gets it, and tells the call's options.
func (x *invocation) end(err error) error {
	err = errorOf(x.ctx, x.service, err)
	x.opts.tell(x.last)
	x.opts.finish(err)
	return err
}

// make makes a call that has begun, to its end.
func (x *invocation) make() (err error) {
	var permit limit.Lease
	status, over := 0, false
	defer func() {
		ended := err
		if !over {
			ended = errAborted
		}
		permit.Done()
		x.finish(status, ended)
	}()
	if x.conn != nil {
		permit, _, err = x.call.Admit(x.ctx)
	}
	if err == nil {
		x.last, err = x.repeat()
	}
	if err == nil {
		x.messages.give(x.last.reply)
		status = http.StatusOK
	}
	over = true
	return err
}

// repeat makes the call's attempts.
func (x *invocation) repeat() (*answer, error) {
	settings, repeatable := x.method.settings, x.opts.repeatable(x.ctx, x.method)
	if x.opts.attempts == 1 || !x.messages.prepare(repeatable && hedges(&settings.Retry)) {
		return x.try(x.ctx, x.frame)
	}
	return retry.DoIn(x.ctx, settings.Retrier, x.frame, repeatable, x.attempt)
}

// try makes one attempt, and more while the call waits for ready connections.
func (x *invocation) try(ctx context.Context, frame *call.Frame) (*answer, error) {
	a, again, err := x.once(ctx, frame, x.opts.waits)
	for again {
		a, again, err = x.once(ctx, frame, true)
	}
	return a, err
}

func (x *invocation) once(ctx context.Context, frame *call.Frame, waits bool) (_ *answer, again bool, err error) {
	a := new(answer)
	var t trial
	if err := x.begin(ctx, frame, &t, waits); err != nil {
		return a, false, err
	}
	defer t.abort()
	t.unary(ctx, frame)
	t.Send(t.start)
	a.reply = x.messages.next(t.number)
	opts := a.options(&x.trials)
	if t.conn != nil {
		err = t.conn.Invoke(t.ctx, x.name, x.messages.request, a.reply, opts...)
	} else {
		err = x.invoke(t.ctx, x.messages.request, a.reply, opts...)
	}
	again, err = t.end(err, a, waits)
	return a, again, err
}
