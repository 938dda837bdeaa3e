package backstay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// sweep breaks connections at every byte of requests and responses, under one
// kind of call, over one kind of client.
type sweep struct {
	t       *testing.T
	servers *sweptServers
	rt      http.RoundTripper
	call    sweptCall
	chunked bool // the responses
	forget  func()
	idle    bool // connections are reused; else each call has new ones
	calls   int
	stalled error // what a body ends with that stalls
	wrong   int
}

// sweptCall is a kind of call.
type sweptCall struct {
	name    string
	method  string
	body    string
	key     bool // an Idempotency-Key
	getBody bool
}

func (c sweptCall) repeatable() bool { return c.method != http.MethodPost || c.key }

// sweptText is easy to tell from itself at another offset.
func sweptText(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d,", i)
	}
	return b.String()[:n]
}

func sweptCalls(body int) []sweptCall {
	text := sweptText(body)
	return []sweptCall{
		{"GET", http.MethodGet, "", false, false},
		{"PUT with GetBody", http.MethodPut, text, false, true},
		{"PUT without GetBody", http.MethodPut, text, false, false},
		{"POST without key", http.MethodPost, text, false, true},
		{"POST without key or GetBody", http.MethodPost, text, false, false},
		{"POST with key", http.MethodPost, text, true, true},
	}
}

// watchedBody says whether it has been read to its end, and counts its closes.
type watchedBody struct {
	io.Reader
	read   atomic.Bool
	once   sync.Once
	closed chan struct{}
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		b.read.Store(true)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// request makes the call's request.
func (s *sweep) request() (*http.Request, *watchedBody) {
	req, err := http.NewRequestWithContext(s.t.Context(), s.call.method, "http://orders.test/items", nil)
	require.NoError(s.t, err)
	s.calls++
	if s.call.key {
		req.Header.Set("Idempotency-Key", fmt.Sprintf("%08d", s.calls))
	}
	if s.chunked {
		req.Header.Set("X-Chunked", "yes")
	}
	if s.call.body == "" {
		return req, nil
	}
	body := &watchedBody{Reader: strings.NewReader(s.call.body), closed: make(chan struct{})}
	req.Body, req.ContentLength = body, int64(len(s.call.body))
	if s.call.getBody {
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s.call.body)), nil }
	}
	return req, body
}

// good makes a call that nothing happens to, and returns how long request and
// response are.
func (s *sweep) good() (request, head, response int) {
	s.servers.arm(fault{response: true, at: 1 << 30}) // never mind
	s.servers.disarm()
	req, _ := s.request()
	resp, err := s.rt.RoundTrip(req)
	require.NoError(s.t, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	require.NoError(s.t, resp.Body.Close())
	require.NoError(s.t, unequal(string(text), s.servers.answer))
	if s.chunked {
		require.Equal(s.t, "1", resp.Trailer.Get("X-Sum"))
	}
	seen, _ := s.servers.disarm()
	require.Len(s.t, seen, 1)
	require.True(s.t, seen[0].whole)
	full := s.servers.response(s.chunked)
	return seen[0].bytes, strings.Index(full, "\r\n\r\n") + 4, len(full)
}

// bad makes a call whose first exchange breaks, and says what was wrong about
// what came of it.
func (s *sweep) bad(f fault, head, response int) error {
	if !s.idle {
		s.forget()
	}
	s.servers.arm(f)
	req, body := s.request()
	resp, err := s.rt.RoundTrip(req)
	sent := body == nil || body.read.Load()
	var text []byte
	var broke error
	if err == nil {
		text, broke = io.ReadAll(resp.Body)
		if again, err := io.ReadAll(resp.Body); len(again) > 0 || broke == nil && err != nil {
			return fmt.Errorf("after its end the body had %q and %w", again, err)
		}
		_ = resp.Body.Close()
	}
	seen, happened := s.servers.disarm()
	acted, touched := 0, 0
	for _, a := range seen {
		if a.bytes > 0 || a.head {
			touched++
		}
		if a.head {
			acted++
			if a.method != s.call.method || a.key != req.Header.Get("Idempotency-Key") && (a.key != "" || a.whole) {
				return fmt.Errorf("%s with key %q has arrived", a.method, a.key)
			}
		}
		if a.whole {
			if err := unequal(a.body, s.call.body); err != nil {
				return fmt.Errorf("the request's body: %w", err)
			}
		} else if !strings.HasPrefix(s.call.body, a.body) {
			return errors.New("what has arrived of the request's body is none of its beginnings")
		}
	}
	if body != nil {
		<-body.closed // by whichever goroutine of net/http's
	}
	if !happened {
		return fmt.Errorf("the fault has not happened; the call came to %w", err)
	}

	switch {
	case f.response && f.at >= response:
		// All of the answer was there.
		if err != nil || broke != nil {
			return fmt.Errorf("a whole answer was lost: %w", errors.Join(err, broke))
		}
		if touched != 1 {
			return fmt.Errorf("%d requests for an answer that came whole", touched)
		}
	case f.response && f.at >= head:
		// The headers were handed on: the break is the caller's, once.
		if err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("the headers were lost: %w", err)
		}
		if broke == nil {
			return fmt.Errorf("%d bytes of a broken body, and no error", len(text))
		}
		// What is cut in its trailer net/http has other words for.
		if f.frame == nil && !isBreak(broke, f.what, s.stalled) && !(s.chunked && f.at > response-len(sweptTrailer)) {
			return fmt.Errorf("the body ended with %w", broke)
		}
		if !strings.HasPrefix(s.servers.answer, string(text)) {
			return errors.New("what came of the body is none of its beginnings")
		}
		if touched != 1 {
			return fmt.Errorf("%d requests for one answer", touched)
		}
		return nil
	case s.call.repeatable() || f.unprocessed:
		if err != nil && s.call.body != "" && !s.call.getBody && (f.early || !s.call.repeatable()) {
			return nil // nothing is kept of it, or it had been begun to be sent
		}
		if err != nil {
			return fmt.Errorf("lost, with the body read: %v, %w", sent, err)
		}
		if broke != nil {
			return fmt.Errorf("the answer to the next attempt broke: %w", broke)
		}
	default:
		understood := f.disowned && err == nil && broke == nil // then another server has answered
		if !understood && (touched > 1 || acted > 1) {
			return fmt.Errorf("%d servers got something of it, %d could act", touched, acted)
		}
		if err != nil {
			return nil //nolint:nilerr // that it is lost is as it should be
		}
		if !understood && touched != 1 {
			return fmt.Errorf("an answer, and %d servers that could have given it", touched)
		}
	}
	return unequal(string(text), s.servers.answer)
}

