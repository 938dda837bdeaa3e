package propagate

import (
	"bufio"
	"cmp"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/backstay/backstay/call"
)

// Config is what a server makes of the headers. The zero value is the default in
// every field.
type Config struct {
	// Trust says whether a request's headers count. It must be safe for
	// concurrent use. What is not trusted is served as if Handler were not there.
	// A caller can make only its own requests end sooner or be tried less often,
	// so that there is little to fear.
	// Default: all requests.
	Trust func(*http.Request) bool `json:"-"`
	// Max is the longest time that a request may claim; more counts as so much.
	// Negative is no limit.
	// Default: 24h.
	Max time.Duration `json:"max,omitempty"`
	// Margin is taken off the time, at most half of it, so that the answer is
	// with the caller before it stops waiting.
	// Default: none.
	Margin time.Duration `json:"margin,omitempty"`
}

// filled returns c with its defaults, where what is off is none.
func (c *Config) filled() Config {
	var f Config
	if c != nil {
		f = *c
	}
	if f.Max = cmp.Or(f.Max, 24*time.Hour); f.Max < 0 {
		f.Max = none
	}
	f.Margin = max(f.Margin, 0)
	return f
}

// Handler has requests served by next under a context that heeds their headers:
//
//   - It ends with a [*DeadlineError] as its cause when the time that the caller
//     waits is over: until the response's headers are written the nearer of
//     TimeoutHeader and HeadersTimeoutHeader, from then on TimeoutHeader alone.
//     It is not bounded for connections that are taken over (101, Hijack). Values
//     that are not as they should be are ignored.
//   - It bears a [call.Inbound], so that calls made under it are not repeated where
//     that would multiply attempts.
//
// If next answers with 500 or above after such a call was tried again in vain, the
// response gets "Backstay-Retry: no".
//
// The http.ResponseWriter that next gets has Flush, Hijack and ReadFrom, which do
// what the one below can; [http.ResponseController] finds everything else. A
// nil cfg is every default; it is copied.
func Handler(next http.Handler, cfg *Config) http.Handler {
	c := cfg.filled()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.Trust != nil && !c.Trust(r) {
			next.ServeHTTP(w, r)
			return
		}
		rw := &responseWriter{ResponseWriter: w, in: inbound(r.Header)}
		ctx := call.WithInbound(r.Context(), rw.in)
		whole, headers := c.times(r.Header)
		if whole > 0 || headers > 0 {
			rw.deadline = newDeadline(ctx, whole, headers)
			defer rw.deadline.end()
			ctx = rw.deadline
		}
		next.ServeHTTP(rw, r.WithContext(ctx))
	})
}

// inbound reads what the caller says of its attempt.
func inbound(h http.Header) *call.Inbound {
	in := &call.Inbound{NoRetry: strings.EqualFold(h.Get(RetryHeader), RetryNo)}
	if values := h[AttemptHeader]; len(values) == 1 {
		n, _ := parseNumber(values[0])
		in.Attempt = int(min(n, 1<<30)) //nolint:gosec // it fits
	}
	return in
}

// times returns how long the caller waits for the whole response and for its
// headers; 0 where it does not say.
func (c *Config) times(h http.Header) (whole, headers time.Duration) {
	whole = c.bound(first(h, TimeoutHeader, parseTimeout))
	return whole, c.bound(first(h, HeadersTimeoutHeader, parseMillis))
}

func (c *Config) bound(d time.Duration) time.Duration {
	d = min(d, c.Max)
	return d - min(c.Margin, d/2)
}

// responseWriter marks responses on their way out.
type responseWriter struct {
	http.ResponseWriter
	in       *call.Inbound
	deadline *deadline // nil if there is none
	answered bool
}

// Unwrap is for http.ResponseController.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader writes the header, with the mark where it is due.
func (w *responseWriter) WriteHeader(status int) {
	switch {
	case status == http.StatusSwitchingProtocols:
		w.deadline.lift()
	case status >= http.StatusOK: // before that there may be hints, any number of them
		if status >= http.StatusInternalServerError && w.in.Exhausted() {
			w.Header()[RetryHeader] = []string{RetryNo}
		}
		w.answer()
	}
	w.ResponseWriter.WriteHeader(status)
}

// answer ends the time until the headers.
func (w *responseWriter) answer() {
	if !w.answered {
		w.answered = true
		w.deadline.answered()
	}
}

func (w *responseWriter) Write(b []byte) (int, error) {
	w.answer()
	return w.ResponseWriter.Write(b)
}

// WriteString saves a copy where the writer below can do so.
func (w *responseWriter) WriteString(s string) (int, error) {
	w.answer()
	return io.WriteString(w.ResponseWriter, s)
}

// ReadFrom lets the writer below take files without a copy.
func (w *responseWriter) ReadFrom(r io.Reader) (int64, error) {
	w.answer()
	return io.Copy(w.ResponseWriter, r)
}

// Flush is for those who do not ask whether it worked.
func (w *responseWriter) Flush() { _ = w.FlushError() }

// FlushError is for http.ResponseController.
func (w *responseWriter) FlushError() error {
	w.answer()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack hands the connection over, if the writer below can.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.deadline.lift()
	}
	return conn, rw, err
}
