package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
)

// SuperviseConfig says how [Supervise] treats a source. The zero value means
// every default.
type SuperviseConfig struct {
	// BackoffBase is the wait before a watch that ended is started again. It
	// grows by 1.6 from one failure to the next, ±20 % of jitter, and starts
	// anew after a watch that yielded a set and lasted five times as long as
	// this. It has nothing to do with a source's TTL. Default: 1s.
	BackoffBase time.Duration `json:"backoffBase,omitempty"`
	// BackoffMax is the longest wait, jitter included. Default: 30s, or
	// BackoffBase if that is more.
	BackoffMax time.Duration `json:"backoffMax,omitempty"`
	// EmptyGrace is how long the source must go on saying that the service has
	// no endpoints before that is passed on; a failure in between begins it
	// anew. Until then the set before holds and the error is [ErrNoEndpoints].
	// Sets that are [Set].Authoritative have no grace. A negative value means
	// that such an empty set is never passed on. Default: 30s.
	EmptyGrace time.Duration `json:"emptyGrace,omitempty"`
	// MergeWindow is the least time between two sets: changes that come faster
	// are merged into one. The first set is never delayed, nor is a change
	// after a quiet time. Negative: no window. Default: 100ms.
	MergeWindow time.Duration `json:"mergeWindow,omitempty"`
	// HintInterval is the least time between two hints (see [WithHints]) that
	// the source sees; one that comes too early waits. Negative: no limit.
	// Default: 1s.
	HintInterval time.Duration `json:"hintInterval,omitempty"`
}

// Validate returns every problem of c's, joined.
func (c *SuperviseConfig) Validate() error {
	if c == nil {
		return nil
	}
	var errs []error
	if c.BackoffBase < 0 {
		errs = append(errs, fmt.Errorf("discovery: BackoffBase is %v, want > 0", c.BackoffBase))
	}
	if d := c.withDefaults(); d.BackoffMax < d.BackoffBase {
		errs = append(errs, fmt.Errorf("discovery: BackoffMax is %v, want >= BackoffBase (%v)", d.BackoffMax, d.BackoffBase))
	}
	return errors.Join(errs...)
}

func (c SuperviseConfig) withDefaults() SuperviseConfig {
	c.BackoffBase = cmp.Or(c.BackoffBase, defaultBackoffBase)
	c.BackoffMax = cmp.Or(c.BackoffMax, max(defaultBackoffMax, c.BackoffBase))
	c.EmptyGrace = cmp.Or(c.EmptyGrace, 30*time.Second)
	c.MergeWindow = cmp.Or(c.MergeWindow, 100*time.Millisecond)
	c.HintInterval = cmp.Or(c.HintInterval, time.Second)
	return c
}

// Supervise returns a resolver that makes any source fit for use:
//
//   - A watch that ends is started again, with jittered exponential backoff.
//   - A failure never empties a set: it is passed on as an error, a
//     [*ResolveError], and the set before holds. The first failure is passed on
//     as fast as the first set, so that nobody waits for a service that cannot
//     be found.
//   - An empty set is passed on after a grace only, unless it is authoritative.
//   - Endpoints that are not valid, and later ones with a Key that has been
//     seen, are left out, and a [*Warning] after the set says so, once. A set
//     with no valid endpoint at all is a failure.
//   - A set with the endpoints of the one before, in whatever order, is passed
//     on only after an error: it says that the set is current again.
//   - Sets follow each other no faster than the merge window, hints no faster
//     than their interval.
//
// Its watches never end while ctx lives. A nil cfg means every default; a wrong
// one ([SuperviseConfig.Validate]) is the only thing that its watches yield. A
// resolver that is supervised already is returned as it is.
func Supervise(r Resolver, cfg *SuperviseConfig) Resolver {
	if s, ok := r.(*supervisor); ok {
		return s
	}
	if cfg == nil {
		cfg = new(SuperviseConfig)
	}
	if err := cfg.Validate(); err != nil {
		return broken{err}
	}
	return &supervisor{derived: derived{r}, cfg: cfg.withDefaults()}
}

type supervisor struct {
	derived
	cfg SuperviseConfig
}

// Watch follows the source on a goroutine of its own, so that time can pass
// while the source is silent.
func (s *supervisor) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		if ctx.Err() != nil {
			return
		}
		hints := Hints(ctx)
		w := follow(ctx, service, s.cfg.BackoffBase, s.cfg.BackoffMax, s.source)
		defer w.stop()
		timer := newAlarm()
		defer timer.Stop()
		k := keeper{service: service, grace: s.cfg.EmptyGrace, window: s.cfg.MergeWindow}
		limit := hintLimit{interval: s.cfg.HintInterval}
		for {
			timer.set(time.Now(), k.due(), limit.due())
			select {
			case <-ctx.Done():
				return
			case u := <-w.updates:
				if u.err != nil {
					k.fail(u.err)
				} else {
					k.offer(time.Now(), u.set)
				}
			case _, ok := <-hints:
				if !ok {
					hints = nil // closed: there will be no more
				} else {
					limit.waiting = true
				}
			case <-timer.C:
			}
			now := time.Now()
			if limit.ready(now) {
				w.hint()
			}
			for _, u := range k.ready(now) {
				if ctx.Err() != nil || !yield(u.set, u.err) {
					return
				}
			}
		}
	}
}

// hintLimit lets one hint through per interval and keeps one that is too early.
type hintLimit struct {
	interval time.Duration
	waiting  bool
	next     time.Time
}

func (l *hintLimit) due() time.Time {
	if !l.waiting {
		return time.Time{}
	}
	return l.next
}

func (l *hintLimit) ready(now time.Time) bool {
	if !l.waiting || now.Before(l.next) {
		return false
	}
	l.waiting, l.next = false, now.Add(l.interval)
	return true
}
