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
	a := &attempt{picker: p, ctx: info.Ctx}
	c := balancer.Call{Now: time.Now()}
	p.to.rules.aim(p.to.Balancer, &info, &c)
	var err error
	if a.lease, err = p.view.TryAcquire(c); err != nil {
		if p.waiting && errors.Is(err, balancer.ErrNoNodes) {
			return grpcbalancer.PickResult{}, grpcbalancer.ErrNoSubConnAvailable
		}
		return grpcbalancer.PickResult{}, refusal(p.to.Service(), err)
	}
	if s := awaitedOf(info.Ctx); s != nil {
		s.current.Store(a)
	}
	return grpcbalancer.PickResult{SubConn: p.conns[a.lease.Node()], Done: a.done}, nil
}

// attempt is a call on its way to a node.
type attempt struct {
	picker *picker
	ctx    context.Context //nolint:containedctx // the call's, to see who has ended it
	mu     sync.Mutex      // guards lease: a stream may end while it is answered
	lease  balancer.Lease
}

// answered takes the first that came from the server.
func (a *attempt) answered() {
	a.mu.Lock()
	a.lease.Answered(time.Now(), outcome.Outcome{})
	a.mu.Unlock()
}

// done takes the end of the attempt.
func (a *attempt) done(info grpcbalancer.DoneInfo) {
	now := time.Now()
	var o outcome.Outcome
	if info.Err == nil && !info.BytesSent {
		o.Class = outcome.Neutral // the connection was gone, and gRPC picks again
	} else {
		o, _ = a.picker.to.rules.classifier.judge(info.Err, &attemptEnd{ctx: a.ctx, sent: info.BytesSent, trailer: info.Trailer})
	}
	a.mu.Lock()
	if a.picker.reads {
		reportFrom(&a.lease, now, info.Trailer)
	}
	a.lease.Done(now, o)
	a.mu.Unlock()
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
