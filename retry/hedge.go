package retry

import (
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/inherit"
	"github.com/backstay/backstay/outcome"
)

// HedgeConfig says when an attempt gets a hedge: another one beside it, on another
// node, because it has been without an answer for longer than nearly all take. The
// first good answer is the call's, the other attempt is canceled ("The Tail at
// Scale", Dean and Barroso, 2013). Off unless Delay or Percentile is set.
//
// Only calls that may be repeated are hedged, with no body or one that GetBody
// gives anew, and no long polls (a frame that is latency neutral). A hedge counts
// as an attempt: there is none beyond Config.MaxAttempts. It is paid for out of
// Config.Budget and MaxExtra both.
//
// It holds for the functions of Do and Run too, which are then called while another
// call of the same function is under way: they must bear that, as one that writes to
// a variable of its surroundings does not. What a call that loses returns without an
// error is closed if it is an io.Closer or an *http.Response, and else dropped.
type HedgeConfig struct {
	// Delay is how long an attempt is without an answer before it gets a hedge. It
	// is less than an AttemptTimeout, and with all hedges less than a Timeout.
	// Negative is none.
	// Default: none.
	Delay time.Duration `json:"delay,omitempty"`
	// Percentile, between 0 and 1 such as 0.95, makes the delay that percentile of
	// how long first attempts take, found anew all the time for each service.
	// Until there are MinSamples, Delay holds. Negative is none.
	// Default: none.
	Percentile float64 `json:"percentile,omitempty"`
	// MinSamples is how many attempts the percentile takes.
	// Default: 100.
	MinSamples int `json:"minSamples,omitempty"`
	// MinDelay is the least that the percentile makes of the delay.
	// Default: 1ms.
	MinDelay time.Duration `json:"minDelay,omitempty"`
	// MaxHedges is how many hedges a call may have, each after another delay, or at
	// once if the one before has failed and may be tried again.
	// Default: 1.
	MaxHedges int `json:"maxHedges,omitempty"`
	// MaxExtra is how many hedges there may be for each call that may be hedged,
	// over any 10 seconds and for each service, besides a single one. Negative is
	// no such limit.
	// Default: 0.05.
	MaxExtra float64 `json:"maxExtra,omitempty"`
	// LoserGrace is how long an attempt that has lost may go on before it is
	// canceled, and what it has answered by then is read to its end, as far as
	// Config.DrainLimit and DrainTime go: so its connection lives on over HTTP/1.1,
	// where to cancel a request is to close its connection. Each attempt that may
	// get a hedge then runs on a goroutine of its own. Negative is none.
	// Default: none: what has lost is canceled at once.
	LoserGrace time.Duration `json:"loserGrace,omitempty"`
	// SameNode is On to hedge also where a balancer below has no node that the
	// call has not tried, such as a service behind one address.
	// Default: Off.
	SameNode Switch `json:"sameNode,omitempty"`
}

// resolve fills in the defaults, where off is zero, and checks. Timeout is the call's
// and attemptTimeout the attempt's; 0 or less is none.
func (c *HedgeConfig) resolve(timeout, attemptTimeout time.Duration, check func(ok bool, field string, value any, want string)) {
	check(!(c.Percentile >= 1) && !math.IsNaN(c.Percentile), "Hedge.Percentile", c.Percentile, "between 0 and 1")
	check(c.MinSamples >= 0, "Hedge.MinSamples", c.MinSamples, ">= 1, or 0 for the default")
	check(c.MinDelay >= 0, "Hedge.MinDelay", c.MinDelay, "> 0, or 0 for the default")
	check(c.MaxHedges >= 0, "Hedge.MaxHedges", c.MaxHedges, ">= 1, or 0 for the default")
	check(c.MaxExtra <= 1, "Hedge.MaxExtra", c.MaxExtra, "<= 1") // nor is what is not a number
	check(!(c.MaxExtra > 0 && c.MaxExtra < 1e-6), "Hedge.MaxExtra", c.MaxExtra, ">= 1e-06, or negative for no limit")
	check(c.SameNode.Valid(), "Hedge.SameNode", uint8(c.SameNode), "On or Off")
	c.Delay = inherit.Or(c.Delay, 0)
	c.Percentile = inherit.Or(c.Percentile, 0)
	c.MinSamples = inherit.Or(c.MinSamples, 100)
	c.MinDelay = inherit.Or(c.MinDelay, time.Millisecond)
	c.MaxHedges = inherit.Or(c.MaxHedges, 1)
	c.LoserGrace = inherit.Or(c.LoserGrace, 0)
	if c.MaxExtra == 0 {
		c.MaxExtra = 0.05
	}
	most := timeout / time.Duration(max(c.MaxHedges, 1))
	want := fmt.Sprintf("less than Timeout (%v) with all %d hedges together", timeout, c.MaxHedges)
	check(timeout == 0 || c.Delay < most, "Hedge.Delay", c.Delay, want)
	check(timeout == 0 || c.Percentile == 0 || c.MinDelay < most, "Hedge.MinDelay", c.MinDelay, want)
	want = fmt.Sprintf("less than AttemptTimeout (%v), which would be first", attemptTimeout)
	check(attemptTimeout <= 0 || c.Delay < attemptTimeout, "Hedge.Delay", c.Delay, want)
	check(attemptTimeout <= 0 || c.Percentile == 0 || c.MinDelay < attemptTimeout, "Hedge.MinDelay", c.MinDelay, want)
}

