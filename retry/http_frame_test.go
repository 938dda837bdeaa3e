package retry_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

func TestOnlyTheOuterOfTwoRetryLayersRepeats(t *testing.T) {
	s := &script{steps: []func(*http.Request) (*http.Response, error){replies(503, "x")}}
	r := newRetrier(t, eager())
	other := newRetrier(t, eager(func(c *retry.Config) { c.MaxAttempts = 5 }))
	resp, err := r.Layer(other.Layer(s)).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Equal(t, 3, s.attempts())
	require.Equal(t, "x", readAll(t, resp))
}

func TestCallIsLoggedWithItsAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, log := call.WithLog(t.Context())
		s := &script{steps: []func(*http.Request) (*http.Response, error){
			func(req *http.Request) (*http.Response, error) {
				time.Sleep(10 * time.Millisecond)
				return replies(503, "x")(req)
			},
			func(req *http.Request) (*http.Response, error) {
				time.Sleep(20 * time.Millisecond)
				return response(200, io.NopCloser(io.MultiReader(strings.NewReader("ha"), failingReader{}))), nil
			},
		}}
		cfg := &retry.Config{Backoff: retry.Backoff{New: constant(time.Second)}}
		resp, err := newRetrier(t, cfg).Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
		require.NoError(t, err)
		record := log.Calls()[0]
		require.Equal(t, 200, record.Status)
		require.Equal(t, 1030*time.Millisecond, record.Duration)
		require.Len(t, record.Attempts, 2)
		first, second := record.Attempts[0], record.Attempts[1]
		require.Equal(t, 503, first.Status)
		require.Equal(t, outcome.Failure, first.Outcome.Class)
		require.Equal(t, 10*time.Millisecond, first.Headers)
		require.Equal(t, time.Second, second.Slept)
		require.Equal(t, 20*time.Millisecond, second.Headers)
		require.Equal(t, outcome.Success, second.Outcome.Class)

		time.Sleep(time.Second)
		_, err = io.ReadAll(resp.Body)
		require.Equal(t, io.ErrUnexpectedEOF, err)
		second = log.Calls()[0].Attempts[1]
		require.Equal(t, 1020*time.Millisecond, second.Total)
		require.Equal(t, outcome.Failure, second.Outcome.Class)
	})
}

// Whoever judges or logs an answer may read it.
func TestClassifierSeesTheResponseBeforeItsBodyIsClosed(t *testing.T) {
	s, bodies := answers(503, 503, 200)
	n := 0
	r := newRetrier(t, eager(func(c *retry.Config) {
		c.Classifier = func(req *http.Request, resp *http.Response, err error) outcome.Outcome {
			text, readErr := io.ReadAll(resp.Body)
			require.NoError(t, readErr)
			require.Equal(t, fmt.Sprint("answer ", n+1), string(text))
			require.Zero(t, bodies[n].closes.Load())
			n++
			return outcome.HTTP(req, resp, err)
		}
	}))
	resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Equal(t, 3, n)
	_ = resp.Body.Close()
}

type inner struct {
	next    http.RoundTripper
	outcome outcome.Outcome
	others  bool // there is a node that has not been tried
}

func (l *inner) Unwrap() http.RoundTripper { return l.next }

func (l *inner) RoundTrip(req *http.Request) (*http.Response, error) {
	f := call.Join(req.Context(), l)
	f.Send(time.Now(), nil, "", "")
	f.SetOthers(l.others)
	resp, err := l.next.RoundTrip(req)
	o := l.outcome
	if err != nil {
		o.Err = err
		f.Answered(time.Now(), f.Attempts()-1, nil, 0, o)
		return nil, err
	}
	f.Answered(time.Now(), f.Attempts()-1, resp, resp.StatusCode, o)
	return resp, nil
}

func TestWhatAnInnerLayerMadeOfTheAnswerDecides(t *testing.T) {
	s := &script{steps: []func(*http.Request) (*http.Response, error){replies(200, "x")}}
	l := &inner{next: s, outcome: outcome.Outcome{Class: outcome.Failure, Retry: outcome.Always}}
	ctx, log := call.WithLog(t.Context())
	resp, err := newRetrier(t, eager()).Layer(l).RoundTrip(newRequest(t, ctx, "POST", nil))
	require.NoError(t, err)
	require.Equal(t, 3, s.attempts())
	require.Len(t, log.Calls()[0].Attempts, 3, "each logged once")
	_ = resp.Body.Close()

	l.outcome = outcome.Outcome{}
	s.steps, s.reqs = []func(*http.Request) (*http.Response, error){replies(503, "x")}, nil
	resp, err = newRetrier(t, eager()).Layer(l).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Equal(t, 1, s.attempts())
	_ = resp.Body.Close()
}

