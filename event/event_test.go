package event_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/event"
)

// opened is an event with fields, quiet one with a level, bare one without
// fields, lazy one whose value takes two steps.
type (
	opened struct{ Key string }
	quiet  struct{}
	bare   struct{}
	lazy   struct{ key string }
)

func (opened) EventName() string      { return "breaker.opened" }
func (e opened) LogValue() slog.Value { return slog.GroupValue(slog.String("key", e.Key)) }

func (quiet) EventName() string    { return "balancer.picked" }
func (quiet) LogValue() slog.Value { return slog.GroupValue(slog.Int("node", 7)) }
func (quiet) Level() slog.Level    { return slog.LevelDebug }

func (bare) EventName() string    { return "cache.cleared" }
func (bare) LogValue() slog.Value { return slog.StringValue("all of it") }

func (lazy) EventName() string      { return "lazy.thing" }
func (e lazy) LogValue() slog.Value { return slog.AnyValue(opened{e.key}) }

// logger writes without time, from level on.
func logger(b *bytes.Buffer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func TestLogWritesNameLevelAndFields(t *testing.T) {
	var b bytes.Buffer
	o := event.Log(logger(&b, slog.LevelDebug))
	for _, e := range []event.Event{opened{"orders"}, quiet{}, bare{}, lazy{"stock"}} {
		o.Observe(t.Context(), e)
	}
	require.Equal(t, `level=INFO msg=breaker.opened key=orders
level=DEBUG msg=balancer.picked node=7
level=INFO msg=cache.cleared event="all of it"
level=INFO msg=lazy.thing key=stock
`, b.String())
}

func TestLogLeavesOutWhatTheLoggerDoesNotWant(t *testing.T) {
	var b bytes.Buffer
	o := event.Log(logger(&b, slog.LevelInfo))
	o.Observe(t.Context(), costly{t})
	o.Observe(t.Context(), opened{"orders"})
	require.Equal(t, "level=INFO msg=breaker.opened key=orders\n", b.String())
}

// costly must not be asked for its value.
type costly struct{ t *testing.T }

func (costly) EventName() string { return "costly" }
func (costly) Level() slog.Level { return slog.LevelDebug }
func (c costly) LogValue() slog.Value {
	c.t.Error("LogValue was called for a level that is off")
	return slog.Value{}
}

// captureDefault points slog.Default at a buffer for the test.
func captureDefault(t *testing.T) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	old := slog.Default()
	slog.SetDefault(logger(&b, slog.LevelInfo))
	t.Cleanup(func() { slog.SetDefault(old) })
	return &b
}

func TestLogWithoutALoggerUsesTheDefault(t *testing.T) {
	b := captureDefault(t)
	event.Log(nil).Observe(t.Context(), opened{"orders"})
	require.Equal(t, "level=INFO msg=breaker.opened key=orders\n", b.String())
}

// names records events' names in order.
type names []string

func (n *names) Observe(_ context.Context, e event.Event) { *n = append(*n, e.EventName()) }

func TestTeeHandsOnInOrderAndLeavesOutNil(t *testing.T) {
	require.Nil(t, event.Tee())
	require.Nil(t, event.Tee(nil, nil))
	var one names
	require.Same(t, &one, event.Tee(nil, &one, nil), "one observer needs no tee")

	var order []string
	say := func(who string) event.Observer {
		return event.ObserverFunc(func(context.Context, event.Event) { order = append(order, who) })
	}
	event.Tee(say("a"), nil, event.Tee(say("b"), say("c")), say("d")).Observe(t.Context(), bare{})
	require.Equal(t, []string{"a", "b", "c", "d"}, order)
}

func TestTeeKeepsTheContext(t *testing.T) {
	type key struct{}
	ctx := context.WithValue(t.Context(), key{}, "v")
	seen := 0
	check := event.ObserverFunc(func(ctx context.Context, _ event.Event) {
		require.Equal(t, "v", ctx.Value(key{}))
		seen++
	})
	event.Tee(check, check).Observe(ctx, bare{})
	require.Equal(t, 2, seen)
}

func TestPanickingObserverDisturbsNobody(t *testing.T) {
	b := captureDefault(t)
	panics := event.ObserverFunc(func(context.Context, event.Event) { panic("boom") })
	var after names
	event.Tee(panics, &after).Observe(t.Context(), opened{"orders"})
	require.Equal(t, names{"breaker.opened"}, after)
	event.Emit(t.Context(), panics, bare{})
	log := b.String()
	require.Equal(t, 2, strings.Count(log, "an event observer panicked"))
	require.Contains(t, log, "event=breaker.opened panic=boom stack=")
	require.Contains(t, log, "event_test.go", "the stack leads to the observer")
	event.Emit(t.Context(), nil, bare{}) // nobody listens
}

func TestTeeSurvivesAnObserverThatEndsItsGoroutine(t *testing.T) {
	done := make(chan bool)
	go func() {
		ended := true
		defer func() { done <- ended }()
		event.Emit(t.Context(), event.ObserverFunc(func(context.Context, event.Event) { goexit() }), bare{})
		ended = false
	}()
	require.True(t, <-done, "Goexit goes on: it is no panic")
}

func TestEmitAllocatesNothingWhenNobodyListens(t *testing.T) {
	ctx := t.Context()
	var o event.Observer
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if o != nil {
			event.Emit(ctx, o, opened{"orders"})
		}
	}))
}