// isBreak says whether a body may end so.
func isBreak(err error, what breakage, stalled error) bool {
	switch what {
	case garbles: // whatever net/http makes of it
		return true
	case stalls:
		return errors.Is(err, stalled)
	default:
		return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
	}
}

// run sweeps over all bytes of what is short and some of what is long. At each
// byte it is another kind's turn; with SWEEP=all in the environment it is the turn
// of all of them.
func (s *sweep) run(kinds ...breakage) {
	request, head, response := s.good()
	for _, f := range s.faults(request, head, response, kinds) {
		if err := s.bad(f, head, response); err != nil {
			s.t.Errorf("%v: %v", f, err)
			if s.wrong++; s.wrong > 20 {
				s.t.Fatal("and so on")
			}
		}
		if f.response && f.at == response && !s.call.repeatable() {
			s.forget() // or else the next call may be sent to a server that is gone, and lost
		}
	}
	s.good() // nothing is left that would disturb the next call
	if dialed, broken := s.servers.counts(); s.idle {
		// One now and then is dialed while the last one is just being given back.
		require.LessOrEqual(s.t, dialed, broken+len(s.servers.addrs)+2+broken/50, "connections that were good are used again")
	}
}

func (s *sweep) faults(request, head, response int, kinds []breakage) (all []fault) {
	random := rand.New(rand.NewPCG(1, uint64(len(s.call.name)))) //nolint:gosec // not a secret
	step := 1
	if underRace || testing.Short() {
		step = 23
	}
	every := os.Getenv("SWEEP") == "all"
	add := func(f fault) {
		for i, what := range kinds {
			// Where garbage stands for a part of the body, nobody can tell.
			tells := what != garbles || !f.response || f.at < head
			if tells && (every || i == f.at/step%len(kinds)) {
				f.what = what
				all = append(all, f)
			}
		}
	}
	for _, side := range []struct {
		response bool
		end      int
	}{{false, request}, {true, response}} {
		for at := 0; at < side.end; at += step {
			if side.end > 2<<10 {
				at += random.IntN(side.end / 10)
			}
			add(fault{response: side.response, at: min(at, side.end-1)})
		}
		for _, what := range kinds { // the ends matter most
			all = append(all, fault{response: side.response, at: side.end, what: what})
		}
		for at := max(head-4, 0); side.response && at <= head; at++ {
			for _, what := range kinds {
				if what != garbles || at < head {
					all = append(all, fault{response: true, at: at, what: what})
				}
			}
		}
	}
	return all
}

