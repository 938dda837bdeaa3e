package discovery

import (
	"context"
	"iter"
	"math/rand/v2"
	"time"
)

// schedule says how often a source that has to be asked is asked.
type schedule struct {
	// least and greatest bound the time between two look-ups that went well;
	// greatest <= 0 is no bound.
	least, greatest time.Duration
}

// poll watches by asking: look is called again when its set's TTL has run out,
// within the schedule's bounds, or earlier on a hint. A failed look-up ends the
// watch with its error, for the backoff is that of whoever starts it again. A
// [Warning] beside a set follows the set.
func poll(ctx context.Context, service string, s schedule, look func(context.Context) (Set, error)) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		for ctx.Err() == nil {
			set, err := look(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil && !isWarning(err) {
				yield(Set{}, resolveError(service, err))
				return
			}
			set.TTL = max(set.TTL, s.least)
			if !yield(set, nil) || err != nil && !yield(Set{}, err) {
				return
			}
			if !pause(ctx, s.after(set.TTL, rand.Float64()), s.least) { //nolint:gosec // jitter
				return
			}
		}
	}
}

// after is the time from a look-up to the next: the TTL within bounds, and a
// tenth more or, where that would be too long, less. random is in [0, 1).
func (s schedule) after(ttl time.Duration, random float64) time.Duration {
	d := max(ttl, s.least)
	bounded := s.greatest > 0
	if bounded {
		d = min(d, s.greatest)
	}
	spread := time.Duration(random * float64(d/10))
	if bounded && d+spread > s.greatest {
		return max(d-spread, s.least)
	}
	return d + spread
}

// pause waits until the next look-up is due: after d, or as soon as a hint of
// ctx's asks for it, but least after the last one, which is now. It answers false
// if ctx has ended. With d < 0 only a hint ends it.
func pause(ctx context.Context, d, least time.Duration) bool {
	if d < 0 {
		d = never
	}
	began := time.Now()
	timer := time.NewTimer(d)
	defer timer.Stop()
	hints := Hints(ctx)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return ctx.Err() == nil
		case _, ok := <-hints:
			// More of them say nothing new, but are taken all the same: left
			// where they are, they would ask for yet another look-up.
			if !ok {
				hints = nil // closed: there will be no more
			} else {
				timer.Reset(min(d, least) - time.Since(began))
			}
		}
	}
}
