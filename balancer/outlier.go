package balancer

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/outcome"
)

// record is what outlier detection and health checks know of a node.
type record struct {
	answered, failedCalls atomic.Int64 // calls since it joined, but for the tally's good ones
	rowAnswers, rowLocal  atomic.Int32 // with SplitLocal: failures in a row, with an answer and without
	ejectedAt             atomic.Int64 // when the last ejection began
	probeAt               atomic.Int64 // when an ejected node may get its next call

	// Guarded by owner.mu.
	ejections int    // that were not forgotten when the last one began
	why       reason // for the last one
	sick      reason // why it is unhealthy
	before    counts // at the end of the last interval
}

// counts is how many calls have been answered and how many of those failed.
type counts struct{ answered, failed int64 }

// counts may miss answers that are being handed on just now; they are there the
// next time.
func (n *Node) counts() counts {
	failed := n.failedCalls.Load() // first, for they are counted last
	answered := n.answered.Load()
	return counts{answered + int64(answersOf(n.load.Load())), failed} //nolint:gosec // 24 bits
}

// reason is why a node is left alone.
type reason struct {
	kind        reasonKind
	value, than float64
	err         error
}

type reasonKind uint8

const (
	noReason reasonKind = iota
	byHand
	inARow
	inARowLocal
	lowSuccess
	highFailure
	badHealth
	notChecked
)

// String says why in a few words.
func (r reason) String() string {
	switch r.kind {
	case byHand:
		return "by hand"
	case inARow:
		return fmt.Sprintf("%.0f failures in a row", r.value)
	case inARowLocal:
		return fmt.Sprintf("%.0f failures in a row without an answer", r.value)
	case lowSuccess:
		return fmt.Sprintf("success rate %.3g below %.3g", r.value, r.than)
	case highFailure:
		return fmt.Sprintf("%.3g %% failures, more than %.3g %%", r.value, r.than)
	case badHealth:
		return fmt.Sprintf("health check: %v", r.err)
	case notChecked:
		return "health check: none yet"
	default:
		return ""
	}
}

// reason says why the node is in a state. b.mu is held.
func (n *Node) reason(s NodeState) reason {
	switch s {
	case Ejected:
		return n.why
	case Unhealthy:
		return n.sick
	default:
		return reason{}
	}
}

// local reports whether a failure came without an answer of the node's.
func local(o *outcome.Outcome) bool {
	_, answer := errors.AsType[outcome.StatusError](o.Err)
	return o.Err != nil && !answer
}

// failedAgain is told of a failure of a call that began at start, and of how many
// there have been in a row. It ejects the node if that is too many.
func (b *Balancer) failedAgain(n *Node, start, now int64, row int, o *outcome.Outcome) {
	c := &b.cfg.Outliers
	most, kind := c.Consecutive, inARow
	if c.SplitLocal == On {
		if local(o) {
			row, most, kind = int(n.rowLocal.Add(1)), c.ConsecutiveLocal, inARowLocal
		} else {
			n.rowLocal.Store(0) // the way there is open
			row = int(n.rowAnswers.Add(1))
		}
	}
	// The last is for services that are down: there nobody should take a lock in vain.
	if most == 0 || row < most || start < n.ejected.Load() || b.room.Load() <= 0 {
		return
	}
	if c.Enforcement < 100 && (row%most != 0 || !b.enforce(c.Enforcement)) {
		return
	}
	b.mu.Lock()
	if b.closed || !b.eject(n, now, reason{kind: kind, value: float64(row)}) {
		b.mu.Unlock()
		return
	}
	if c.Probe > 0 {
		n.probeAt.Store(now + b.jittered(c.Probe))
		n.unwell.Or(probation)
	}
	b.rebuild(false)
	b.mu.Unlock()
	b.notify()
}

// wellAgain is told of the first call that did not fail after others did: flags are
// the node's unwell bits before it. A call that began after the node was ejected
// for failures in a row ends the ejection.
func (b *Balancer) wellAgain(n *Node, flags uint32, start, now int64) {
	if b.cfg.Outliers.SplitLocal == On {
		n.rowLocal.Store(0)
		n.rowAnswers.Store(0)
	}
	if flags&probation != 0 && start >= n.ejectedAt.Load() {
		b.release(n, now)
	}
}

// release ends an ejection, unless it was by hand, and has the node be eligible.
func (b *Balancer) release(n *Node, now int64) {
	b.mu.Lock()
	n.unwell.And(^probation)
	if b.closed || n.ejected.Load() <= now || n.why.kind == byHand {
		b.mu.Unlock()
		return
	}
	n.ejected.Store(now)
	b.rebuild(false)
	b.mu.Unlock()
	b.notify()
}

// enforce draws whether to do what is to be done in so many percent of the cases.
func (b *Balancer) enforce(percent float64) bool {
	return float64(b.draw.below(1<<20)) < percent/100*(1<<20)
}

// jittered returns d, longer by up to Jitter's share of it.
func (b *Balancer) jittered(d time.Duration) int64 {
	return int64(d) + int64(b.cfg.Outliers.Jitter*float64(d)*float64(b.draw.below(1<<20))/(1<<20))
}

