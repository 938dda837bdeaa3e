package event_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/event"
)

func goexit() { runtime.Goexit() }

// step is the n-th event of a source.
type step int

func (step) EventName() string      { return "step" }
func (s step) LogValue() slog.Value { return slog.IntValue(int(s)) }

// machine is a state machine as the packages have them: it counts under its
// lock and tells of it outside.
type machine struct {
	mu     sync.Mutex
	events event.Queue
	n      int
	to     event.Observer
}

func (m *machine) step(ctx context.Context) {
	m.mu.Lock()
	m.n++
	m.events.Add(ctx, m.to, step(m.n))
	m.mu.Unlock()
	m.events.Flush()
}

func TestQueueKeepsTheOrderUnderConcurrency(t *testing.T) {
	var seen []event.Event // no lock: one delivery at a time is part of the promise
	m := &machine{to: event.ObserverFunc(func(_ context.Context, e event.Event) { seen = append(seen, e) })}
	const goroutines, steps = 8, 1000
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range steps {
				m.step(t.Context())
			}
		})
	}
	wg.Wait()
	require.Equal(t, goroutines*steps, len(seen), "nothing is left behind when all have flushed")
	for i, e := range seen {
		if e != event.Event(step(i+1)) {
			t.Fatalf("event %d is %v", i, e)
		}
	}
}

func TestQueueObserverMayCallBack(t *testing.T) {
	var seen []event.Event
	m := &machine{}
	m.to = event.ObserverFunc(func(ctx context.Context, e event.Event) {
		seen = append(seen, e)
		if e.(step) < 5 {
			m.step(ctx) // would deadlock under the lock; comes after this one, not in its middle
		}
		seen = append(seen, -e.(step))
	})
	m.step(t.Context())
	require.Equal(t, []event.Event{step(1), step(-1), step(2), step(-2), step(3), step(-3), step(4), step(-4), step(5), step(-5)}, seen)
}

func TestQueueSlowObserverDelaysOnlyTheGoroutineThatDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen []event.Event
		m := &machine{to: event.ObserverFunc(func(_ context.Context, e event.Event) {
			if e == event.Event(step(1)) {
				time.Sleep(time.Hour)
			}
			mu.Lock()
			seen = append(seen, e)
			mu.Unlock()
		})}
		go m.step(t.Context())
		synctest.Wait()
		start := time.Now()
		m.step(t.Context())
		m.step(t.Context())
		require.Zero(t, time.Since(start), "the others do not wait")
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, []event.Event{step(1), step(2), step(3)}, seen)
	})
}

func TestQueueGoesOnAfterAnObserverThatEndsItsGoroutine(t *testing.T) {
	var seen []event.Event
	m := &machine{to: event.ObserverFunc(func(_ context.Context, e event.Event) {
		if e == event.Event(step(2)) {
			goexit()
		}
		seen = append(seen, e)
	})}
	m.step(t.Context())
	m.mu.Lock()
	m.n++
	m.events.Add(t.Context(), m.to, step(m.n)) // 2, which ends whoever delivers it
	m.events.Add(t.Context(), m.to, step(77))  // and one that waits behind it
	m.mu.Unlock()
	done := make(chan struct{})
	go func() { defer close(done); m.events.Flush() }()
	<-done
	require.Equal(t, []event.Event{step(1), step(77)}, seen, "what waited behind it is delivered all the same")
	m.step(t.Context())
	require.Equal(t, []event.Event{step(1), step(77), step(3)}, seen)
}

func TestQueueGoesOnAfterAnObserverThatPanics(t *testing.T) {
	log := captureDefault(t)
	var seen []event.Event
	m := &machine{to: event.ObserverFunc(func(_ context.Context, e event.Event) {
		if e == event.Event(step(1)) {
			panic(fmt.Sprint("at ", e))
		}
		seen = append(seen, e)
	})}
	m.step(t.Context())
	m.step(t.Context())
	require.Equal(t, []event.Event{step(2)}, seen)
	require.Contains(t, log.String(), "an event observer panicked")
}

func TestQueueDropsEventsForNobody(t *testing.T) {
	var q event.Queue
	require.Zero(t, testing.AllocsPerRun(100, func() {
		q.Add(t.Context(), nil, nil)
		q.Flush()
	}))
}

func TestQueueDeliversToEachEventsOwnObserverAndContext(t *testing.T) {
	type key struct{}
	var q event.Queue
	var a, b []any
	keep := func(to *[]any) event.Observer {
		return event.ObserverFunc(func(ctx context.Context, _ event.Event) { *to = append(*to, ctx.Value(key{})) })
	}
	q.Add(context.WithValue(t.Context(), key{}, 1), keep(&a), step(1))
	q.Add(context.WithValue(t.Context(), key{}, 2), keep(&b), step(2))
	q.Flush()
	q.Flush()
	require.Equal(t, []any{1}, a)
	require.Equal(t, []any{2}, b)
}
