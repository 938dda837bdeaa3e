package retry

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/outcome"
)

// result is how an attempt ended: with a value, or else with an error.
type result[T any] struct {
	value T
	err   error
	o     outcome.Outcome
}

// race is an attempt that may get hedges. The attempt itself runs on the caller's
// goroutine; a hedge runs on the timer's, if it comes to that. Where what loses has a
// grace, neither depends on the caller any more once it has lost.
type race[T any] struct {
	begin      func()       // fire, bound once
	by         contender[T] // what the attempts are made by
	first      canceler     // the attempt itself
	own        *hedge[T]    // it too, if it runs on a goroutine of its own
	hedger     *hedger
	delay      time.Duration
	percentile float64 // that the delay is, if it is one
	begun      int     // hedges of the call before this race
	room       int     // how many there may be now

	// What a hedge needs of the call, which is not to leave its goroutine's stack
	// where there are none.
	budget   *Budget
	observer event.Observer
	ctx      context.Context //nolint:containedctx // the call's
	stop     <-chan struct{} // the caller has gone, too, when it is closed; may be nil
	frame    *call.Frame

	mu       sync.Mutex
	timer    *time.Timer
	closed   bool // no further hedge begins
	decided  bool // what ends from now on is too late
	hedges   []*hedge[T]
	living   int
	won      *hedge[T]
	panicked any           // what a hedge panicked with
	changed  chan struct{} // of who waits until it is decided or nothing lives; may be nil
}

// hedge is one of them.
type hedge[T any] struct {
	lane   canceler
	ctx    context.Context //nolint:containedctx // the call's, or one that leaves it
	loose  func() bool     // has ctx leave the call's; nil if it is that
	free   func()          // releases ctx; called when the attempt is over
	grace  *time.Timer     // cancels it when it has lost
	over   bool            // it has lost, and ended
	frame  *call.Frame
	answer result[T]
	whole  bool // the attempt was made to its end, without a panic or Goexit
	good   bool // the answer is one to give to the caller at once
	ended  bool // before the race was decided, or by deciding it
}

// contender is what is different between the races of one transport and another.
type contender[T any] interface {
	// lane returns what a new attempt can be canceled by, before it begins.
	lane() canceler
	// run makes the attempt of a hedge: answer, good, and whole when it is done. It
	// calls free if there is no value, or when that is no longer in use.
	run(h *hedge[T])
	// dispose releases a value that nobody gets.
	dispose(value T)
	subject() subject
}

type canceler interface{ Cancel(cause error) }

// hedging is what a call knows of its hedges.
type hedging struct {
	hedger *hedger // nil if the call has no hedges
	hedged int     // hedges that have begun
}

// plan returns after which delay the attempt that begins at start may have a hedge,
// the percentile that this is, and how many there may be; none if there is no room.
func (c *hedging) plan(s *series, start time.Time) (delay time.Duration, percentile float64, room int) {
	delay, percentile = c.hedger.delay()
	room = min(c.hedger.cfg.MaxHedges-c.hedged, s.cfg.MaxAttempts-s.attempts-1)
	if delay <= 0 || c.hedger.idles(start) || !s.deadline.IsZero() && delay >= s.deadline.Sub(start) {
		room = 0
	}
	return delay, percentile, room
}

// start has a hedge begin after the delay. The attempt begins now.
func (r *race[T]) start() {
	if r.begin == nil {
		r.begin = r.fire
	}
	r.frame.Lend()
	r.mu.Lock()
	r.timer = time.AfterFunc(r.delay, r.begin)
	r.mu.Unlock()
}

// settle is called when the attempt has ended with a, which becomes what the caller
// gets of all the answers. It returns how many hedges began, how many of them were
// attempts, and whether the race may be used again: no hedge has begun, or will.
func (r *race[T]) settle(a *result[T], good bool) (begun, sent int, idle bool) {
	if !good {
		r.wait()
	}
	stopped := r.end()
	if len(r.hedges) > 0 {
		r.budget.Judge(a.o) // here each attempt is judged by itself, whosever answer is the call's
	}
	switch {
	case r.panicked != nil:
		r.dispose(a)
		panic(r.panicked) //nolint:forbidigo // handed on
	case len(r.hedges) == 0:
		r.frame.Reclaim()
		return 0, 0, stopped && r.own == nil // else its timer, or whoever reads a body, may be about to look at it
	case r.won != nil:
		r.dispose(a)
		*a = r.won.answer
		r.frame.Adopt(r.won.frame)
		r.discard(r.won)
	case good:
		r.cancel(nil)
		r.discard(nil)
	default:
		r.cancel(nil) // if it is the caller who has gone
		r.discard(r.best(a))
	}
	return len(r.hedges), r.sent(), false
}

