package backstaytest

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTransportPassesALayerThatDoesNothing(t *testing.T) {
	TestTransport(t, func(next http.RoundTripper) http.RoundTripper { return next }, nil)
}

func TestTransportPassesALayerThatKeepsTheContract(t *testing.T) {
	for _, attempts := range []int{1, 3} {
		t.Run(fmt.Sprint(attempts, " attempts"), func(t *testing.T) {
			TestTransport(t, models(attempts, ""), &TransportOptions{
				Attempts: attempts,
				Refuse:   func(http.RoundTripper) http.RoundTripper { return refusing{} },
			})
		})
	}
}

func TestTransportPassesFaultsThatAreOff(t *testing.T) {
	f, err := NewFaults(nil)
	require.NoError(t, err)
	TestTransport(t, f.Layer, &TransportOptions{
		Refuse: func(next http.RoundTripper) http.RoundTripper {
			broken, err := NewFaults(&FaultsConfig{Script: func(int, *http.Request) Fault { return Fault{Reset: true} }})
			require.NoError(t, err)
			return broken.Layer(next)
		},
	})
}

// replaced is a layer that has a transport of its own, like next.
type replaced struct{ *http.Transport }

func (r replaced) Close() error {
	r.CloseIdleConnections()
	return nil
}

func TestTransportPassesALayerThatWorksOverHTTPOnly(t *testing.T) {
	TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
		tr, ok := next.(*http.Transport)
		require.True(t, ok, "OverHTTP promises an *http.Transport")
		return replaced{tr.Clone()}
	}, &TransportOptions{OverHTTP: true, Skip: []string{"client timeout"}})
}

// verdict is a test that may fail.
type verdict struct {
	testing.TB
	ctx      context.Context // what Context returns
	mu       sync.Mutex
	failures []string
	cleanups []func()
}

func (v *verdict) fail(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.failures = append(v.failures, s)
}

func (*verdict) Helper()                          {}
func (v *verdict) Error(args ...any)              { v.fail(fmt.Sprint(args...)) }
func (v *verdict) Errorf(format string, a ...any) { v.fail(fmt.Sprintf(format, a...)) }
func (v *verdict) Fatal(args ...any)              { v.fail(fmt.Sprint(args...)); runtime.Goexit() }
func (v *verdict) Fatalf(format string, a ...any) {
	v.fail(fmt.Sprintf(format, a...))
	runtime.Goexit()
}
func (v *verdict) Cleanup(f func()) { v.cleanups = append(v.cleanups, f) }
func (v *verdict) Failed() bool     { v.mu.Lock(); defer v.mu.Unlock(); return len(v.failures) > 0 }

func (v *verdict) Context() context.Context { return v.ctx }

// verdictOf runs f as a test of its own and returns how it failed.
func verdictOf(t *testing.T, f func(testing.TB)) []string {
	ctx, cancel := context.WithCancel(t.Context())
	v := &verdict{TB: t, ctx: ctx}
	apart := func(f func()) {
		done := make(chan struct{})
		go func() { defer close(done); f() }()
		<-done
	}
	apart(func() { f(v) })
	cancel() // before the cleanups, as testing does it
	for len(v.cleanups) > 0 {
		last := v.cleanups[len(v.cleanups)-1]
		v.cleanups = v.cleanups[:len(v.cleanups)-1]
		apart(last)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.failures)
}

