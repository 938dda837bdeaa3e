package call_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

const ms = time.Millisecond

// push is a logged call of GET orders /v1/items.
func push(t *testing.T) (*call.Frame, *call.Log) {
	t.Helper()
	ctx, log := call.WithLog(t.Context())
	_, f := call.Push(ctx, nil, call.Info{Service: "orders", Method: "GET", Path: "/v1/items", Start: start})
	return f, log
}

var (
	errOpen = errors.New("breaker: open")
	bad     = outcome.Outcome{Class: outcome.Failure, Err: outcome.StatusError(503)}
	broken  = outcome.Outcome{Class: outcome.Failure, Err: io.ErrUnexpectedEOF}
	fine    = outcome.Outcome{}
)

func TestCallAsOneLine(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(f *call.Frame)
		want string
	}{
		{"under way", func(*call.Frame) {}, "GET orders /v1/items: under way"},
		{"awaited", func(f *call.Frame) {
			f.Send(at(ms), nil, "", "10.0.0.1:80")
		}, "GET orders /v1/items: under way; 10.0.0.1:80 awaited"},
		{"one attempt", func(f *call.Frame) {
			i := f.Send(start, nil, "10.0.0.1:80", "10.0.0.1:80")
			f.Answered(at(20*ms), f.Attempts()-1, nil, 200, fine)
			f.Finish(at(20*ms), 200, nil)
			f.Ended(at(25*ms), i, fine)
		}, "GET orders /v1/items: 200 in 20ms; 10.0.0.1:80 200 in 20ms"},
		{"a node with a name", func(f *call.Frame) {
			f.Send(start, nil, "pod-7", "10.0.0.1:80")
			f.Answered(at(20*ms), f.Attempts()-1, nil, 200, fine)
			f.Finish(at(20*ms), 200, nil)
		}, "GET orders /v1/items: 200 in 20ms; pod-7 (10.0.0.1:80) 200 in 20ms"},
		{"no balancer", func(f *call.Frame) {
			f.Send(start, nil, "", "")
			f.Answered(at(20*ms), f.Attempts()-1, nil, 404, fine)
			f.Finish(at(20*ms), 404, nil)
		}, "GET orders /v1/items: 404 in 20ms; sent 404 in 20ms"},
		{"a retry", func(f *call.Frame) {
			f.Send(start, nil, "", "10.0.0.1:80")
			f.Answered(at(2*ms), f.Attempts()-1, nil, 503, bad)
			f.Slept(30 * ms)
			f.Slept(11 * ms)
			f.Send(at(43*ms), nil, "", "10.0.0.2:80")
			f.Answered(at(63*ms), f.Attempts()-1, nil, 200, fine)
			f.Finish(at(63*ms), 200, nil)
		}, "GET orders /v1/items: 200 in 63ms; 10.0.0.1:80 503 in 2ms; slept 41ms; 10.0.0.2:80 200 in 20ms"},
		{"refusals before and after", func(f *call.Frame) {
			f.Refused("s1", "breaker", errOpen)
			f.Send(start, nil, "s2", "10.0.0.2:80")
			f.Answered(at(2*ms), f.Attempts()-1, nil, 0, broken)
			f.Refused("", "budget", errors.New("retry: budget exhausted"))
			f.Finish(at(2*ms), 0, io.ErrUnexpectedEOF)
		}, "GET orders /v1/items: failed in 2ms: unexpected EOF; s1 refused by its breaker; s2 (10.0.0.2:80) unexpected EOF in 2ms; refused by budget"},
		{"refused at once", func(f *call.Frame) {
			f.Refused("", "rate", errOpen)
			f.Finish(at(80*time.Microsecond), 0, errOpen)
		}, "GET orders /v1/items: failed in 80µs: breaker: open; refused by rate"},
		{"the body broke", func(f *call.Frame) {
			i := f.Send(start, nil, "", "10.0.0.1:80")
			f.Answered(at(2*ms), f.Attempts()-1, nil, 200, fine)
			f.Finish(at(2*ms), 200, nil)
			f.Ended(at(1234*ms), i, broken)
		}, "GET orders /v1/items: 200 in 2ms; 10.0.0.1:80 200 in 2ms, body broke after 1.23s: unexpected EOF"},
		{"a cache hit", func(f *call.Frame) {
			f.SetCache("hit")
			f.Finish(at(4567), 200, nil)
		}, "GET orders /v1/items: 200 in 5µs; cache hit"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, log := push(t)
			test.run(f)
			require.Equal(t, test.want, f.Record().String())
			require.Equal(t, test.want, log.String())
		})
	}
}