// sweptClient is a kind of client.
type sweptClient struct {
	name  string
	nodes int
	// stalled is what a body ends with that stalls.
	stalled error
	// make makes one that waits so long for an answer, and for more of a body.
	make func(t testing.TB, addrs []string, base *http.Transport, patience time.Duration) (rt http.RoundTripper, forget func())
}

func sweptClients() []sweptClient {
	return []sweptClient{
		{"client", 3, outcome.ErrBodyIdle, func(t testing.TB, addrs []string, base *http.Transport, patience time.Duration) (http.RoundTripper, func()) {
			c := newClient(t, &backstay.Config{Base: base, Services: map[string]backstay.Service{"orders.test": {
				Endpoints: discovery.Addrs(addrs...),
				Policy:    balancer.RoundRobin{},
				Retry:     retry.Config{Backoff: retry.Backoff{Base: -1}, Budget: nil},
				Budget:    retry.BudgetConfig{Ratio: -1},
				// Every call's first attempt fails, whatever the node.
				Breaker:         breaker.Config{FailureRate: -1},
				Outliers:        balancer.OutlierConfig{Consecutive: -1},
				AttemptTimeout:  patience,
				BodyIdleTimeout: patience,
			}}})
			return c, c.CloseIdleConnections
		}},
		{"retry", 1, outcome.ErrCallTimeout, func(t testing.TB, addrs []string, base *http.Transport, patience time.Duration) (http.RoundTripper, func()) {
			base = base.Clone()
			dial := base.DialContext
			if dial == nil {
				dial = new(net.Dialer).DialContext
			}
			base.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dial(ctx, network, addrs[0])
			}
			t.Cleanup(base.CloseIdleConnections)
			budget, err := retry.NewBudget(&retry.BudgetConfig{Ratio: -1})
			require.NoError(t, err)
			r, err := retry.New(&retry.Config{
				Backoff: retry.Backoff{Base: -1}, Budget: budget,
				AttemptTimeout: patience, Timeout: 5 * patience,
			})
			require.NoError(t, err)
			return r.Layer(base), base.CloseIdleConnections
		}},
	}
}

// sweptSizes are how long bodies are: short ones are broken at each of their bytes.
// With SWEEP=all there are some of nearly 2 KiB with their headers, too.
func sweptSizes() map[string]struct{ request, response int } {
	sizes := map[string]struct{ request, response int }{"short": {300, 400}, "long": {20_000, 30_000}}
	if os.Getenv("SWEEP") == "all" {
		sizes["2 KiB"] = struct{ request, response int }{1_700, 1_700}
	}
	return sizes
}

func TestConnectionsMayBreakAtAnyByte(t *testing.T) {
	quietly(t) // net/http has something to say of garbage between responses
	for size, bodies := range sweptSizes() {
		for _, client := range sweptClients() {
			for i, call := range sweptCalls(bodies.request) {
				for _, idle := range []bool{false, true} {
					if size == "long" && !idle {
						continue
					}
					t.Run(fmt.Sprintf("%s/%s/%s/idle=%v", size, client.name, call.name, idle), func(t *testing.T) {
						t.Parallel()
						servers := serveSwept(t, sweptText(bodies.response), false, onLoopback(t, client.nodes)...)
						rt, forget := client.make(t, servers.addrs, new(http.Transport), time.Hour)
						s := &sweep{t: t, servers: servers, rt: rt, forget: forget, call: call, idle: idle, chunked: i%2 == 1}
						s.run(resets, closes, garbles)
					})
				}
			}
		}
	}
}

// A stall takes an attempt's time: here that is no time.
func TestConnectionsMayStallAtAnyByte(t *testing.T) {
	for size, bodies := range sweptSizes() {
		for _, client := range sweptClients() {
			for i, call := range sweptCalls(bodies.request) {
				t.Run(size+"/"+client.name+"/"+call.name, func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						network := backstaytest.NewNetwork()
						servers := serveSwept(t, sweptText(bodies.response), false, inMemory(t, network, client.nodes)...)
						rt, forget := client.make(t, servers.addrs, network.Transport(), time.Second)
						s := &sweep{t: t, servers: servers, rt: rt, forget: forget, call: call, idle: true, chunked: i%2 == 0}
						s.stalled = client.stalled
						s.run(stalls, hangsOff, resets)
					})
				})
			}
		}
	}
}
