package backstaytest

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Fault is what goes wrong with one request, at a [Server] or in a [Faults]
// layer. The zero Fault is none. Fields combine where that makes sense: Delay
// comes first, Header goes with Status or with the handler's own answer.
type Fault struct {
	// Delay is how long to wait before anything else. Default: 0.
	Delay time.Duration
	// Stall means no answer at all: the request is taken and nothing happens
	// until its context ends or, at a server, the fault is lifted; then the
	// request goes on as if nothing had been. Default: false.
	Stall bool
	// Err is the error that a [Faults] layer returns instead of sending the
	// request. A Server resets the connection. Default: nil.
	Err error
	// Reset breaks the connection before any byte of the answer: the client
	// gets ECONNRESET. Default: false.
	Reset bool
	// Status is the answer's status instead of what the handler, or the peer,
	// would have said. Default: 0, which leaves the answer alone.
	Status int
	// Header holds headers to set in the answer, such as Retry-After.
	// Default: none.
	Header http.Header
	// ResetAfter breaks the connection when so many bytes of the answer's body
	// have been sent. Default: 0, which is never.
	ResetAfter int64
	// Truncate ends the answer's body in good order after so many bytes, though
	// its Content-Length promised more: the client gets io.ErrUnexpectedEOF.
	// Default: 0, which is never.
	Truncate int64
}

// none reports whether f does nothing.
func (f Fault) none() bool {
	return f.Delay == 0 && !f.Stall && f.Err == nil && !f.Reset && f.Status == 0 &&
		len(f.Header) == 0 && f.ResetAfter == 0 && f.Truncate == 0
}

// statusBody is the body of an answer that Fault.Status made up.
func statusBody(status int) []byte {
	return []byte("backstaytest: fault " + strconv.Itoa(status) + "\n")
}

// wait lets d pass, unless ctx ends first: then it returns the context's cause.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// faultWriter cuts a handler's answer short.
type faultWriter struct {
	http.ResponseWriter
	fault Fault
	reset func() // breaks the connection

	wrote, broken bool
	sent          int64
}

// Unwrap serves http.ResponseController.
func (w *faultWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *faultWriter) WriteHeader(status int) {
	if status >= 200 && !w.wrote {
		w.wrote = true
		setAll(w.Header(), w.fault.Header)
		if n := w.fault.Truncate; n > 0 && bodyAllowed(status) {
			if declared, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64); err != nil || declared <= n {
				w.Header().Set("Content-Length", strconv.FormatInt(n+1, 10))
			}
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *faultWriter) Write(p []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	whole := len(p)
	if n := w.fault.Truncate; n > 0 {
		p = p[:min(int64(len(p)), n-w.sent)]
	}
	if n := w.fault.ResetAfter; n > 0 && w.sent+int64(len(p)) >= n {
		if !w.broken {
			w.broken = true
			_, _ = w.ResponseWriter.Write(p[:n-w.sent])
			w.Flush()
			w.reset()
		}
		return 0, net.ErrClosed
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	if err == nil {
		n = whole // what was cut off, the handler believes sent
	}
	return n, err
}

// Flush is here for handlers that assert http.Flusher.
func (w *faultWriter) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// readAhead reads up to 1 MiB of a request's body and puts it back: a server
// that fails a request has usually read it, and net/http notices a client that
// leaves only when the body is out of the way. A request that Expects
// 100-continue is left alone.
func readAhead(r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody || r.Header.Get("Expect") != "" {
		return
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	rest := io.Reader(r.Body)
	if err != nil {
		rest = errReader{err}
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(data), rest), r.Body}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }
