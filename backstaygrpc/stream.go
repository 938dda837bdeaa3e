package backstaygrpc

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/retry"
)

// NewStream begins a stream. It is what generated clients call. What grpc asks of its
// callers holds here, too: the stream is read until an error, or ctx ends.
//
// Where the server alone streams, the request is kept, up to 256 KiB, until the first
// message or the header has been handed on: so long the call is tried again as a unary
// one is. Other streams are tried again if nothing has been sent, and that is known
// when NewStream returns.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, name string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	x := &stream{desc: desc}
	x.terms, x.conn, x.name, x.ctx, x.method = &c.terms, c, name, ctx, c.method(name)
	x.opts.take(opts, true)
	err := c.up.Begin(ctx, &x.call, x.method.settings, call.Info{Method: protocol, Path: name})
	if err != nil {
		err = errorOf(ctx, c.service, err)
		x.opts.finish(err)
		return nil, err
	}
	x.frame = x.call.Frame
	if err := x.make(); err != nil {
		return nil, err
	}
	return x, nil
}

// keptRequest is how large a request may be that is kept to be sent again, as in grpc
// itself.
const keptRequest = 256 << 10

// stream is a stream as its caller sees it.
//
// Until it is committed to an attempt it may be made anew, which only the caller's
// Header and RecvMsg do: by grpc's terms one at a time.
type stream struct {
	trials
	desc   *grpc.StreamDesc
	detach func() bool // from ctx's end; may be nil

	request any     // of a server's stream; nil before SendMsg
	kept    bool    // it may be sent again
	first   *flight // the attempt that SendMsg began; nil once it has been looked at

	mu           sync.Mutex
	current      *flight // the attempt that the stream is committed to; nil before
	failed       *flight // the last attempt that came to nothing
	trying       bool    // an attempt is being made
	over         bool
	err          error // with which it ended
	permit       limit.Lease
	untilHeaders bool
}

// make begins a stream whose call has begun.
func (x *stream) make() (err error) {
	x.open = x.desc.ClientStreams
	begun := false
	defer func() {
		if !begun {
			_ = x.end(errAborted)
		}
	}()
	x.frame.Share() // from here on other goroutines may look at it
	if x.conn != nil {
		x.permit, x.untilHeaders, err = x.call.Admit(x.ctx)
	}
	if err == nil && x.open {
		err = x.establish()
	}
	begun = true
	if err != nil {
		return x.end(err)
	}
	if !x.open && x.ctx.Done() != nil {
		// Nobody might come for the first message.
		x.detach = context.AfterFunc(x.ctx, func() { x.abandon() })
	}
	return nil
}

// establish makes the attempts of a stream that the client sends on.
func (x *stream) establish() error {
	// What has been sent cannot be repeated, nor is there anything to hedge.
	f, err := retry.DoIn(x.ctx, x.method.settings.Retrier, x.frame, false, func(ctx context.Context, frame *call.Frame) (*flight, error) {
		for waits := x.opts.waits; ; waits = true {
			f, err := x.fly(ctx, frame, waits)
			if f != nil {
				f.Send(f.start)
			}
			if err == nil {
				err = f.begin()
			}
			if err == nil {
				f.keep()
				return f, nil
			}
			if !f.again() {
				return nil, err
			}
		}
	})
	if err != nil {
		return err
	}
	x.commit(f)
	return nil
}

// commit makes f the stream's attempt for good.
func (x *stream) commit(f *flight) {
	x.mu.Lock()
	x.current, x.trying = f, false
	x.mu.Unlock()
	if x.detach != nil {
		x.detach()
	}
	if f.ended() { // while nobody took notice
		_ = x.end(f.result())
	}
}

// committed returns the attempt that the stream is committed to, if it is; the error
// is that with which it ended before.
func (x *stream) committed() (*flight, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.current == nil && x.over {
		return nil, x.err
	}
	return x.current, nil
}

// abandon ends a stream whose caller has gone without having asked for a message.
func (x *stream) abandon() {
	x.mu.Lock()
	idle := x.current == nil && !x.trying
	x.mu.Unlock()
	if idle {
		_ = x.end(context.Cause(x.ctx))
	}
}

// end ends the call, once, and returns the error that its caller gets; for a nil
// one it is io.EOF.
func (x *stream) end(err error) error {
	x.mu.Lock()
	if x.over {
		err = x.err
		x.mu.Unlock()
		return err
	}
	x.over = true
	ended := errorOf(x.ctx, x.service, err)
	if x.err = ended; err == nil {
		x.err = io.EOF
	}
	err = x.err
	told := cmp.Or(x.current, x.failed)
	permit := x.permit
	x.permit = limit.Lease{}
	x.mu.Unlock()
	permit.Done()
	code := 0
	if ended == nil {
		code = http.StatusOK
	}
	x.finish(code, ended)
	if told != nil {
		x.opts.tell(&told.answer)
	}
	x.opts.finish(ended)
	return err
}