func TestWrongPeerIsTriedOnceMoreOnlyWhereThereAreOtherNodes(t *testing.T) {
	for others, attempts := range map[bool]int{true: 2, false: 1} {
		s := &script{steps: []func(*http.Request) (*http.Response, error){fails(errBoom)}}
		l := &inner{next: s, others: others, outcome: outcome.Outcome{Class: outcome.Failure, Retry: outcome.Elsewhere}}
		r := newRetrier(t, eager(func(c *retry.Config) { c.MaxAttempts = 5 }))
		_, err := r.Layer(l).RoundTrip(newRequest(t, t.Context(), "POST", nil))
		require.Equal(t, errBoom, err)
		require.Equal(t, attempts, s.attempts())
	}
}

// errNotSent is the error of a dial that failed.
var errNotSent = &net.OpError{Op: "dial", Err: errors.New("refused")}

func TestWhatWasNeverSentGoesToAnotherNodeWithoutAWait(t *testing.T) {
	for others, waits := range map[bool]time.Duration{true: 0, false: 2 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			s := &script{steps: []func(*http.Request) (*http.Response, error){fails(errNotSent), fails(errNotSent), replies(200, "x")}}
			l := &inner{next: s, others: others, outcome: outcome.Outcome{Class: outcome.Failure, Retry: outcome.Always}}
			r := newRetrier(t, &retry.Config{Backoff: retry.Backoff{New: constant(time.Second)}})
			begin := time.Now()
			resp, err := r.Layer(l).RoundTrip(newRequest(t, t.Context(), "POST", nil))
			require.NoError(t, err)
			_ = resp.Body.Close()
			require.Equal(t, waits, time.Since(begin))
		})
	}
}

func TestNotSentSpeaksForAllAttempts(t *testing.T) {
	reset := fails(errBoom)
	for name, test := range map[string]struct {
		steps   []func(*http.Request) (*http.Response, error)
		notSent bool
	}{
		"never":              {[]func(*http.Request) (*http.Response, error){fails(errNotSent), fails(errNotSent), fails(errNotSent)}, true},
		"sent, then not":     {[]func(*http.Request) (*http.Response, error){reset, fails(errNotSent), fails(errNotSent)}, false},
		"answered, then not": {[]func(*http.Request) (*http.Response, error){replies(503, "x"), fails(errNotSent), fails(errNotSent)}, false},
		"not, then sent":     {[]func(*http.Request) (*http.Response, error){fails(errNotSent), fails(errNotSent), reset}, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newRetrier(t, eager()).Layer(&script{steps: test.steps}).RoundTrip(newRequest(t, t.Context(), "GET", nil))
			require.Error(t, err)
			require.Equal(t, test.notSent, outcome.NotSent(err))
			require.Equal(t, name != "not, then sent", errors.Is(err, errNotSent))
		})
	}
}

func TestDeadlineOfTheFrameBoundsTheWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []func(*http.Request) (*http.Response, error){replies(503, "x")}}
		layer := newRetrier(t, &retry.Config{Backoff: retry.Backoff{New: constant(time.Second)}}).Layer(s)
		ctx, f := call.Push(t.Context(), call.NewChain(layer), call.Info{Start: time.Now()})
		f.SetDeadline(time.Now().Add(1500 * time.Millisecond))
		begin := time.Now()
		resp, err := layer.RoundTrip(newRequest(t, ctx, "GET", nil))
		require.NoError(t, err)
		require.Equal(t, time.Second, time.Since(begin))
		require.Equal(t, 2, s.attempts())
		_ = resp.Body.Close()
	})
}

func TestTimeoutIsToldToTheLayersBelow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var deadline time.Time
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			_, ok := req.Context().Deadline()
			require.False(t, ok)
			return replies(200, "x")(req)
		})
		l := &inner{next: next}
		spy := &struct{ *inner }{l}
		layer := newRetrier(t, &retry.Config{Timeout: time.Minute}).Layer(spy)
		ctx, f := call.Push(t.Context(), call.NewChain(layer, spy), call.Info{Start: time.Now().Add(-time.Second)})
		resp, err := layer.RoundTrip(newRequest(t, ctx, "GET", nil))
		require.NoError(t, err)
		deadline = f.Deadline()
		require.Equal(t, time.Now().Add(59*time.Second), deadline, "counted from the call's start")
		_ = resp.Body.Close()
	})
}

func TestEventsNameServiceRouteAndOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(recorder)
		s, _ := answers(503, 503)
		layer := newRetrier(t, &retry.Config{
			MaxAttempts: 2, Observer: rec, Backoff: retry.Backoff{New: constant(time.Second)},
		}).Layer(s)
		ctx, _ := call.Push(t.Context(), call.NewChain(layer), call.Info{Service: "orders", Route: "/items"})
		resp, err := layer.RoundTrip(newRequest(t, ctx, "GET", nil))
		require.NoError(t, err)
		_ = resp.Body.Close()
		o := outcome.Outcome{Class: outcome.Failure, Retry: outcome.IfIdempotent, Err: outcome.StatusError(503)}
		require.Equal(t, []event.Event{
			retry.Retried{Service: "orders", Route: "/items", Attempt: 1, Outcome: o, Sleep: time.Second},
			retry.GaveUp{Service: "orders", Route: "/items", Attempts: 2, Outcome: o, Reason: retry.ReasonAttempts},
		}, rec.events)
	})
}