func (c *HedgeConfig) on() bool { return c.Delay > 0 || c.Percentile > 0 }

// hedger is what the calls to one service have in common for their hedges.
type hedger struct {
	cfg    *HedgeConfig
	share  *window // of MaxExtra; nil if there is no limit
	digest *digest // nil without Percentile
	start  time.Time
	idle   atomic.Int64 // until when there are no hedges, as the time since start
}

func newHedger(c *HedgeConfig) *hedger {
	h := &hedger{cfg: c, start: clock.Now()}
	if c.MaxExtra > 0 {
		h.share = new(window)
		h.share.init(&BudgetConfig{Ratio: c.MaxExtra, Window: 10 * time.Second})
		h.share.reserve = unit // who calls rarely may have a hedge, too
	}
	if c.Percentile > 0 {
		h.digest = &digest{percentile: c.Percentile, least: int64(c.MinSamples)}
	}
	return h
}

// called counts a call that may be hedged.
func (h *hedger) called(now time.Time) {
	if h.share != nil {
		h.share.deposit(now)
	}
}

// idles reports whether there are no hedges for now.
func (h *hedger) idles(now time.Time) bool {
	idle := h.idle.Load()
	return idle > 0 && int64(now.Sub(h.start)) < idle
}

// delay returns how long an attempt is waited for, 0 being for ever, and the
// percentile that says so, if one does.
func (h *hedger) delay() (delay time.Duration, percentile float64) {
	if h.digest != nil {
		if p := h.digest.value.Load(); p > 0 {
			return max(time.Duration(p), h.cfg.MinDelay), h.cfg.Percentile
		}
	}
	return h.cfg.Delay, 0
}

// observe takes how long a first attempt took. What failed at once says nothing of
// how long good answers take; what failed, or was given up, after longer than a
// hedge waits for says that much took longer, and without it the percentile would
// sink below the truth.
func (h *hedger) observe(start time.Time, o *outcome.Outcome) {
	if h.digest == nil {
		return
	}
	now := clock.Now()
	took := now.Sub(start)
	delay, _ := h.delay()
	if o.Class == outcome.Success || delay > 0 && took >= delay {
		h.digest.add(int64(now.Sub(h.start)), took)
	}
}

// pay takes a hedge from both budgets, or from none.
func (h *hedger) pay(now time.Time, b *Budget) bool {
	if h.share != nil && !h.share.withdraw(now) {
		return false
	}
	if b.Withdraw(now) {
		return true
	}
	h.refund()
	return false
}

func (h *hedger) refund() {
	if h.share != nil {
		h.share.refund()
	}
}

// refused notes that there was no other node for a hedge: the next second's calls
// need not try.
func (h *hedger) refused() {
	h.refund()
	h.idle.Store(int64(clock.Now().Sub(h.start) + time.Second))
}

// refund gives back what was withdrawn for nothing, unless its slice is over.
func (w *window) refund() {
	w.mu.Lock()
	if i := w.tick % ring; w.extra[i] > 0 {
		w.extra[i]--
		w.spent--
	}
	w.mu.Unlock()
}
