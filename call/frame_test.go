package call_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

type layer struct{ name string }

// start is a time to count from.
var start = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return start.Add(d) }

func TestJoinIsForMembersOfTheInnermostFramesChain(t *testing.T) {
	a, b, c := &layer{"a"}, &layer{"b"}, &layer{"c"}
	ctx := t.Context()
	require.Nil(t, call.Join(ctx, a), "no frame at all")

	outer, f := call.Push(ctx, call.NewChain(a, b), call.Info{Service: "orders"})
	require.Same(t, f, call.Join(outer, a))
	require.Same(t, f, call.Join(outer, b))
	require.Nil(t, call.Join(outer, c))
	require.Nil(t, call.Join(outer, &layer{"a"}), "the same to look at is not the same")
	require.Nil(t, call.Join(outer, nil))

	inner, g := call.Push(outer, call.NewChain(c), call.Info{Service: "tokens"})
	require.Same(t, g, call.Join(inner, c))
	require.Nil(t, call.Join(inner, a), "a's frame is not the innermost")
	require.Same(t, f, call.Join(outer, a), "the outer context is as it was")

	again, h := call.Push(outer, call.NewChain(a), call.Info{})
	require.NotSame(t, f, h)
	require.Same(t, h, call.Join(again, a), "a context that is used again gets a fresh frame")

	none, _ := call.Push(ctx, nil, call.Info{})
	require.Nil(t, call.Join(none, a))
}

func TestFrameIsFoundThroughDerivedContexts(t *testing.T) {
	a := &layer{"a"}
	ctx, f := call.Push(t.Context(), call.NewChain(a), call.Info{})
	type key struct{}
	ctx = context.WithValue(ctx, key{}, "v")
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ctx, stop := context.WithDeadline(ctx, time.Now().Add(time.Hour))
	defer stop()
	require.Same(t, f, call.Join(ctx, a))
	require.Same(t, f, call.Join(context.WithoutCancel(ctx), a))
}

func TestPushKeepsTheContext(t *testing.T) {
	type key struct{}
	parent, cancel := context.WithCancelCause(context.WithValue(t.Context(), key{}, "v"))
	ctx, _ := call.Push(parent, nil, call.Info{})
	require.Equal(t, "v", ctx.Value(key{}))
	require.NoError(t, ctx.Err())
	cancel(io.ErrClosedPipe)
	require.ErrorIs(t, ctx.Err(), context.Canceled)
	require.Equal(t, io.ErrClosedPipe, context.Cause(ctx))
}

func TestCarryAddsAFrameOnce(t *testing.T) {
	require.Equal(t, t.Context(), call.Carry(t.Context(), nil))
	outer, f := call.Push(t.Context(), nil, call.Info{})
	require.Equal(t, outer, call.Carry(outer, f))
	a := &layer{"a"}
	g := call.New(outer, call.NewChain(a), call.Info{})
	require.Nil(t, call.Join(outer, a), "nobody carries it yet")
	require.Same(t, g, call.Join(call.Carry(outer, g), a))
}

func TestAFrameIsOneAllocation(t *testing.T) {
	parent, chain := t.Context(), call.NewChain(&layer{"a"})
	info := call.Info{Service: "orders", Method: "GET", Path: "/v1/items", Start: start}
	now := time.Now()
	require.EqualValues(t, 1, testing.AllocsPerRun(1000, func() {
		f := call.New(parent, chain, info)
		i := f.Send(now, nil, "s0", "10.0.0.1:80") // the first attempt has its place in the frame
		f.Answered(now, f.Attempts()-1, nil, 200, outcome.Outcome{})
		f.Ended(now, i, outcome.Outcome{})
		f.Finish(now, 200, nil)
	}))
}

func TestNilFrameDoesNothing(t *testing.T) {
	// Every method, also those that are added one day.
	frame := reflect.ValueOf((*call.Frame)(nil))
	require.Positive(t, frame.NumMethod())
	for i := range frame.NumMethod() {
		name, method := frame.Type().Method(i).Name, frame.Method(i)
		args := make([]reflect.Value, method.Type().NumIn())
		for j := range args {
			args[j] = reflect.Zero(method.Type().In(j))
		}
		for _, result := range method.Call(args) {
			if name == "BeginRetries" || name == "Claim" {
				require.True(t, result.Bool(), "a retry without a frame makes its attempts, anywhere")
				continue
			}
			require.True(t, result.IsZero(), "%s of a nil frame answers %v", name, result)
		}
	}
}

func TestFrameKeepsWhatTheEntryKnew(t *testing.T) {
	_, f := call.Push(t.Context(), nil, call.Info{Service: "orders", Route: "/v1/{id}", Method: "GET", Path: "/v1/7", Start: start})
	require.Equal(t, "orders", f.Service())
	require.Equal(t, "/v1/{id}", f.Route())
	require.Equal(t, start, f.Start())
	require.Zero(t, f.Deadline())
	f.SetDeadline(at(time.Second))
	require.Equal(t, at(time.Second), f.Deadline())
	require.Zero(t, f.AttemptTimeout())
	f.SetAttemptTimeout(time.Second)
	require.Equal(t, time.Second, f.AttemptTimeout())
	f.SetAttemptTimeout(-1)
	require.Zero(t, f.AttemptTimeout(), "negative is no limit")
	require.False(t, f.LatencyNeutral())
	f.SetLatencyNeutral(true)
	require.True(t, f.LatencyNeutral())
}

