package discovery

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
)

var errEnded = errors.New("the source ended without an answer")

// Of the backoff between two watches of one source.
const (
	defaultBackoffBase = time.Second
	defaultBackoffMax  = 30 * time.Second
	backoffMultiplier  = 1.6
	backoffJitter      = 0.2
	// A watch that lasted this many times the base was well: the next failure is
	// a new one. One that yields a set and ends at once is not, or a source of
	// that kind would be asked every second for ever.
	backoffHealthy = 5
)

// newBackoff returns the waits between a source's watches. The greatest interval
// is such that its jitter stays within limit: clipped, half a fleet would wait
// exactly that long and come back together.
func newBackoff(base, limit time.Duration) *backoff.ExponentialBackOff {
	greatest := time.Duration(float64(limit) / (1 + backoffJitter))
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(min(base, greatest)),
		backoff.WithMaxInterval(greatest),
		backoff.WithMultiplier(backoffMultiplier),
		backoff.WithRandomizationFactor(backoffJitter),
		backoff.WithMaxElapsedTime(0),
	)
}

// update is what one of several watches yielded.
type update struct {
	from int // index of its source
	set  Set
	err  error
}

// watches follows sources, each on a goroutine of its own that starts a watch
// again whenever it ends.
type watches struct {
	updates chan update
	hints   []chan struct{}
	base    time.Duration // of the backoff
	limit   time.Duration
	cancel  func()
	wg      sync.WaitGroup
}

// follow begins to watch service with all sources. stop ends it.
func follow(ctx context.Context, service string, base, limit time.Duration, sources ...Resolver) *watches {
	w := &watches{updates: make(chan update), base: base, limit: limit}
	outer := ctx
	ctx, cancel := context.WithCancelCause(outer)
	// When outer ends, whoever sees it first may be faster than the context itself:
	// the sources should hear its cause all the same.
	w.cancel = func() { cancel(context.Cause(outer)) }
	for i, r := range sources {
		// Each source gets a channel of its own, or a hint would reach only the
		// one that happens to receive it.
		hints := make(chan struct{}, 1)
		w.hints = append(w.hints, hints)
		w.wg.Go(func() { w.run(WithHints(ctx, hints), service, i, r) })
	}
	return w
}

// stop ends the watches and waits for them.
func (w *watches) stop() {
	w.cancel()
	w.wg.Wait()
}

// hint passes a hint on to every source.
func (w *watches) hint() {
	for _, c := range w.hints {
		select {
		case c <- struct{}{}:
		default: // it has one that it has not seen yet
		}
	}
}

func (w *watches) run(ctx context.Context, service string, from int, r Resolver) {
	send := func(u update) bool {
		u.from = from
		select {
		case w.updates <- u:
			return true
		case <-ctx.Done():
			return false
		}
	}
	waits := newBackoff(w.base, w.limit)
	for {
		began := time.Now()
		gotSet, gotErr := false, false
		for set, err := range r.Watch(ctx, service) {
			gotSet, gotErr = gotSet || err == nil, gotErr || err != nil
			if !send(update{set: set, err: err}) {
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		if !gotSet && !gotErr && !send(update{err: errEnded}) {
			return
		}
		if gotSet && time.Since(began) >= backoffHealthy*w.base {
			waits.Reset()
		}
		if !sleep(ctx, waits.NextBackOff()) {
			return
		}
	}
}

// sleep waits for d and reports whether ctx lasted that long.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// alarm is a timer for the nearest of several moments.
type alarm struct{ *time.Timer }

// never is far enough for a timer that nobody needs yet.
const never = time.Duration(1<<63 - 1)

func newAlarm() alarm { return alarm{time.NewTimer(never)} }

// set rings the alarm at the earliest of the given times. Zero times do not
// count.
func (a alarm) set(now time.Time, at ...time.Time) {
	d := never
	for _, t := range at {
		if !t.IsZero() {
			d = min(d, max(t.Sub(now), 0))
		}
	}
	a.Reset(d)
}
