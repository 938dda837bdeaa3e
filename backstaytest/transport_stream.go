package backstaytest

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
)

func responseSwitches(t *trial) {
	s := t.serve(HTTP1, func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("hijacking: %v", err)
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = rw.WriteString("echo " + line)
			_ = rw.Flush()
		}
	})
	req := t.request(t.Context(), http.MethodGet, s.URL(), nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp := t.get(t.wrap(s.Transport()), req)
	equal(t, "the status", resp.StatusCode, http.StatusSwitchingProtocols)
	stream, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		_ = resp.Body.Close()
		t.Fatalf("the body of a 101 is no io.ReadWriteCloser")
	}
	r := bufio.NewReader(stream)
	for range 3 {
		var line string
		t.promptly("talking over a switched connection", func() {
			_, _ = io.WriteString(stream, "hello\n")
			line, _ = r.ReadString('\n')
		})
		equal(t, "the echo", line, "echo hello\n")
	}
	if err := stream.Close(); err != nil {
		t.Errorf("closing a switched connection: %v", err)
	}
}

// duplex is the body of a 101 from a fake.
type duplex struct {
	answerBody
	written strings.Builder
}

func (d *duplex) Write(p []byte) (int, error) { return d.written.Write(p) }

func responseWriter(t *trial) {
	d := &duplex{}
	d.data = strings.NewReader("hello")
	f := t.fake(func(_ int, s *sent) (*http.Response, error) {
		d.ctx = s.req.Context()
		return bare(s.req, http.StatusSwitchingProtocols, d), nil
	})
	resp := t.get(t.wrap(f), t.request(t.Context(), http.MethodGet, "http://orders.test/", nil))
	w, ok := resp.Body.(io.Writer)
	if !ok {
		t.Fatalf("the body of a 101 is no io.Writer")
	}
	_, _ = io.WriteString(w, "out")
	equal(t, "what was written", d.written.String(), "out")
	equal(t, "what was read", t.read(resp), "hello")
	equal(t, "how often the body was closed", d.closed(), 1)
}

func responseInformational(t *trial) {
	t.over(everyProtocol(), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "hello")
	}, func(t *trial, s *Server, rt http.RoundTripper) {
		var hints atomic.Int32
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if code == http.StatusEarlyHints && h.Get("Link") != "" {
					hints.Add(1)
				}
				return nil
			},
		})
		equal(t, "the body", t.text(rt, t.request(ctx, http.MethodGet, s.URL(), nil)), "hello")
		equal(t, "the number of early hints", hints.Load(), 1)
	})
}
