package backstay

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

// WouldRefuse is emitted for a call to a service under [Service.Observe] that a
// limit would have refused, as far as can be told without waiting. Calls that
// the limit would have made wait, and then let through, are none of them.
type WouldRefuse struct {
	// Service is the service's name.
	Service string
	// Err is what the caller would have got.
	Err error
}

// EventName is "backstay.would_refuse".
func (WouldRefuse) EventName() string { return "backstay.would_refuse" }

// LogValue holds the event's fields.
func (e WouldRefuse) LogValue() slog.Value {
	return slog.GroupValue(slog.String("service", e.Service), slog.Any("error", e.Err))
}

// watch is a limit that refuses nothing and says what it would have refused.
type watch struct {
	layer.Base
	s     *service
	admit func(context.Context) (limit.Lease, error)
}

// RoundTripFrame tells of what would have been refused, and hands the request on.
func (w *watch) RoundTripFrame(req *http.Request, f *call.Frame) (*http.Response, error) {
	lease, err := w.ask(req, f)
	if err != nil && outcome.Refused(err) { // and not a context that has ended
		event.Emit(req.Context(), w.s.client.cfg.Observer, WouldRefuse{Service: w.s.name, Err: err})
	}
	defer lease.Done()
	return w.Forward(req, f)
}

func (w *watch) ask(req *http.Request, f *call.Frame) (limit.Lease, error) {
	ctx, cancel := layer.Within(req.Context(), f)
	defer cancel()
	return w.admit(ctx)
}

// watchRate gives the calls that would have waited the tokens that they would
// have got. It does not see that a call gives up while it waits, and leaves its
// token to the next.
func (s *service) watchRate(r *limit.Rate) func(http.RoundTripper) http.RoundTripper {
	return s.watch(func(ctx context.Context) (limit.Lease, error) {
		_, err := r.Reserve(ctx)
		return limit.Lease{}, err
	})
}

// watchConcurrency tells of the calls beyond those that would be under way and in
// the queue, which c admits together. That is less than what the limit would
// refuse: a call counts until its response's headers only, those that would wait
// end sooner than after a wait, and none is seen to wait longer than MaxWait or
// to give way to a call of higher priority.
func (s *service) watchConcurrency(c *limit.Concurrency, most int) func(http.RoundTripper) http.RoundTripper {
	return s.watch(func(context.Context) (limit.Lease, error) { return tryConcurrency(c, most) })
}

func tryConcurrency(c *limit.Concurrency, most int) (limit.Lease, error) {
	lease, err := c.TryAcquire()
	if full, ok := errors.AsType[*limit.FullError](err); ok {
		full.Max = most // and not the queue as well
	}
	return lease, err
}

func (s *service) watch(admit func(context.Context) (limit.Lease, error)) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		w := &watch{s: s, admit: admit}
		return w.Around(w, next)
	}
}