// abandon ends the race of an attempt that has not come to its end, because of a
// panic or Goexit.
func (r *race[T]) abandon() {
	r.end()
	r.cancel(nil)
	r.discard(nil)
}

// fire begins a hedge. It runs on the timer's goroutine.
func (r *race[T]) fire() {
	now := clock.Now()
	if r.over() || !r.hedger.pay(now, r.budget) {
		return
	}
	r.mu.Lock()
	if r.closed || len(r.hedges) >= r.room {
		r.mu.Unlock()
		r.budget.Return()
		r.hedger.refund()
		return
	}
	h := r.entry(r.by.lane())
	r.hedges = append(r.hedges, h)
	r.living++
	n := len(r.hedges)
	if n < r.room {
		r.timer.Reset(r.delay)
	}
	r.mu.Unlock()
	defer r.finish(h)
	if h.frame = r.frame.Beside(r.hedger.cfg.SameNode != On); h.frame != nil {
		h.frame.Because("", r.budget.Balance(now))
	}
	if r.observer != nil {
		of := r.by.subject()
		event.Emit(r.ctx, r.observer, Hedged{
			Service: of.service, Route: of.route, Hedge: r.begun + n, Delay: r.delay, Percentile: r.percentile,
		})
	}
	r.by.run(h)
}

// entry returns one that runs in the lane. The call is not over.
func (r *race[T]) entry(lane canceler) *hedge[T] {
	h := &hedge[T]{lane: lane, ctx: r.ctx, free: func() {}}
	if r.hedger.cfg.LoserGrace <= 0 {
		return h
	}
	// The caller's cancel is passed on until the attempt has lost. His deadline
	// holds in any case: it has to be seen as one.
	h.ctx = context.WithoutCancel(r.ctx)
	if deadline, ok := r.ctx.Deadline(); ok {
		h.ctx, h.free = context.WithDeadline(h.ctx, deadline)
	}
	ctx, free := r.ctx, h.free
	h.loose = context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			lane.Cancel(context.Cause(ctx))
		}
	})
	h.free = func() { h.loose(); free() }
	return h
}

// apart makes the attempt on a goroutine of its own, and returns when it has ended
// with a, or a hedge has decided the race.
func (r *race[T]) apart(a *result[T]) {
	h, done := r.entry(r.first), make(chan struct{})
	h.frame = r.frame.Apart()
	r.mu.Lock()
	r.own, r.changed = h, done
	r.mu.Unlock()
	r.start()
	go func() {
		defer r.finishOwn(h)
		r.by.run(h)
	}()
	<-done
	r.mu.Lock()
	ended := h.ended
	r.mu.Unlock()
	if !ended {
		a.err, a.o = supersededError{}, outcome.Outcome{Class: outcome.Neutral, Err: supersededError{}}
		return
	}
	*a = h.answer
	r.frame.Adopt(h.frame)
}

// finishOwn is deferred to the end of an attempt that runs apart.
func (r *race[T]) finishOwn(h *hedge[T]) {
	panicked := recover()
	r.mend(h)
	r.mu.Lock()
	late := r.decided
	h.ended = !late
	if !late && panicked != nil {
		r.panicked = panicked
		r.closed, r.decided = true, true
	}
	changed := r.changed
	r.changed = nil
	r.mu.Unlock()
	if late {
		r.late(h)
	}
	if changed != nil {
		close(changed)
	}
}

// mend gives an attempt that was not made to its end an answer.
func (r *race[T]) mend(h *hedge[T]) {
	if !h.whole {
		h.free()
		h.answer = result[T]{err: errGone, o: outcome.Outcome{Class: outcome.Neutral, Err: errGone}}
	}
}

func (r *race[T]) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// finish is deferred to the end of a hedge.
func (r *race[T]) finish(h *hedge[T]) {
	panicked := recover()
	r.mend(h)
	a := &h.answer
	r.budget.Return()
	if refused(a.err) {
		r.hedger.refused()
	}
	r.mu.Lock()
	r.living--
	late := r.decided
	if !late {
		h.ended = true
	}
	switch {
	case late:
	case panicked != nil:
		r.panicked = panicked
	case h.good:
		r.won = h
	case a.o.Class == outcome.Throttled:
		r.closed = true // who asks for less does not get more
	case a.o.Retry != outcome.Never && !r.closed && len(r.hedges) < r.room:
		r.timer.Reset(0) // the next one need not wait for one that has failed (gRFC A6)
	}
	first := !late && (r.panicked != nil || r.won != nil)
	r.decided = r.decided || first
	r.closed = r.closed || first
	changed := r.changed
	if changed != nil && (r.decided || r.living == 0 && (r.own == nil || r.own.ended)) {
		r.changed = nil
	} else {
		changed = nil
	}
	r.mu.Unlock()
	r.budget.Judge(a.o)
	if first {
		if r.own != nil {
			r.lose(r.own)
		} else {
			r.first.Cancel(supersededError{})
		}
		r.cancel(h)
	}
	if late {
		r.late(h)
	}
	if changed != nil {
		close(changed)
	}
}