func TestRetriesBeginOncePerFrame(t *testing.T) {
	ctx, f := call.Push(t.Context(), nil, call.Info{})
	require.True(t, f.BeginRetries())
	require.False(t, f.BeginRetries())
	_, nested := call.Push(ctx, nil, call.Info{})
	require.True(t, nested.BeginRetries(), "another call's frame")
}

func TestTriedKnowsTheNodesOfThisCall(t *testing.T) {
	_, f := call.Push(t.Context(), nil, call.Info{})
	n1, n2 := new(int), new(int)
	require.False(t, f.Tried(n1))
	require.Equal(t, 0, f.Send(start, n1, "s0", "10.0.0.1:80"))
	require.True(t, f.Tried(n1))
	require.False(t, f.Tried(n2))
	require.Equal(t, 1, f.Send(start, n2, "s1", "10.0.0.2:80"))
	require.True(t, f.Tried(n1))
	require.True(t, f.Tried(n2))
	f.Send(start, nil, "", "") // one without a balancer
	require.Equal(t, 3, f.Attempts())
	require.Equal(t, []any{n1, n2}, f.TriedNodes())
}

func TestOutcomeIsThatOfThisVeryAnswer(t *testing.T) {
	_, f := call.Push(t.Context(), nil, call.Info{})
	first, second := &http.Response{StatusCode: 503}, &http.Response{StatusCode: 503}
	bad := outcome.Outcome{Class: outcome.Throttled, Err: outcome.StatusError(503)}
	_, ok := f.Outcome(first, nil)
	require.False(t, ok, "nobody has classified anything")

	f.Send(start, nil, "", "")
	f.Answered(at(time.Millisecond), f.Attempts()-1, first, 503, bad)
	o, ok := f.Outcome(first, nil)
	require.True(t, ok)
	require.Equal(t, bad, o)
	_, ok = f.Outcome(second, nil)
	require.False(t, ok, "a layer between has made another response")
	_, ok = f.Outcome(nil, nil)
	require.False(t, ok)
	_, ok = f.Outcome(nil, io.EOF)
	require.False(t, ok, "a layer between has made an error of it")

	f.Send(start, nil, "", "")
	_, ok = f.Outcome(first, nil)
	require.False(t, ok, "the next attempt is not the last one")

	f.Answered(start, f.Attempts()-1, nil, 0, outcome.Outcome{Class: outcome.Failure, Err: io.EOF})
	o, ok = f.Outcome(nil, io.EOF)
	require.True(t, ok)
	require.Equal(t, outcome.Failure, o.Class)
	_, ok = f.Outcome(nil, errors.New("EOF"))
	require.False(t, ok)
	_, ok = f.Outcome(first, nil)
	require.False(t, ok)
}

// list is an error that == panics on.
type list []error

func (list) Error() string { return "list" }

func TestOutcomeBearsErrorsThatCannotBeCompared(t *testing.T) {
	_, f := call.Push(t.Context(), nil, call.Info{})
	err := list{io.EOF}
	f.Send(start, nil, "", "")
	f.Answered(start, f.Attempts()-1, nil, 0, outcome.Outcome{Class: outcome.Failure, Err: err})
	require.NotPanics(t, func() {
		_, ok := f.Outcome(nil, err)
		require.False(t, ok, "it cannot be known: the layer classifies for itself")
	})
}

func TestNowIsTheCallsStartUntilSomethingTakesTime(t *testing.T) {
	long := time.Now().Add(-time.Hour)
	require.WithinDuration(t, time.Now(), call.Now(nil), time.Minute)
	for name, take := range map[string]func(*call.Frame){
		"a wait":     func(f *call.Frame) { f.SetYoung(false) },
		"a sleep":    func(f *call.Frame) { f.Slept(time.Second) },
		"an attempt": func(f *call.Frame) { f.Send(time.Now(), nil, "", "") },
		"a stranger": func(f *call.Frame) { call.Carry(t.Context(), f) },
	} {
		t.Run(name, func(t *testing.T) {
			f := call.New(t.Context(), nil, call.Info{Start: long})
			require.WithinDuration(t, time.Now(), call.Now(f), time.Minute, "nobody has said that it is young")
			f.SetYoung(true)
			require.Equal(t, long, call.Now(f))
			take(f)
			require.WithinDuration(t, time.Now(), call.Now(f), time.Minute)
		})
	}
}

func TestAFrameThatSomebodyLooksAtIsNotUsedAgain(t *testing.T) {
	ctx, log := call.WithLog(t.Context())
	f := call.New(ctx, nil, call.Info{Service: "logged"})
	require.Same(t, f, f.Watched())
	f.Free()
	carried := call.New(t.Context(), nil, call.Info{Service: "carried"})
	require.Nil(t, carried.Watched())
	call.Carry(t.Context(), carried)
	carried.Free()
	for range 100 {
		g := call.New(t.Context(), nil, call.Info{})
		require.NotSame(t, f, g)
		require.NotSame(t, carried, g)
		require.Zero(t, g.Attempts())
		g.Send(time.Now(), nil, "", "")
		g.Free()
	}
	require.Equal(t, "logged", log.Calls()[0].Service)
	require.Equal(t, "carried", carried.Service())
}
