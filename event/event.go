// Package event carries what happens inside Backstay to whoever wants to know:
// a logger, metrics, a test's recorder.
//
// Events are plain structs that live in the package that emits them
// (breaker.StateChanged, retry.Retried, …). Each is a [slog.LogValuer], so a
// logger needs no knowledge of any of them. One [Observer] sees everything:
//
//	client, err := backstay.New(&backstay.Config{Observer: event.Log(slog.Default())})
//
// An observer is called outside every lock of Backstay's, on the goroutine that
// caused the event. The events of one breaker, balancer or call arrive in the
// order in which they happened; those of different ones may arrive at the same
// time. An observer that panics disturbs nobody. Nothing is built when nobody
// listens.
package event

import (
	"context"
	"log/slog"
	"runtime/debug"
)

// Event is something that happened. Concrete events are structs; their doc
// comments say when they are emitted and when not.
type Event interface {
	slog.LogValuer
	// EventName is the event's name, such as "breaker.state_changed": lower
	// case, with the package in front. It never changes between calls.
	EventName() string
}

// Observer sees events. Observe may be called concurrently; it must not block,
// for it runs on the path of a call, and must not keep ctx. It may call back
// into whatever emitted the event.
type Observer interface {
	Observe(ctx context.Context, e Event)
}

// ObserverFunc is a function that is an [Observer].
type ObserverFunc func(ctx context.Context, e Event)

// Observe calls f.
func (f ObserverFunc) Observe(ctx context.Context, e Event) { f(ctx, e) }

// Leveler is an optional method of events that should not be logged at
// slog.LevelInfo by [Log].
type Leveler interface {
	Level() slog.Level
}

// Log returns an observer that writes each event to l: its name as the message,
// its fields as attributes, at the event's level (Info, unless the event is a
// [Leveler]). A nil l means slog.Default().
func Log(l *slog.Logger) Observer {
	if l == nil {
		l = slog.Default()
	}
	return ObserverFunc(func(ctx context.Context, e Event) {
		level := slog.LevelInfo
		if lv, ok := e.(Leveler); ok {
			level = lv.Level()
		}
		if !l.Enabled(ctx, level) {
			return
		}
		value := e.LogValue().Resolve()
		if value.Kind() == slog.KindGroup {
			l.LogAttrs(ctx, level, e.EventName(), value.Group()...)
			return
		}
		l.LogAttrs(ctx, level, e.EventName(), slog.Any("event", value))
	})
}

// Tee returns an observer that hands each event to all of observers, in order.
// Nil ones are left out; with none left it returns nil. One that panics does
// not keep the event from the others.
func Tee(observers ...Observer) Observer {
	var kept tee
	for _, o := range observers {
		if o != nil {
			kept = append(kept, o)
		}
	}
	switch len(kept) {
	case 0:
		return nil
	case 1:
		return kept[0]
	}
	return kept
}

type tee []Observer

func (t tee) Observe(ctx context.Context, e Event) {
	for _, o := range t {
		Emit(ctx, o, e)
	}
}

// Emit hands e to o, if o is not nil, and keeps a panic of o from going on: it
// is written to slog.Default() with its stack. Emitters check o for nil before
// they build the event, so that nothing is built when nobody listens.
func Emit(ctx context.Context, o Observer, e Event) {
	if o == nil {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			slog.Default().ErrorContext(ctx, "backstay: an event observer panicked",
				"event", e.EventName(), "panic", p, "stack", string(debug.Stack()))
		}
	}()
	o.Observe(ctx, e)
}