// late disposes of an answer that came when the call was over. There is nobody whom
// a panic could concern.
func (r *race[T]) late(h *hedge[T]) {
	defer func() {
		_ = recover()
		r.mu.Lock()
		h.over = true
		grace := h.grace
		r.mu.Unlock()
		if grace != nil {
			grace.Stop()
		}
	}()
	r.dispose(&h.answer)
}

// lose ends an attempt that has lost, unless it has ended: at once, or after its
// grace.
func (r *race[T]) lose(h *hedge[T]) {
	r.mu.Lock()
	over, grace := h.over || h.ended, r.hedger.cfg.LoserGrace
	spared := !over && grace > 0 && r.ctx.Err() == nil
	if spared {
		h.grace = time.AfterFunc(grace, func() { h.lane.Cancel(supersededError{}) })
	}
	r.mu.Unlock()
	switch {
	case spared:
		h.loose()
	case !over:
		h.lane.Cancel(supersededError{})
	}
}

// dispose releases an answer that nobody gets.
func (r *race[T]) dispose(a *result[T]) {
	if a.err == nil {
		r.by.dispose(a.value)
	}
}

// wait waits, after an attempt that failed, until one of its hedges has a good
// answer or none is left, or the caller goes away.
func (r *race[T]) wait() {
	var changed chan struct{}
	r.mu.Lock()
	r.closed = true
	if !r.decided && r.living > 0 {
		changed = make(chan struct{})
		r.changed = changed
	}
	r.mu.Unlock()
	r.timer.Stop()
	if changed == nil {
		return
	}
	select {
	case <-changed:
	case <-r.ctx.Done():
	case <-r.stop:
	}
}

// end decides the race, if no hedge has: from here on only the caller's goroutine
// touches it, and what ends later is discarded where it ends. It reports whether
// it has stopped the timer before it was due.
func (r *race[T]) end() bool {
	r.mu.Lock()
	r.closed, r.decided = true, true
	r.mu.Unlock()
	return r.timer.Stop()
}

// cancel cancels all hedges but one.
func (r *race[T]) cancel(but *hedge[T]) {
	r.mu.Lock()
	hedges := r.hedges // which does not change any more: the race is closed
	r.mu.Unlock()
	for _, h := range hedges {
		if h != but {
			r.lose(h)
		}
	}
}

// discard disposes of the values of all hedges that ended in time, but one's.
func (r *race[T]) discard(but *hedge[T]) {
	for _, h := range r.hedges {
		if h != but && h.ended {
			r.dispose(&h.answer)
		}
	}
}

// sent returns how many hedges ended in time and were not refused.
func (r *race[T]) sent() (n int) {
	for _, h := range r.hedges {
		if h.ended && !refused(h.answer.err) {
			n++
		}
	}
	return n
}

// best makes a the best of answers that are all bad, and returns the hedge that it
// is of, or nil: a value rather than an error, an error rather than a refusal, the
// attempt's own rather than a hedge's.
//
// The longest wait that any of the peers asks for is that of the answer.
func (r *race[T]) best(a *result[T]) *hedge[T] {
	if a.err != nil && a.o.Class == outcome.Neutral && !refused(a.err) {
		return nil // it is the caller's doing, and not the peers'
	}
	var after time.Duration
	if !refused(a.err) {
		after = a.o.After
	}
	best := r.choose(a)
	for _, h := range r.hedges {
		if h.ended && !refused(h.answer.err) {
			after = max(after, h.answer.o.After)
		}
	}
	a.o.After = after
	return best
}

// choose is best but for the wait.
func (r *race[T]) choose(a *result[T]) *hedge[T] {
	if a.err == nil {
		return nil
	}
	var errs []error
	for _, h := range r.hedges {
		if !h.ended || refused(h.answer.err) {
			continue
		}
		if h.answer.err == nil {
			*a = h.answer
			r.frame.Adopt(h.frame)
			return h
		}
		if refused(a.err) {
			*a = h.answer
			continue
		}
		errs = append(errs, h.answer.err)
		if h.answer.o.Class != outcome.Neutral {
			a.o.Retry = min(a.o.Retry, h.answer.o.Retry)
		}
	}
	if len(errs) > 0 {
		a.err = &HedgedError{Err: a.err, Others: errs}
	}
	return nil
}

func refused(err error) bool { return err != nil && outcome.Refused(err) }