// answered gives the permit back, if the header is what it is until.
func (x *stream) answered() {
	if !x.untilHeaders {
		return
	}
	x.mu.Lock()
	permit := x.permit
	x.permit = limit.Lease{}
	x.mu.Unlock()
	permit.Done()
}

// SendMsg sends a message.
func (x *stream) SendMsg(m any) error {
	f, err := x.committed()
	switch {
	case err != nil:
		return io.EOF // which RecvMsg tells
	case f != nil:
		return f.send(m)
	case x.request != nil:
		return status.Error(codes.Internal, "SendMsg called after CloseSend")
	}
	x.request = m
	x.kept = true
	if message := messageOf(m); message != nil {
		x.kept = proto.Size(message) <= keptRequest
	}
	begun := false
	defer func() {
		if !begun { // a panic in somebody's interceptor
			_ = x.end(errAborted)
		}
	}()
	x.first, err = x.fly(x.ctx, x.frame, x.opts.waits)
	if err == nil {
		err = x.first.begin()
	}
	begun = true
	if x.first == nil {
		x.first = &flight{x: x, over: true, err: err}
	}
	if x.first.local && status.Code(err) != codes.Unavailable {
		return x.end(err) // the message itself is why
	}
	return nil // and whatever else is wrong, RecvMsg sees to it
}

// CloseSend ends the client's part. After the only message of a server's stream it has
// been ended already.
func (x *stream) CloseSend() error {
	if f, _ := x.committed(); f != nil {
		return f.stream.CloseSend()
	}
	return nil
}

// Header returns the header, when it is there. From then on the stream is not made
// anew. It is nil if the stream has failed; RecvMsg says why.
func (x *stream) Header() (metadata.MD, error) {
	f, err := x.committed()
	if err == nil && f == nil {
		f, err = x.try(nil)
	}
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // as grpc has it
	}
	return f.header()
}

// Trailer returns the trailer of a stream that has ended.
func (x *stream) Trailer() metadata.MD {
	x.mu.Lock()
	f := cmp.Or(x.current, x.failed)
	x.mu.Unlock()
	if f != nil && f.stream != nil {
		return f.stream.Trailer()
	}
	return nil
}

// Context returns the stream's context.
func (x *stream) Context() context.Context {
	if f, _ := x.committed(); f != nil && f.stream != nil {
		return f.stream.Context()
	}
	return x.ctx
}

// RecvMsg receives a message. It returns io.EOF when the stream has ended well, and
// otherwise the error with the status.
func (x *stream) RecvMsg(m any) error {
	f, err := x.committed()
	switch {
	case err != nil:
		return err
	case f != nil:
		return f.receive(m)
	}
	f, err = x.try(m)
	switch {
	case err != nil:
		return err
	case f.ended():
		return x.end(f.result())
	}
	return nil
}

// try makes the attempts of a server's stream: until the first message is in m or,
// with a nil m, until there is a header. It commits the stream to the one that the
// caller gets.
func (x *stream) try(m any) (*flight, error) {
	if x.request == nil {
		return nil, status.Error(codes.Internal, "RecvMsg or Header called before SendMsg")
	}
	settings, repeatable := x.method.settings, x.kept && x.opts.repeatable(x.ctx, x.method)
	incoming := messages{reply: m}
	if m != nil && !incoming.prepare(repeatable && hedges(&settings.Retry)) {
		repeatable = false
	}
	x.mu.Lock()
	x.trying = true
	x.mu.Unlock()
	whole := false
	defer func() {
		if !whole {
			_ = x.end(errAborted)
		}
	}()
	f, err := retry.DoIn(x.ctx, settings.Retrier, x.frame, repeatable, func(ctx context.Context, frame *call.Frame) (*flight, error) {
		return x.once(ctx, frame, &incoming)
	})
	whole = true
	if err != nil {
		return nil, x.end(err)
	}
	if m != nil && f.got {
		incoming.give(f.answer.reply)
	}
	x.commit(f)
	return f, nil
}

// once makes one attempt: the one that SendMsg has begun, or another.
func (x *stream) once(ctx context.Context, frame *call.Frame, incoming *messages) (*flight, error) {
	for waits := x.opts.waits; ; waits = true {
		f, err := x.takeFirst(), error(nil)
		if f == nil {
			if f, err = x.fly(ctx, frame, waits); err != nil {
				return nil, err
			}
			f.Send(f.start)
			err = f.begin()
		} else {
			if f.of == nil {
				return nil, f.err // it got no node
			}
			f.Send(f.start)
			f.follow(ctx)
			err = f.note()
		}
		if err == nil {
			err = f.await(incoming)
		}
		if err == nil {
			return f, nil
		}
		x.mu.Lock()
		x.failed = f
		x.mu.Unlock()
		if !f.again() {
			return nil, err
		}
	}
}

func (x *stream) takeFirst() *flight {
	x.mu.Lock()
	defer x.mu.Unlock()
	f := x.first
	x.first = nil
	return f
}
