package backstaytest

import (
	"context"
	"log/slog"
	"strings"
	"sync"

	"github.com/backstay/backstay/event"
)

// Recorder is an [event.Observer] that keeps what it sees. The zero Recorder is
// ready for use. All methods may be called concurrently.
//
//	rec := new(backstaytest.Recorder)
//	br, err := breaker.New("orders", &breaker.Config{Observer: rec})
//	…
//	changes := backstaytest.EventsOf[breaker.StateChanged](rec)
type Recorder struct {
	mu     sync.Mutex
	events []event.Event
	clears int
	more   chan struct{} // closed at the next event; nil when nobody waits
}

// Observe records e. Those who Wait look at it.
func (r *Recorder) Observe(_ context.Context, e event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	if r.more != nil {
		close(r.more)
		r.more = nil
	}
}

// Events returns the events so far, in the order of their arrival.
func (r *Recorder) Events() []event.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]event.Event(nil), r.events...)
}

// Names returns the names of the events so far.
func (r *Recorder) Names() []string {
	events := r.Events()
	names := make([]string, len(events))
	for i, e := range events {
		names[i] = e.EventName()
	}
	return names
}

// Clear forgets what has been recorded.
func (r *Recorder) Clear() {
	r.mu.Lock()
	r.events = nil
	r.clears++
	r.mu.Unlock()
}

// Wait returns the first event, among those recorded and those to come, for
// which match answers true. A nil match takes any event. When ctx ends first it
// returns nil. In a synctest bubble the clock goes on while it waits.
func (r *Recorder) Wait(ctx context.Context, match func(event.Event) bool) event.Event {
	seen, clears := 0, 0
	for {
		r.mu.Lock()
		if r.clears != clears {
			seen, clears = 0, r.clears
		}
		news := r.events[seen:]
		if r.more == nil {
			r.more = make(chan struct{})
		}
		more := r.more
		r.mu.Unlock()
		for _, e := range news {
			if match == nil || match(e) {
				return e
			}
		}
		seen += len(news)
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

// Named is a match for [Recorder.Wait]: events with this name.
func Named(name string) func(event.Event) bool {
	return func(e event.Event) bool { return e.EventName() == name }
}

// EventsOf returns the recorded events of one type, in order.
func EventsOf[T event.Event](r *Recorder) []T {
	var all []T
	for _, e := range r.Events() {
		if t, ok := e.(T); ok {
			all = append(all, t)
		}
	}
	return all
}

// String returns the events as text, one to a line: the name, then the fields
// as slog's text handler writes them. It makes golden text of what happened.
func (r *Recorder) String() string {
	var b strings.Builder
	log := event.Log(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
				return slog.Attr{}
			}
			return a
		},
	})))
	for _, e := range r.Events() {
		log.Observe(context.Background(), e)
	}
	return strings.ReplaceAll("\n"+b.String(), "\nmsg=", "\n")[1:]
}
