package backstaygrpc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

// flight is one attempt of a stream. A bad end is told by grpc (OnFinish), whatever it
// is: an error, the caller's context. A good one is what RecvMsg says: where Header
// fails because the request cannot be sent again after all, grpc calls that a good end,
// until RecvMsg is asked.
type flight struct {
	trial
	x      *stream
	waits  bool // for a connection that is ready
	stream grpc.ClientStream
	answer answer
	local  bool // it is the request that was wrong
	got    bool // answer has the first message

	stop context.CancelCauseFunc
	head *time.Timer // to the attempt's timeout, until the header is there
	idle *time.Timer // while a message is awaited

	mu       sync.Mutex  // guards what follows, and the end of the lease
	unfollow func() bool // from the context that Do gave
	headed   bool
	over     bool
	err      error // the caller's, once it is over; nil for a good end
	outcome  outcome.Outcome
	repeat   bool // nothing was sent, and the call waits for a connection
}

// fly gets an attempt a node.
func (x *stream) fly(ctx context.Context, frame *call.Frame, waits bool) (*flight, error) {
	f := &flight{x: x, waits: waits}
	if err := x.begin(ctx, frame, &f.trial, waits); err != nil {
		return nil, err
	}
	f.bound(ctx, frame)
	return f, nil
}

// bound makes the attempt's context. It is the stream's, too, and so not derived from
// the one that ends with the attempt.
func (f *flight) bound(ctx context.Context, frame *call.Frame) {
	base := f.x.ctx
	if deadline := frame.Deadline(); !deadline.IsZero() {
		f.timeout = &outcome.TimeoutError{Kind: outcome.ErrCallTimeout, After: deadline.Sub(frame.Start())}
		base, f.cancel = context.WithDeadlineCause(base, deadline, f.timeout)
	}
	f.ctx, f.stop = context.WithCancelCause(f.x.outgoing(base, f.number))
	f.follow(ctx)
	if d := frame.AttemptTimeout(); d > 0 && !f.x.open { // else the header may wait for the client
		f.head = time.AfterFunc(d, func() { f.expire(outcome.ErrAttemptTimeout, d) })
	}
}

// follow has the attempt end with ctx, until it is the one that counts.
func (f *flight) follow(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unfollow == nil && !f.over && ctx.Done() != f.x.ctx.Done() {
		f.unfollow = context.AfterFunc(ctx, func() { f.stop(context.Cause(ctx)) })
	}
}

// expire ends the attempt because of a bound of ours.
func (f *flight) expire(kind error, after time.Duration) {
	f.mu.Lock()
	late := errors.Is(kind, outcome.ErrAttemptTimeout) && f.headed
	f.mu.Unlock()
	if !late {
		f.stop(&outcome.TimeoutError{Kind: kind, After: after})
	}
}

// begin begins the stream, and sends a request that is all there is to send.
func (f *flight) begin() error {
	begun := false
	defer func() {
		if !begun { // a panic in somebody's interceptor
			f.finished(errAborted)
		}
	}()
	var err error
	opts := append(f.answer.options(&f.x.trials), grpc.OnFinish(func(err error) {
		if err != nil {
			f.finished(err)
		}
	}))
	if f.conn != nil {
		f.stream, err = f.conn.NewStream(f.ctx, f.x.desc, f.x.name, opts...)
	} else {
		f.stream, err = f.x.again(f.ctx, opts...)
	}
	if err == nil && !f.x.desc.ClientStreams {
		if err = f.stream.SendMsg(f.x.request); errors.Is(err, io.EOF) {
			err = nil // what is wrong RecvMsg says
		}
		f.local = err != nil
	}
	begun = true
	if err != nil {
		f.finished(err)
		return f.result()
	}
	return nil
}

