package backstaygrpc

import (
	"context"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

// pause is how a call waits for a connection, or for a node that would have it: it
// looks again and again, at growing distances.
type pause struct {
	ctx    context.Context //nolint:containedctx // the call's
	frame  *call.Frame
	within context.Context //nolint:containedctx // ctx and the call's deadline; nil until it is asked for
	cancel context.CancelFunc
	next   time.Duration
}

func newPause(ctx context.Context, frame *call.Frame) pause {
	return pause{ctx: ctx, frame: frame, next: 5 * time.Millisecond}
}

// longestPause is how late a call may see that a connection is there.
const longestPause = 100 * time.Millisecond

// context returns what bounds the wait.
func (p *pause) context() context.Context {
	if p.within != nil {
		return p.within
	}
	p.within, p.cancel = p.ctx, func() {}
	if deadline := p.frame.Deadline(); !deadline.IsZero() {
		p.within, p.cancel = context.WithDeadlineCause(p.ctx, deadline,
			&outcome.TimeoutError{Kind: outcome.ErrCallTimeout, After: deadline.Sub(p.frame.Start())})
	}
	return p.within
}

func (p *pause) end() {
	if p.cancel != nil {
		p.cancel()
	}
}

// pause waits a while. If the call's time is over meanwhile, it returns the cause,
// with why it had to wait.
func (p *pause) pause(why error) error {
	ctx := p.context()
	timer := time.NewTimer(p.next)
	defer timer.Stop()
	p.next = min(2*p.next, longestPause)
	p.frame.SetYoung(false)
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return &waitError{cause: context.Cause(ctx), why: why}
	}
}

// waitError is that of a call whose time was over before anybody would have it.
type waitError struct{ cause, why error }

func (e *waitError) Error() string {
	return e.cause.Error() + " while waiting for a connection: " + e.why.Error()
}
func (e *waitError) Unwrap() error { return e.cause }
func (e *waitError) NotSent() bool { return true }
