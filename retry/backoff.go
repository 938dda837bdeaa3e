package retry

import (
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// BackoffKind is how the waits of a call grow, and how chance has its part in
// them. Its text, in JSON too, is given with each.
type BackoffKind uint8

// The kinds of backoff. n counts the repetitions of a call from 1.
const (
	// FullJitter, "full", waits for a time drawn evenly from 0 to
	// min(Max, Base·2ⁿ⁻¹): of all kinds it spreads callers that failed together
	// best.
	FullJitter BackoffKind = iota + 1
	// EqualJitter, "equal", draws from the upper half of that: for a server that
	// must have some time.
	EqualJitter
	// DecorrelatedJitter, "decorrelated", draws from Base to three times the wait
	// before, the first time to 3·Base, at most to Max.
	DecorrelatedJitter
	// Constant, "constant", waits for Base each time. Callers that failed
	// together come back together.
	Constant
	// Linear, "linear", waits for min(Max, n·Base). Callers that failed together
	// come back together.
	Linear
)

func backoffKinds() kinds { return kinds{"full", "equal", "decorrelated", "constant", "linear"} }

// String returns the kind's text; "" if it was left out.
func (k BackoffKind) String() string { return backoffKinds().name(uint8(k)) }

// MarshalText returns the kind's text.
func (k BackoffKind) MarshalText() ([]byte, error) {
	return backoffKinds().marshal("Backoff.Kind", uint8(k))
}

// UnmarshalText sets the kind to the one with this text.
func (k *BackoffKind) UnmarshalText(text []byte) error {
	i, err := backoffKinds().unmarshal("Backoff.Kind", text)
	if err == nil {
		*k = BackoffKind(i)
	}
	return err
}

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

// generator makes one of the kind asked for. backoff/v4 draws its intervals from
// (1 ± randomization factor) times a nominal one, which doubles up to its own
// maximum: so half the bound and a factor of 1 make full jitter, three quarters
// and a third make equal jitter.
func (b *Backoff) generator(base time.Duration) backoff.BackOff {
	switch {
	case b.New != nil:
		return b.New()
	case b.Kind == EqualJitter:
		return exponential(base-base/4, b.Max-b.Max/4, 1./3)
	case b.Kind == DecorrelatedJitter:
		return &decorrelated{base: base, most: b.Max, last: base}
	case b.Kind == Constant:
		return backoff.NewConstantBackOff(base)
	case b.Kind == Linear:
		return &linear{base: base, most: b.Max}
	}
	return exponential(base/2, b.Max/2, 1)
}

func exponential(initial, most time.Duration, factor float64) backoff.BackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(max(initial, 1)),
		backoff.WithMaxInterval(max(most, 1)),
		backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(factor),
		backoff.WithMaxElapsedTime(0),
	)
}

// decorrelated is Finagle's and AWS's, but that the bound is what is capped and
// not what was drawn: else two thirds of all waits at the cap would be the same.
type decorrelated struct{ base, most, last time.Duration }

func (d *decorrelated) NextBackOff() time.Duration {
	bound := d.most
	if d.last < d.most/3 {
		bound = 3 * d.last
	}
	d.last = d.base
	if bound > d.base {
		d.last += rand.N(bound - d.base)
	}
	return d.last
}

func (d *decorrelated) Reset() { d.last = d.base }

type linear struct{ base, most, last time.Duration }

func (l *linear) NextBackOff() time.Duration {
	if l.last < l.most-l.base {
		l.last += l.base
	} else {
		l.last = l.most
	}
	return l.last
}

func (l *linear) Reset() { l.last = 0 }

// hinted returns the wait for a server that asks for d: longer by up to a tenth,
// or a second if that is more, so that not all its clients come back at once. Who
// asks for less than a second, as gRPC's servers can, means it: no more than twice
// that.
func hinted(d time.Duration) time.Duration {
	return d + rand.N(max(d/10, min(d, time.Second)))
}
