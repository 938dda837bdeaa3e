package backstaytest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
)

// Chance is a fault and how likely it is.
type Chance struct {
	// Fault is what happens.
	Fault Fault
	// Probability is its share of the requests, from 0 to 1. Default: 0.
	Probability float64
}

// FaultsConfig configures [NewFaults]. Without Script and Chances nothing
// happens.
type FaultsConfig struct {
	// Script decides the fault of the n-th request, counted from 0. It may be
	// called concurrently and must not touch the body. Default: Chances decide.
	Script func(n int, req *http.Request) Fault
	// Chances are the faults drawn from, at most one per request; their
	// probabilities add up to 1 or less. Default: none.
	Chances []Chance
	// Seed makes the draws repeatable: with the same seed the n-th request
	// suffers the same, whatever the others do. Default: 0.
	Seed uint64
}

// Faults is a layer that makes requests fail: for tests, and for trials of a
// program whose servers one cannot break. Its methods may be called
// concurrently.
type Faults struct {
	cfg FaultsConfig

	mu       sync.Mutex
	requests int
	off      bool
}

// NewFaults makes a layer of faults; nil is one that does nothing. It returns
// an error if a probability is outside of 0 to 1 or their sum above 1.
func NewFaults(cfg *FaultsConfig) (*Faults, error) {
	f := new(Faults)
	if cfg != nil {
		f.cfg = *cfg
		f.cfg.Chances = append([]Chance(nil), cfg.Chances...)
	}
	var problems []error
	sum := 0.0
	for i, c := range f.cfg.Chances {
		if !(c.Probability >= 0 && c.Probability <= 1) { // NaN too
			problems = append(problems, fmt.Errorf("backstaytest: Chances[%d].Probability is %v, want 0 to 1", i, c.Probability))
		}
		sum += c.Probability
	}
	if sum > 1+1e-9 {
		problems = append(problems, fmt.Errorf("backstaytest: the Probabilities of Chances add up to %v, want <= 1", sum))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return f, nil
}

// Requests returns how many requests have come by.
func (f *Faults) Requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests
}

// Disable lets requests pass untouched from now on, or stops doing so. They are
// counted all the same.
func (f *Faults) Disable(off bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.off = off
}

// next counts a request and decides its fault.
func (f *Faults) next(req *http.Request) Fault {
	f.mu.Lock()
	n, off := f.requests, f.off
	f.requests++
	f.mu.Unlock()
	if off {
		return Fault{}
	}
	if f.cfg.Script != nil {
		return f.cfg.Script(n, req)
	}
	if len(f.cfg.Chances) == 0 {
		return Fault{}
	}
	draw := rand.New(rand.NewPCG(f.cfg.Seed, uint64(n))).Float64() //nolint:gosec // repeatable is the point
	for _, c := range f.cfg.Chances {
		if draw < c.Probability {
			return c.Fault
		}
		draw -= c.Probability
	}
	return Fault{}
}

// Layer puts the faults around next, nil for http.DefaultTransport.
//
// Delays and stalls end with the request's context. Faults before the answer
// (Err, Reset, Status) keep the request from next; its body is closed. Those of
// the answer's body (ResetAfter, Truncate) send it.
func (f *Faults) Layer(next http.RoundTripper) http.RoundTripper {
	if next == nil {
		next = http.DefaultTransport
	}
	return &faultTransport{faults: f, next: next}
}

type faultTransport struct {
	faults *Faults
	next   http.RoundTripper
}

// Unwrap returns what the faults were put around.
func (t *faultTransport) Unwrap() http.RoundTripper { return t.next }

// CloseIdleConnections closes those of what is wrapped.
func (t *faultTransport) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func (t *faultTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	fault := t.faults.next(req)
	if fault.none() {
		return t.next.RoundTrip(req)
	}
	sent := false
	defer func() {
		if !sent && req.Body != nil {
			_ = req.Body.Close()
		}
	}()
	if fault.Delay > 0 {
		if err := wait(req.Context(), fault.Delay); err != nil {
			return nil, err
		}
	}
	switch {
	case fault.Stall:
		<-req.Context().Done()
		return nil, wait(req.Context(), 0)
	case fault.Err != nil:
		return nil, fault.Err
	case fault.Reset:
		return nil, errReset()
	case fault.Status != 0:
		return madeUp(req, fault), nil
	}
	sent = true
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if len(fault.Header) > 0 {
		resp.Header = resp.Header.Clone()
		if resp.Header == nil {
			resp.Header = make(http.Header)
		}
		setAll(resp.Header, fault.Header)
	}
	if resp.Body != nil && resp.Body != http.NoBody && resp.StatusCode != http.StatusSwitchingProtocols {
		switch {
		case fault.Truncate > 0:
			resp.Body = &cutBody{ReadCloser: resp.Body, left: fault.Truncate, err: io.ErrUnexpectedEOF}
		case fault.ResetAfter > 0:
			resp.Body = &cutBody{ReadCloser: resp.Body, left: fault.ResetAfter, err: errReset()}
		}
	}
	return resp, nil
}

func setAll(h, values http.Header) {
	for name, v := range values {
		h[http.CanonicalHeaderKey(name)] = append([]string(nil), v...)
	}
}

// errReset is what a reset connection's reader gets.
func errReset() *net.OpError {
	return &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
}

// madeUp answers a request with the fault's status.
func madeUp(req *http.Request, fault Fault) *http.Response {
	body := statusBody(fault.Status)
	resp := &http.Response{
		StatusCode: fault.Status, Status: fmt.Sprintf("%d %s", fault.Status, http.StatusText(fault.Status)),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), ContentLength: int64(len(body)),
		Body: io.NopCloser(bytes.NewReader(body)), Request: req,
	}
	if req.Method == http.MethodHead || !bodyAllowed(fault.Status) {
		resp.Body, resp.ContentLength = http.NoBody, 0
	}
	setAll(resp.Header, fault.Header)
	return resp
}

// cutBody is a body that breaks.
type cutBody struct {
	io.ReadCloser
	left int64
	err  error
}

func (b *cutBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, b.err
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
