package breaker_test

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/event"
)

func TestEventsTellEachTransitionOnce(t *testing.T) {
	b, r := observed(t, breaker.Config{})
	opened := b.now
	b.call(10, success)
	b.call(10, failure)
	b.pass(5 * time.Second)
	b.call(3, success)

	events := r.all()
	require.Equal(t, []breaker.State{breaker.Closed, breaker.Open, breaker.HalfOpen, breaker.Closed}, r.path(t))
	e := events[0]
	require.Equal(t, "orders", e.Key)
	require.Equal(t, breaker.ReasonFailureRate, e.Reason)
	require.Equal(t, 5*time.Second, e.Until.Sub(opened))
	require.Equal(t, errDown, e.Err)
	require.EqualValues(t, 20, e.Calls)
	require.EqualValues(t, 10, e.Failures)
	require.Equal(t, breaker.ReasonOpenTimeOver, events[1].Reason)
	require.Equal(t, breaker.ReasonProbesSucceeded, events[2].Reason)
	require.EqualValues(t, 3, events[2].Calls, "the one that closed it, too")
	require.Zero(t, events[2].Until)
}

func TestListenerMayCallBack(t *testing.T) {
	var b *breaker.Breaker
	var states []breaker.State
	cfg := exact(breaker.Config{Observer: event.ObserverFunc(func(_ context.Context, e event.Event) {
		states = append(states, b.State())
		b.Snapshot(time.Time{})
		if e.(breaker.StateChanged).To == breaker.Open {
			b.Reset()
			b.Release()
		}
	})})
	bench := newBench(t, cfg)
	b = bench.Breaker
	bench.call(20, failure)
	require.Equal(t, breaker.Closed, b.State())
	require.Equal(t, []breaker.State{breaker.Open, breaker.Closed}, states)
}

func TestAListenerThatPanicsDisturbsNobody(t *testing.T) {
	b := newBench(t, exact(breaker.Config{Observer: event.ObserverFunc(func(context.Context, event.Event) { panic("listener") })}))
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.DiscardHandler))
	b.open()
	b.refused()
}

func TestAListenerThatBlocksHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		b := newBench(t, exact(breaker.Config{Observer: event.ObserverFunc(func(context.Context, event.Event) { <-release })}))
		var wg sync.WaitGroup
		wg.Go(func() { b.call(20, failure) })
		synctest.Wait() // blocked in the listener
		b.refused()
		b.Reset()
		b.call(19, failure)
		b.Snapshot(b.now)
		close(release)
		wg.Wait()
	})
}

func TestAListenerThatEndsItsGoroutineLosesNoLeaseAndNoEvent(t *testing.T) {
	r := new(recorder)
	first := true
	b := newBench(t, exact(breaker.Config{Observer: event.ObserverFunc(func(ctx context.Context, e event.Event) {
		r.Observe(ctx, e)
		if first {
			first = false
			runtime.Goexit()
		}
	})}))
	var wg sync.WaitGroup
	wg.Go(b.open)
	wg.Wait()
	b.refused()
	b.pass(5 * time.Second)
	b.call(3, success)
	require.Equal(t, []breaker.State{breaker.Closed, breaker.Open, breaker.HalfOpen, breaker.Closed}, r.path(t))
}

func TestListenersSeeAlternatingTransitionsUnderConcurrency(t *testing.T) {
	r := new(recorder)
	b := newBench(t, &breaker.Config{
		Observer: r, MinCalls: 2, OpenTime: time.Microsecond, MaxOpenTime: time.Microsecond,
		Probes: 2, ProbeTimeout: time.Millisecond, ProbeInterval: -1,
	})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 2000 {
				if l, err := b.Acquire(time.Time{}); err == nil {
					o := success
					if (n/50)%2 == i%2 {
						o = failure
					}
					l.Done(time.Time{}, o)
				}
				if i == 0 && n%100 == 0 {
					b.ForceOpen()
					b.Release()
				}
			}
		})
	}
	wg.Wait()
	path := r.path(t) // checks that each begins where the last one ended
	require.Greater(t, len(path), 20)
	require.Equal(t, b.State(), path[len(path)-1], "the events add up to the state")
}

func TestEventsAreReadableInALog(t *testing.T) {
	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "until" {
			return slog.Attr{}
		}
		return a
	}}))
	b := newBench(t, exact(breaker.Config{Observer: event.Log(logger)}))
	b.open()
	b.Reset()
	require.Equal(t, `level=WARN msg=breaker.state_changed key=orders from=closed to=open reason="failure rate" calls=20 failures=20 slow=0 error=down
level=INFO msg=breaker.state_changed key=orders from=open to=closed reason=reset calls=0 failures=0 slow=0
`, out.String())
}

func TestNamesOfStatesAndModes(t *testing.T) {
	require.Equal(t, "closed open half-open", breaker.Closed.String()+" "+breaker.Open.String()+" "+breaker.HalfOpen.String())
	require.Equal(t, "auto, forced open, forced closed, disabled",
		breaker.Auto.String()+", "+breaker.ForcedOpen.String()+", "+breaker.ForcedClosed.String()+", "+breaker.Disabled.String())
}