// faults of layers, and the subtests that must find them.
func transportFaults() map[string][]string {
	return map[string][]string{
		"sets a header of the caller's":           {"request stays as it was"},
		"replaces the caller's body":              {"request stays as it was"},
		"takes the URL for granted":               {"request that is malformed fails without a panic"},
		"takes the header for granted":            {"request that is malformed fails without a panic"},
		"drops the host":                          {"request reaches the transport as it was"},
		"drops the length":                        {"request reaches the transport as it was", "request body arrives whole"},
		"knows a request again":                   {"request may be sent again"},
		"repeats a POST":                          {"request that must not be repeated is sent once"},
		"one at a time":                           {"requests do not wait for each other"},
		"closes the body too":                     {"request body is closed once when it is answered", "request body is closed once when the transport fails"},
		"closes the body twice":                   {"request body is closed once when it is answered"},
		"never closes the body":                   {"request body is closed once when it is answered", "request body is closed once when the transport fails", "request body is closed when the context has ended before"},
		"reads the body first":                    {"request body is streamed", "request body waits for 100 Continue"},
		"waits for the body's end":                {"request body is left when the answer comes early"},
		"wraps absent bodies":                     {"request body that is absent or empty stays so"},
		"repeats whatever fails":                  {"retry leaves a body that fails"},
		"drops the caller's GetBody":              {"request body is sent anew for a redirect"},
		"drops GetBody":                           {"request body is sent anew on another connection"},
		"clones deeply":                           {"request trailers arrive"},
		"returns a response beside an error":      {"response or error but never both"},
		"cancels on return":                       {"response stays readable after the return", "context outlives the return of the response"},
		"closes the response on return":           {"response stays readable after the return"},
		"buffers responses":                       {"response is streamed", "response without a body"},
		"makes errors of failures":                {"response that says failure is a response"},
		"makes a new response":                    {"response keeps its fields", "response bears the request it answers"},
		"closes bodies that are nil":              {"response whose body is nil"},
		"copies the response":                     {"response trailers arrive"},
		"keeps Close to itself":                   {"response body is closed once", "response body that is left ends the request"},
		"hides breaks":                            {"response body that breaks says so"},
		"hides Write":                             {"response that switches protocols", "response that switches protocols can be written to"},
		"forgets the caller's context":            {"informational responses come before it", "context that has ended before", "context that ends while dialing", "context that ends while awaiting the answer", "context that ends in the request's body", "context that ends in the response's body", "context whose deadline passes"},
		"never lets go of contexts":               {"context is let go when the call is over"},
		"lets go of contexts at Close only":       {"context is let go when the call is over"},
		"forgets the caller altogether":           {"client timeout"},
		"drops Cancel":                            {"Request.Cancel"},
		"summarises errors":                       {"request body that fails says so", "errors keep their identity", "errors of real networks keep their identity", "retry returns the last error when all fail"},
		"tells the URL":                           {"errors do not tell secrets"},
		"swallows panics":                         {"panic passes through"},
		"keeps permits after a panic":             {"panic passes through"},
		"sends on another goroutine":              {"Goexit passes through"},
		"has no CloseIdleConnections":             {"CloseIdleConnections is passed on", "CloseIdleConnections closes them"},
		"closes idle connections after a failure": {"CloseIdleConnections is left to the owner"},
		"closes connections":                      {"connections are used again", "HTTP/2 shares a connection"},
		"gives up":                                {"retry answers with the response that is well"},
		"never gives up":                          {"retry is bounded"},
		"returns the first response":              {"retry returns the last response when all fail"},
		"leaves discarded responses open":         {"retry closes what it discards"},
		"closes discarded responses twice":        {"retry closes what it discards"},
		"does not drain":                          {"retry drains what it discards"},
		"drains without bound":                    {"retry does not wait for what it discards"},
		"goes on without GetBody":                 {"retry uses GetBody", "retry stops when GetBody fails"},
		"sends the same body again":               {"retry sends the whole body or not at all", "retry waits until the body has been let go", "retry leaves trailers that cannot be sent again"},
		"makes a new key for each attempt":        {"retry keeps the Idempotency-Key"},
		"reuses the attempt's request":            {"retry gives each attempt a request of its own"},
		"leaks a goroutine":                       {"request stays as it was", "retry is bounded"},
	}
}

func TestTransportFindsEachFault(t *testing.T) {
	checks := transportChecks()
	opts := TransportOptions{Attempts: 3, Patience: 100 * time.Millisecond}
	for fault, names := range transportFaults() {
		for _, name := range names {
			t.Run(fault+"/"+name, func(t *testing.T) {
				i := slices.IndexFunc(checks, func(c check) bool { return c.name == name })
				require.NotEqual(t, -1, i, "there is no such check")
				failures := verdictOf(t, func(tb testing.TB) { checks[i].start(tb, models(3, fault), opts) })
				require.NotEmpty(t, failures, "the fault was not found")
				t.Log(strings.Join(failures, "\n"))
			})
		}
	}
}

func TestTransportFindsRefusalsThatLeaveTheBodyOpen(t *testing.T) {
	checks := transportChecks()
	i := slices.IndexFunc(checks, func(c check) bool { return c.needs&refusal != 0 })
	opts := TransportOptions{Patience: 100 * time.Millisecond, Refuse: func(http.RoundTripper) http.RoundTripper { return refusing{"leaves bodies open"} }}
	failures := verdictOf(t, func(tb testing.TB) { checks[i].start(tb, models(1, ""), opts) })
	require.NotEmpty(t, failures)
}

func TestEveryTransportCheckFindsAFault(t *testing.T) {
	proved := make(map[string]bool)
	for _, names := range transportFaults() {
		for _, name := range names {
			proved[name] = true
		}
	}
	for _, c := range transportChecks() {
		if c.needs&refusal == 0 {
			require.True(t, proved[c.name], "no fault of a layer is known to fail %q", c.name)
		}
	}
}
