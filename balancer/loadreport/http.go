package loadreport

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"
)

// Handler returns a handler that has every request served by next, and its report
// in the header of the response, unless next has set that itself. Responses of 500
// and above count as failures; requests whose connection is taken over
// (101, Hijack) only as being in flight.
//
// The http.ResponseWriter that next gets has Flush, Hijack and ReadFrom, which do
// what the one below can; [http.ResponseController] finds everything else.
func (s *Server) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rw := &responseWriter{ResponseWriter: w, request: s.Begin(time.Time{})}
		defer func() { rw.request.Done(time.Time{}) }()
		next.ServeHTTP(rw, r)
		rw.answer(http.StatusOK) // net/http does so now if nothing has been written
	})
}

// FromHeader reads the report in a response's header. It is false if there is none.
// It allocates nothing for reports in text.
func FromHeader(h http.Header) (Report, bool) {
	values := h[Header]
	if len(values) == 0 {
		return Report{}, false
	}
	return Parse(values[0])
}

type responseWriter struct {
	http.ResponseWriter
	request Request
}

// Unwrap is for http.ResponseController.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// answer puts the report into the header, which is about to be written.
func (w *responseWriter) answer(status int) {
	if w.request.answered {
		return
	}
	report := w.request.Answered(time.Time{}, status >= http.StatusInternalServerError)
	if h := w.Header(); len(h[Header]) == 0 {
		h[Header] = []string{report.String()}
	}
}

// WriteHeader writes the header, with the report in it.
func (w *responseWriter) WriteHeader(status int) {
	switch {
	case status == http.StatusSwitchingProtocols:
		w.request.Skip()
	case status >= http.StatusOK: // before that there may be hints, any number of them
		w.answer(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *responseWriter) Write(b []byte) (int, error) {
	w.answer(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

// WriteString saves a copy where the writer below can do so.
func (w *responseWriter) WriteString(s string) (int, error) {
	w.answer(http.StatusOK)
	return io.WriteString(w.ResponseWriter, s)
}

// ReadFrom lets the writer below take files without a copy.
func (w *responseWriter) ReadFrom(r io.Reader) (int64, error) {
	w.answer(http.StatusOK)
	return io.Copy(w.ResponseWriter, r)
}

// Flush is for those who do not ask whether it worked.
func (w *responseWriter) Flush() { _ = w.FlushError() }

// FlushError is for http.ResponseController.
func (w *responseWriter) FlushError() error {
	w.answer(http.StatusOK)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack hands the connection over, if the writer below can.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.request.Skip()
	}
	return conn, rw, err
}
