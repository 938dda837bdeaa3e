package backstaytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// model is a layer as they are: it repeats, under a context of its own per
// attempt, and wraps bodies. It keeps the contract, but for the one fault that
// broken names.
type model struct {
	next     http.RoundTripper
	attempts int
	broken   string

	mu      sync.Mutex
	seen    map[*http.Request]bool
	permits chan struct{}
	keys    atomic.Int32
}

// models returns the layer with a fault; "" is the layer that is right.
func models(attempts int, broken string) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		m := &model{next: next, attempts: attempts, broken: broken, seen: make(map[*http.Request]bool), permits: make(chan struct{}, 10)}
		switch broken {
		case "has no CloseIdleConnections":
			return opaque{m}
		case "gives up":
			m.attempts = 1
		case "never gives up":
			m.attempts += 5
		}
		return m
	}
}

type opaque struct{ http.RoundTripper }

func (m *model) CloseIdleConnections() {
	if c, ok := m.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func (m *model) is(fault string) bool { return m.broken == fault }

func (m *model) RoundTrip(req *http.Request) (*http.Response, error) {
	if m.before(req) {
		return nil, errors.New("model: this request has been here")
	}
	switch m.broken {
	case "one at a time":
		m.mu.Lock()
		defer m.mu.Unlock()
	case "keeps permits after a panic":
		select {
		case m.permits <- struct{}{}:
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
		resp, err := m.send(req)
		<-m.permits
		return resp, err
	case "swallows panics":
		return m.swallow(req)
	case "sends on another goroutine":
		return m.elsewhere(req)
	}
	return m.send(req)
}

// before is what goes wrong ahead of the first attempt.
func (m *model) before(req *http.Request) (refuse bool) {
	switch m.broken {
	case "sets a header of the caller's":
		req.Header.Set("X-Attempt", "1")
	case "replaces the caller's body":
		req.Body = io.NopCloser(req.Body)
	case "drops the caller's GetBody":
		req.GetBody = nil
	case "takes the URL for granted":
		_ = req.URL.Host
	case "takes the header for granted":
		req.Header["X-Attempt"] = nil
		delete(req.Header, "X-Attempt")
	case "leaks a goroutine":
		stop := make(chan struct{})
		time.AfterFunc(10*time.Second, func() { close(stop) }) // longer than any machine takes to notice
		go func() { <-stop }()
	case "knows a request again":
		m.mu.Lock()
		defer m.mu.Unlock()
		refuse, m.seen[req] = m.seen[req], true
	}
	return refuse
}

func (m *model) swallow(req *http.Request) (resp *http.Response, err error) {
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, fmt.Errorf("model: panic: %v", p)
		}
	}()
	return m.send(req)
}

func (m *model) elsewhere(req *http.Request) (*http.Response, error) {
	var resp *http.Response
	err := errors.New("model: nothing came back")
	var wg sync.WaitGroup
	wg.Go(func() { resp, err = m.send(req) })
	wg.Wait()
	return resp, err
}

// send makes the attempts.
func (m *model) send(req *http.Request) (*http.Response, error) {
	var shared *http.Request
	for n := 1; ; n++ {
		attempt, cancel, err := m.attempt(req, n)
		if err != nil {
			return nil, err
		}
		if m.is("reuses the attempt's request") {
			if shared == nil {
				shared = attempt
			}
			shared.Body = attempt.Body
			attempt = shared
		}
		resp, err := m.sendOne(attempt, cancel)
		if n >= m.attempts || !m.again(req, resp, err) {
			return m.finish(req, resp, err, cancel)
		}
		if req.Body != nil && req.Body != http.NoBody && req.GetBody != nil && !m.is("goes on without GetBody") {
			body, bodyErr := req.GetBody()
			if bodyErr != nil {
				if resp == nil {
					err = errors.Join(bodyErr, err)
				}
				return m.finish(req, resp, err, cancel)
			}
			req = withBody(req, body)
		}
		m.discard(req, resp)
		cancel()
		if m.is("returns the first response") && resp != nil {
			resp.Body = http.NoBody
			return resp, nil
		}
	}
}

// withBody returns a copy that sends body.
func withBody(req *http.Request, body io.ReadCloser) *http.Request {
	req = req.WithContext(req.Context())
	req.Body = body
	return req
}

// sendOne lets go of the context if next does not return.
func (m *model) sendOne(attempt *http.Request, cancel context.CancelFunc) (*http.Response, error) {
	returned := false
	defer func() {
		if !returned && !m.is("never lets go of contexts") {
			cancel()
		}
	}()
	resp, err := m.next.RoundTrip(attempt)
	returned = true
	return resp, err
}

// attempt makes the n-th attempt's request.
func (m *model) attempt(req *http.Request, n int) (*http.Request, context.CancelFunc, error) {
	parent := req.Context()
	if m.is("forgets the caller's context") || m.is("forgets the caller altogether") {
		parent = context.Background()
	}
	ctx, cancel := context.WithCancel(parent)
	a := req.WithContext(ctx)
	switch m.broken {
	case "drops the host":
		a.Host = ""
	case "drops the length":
		a.ContentLength = 0
	case "drops GetBody":
		a.GetBody = nil
	case "drops Cancel", "forgets the caller altogether":
		a.Cancel = nil //nolint:staticcheck // what is tested
	case "clones deeply":
		a = req.Clone(ctx)
	case "closes connections":
		a.Close = true
	case "makes a new key for each attempt":
		if a.Header.Get("Idempotency-Key") != "" {
			a.Header = a.Header.Clone()
			a.Header.Set("Idempotency-Key", fmt.Sprint(m.keys.Add(1)))
		}
	case "goes on without GetBody":
		if n > 1 && req.Body != nil {
			a.Body = http.NoBody
		}
	}
	if a.Body == nil {
		if m.is("wraps absent bodies") {
			a.Body = struct{ io.ReadCloser }{http.NoBody}
		}
		return a, cancel, nil
	}
	if m.is("wraps absent bodies") && a.Body == http.NoBody {
		a.Body = struct{ io.ReadCloser }{http.NoBody}
	}
	switch m.broken {
	case "never closes the body":
		a.Body = io.NopCloser(a.Body)
	case "closes the body twice":
		a.Body = twice{a.Body}
	case "reads the body first":
		data, _ := io.ReadAll(io.LimitReader(a.Body, 1<<20))
		a.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(newCallersBody(string(data)).data, a.Body), a.Body}
	case "waits for the body's end":
		a.Body = &awaited{ReadCloser: a.Body, end: make(chan struct{})}
	}
	return a, cancel, nil
}