// await waits for the header and, if there is room for it, the first message. A stream
// that ends well without one has been worth waiting for, too.
func (f *flight) await(incoming *messages) error {
	md, _ := f.stream.Header()
	if md != nil {
		f.answeredNow()
	}
	if !f.ended() {
		if incoming.reply != nil {
			f.answer.reply = incoming.next(f.number)
			err := f.next(f.answer.reply)
			f.got = err == nil
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
	}
	if err := f.result(); err != nil && !f.got {
		return err
	}
	f.keep()
	return nil
}

// keep has the attempt outlive the context that it followed.
func (f *flight) keep() {
	f.mu.Lock()
	unfollow := f.unfollow
	f.mu.Unlock()
	if unfollow != nil {
		unfollow()
	}
}

// next receives a message. It returns io.EOF at a good end.
func (f *flight) next(m any) error {
	if d := f.x.method.settings.BodyIdleTimeout; d > 0 {
		if f.idle == nil {
			f.idle = time.AfterFunc(d, func() { f.expire(outcome.ErrBodyIdle, d) })
		} else {
			f.idle.Reset(d)
		}
		defer f.idle.Stop()
	}
	err := f.stream.RecvMsg(m)
	if err == nil {
		f.answeredNow()
		if !f.x.desc.ServerStreams { // it was the only one, and has its trailer
			f.finished(nil)
		}
		return nil
	}
	f.finished(err)
	if err := f.result(); err != nil {
		return err
	}
	return io.EOF
}

// receive receives a message for the stream's caller.
func (f *flight) receive(m any) error {
	err := f.next(m)
	if err == nil || errors.Is(err, io.EOF) && f.ended() {
		return err
	}
	return f.x.end(err)
}

// send sends a message of the stream's caller.
func (f *flight) send(m any) error {
	err := f.stream.SendMsg(m)
	if err == nil || errors.Is(err, io.EOF) { // the latter RecvMsg explains
		return err
	}
	f.finished(err)
	return f.x.end(f.result())
}

func (f *flight) header() (metadata.MD, error) {
	md, err := f.stream.Header()
	if md != nil {
		f.answeredNow()
	}
	return md, err
}

// answeredNow notes that there is a header.
func (f *flight) answeredNow() {
	f.mu.Lock()
	first := !f.headed && !f.over
	if first {
		f.headed = true
		if f.head != nil {
			f.head.Stop()
		}
		f.Answered(time.Time{}, f, http.StatusOK, outcome.Outcome{})
	}
	f.mu.Unlock()
	if first {
		f.x.answered()
	}
}

// finished is told of the end.
func (f *flight) finished(err error) {
	if err == io.EOF { //nolint:errorlint // that itself, and not an error about a connection's
		err = nil
	}
	f.mu.Lock()
	if f.over {
		f.mu.Unlock()
		return
	}
	f.over = true
	f.settle(err)
	err = f.err
	f.mu.Unlock()
	f.keep()
	f.x.mu.Lock()
	current := f.x.current == f
	f.x.mu.Unlock()
	if current {
		_ = f.x.end(err)
	}
}

// settle judges the end and gives the lease back. f.mu is held.
func (f *flight) settle(err error) {
	end := attemptEnd{ctx: f.x.ctx, cause: f.cause(f.ctx, err), sent: f.answer.sent() || f.headed, trailer: f.answer.trailer}
	f.stop(nil)
	if f.cancel != nil {
		f.cancel()
	}
	if f.head != nil {
		f.head.Stop()
	}
	now := time.Now()
	f.outcome, f.err = outcome.Outcome{Class: outcome.Failure, Err: errAborted}, errAborted
	defer func() { // also if the classifier panics
		if f.err != nil {
			f.Fail(now, f.outcome)
			return
		}
		if !f.headed {
			f.outcome = f.Answered(now, f, http.StatusOK, f.outcome)
		}
		f.Done(now, f.outcome)
	}()
	if errors.Is(err, errAborted) {
		return
	}
	f.outcome, f.err = f.judge(err, &end)
	f.repeat = end.again(f.outcome, f.err, f.waits)
	reportFrom(f.Lease(), now, f.answer.trailer)
}

// ended reports whether the end has been told.
func (f *flight) ended() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.over
}

// result returns the error with which it ended; nil if it has not, or well.
func (f *flight) result() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// note has the frame know the end of an attempt that ended before the frame knew of
// it. It returns result's error.
func (f *flight) note() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		f.Answered(time.Time{}, nil, 0, f.outcome)
	}
	return f.err
}

// again reports whether nothing was sent and the call waits for a connection.
func (f *flight) again() bool {
	if f == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.repeat
}

// Close ends an attempt that has lost.
func (f *flight) Close() error {
	f.stop(context.Canceled)
	return nil
}
