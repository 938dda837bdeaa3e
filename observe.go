package backstay

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/limit"
)

// WouldRefuse is emitted for a call to a service under [Service.Observe] that a
// limit would have refused.
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
	admit func() (release func(), err error)
}

// RoundTripFrame tells of what would have been refused, and hands the request on.
func (w *watch) RoundTripFrame(req *http.Request, f *call.Frame) (*http.Response, error) {
	release, err := w.admit()
	if err != nil {
		event.Emit(req.Context(), w.s.client.cfg.Observer, WouldRefuse{Service: w.s.name, Err: err})
	}
	defer release()
	return w.Forward(req, f)
}

func (s *service) watchRate(r *limit.Rate) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		w := &watch{s: s, admit: func() (func(), error) { return func() {}, r.Allow(time.Time{}) }}
		return w.Around(w, next)
	}
}

// watchConcurrency counts a call until its response's headers only: nothing
// waits for it.
func (s *service) watchConcurrency(c *limit.Concurrency) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		w := &watch{s: s, admit: func() (func(), error) {
			lease, err := c.TryAcquire()
			return lease.Done, err
		}}
		return w.Around(w, next)
	}
}
