package retry

import (
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// pace yields the waits of one call. It keeps a generator for plain failures and
// one for throttled ones, each made when it is first needed: most calls need
// neither.
type pace struct {
	plain, throttled generator
}

type generator struct {
	backoff.BackOff
	drawn int
}

// next returns the wait before the nth repetition of the call, from 1, or false
// if the generator says that it is enough.
func (p *pace) next(b *Backoff, n int, throttled bool) (time.Duration, bool) {
	g, base := &p.plain, b.Base
	if throttled && b.New == nil {
		g, base = &p.throttled, b.ThrottledBase
	}
	if base == 0 && b.New == nil {
		return 0, true
	}
	if g.BackOff == nil {
		if g.BackOff = b.generator(base); g.BackOff == nil {
			return 0, false
		}
	}
	var d time.Duration
	for g.drawn < n { // the other kind may have had its turn in between
		d = g.NextBackOff()
		g.drawn++
	}
	if d == backoff.Stop {
		return 0, false
	}
	return min(max(d, 1), b.Max), true
}

// generator makes the default one out of backoff/v4, whose interval with a
// randomization factor of 1 is drawn from 0 to twice the nominal one. Hence the
// halves.
func (b *Backoff) generator(base time.Duration) backoff.BackOff {
	if b.New != nil {
		return b.New()
	}
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(max(base/2, 1)),
		backoff.WithMaxInterval(max(b.Max/2, 1)),
		backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(1),
		backoff.WithMaxElapsedTime(0),
	)
}

// hinted returns the wait for a server that asks for d: longer by up to a tenth,
// or a second if that is more, so that not all its clients come back at once.
func hinted(d time.Duration) time.Duration {
	return d + rand.N(max(d/10, time.Second))
}