type twice struct{ io.ReadCloser }

func (b twice) Close() error { return errors.Join(b.ReadCloser.Close(), b.ReadCloser.Close()) }

// awaited tells when a body has been read to its end.
type awaited struct {
	io.ReadCloser
	once sync.Once
	end  chan struct{}
}

func (b *awaited) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.once.Do(func() { close(b.end) })
	}
	return n, err
}

// again decides whether there is another attempt.
func (m *model) again(req *http.Request, resp *http.Response, err error) bool {
	repeatable := req.Method != http.MethodPost || req.Header.Get("Idempotency-Key") != "" || m.is("repeats a POST")
	replayable := req.Body == nil || req.Body == http.NoBody || req.GetBody != nil || m.is("sends the same body again")
	failed := err == nil && resp.StatusCode == http.StatusServiceUnavailable ||
		err != nil && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrUnexpectedEOF))
	if m.is("repeats whatever fails") && err != nil {
		return true
	}
	return repeatable && replayable && failed && req.Context().Err() == nil
}

// discard does away with a response that is not the last.
func (m *model) discard(_ *http.Request, resp *http.Response) {
	if resp == nil || resp.Body == nil {
		return
	}
	switch m.broken {
	case "leaves discarded responses open":
		return
	case "closes discarded responses twice":
		_ = resp.Body.Close()
	case "does not drain":
	case "drains without bound":
		_, _ = io.Copy(io.Discard, resp.Body)
	default:
		drained := make(chan struct{})
		go func() {
			_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
			close(drained)
		}()
		select {
		case <-drained:
		case <-time.After(50 * time.Millisecond):
		}
		_ = resp.Body.Close()
		<-drained
		return
	}
	_ = resp.Body.Close()
}

// finish makes what the caller gets.
func (m *model) finish(req *http.Request, resp *http.Response, err error, cancel context.CancelFunc) (*http.Response, error) {
	if m.is("closes idle connections after a failure") && (err != nil || resp.StatusCode >= 500) {
		m.CloseIdleConnections()
	}
	if body, ok := req.Body.(io.Closer); ok && m.is("closes the body too") {
		_ = body.Close()
	}
	if err != nil {
		if !m.is("never lets go of contexts") {
			cancel()
		}
		switch m.broken {
		case "summarises errors":
			return nil, errors.New("model: it failed")
		case "tells the URL":
			return nil, fmt.Errorf("model: %s: %w", req.URL, err)
		case "returns a response beside an error":
			return bare(req, 502, http.NoBody), err
		}
		return nil, err
	}
	switch m.broken {
	case "makes errors of failures":
		if resp.StatusCode >= 400 {
			_ = resp.Body.Close()
			cancel()
			return nil, fmt.Errorf("model: %s", resp.Status)
		}
	case "cancels on return":
		cancel()
		return resp, nil
	case "closes the response on return":
		_ = resp.Body.Close()
	case "closes bodies that are nil":
		if resp.StatusCode == http.StatusNoContent || resp.StatusCode >= 500 {
			_ = resp.Body.Close()
		}
	case "buffers responses":
		data, readErr := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if readErr != nil {
			cancel()
			return nil, readErr
		}
		resp.Body, resp.ContentLength = io.NopCloser(newCallersBody(string(data)).data), int64(len(data))
	case "waits for the body's end":
		if body, ok := resp.Request.Body.(*awaited); ok {
			<-body.end
		}
	case "copies the response":
		copied := *resp
		resp = &copied
		resp.Trailer = resp.Trailer.Clone()
	case "makes a new response":
		resp = &http.Response{StatusCode: resp.StatusCode, Header: resp.Header, Body: resp.Body}
	}
	if resp.Body == nil {
		cancel()
		return resp, nil
	}
	body := &modelBody{ReadCloser: resp.Body, model: m, cancel: cancel}
	if w, ok := resp.Body.(io.Writer); ok && !m.is("hides Write") {
		resp.Body = struct {
			io.ReadCloser
			io.Writer
		}{body, w}
	} else {
		resp.Body = body
	}
	return resp, nil
}

// modelBody lets go of the attempt's context at its end.
type modelBody struct {
	io.ReadCloser
	model  *model
	cancel context.CancelFunc
}

func (b *modelBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.model.is("hides breaks") && errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	if err != nil && !b.model.is("lets go of contexts at Close only") && !b.model.is("never lets go of contexts") {
		b.cancel()
	}
	return n, err
}

func (b *modelBody) Close() error {
	if b.model.is("keeps Close to itself") {
		return nil
	}
	if !b.model.is("never lets go of contexts") {
		defer b.cancel()
	}
	return b.ReadCloser.Close()
}

// refusing is a layer that refuses everything.
type refusing struct{ broken string }

func (r refusing) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil && r.broken == "" {
		_ = req.Body.Close()
	}
	return nil, errors.New("model: refused")
}