func TestRecordHoldsEverything(t *testing.T) {
	f, log := push(t)
	refusal := call.Refusal{Node: "s1", By: "breaker", Err: errOpen}
	f.Slept(10 * ms)
	f.Refused("s1", "breaker", errOpen)
	i := f.Send(at(ms), new(int), "s2", "10.0.0.2:80")
	f.Answered(at(3*ms), f.Attempts()-1, nil, 200, fine)
	f.SetCache("miss")
	f.Finish(at(4*ms), 200, nil)
	f.Ended(at(9*ms), i, broken)
	r := log.Calls()[0]
	require.Equal(t, call.Info{Service: "orders", Method: "GET", Path: "/v1/items", Start: start}, r.Info)
	require.Equal(t, 4*ms, r.Duration)
	require.Equal(t, 200, r.Status)
	require.Equal(t, "miss", r.Cache)
	require.Empty(t, r.Refusals)
	require.Len(t, r.Attempts, 1)
	a := r.Attempts[0]
	require.Equal(t, []any{"s2", "10.0.0.2:80", at(ms), 10 * ms, 2 * ms, 8 * ms, 200, broken, []call.Refusal{refusal}},
		[]any{a.Node, a.Addr, a.Start, a.Slept, a.Headers, a.Total, a.Status, a.Outcome, a.Refusals})
}

func TestBodyThatEndsWellKeepsItsAnswersOutcome(t *testing.T) {
	f, log := push(t)
	i := f.Send(start, nil, "", "")
	f.Answered(at(ms), f.Attempts()-1, nil, 503, bad)
	f.Ended(at(2*ms), i, fine)
	require.Equal(t, bad, log.Calls()[0].Attempts[0].Outcome)
	f.Ended(at(2*ms), 7, fine) // no such attempt
}

func TestRecordIsASnapshot(t *testing.T) {
	f, log := push(t)
	f.Send(start, nil, "s1", "")
	f.Refused("s2", "breaker", errOpen)
	early := log.Calls()[0]
	f.Answered(at(ms), f.Attempts()-1, nil, 503, bad)
	f.Send(at(ms), nil, "s3", "")
	require.Len(t, early.Attempts, 1)
	require.Zero(t, early.Attempts[0].Status)
	require.Len(t, early.Refusals, 1)
}

func TestLogMayBeReadWhileCallsAreUnderWay(t *testing.T) {
	ctx, log := call.WithLog(t.Context())
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = log.String()
				}
			}
		})
	}
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			for range 50 {
				_, f := call.Push(ctx, nil, call.Info{Service: "orders", Start: start})
				var bodies sync.WaitGroup
				for range 3 {
					f.Refused("s0", "breaker", errOpen)
					f.Slept(ms)
					i := f.Send(start, nil, "s1", "")
					f.Answered(at(ms), f.Attempts()-1, nil, 200, fine)
					bodies.Go(func() { f.Ended(at(2*ms), i, fine) })
				}
				f.SetCache("miss")
				f.Finish(at(ms), 200, nil)
				bodies.Wait()
			}
		})
	}
	calls.Wait()
	close(stop)
	wg.Wait()
	require.Len(t, log.Calls(), 200)
	for _, r := range log.Calls() {
		require.Len(t, r.Attempts, 3)
	}
}

func TestInnermostLogTakesTheCall(t *testing.T) {
	ctx, outer := call.WithLog(t.Context())
	require.True(t, call.Logged(ctx))
	require.False(t, call.Logged(t.Context()))
	inner, log := call.WithLog(ctx)
	call.Push(inner, nil, call.Info{})
	require.Len(t, log.Calls(), 1)
	require.Empty(t, outer.Calls())
	child, cancel := context.WithCancel(ctx)
	defer cancel()
	call.Push(child, nil, call.Info{Service: "first"})
	call.Push(child, nil, call.Info{Service: "second"})
	require.Len(t, outer.Calls(), 2)
	require.Equal(t, "first", outer.Calls()[0].Service)
}

func TestFinishedIsAnEvent(t *testing.T) {
	f, _ := push(t)
	f.Send(start, nil, "", "10.0.0.1:80")
	f.Answered(at(ms), f.Attempts()-1, nil, 200, fine)
	f.Finish(at(ms), 200, nil)
	e := call.Finished{Record: f.Record()}
	require.Equal(t, "call.finished", e.EventName())
	require.Equal(t, slog.LevelDebug, e.Level())
	got := map[string]any{}
	for _, a := range e.LogValue().Group() {
		got[a.Key] = a.Value.Any()
	}
	require.Equal(t, map[string]any{
		"call": e.Record.String(), "service": "orders", "route": "", "status": int64(200), "duration": ms, "attempts": int64(1),
	}, got)
	require.Equal(t, slog.LevelWarn, call.Finished{Record: call.Record{Err: io.EOF}}.Level())
	require.Equal(t, slog.LevelWarn, call.Finished{Record: call.Record{Status: 500}}.Level())
	require.Equal(t, slog.LevelDebug, call.Finished{Record: call.Record{Status: 404, Attempts: make([]call.Attempt, 1)}}.Level())
	require.Equal(t, slog.LevelInfo, call.Finished{Record: call.Record{Status: 200, Attempts: make([]call.Attempt, 2)}}.Level())
}
