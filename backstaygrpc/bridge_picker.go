package backstaygrpc

import (
	"context"
	"errors"
	"sync"
	"time"

	grpcbalancer "google.golang.org/grpc/balancer"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/outcome"
)

// picker picks among the nodes of a moment. It never blocks.
type picker struct {
	to      *behind
	view    *balancer.View
	conns   map[*balancer.Node]grpcbalancer.SubConn // those that are ready
	waiting bool                                    // others are being made
	reads   bool                                    // the policy goes by reports of load
}

// Pick takes a lease on a node. What it returns when there is none decides what gRPC
// does: with an error that bears a status the call has failed, with any other it has
// failed unless it waits for ready, and with ErrNoSubConnAvailable all calls wait for
// the next picker.
func (p *picker) Pick(info grpcbalancer.PickInfo) (grpcbalancer.PickResult, error) {
	var c balancer.Call
	p.to.rules.aim(p.to.Balancer, &info, &c)
	stream := awaitedOf(info.Ctx)
	a := p.to.attempt(stream == nil)
	if err := p.view.TryAcquire(&c, &a.lease); err != nil {
		a.free()
		if p.waiting && errors.Is(err, balancer.ErrNoNodes) {
			return grpcbalancer.PickResult{}, grpcbalancer.ErrNoSubConnAvailable
		}
		return grpcbalancer.PickResult{}, refusal(p.to.Service(), err)
	}
	a.ctx, a.reads = info.Ctx, p.reads
	if stream != nil {
		stream.current.Store(a)
	}
	return grpcbalancer.PickResult{SubConn: p.conns[a.lease.Node()], Done: a.end}, nil
}

// attempt is a call on its way to a node.
type attempt struct {
	to     *behind
	end    func(grpcbalancer.DoneInfo)
	reads  bool            // the policy goes by reports of load
	pooled bool            // nobody else has it
	ctx    context.Context //nolint:containedctx // the call's, to see who has ended it
	mu     sync.Mutex      // guards lease: a stream may end while it is answered
	lease  balancer.Lease
}

// attempt returns one without a lease. One that nobody but gRPC gets to see, which calls
// what it has for the end once, may have been another before.
func (to *behind) attempt(pooled bool) *attempt {
	if pooled {
		if a, ok := to.free.Get().(*attempt); ok {
			return a
		}
	}
	a := &attempt{to: to, pooled: pooled}
	a.end = a.done
	return a
}

// free has another call use the attempt, if nobody else has it.
func (a *attempt) free() {
	if a.pooled {
		a.ctx = nil
		a.to.free.Put(a)
	}
}

// answered takes the first that came from the server.
func (a *attempt) answered() {
	a.mu.Lock()
	a.lease.Answered(time.Time{}, outcome.Outcome{})
	a.mu.Unlock()
}

// done takes the end of the attempt.
func (a *attempt) done(info grpcbalancer.DoneInfo) {
	var o outcome.Outcome
	switch {
	case info.Err == nil && !info.BytesSent:
		o.Class = outcome.Neutral // the connection was gone, and gRPC picks again
	case info.Err != nil || a.to.rules.classifier != nil:
		o, _ = a.to.rules.classifier.judge(info.Err, &attemptEnd{ctx: a.ctx, sent: info.BytesSent, trailer: info.Trailer})
	}
	if a.pooled {
		a.finish(&info, o)
		a.free()
		return
	}
	a.mu.Lock()
	a.finish(&info, o)
	a.mu.Unlock()
}

func (a *attempt) finish(info *grpcbalancer.DoneInfo, o outcome.Outcome) {
	if a.reads {
		reportFrom(&a.lease, time.Time{}, info.Trailer)
	}
	a.lease.Done(time.Time{}, o)
}

// failing is a picker that has nobody to pick.
type failing struct{ err error }

func (f failing) Pick(grpcbalancer.PickInfo) (grpcbalancer.PickResult, error) {
	return grpcbalancer.PickResult{}, f.err
}

// refusal returns the error for a call for which there is no node: with a status if it
// is final.
func refusal(service string, err error) error {
	e := &Error{Service: service, Err: err}
	if outcome.Refused(err) {
		return e
	}
	return plain(e)
}

// plain is an error without a status, by which gRPC knows what may be waited out.
func plain(e *Error) error { return errors.New(e.Error()) }

// configError is a mistake in what the user has set.
type configError struct{ error }

func (e *configError) Unwrap() error { return e.error }

// Refused is true: it is not the peer that said no.
func (e *configError) Refused() bool { return true }

// NotSent is true.
func (e *configError) NotSent() bool { return true }