// eject leaves a node alone from now on, if there is room for another. b.mu is held.
func (b *Balancer) eject(n *Node, now int64, why reason) bool {
	if n.ejected.Load() > now || n.hasLeft() || n.endpoint.Load().Draining || b.room.Load() <= 0 {
		return false
	}
	c := &b.cfg.Outliers
	most := int(math.Ceil(float64(c.MaxEjection) / float64(c.BaseEjection))) // more would only take longer to forget
	n.ejections = min(n.remembered(now)+1, most)
	n.why = why
	n.unwell.And(^probation)
	n.ejectedAt.Store(now)
	n.ejected.Store(now + b.jittered(min(c.BaseEjection*time.Duration(n.ejections), c.MaxEjection)))
	b.room.Add(-1)
	return true
}

// remembered returns how many ejections are not forgotten: one fewer for each
// interval since the last one ended. b.mu is held.
func (n *Node) remembered(now int64) int {
	passed := max(0, now-n.ejected.Load()) / int64(n.owner.cfg.Outliers.Interval)
	return int(max(0, int64(n.ejections)-passed))
}

// makeRoom notes how many more nodes may be ejected. b.mu is held.
func (b *Balancer) makeRoom(now int64) {
	total, ejected := 0, 0
	for _, n := range b.order {
		if n.endpoint.Load().Draining {
			continue
		}
		total++
		if n.ejected.Load() > now {
			ejected++
		}
	}
	allowed := int(float64(total) * b.cfg.Outliers.MaxPercent / 100)
	allowed = min(max(allowed, 1), total-1)
	b.room.Store(int32(allowed - ejected)) //nolint:gosec // nodes
}

// dueProbe reports whether an ejected node gets a call now, and if so puts the next
// one off. Only one waits there at a time.
func (n *Node) dueProbe(b *Balancer, now int64) bool {
	at := n.probeAt.Load()
	return now >= at && n.unwell.Load()&probation != 0 && awaitingOf(n.load.Load()) == 0 &&
		n.probeAt.CompareAndSwap(at, now+b.jittered(b.cfg.Outliers.Probe))
}

// judges reports whether rates are looked at.
func (c *OutlierConfig) judges() bool {
	return c.SuccessRate.Enforcement > 0 || c.FailurePercentage.Enforcement > 0
}

// rated is a node's calls in one interval.
type rated struct {
	node  *Node
	calls counts
}

func (r rated) success() float64 { return 1 - float64(r.calls.failed)/float64(r.calls.answered) }

// sweep looks at what the interval that is over has brought, ejects those who did
// too badly, and begins the next. Both rules see the same counts. b.mu is held.
func (b *Balancer) sweep(now int64) {
	c := &b.cfg.Outliers
	b.sweepAt = now + int64(c.Interval)
	var all []rated
	for _, n := range b.order {
		total := n.counts()
		all = append(all, rated{n, counts{total.answered - n.before.answered, total.failed - n.before.failed}})
		n.before = total
	}
	if s := &c.SuccessRate; s.Enforcement > 0 {
		if busy := busiest(all, s.RequestVolume, s.MinHosts); len(busy) > 0 {
			mean, dev := spread(busy)
			b.ejectWorst(busy, now, s.Enforcement, mean-dev*s.StdevFactor, func(r rated, below float64) reason {
				return reason{kind: lowSuccess, value: r.success(), than: below}
			})
		}
	}
	if f := &c.FailurePercentage; f.Enforcement > 0 {
		busy := busiest(all, f.RequestVolume, f.MinHosts)
		b.ejectWorst(busy, now, f.Enforcement, 1-f.Threshold/100, func(r rated, _ float64) reason {
			return reason{kind: highFailure, value: 100 - 100*r.success(), than: f.Threshold}
		})
	}
}

// busiest returns those with at least so many calls, the worst first; none if they
// are fewer than hosts.
func busiest(all []rated, volume, hosts int) []rated {
	var busy []rated
	for _, r := range all {
		if r.calls.answered >= int64(max(volume, 1)) {
			busy = append(busy, r)
		}
	}
	if len(busy) < hosts {
		return nil
	}
	slices.SortStableFunc(busy, func(a, b rated) int { return cmp.Compare(a.success(), b.success()) })
	return busy
}

// spread returns the mean and the standard deviation of the success rates.
func spread(busy []rated) (mean, dev float64) {
	for _, r := range busy {
		mean += r.success() / float64(len(busy))
	}
	for _, r := range busy {
		dev += (r.success() - mean) * (r.success() - mean) / float64(len(busy))
	}
	return mean, math.Sqrt(dev)
}

// ejectWorst ejects those whose success rate is below a bound. b.mu is held.
func (b *Balancer) ejectWorst(busy []rated, now int64, enforcement, below float64, why func(rated, float64) reason) {
	for _, r := range busy {
		if r.success() >= below-1e-12 {
			return
		}
		if b.enforce(enforcement) {
			b.eject(r.node, now, why(r, below))
		}
	}
}
