package breaker_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/outcome"
)

var (
	errDown   = errors.New("down")
	success   = outcome.Outcome{}
	failure   = outcome.Outcome{Class: outcome.Failure, Err: errDown}
	throttled = outcome.Outcome{Class: outcome.Throttled}
	neutral   = outcome.Outcome{Class: outcome.Neutral, Err: context.Canceled}
)

// bench is a breaker with a clock of its own that only the test moves.
type bench struct {
	*breaker.Breaker
	t   testing.TB
	now time.Time
}

// exact has nothing at random.
func exact(cfg breaker.Config) *breaker.Config {
	cfg.Jitter = -1
	return &cfg
}

func newBench(t testing.TB, cfg *breaker.Config) *bench {
	t.Helper()
	if cfg == nil {
		cfg = exact(breaker.Config{})
	}
	b, err := breaker.New("orders", cfg)
	require.NoError(t, err)
	return &bench{b, t, time.Now()}
}

func (b *bench) pass(d time.Duration) { b.now = b.now.Add(d) }

// lease acquires one that must be given.
func (b *bench) lease() *breaker.Lease {
	b.t.Helper()
	l, err := b.Acquire(b.now)
	require.NoError(b.t, err)
	return &l
}

// call makes n calls that end like o.
func (b *bench) call(n int, o outcome.Outcome) {
	b.t.Helper()
	for range n {
		b.lease().Done(b.now, o)
	}
}

// refused acquires a lease that must be refused.
func (b *bench) refused() *breaker.OpenError {
	b.t.Helper()
	_, err := b.Acquire(b.now)
	var refusal *breaker.OpenError
	require.ErrorAs(b.t, err, &refusal)
	return refusal
}

// open brings the breaker from closed to open by the default thresholds.
func (b *bench) open() {
	b.t.Helper()
	b.call(20, failure)
	require.Equal(b.t, breaker.Open, b.State())
}

// probing brings it on to where the next call is a probe.
func (b *bench) probing() {
	b.t.Helper()
	b.open()
	b.pass(b.Snapshot(b.now).Until.Sub(b.now))
}

// recorder keeps the state changes that it sees.
type recorder struct {
	mu     sync.Mutex
	events []breaker.StateChanged
}

func (r *recorder) Observe(_ context.Context, e event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e.(breaker.StateChanged))
}

func (r *recorder) all() []breaker.StateChanged {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]breaker.StateChanged(nil), r.events...)
}

// path is the states that were gone through, beginning with closed.
func (r *recorder) path(t testing.TB) []breaker.State {
	t.Helper()
	states := []breaker.State{breaker.Closed}
	for _, e := range r.all() {
		require.Equal(t, states[len(states)-1], e.From, "each change begins where the last one ended")
		require.NotEqual(t, e.From, e.To)
		states = append(states, e.To)
	}
	return states
}
