package retry

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/outcome"
)

// Retrier tries calls again. It is immutable but for its budgets, and may be
// used concurrently and for any number of calls.
type Retrier struct {
	cfg     *Config
	budgets perHost[Budget]
	hedgers perHost[hedger]
	races   sync.Pool // of those in which no hedge began
	bodies  sync.Pool // memory for copies of requests' bodies
}

// New returns a retrier. Its errors join all that is wrong with cfg, which may
// be nil and is copied.
func New(cfg *Config) (*Retrier, error) {
	c, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	r := &Retrier{cfg: c}
	r.budgets.shared = c.Budget
	r.budgets.fresh = func() *Budget { return newBudget(BudgetConfig{}.filled()) }
	r.hedgers.fresh = func() *hedger { return newHedger(&c.Hedge) }
	return r, nil
}

// Budget returns the budget of HTTP calls to host, as it stands in their URLs
// and in lower case, or with "" that of Do and Run. With Config.Budget all are
// that one.
func (r *Retrier) Budget(host string) *Budget { return r.budgets.get(host) }

// maxHosts bounds the hosts that have a budget, and what else there is, of their
// own.
const maxHosts = 1024

// perHost is what each host has one of. A host that is down must not use up what
// the others need. There are few hosts, each looked up with every call and added
// once: so the map is copied when one is added.
type perHost[T any] struct {
	shared *T // one for all hosts; may be nil
	fresh  func() *T
	of     atomic.Pointer[map[string]*T] // nil before the first
	mu     sync.Mutex                    // held to add one
}

// theRest is the key for hosts beyond maxHosts. No host is called that.
const theRest = "*"

func (p *perHost[T]) get(host string) *T {
	if p.shared != nil {
		return p.shared
	}
	if its, _ := p.find(host); its != nil {
		return its
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	its, key := p.find(host)
	if its != nil {
		return its
	}
	more := make(map[string]*T)
	if of := p.of.Load(); of != nil {
		more = maps.Clone(*of)
	}
	its = p.fresh()
	more[key] = its
	p.of.Store(&more)
	return its
}

// find returns what there is for the host, if there is, and by which key.
func (p *perHost[T]) find(host string) (its *T, key string) {
	of := p.of.Load()
	if of == nil {
		return nil, host
	}
	if its = (*of)[host]; its == nil && len(*of) >= maxHosts {
		return (*of)[theRest], theRest
	}
	return its, host
}

// limit sets the bounds of an attempt of a call that began at start.
func (c *Config) limit(l *attempt.Limits, start time.Time, attemptTimeout time.Duration) {
	l.Attempt, l.Call = attemptTimeout, c.Timeout
	if c.Timeout > 0 {
		l.Deadline = start.Add(c.Timeout)
	}
}

// series is the attempts of one call: it decides after each whether, and when,
// there is another. It has no clock and no goroutine, and knows no transport.
type series struct {
	cfg      *Config
	budget   *Budget
	deadline time.Time // of the call, whoever set it; zero is none
	attempts int       // that were made

	pace      pace
	elsewhere bool   // the one attempt on another node has been spent
	why       string // there is another attempt: see call.Attempt
	owing     bool   // an extra attempt was taken from the budget, and is not over
	judged    bool   // the budget has been told how the last attempt and its hedges ended
}

// facts are what decides besides the outcome.
type facts struct {
	// repeatable: the call may be repeated though it may have been acted on.
	repeatable bool
	// resendable: there is a body to send again, or none is needed.
	resendable bool
	// elsewhere: the next attempt may meet another peer.
	elsewhere bool
	// others: there is a node that has not been tried.
	others bool
	// final: the call is made on behalf of a request that must not be repeated.
	final bool
}

// next returns how long to wait for the next attempt, which it has paid for, or
// the reason why there is none. The outcome is one that may be tried again.
func (s *series) next(now time.Time, o outcome.Outcome, f facts) (time.Duration, Reason) {
	switch {
	case s.attempts >= s.cfg.MaxAttempts:
		return 0, ReasonAttempts
	case o.Retry == outcome.IfIdempotent && !f.repeatable:
		return 0, ReasonNotIdempotent
	case o.Retry == outcome.Elsewhere && (s.elsewhere || !f.elsewhere):
		return 0, ReasonElsewhere
	case !f.resendable:
		return 0, ReasonBody
	case f.final && !(o.Retry >= outcome.Always && f.others):
		return 0, ReasonInbound
	case o.After > s.cfg.MaxRetryAfter:
		return 0, ReasonRetryAfter
	}
	var wait time.Duration
	s.why = call.Backoff
	switch {
	case o.After > 0:
		s.why = call.Hint
		wait = hinted(o.After)
	case o.Retry >= outcome.Always && f.others:
		// Nothing was sent, and it is that node's fault: to wait would spare
		// nobody anything.
		s.why = call.NothingSent
	default:
		var more bool
		if wait, more = s.pace.next(&s.cfg.Backoff, s.attempts, o.Class == outcome.Throttled); !more {
			return 0, ReasonBackoff
		}
	}
	if !s.deadline.IsZero() && wait >= s.deadline.Sub(now) {
		return 0, ReasonDeadline
	}
	if !s.budget.Withdraw(now) {
		return 0, ReasonBudget
	}
	s.owing = true
	s.elsewhere = s.elsewhere || o.Retry == outcome.Elsewhere
	return wait, ""
}

// ended tells the budget that an attempt is over, and how.
func (s *series) ended(o outcome.Outcome) {
	s.settle()
	if !s.judged {
		s.budget.Judge(o)
	}
	s.judged = false
}

// settle tells the budget that the extra attempt that it gave is over, or was
// not made.
func (s *series) settle() {
	if s.owing {
		s.owing = false
		s.budget.Return()
	}
}

// nearest returns the earlier of the context's deadline and t, where zero is
// none.
func nearest(ctx context.Context, t time.Time) time.Time {
	if d, ok := ctx.Deadline(); ok && (t.IsZero() || d.Before(t)) {
		return d
	}
	return t
}

// sleep waits for d, or less if the context ends or stop is closed.
func sleep(ctx context.Context, d time.Duration, stop <-chan struct{}) error {
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		case <-stop:
			return errRequestCanceled
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// subject is what events are about.
type subject struct{ service, route string }

func (s *series) retried(ctx context.Context, of subject, o outcome.Outcome, wait time.Duration) {
	if s.cfg.Observer != nil {
		event.Emit(ctx, s.cfg.Observer, Retried{
			Service: of.service, Route: of.route, Attempt: s.attempts, Outcome: o, Sleep: wait,
		})
	}
}

func (s *series) gaveUp(ctx context.Context, of subject, o outcome.Outcome, why Reason) {
	if (s.attempts > 1 || why == ReasonBudget) && why != ReasonCanceled {
		call.InboundOf(ctx).SetExhausted()
	}
	if s.cfg.Observer != nil && s.cfg.MaxAttempts > 1 { // else there was nothing to give up
		event.Emit(ctx, s.cfg.Observer, GaveUp{
			Service: of.service, Route: of.route, Attempts: s.attempts, Outcome: o, Reason: why,
		})
	}
}

// tell tells the tier above that it is of no use to repeat what has failed in a way
// that is never tried again, if it has been tried again before, or if the tier below
// says so.
func (s *series) tell(ctx context.Context, o outcome.Outcome, forbidden bool) {
	if (o.Failed() || o.Class == outcome.Throttled) && (s.attempts > 1 || forbidden) {
		call.InboundOf(ctx).SetExhausted()
	}
}
