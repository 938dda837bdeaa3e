package attempt_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/outcome"
)

func direct(ctx context.Context, l attempt.Limits) *attempt.Attempt {
	a := start(ctx, l)
	a.Direct()
	return a
}

func TestChildrenOfADirectContextNeedNoGoroutine(t *testing.T) {
	parent, cancelParent := context.WithCancel(t.Context())
	defer cancelParent()
	a := direct(parent, attempt.Limits{Attempt: time.Hour})
	ctx := a.Context()
	before := runtime.NumGoroutine()
	children := make([]context.Context, 100)
	for i := range children {
		child, cancel := context.WithCancel(ctx)
		defer cancel()
		children[i] = child
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, gone.Err(), context.Canceled)
	require.NoError(t, ctx.Err())
	require.LessOrEqual(t, runtime.NumGoroutine(), before+10, "but for what else goes on in the process")
	a.End()
	for _, child := range children {
		require.Equal(t, context.Canceled, child.Err(), "ended at once, not by a goroutine some time later")
	}
	late, cancel := context.WithCancel(ctx)
	defer cancel()
	require.Equal(t, context.Canceled, late.Err())
}

func TestChildrenOfADirectContextEndWithTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent, cancelParent := context.WithCancelCause(t.Context())
		a := direct(parent, attempt.Limits{Attempt: time.Hour})
		child, cancel := context.WithCancel(a.Context())
		defer cancel()
		cancelParent(errBoom)
		<-child.Done()
		require.Equal(t, context.Canceled, child.Err())
		require.Equal(t, errBoom, context.Cause(child))
		require.Equal(t, errBoom, context.Cause(a.Context()))
		a.End()
		require.Equal(t, errBoom, context.Cause(a.Context()))
	})
}

func TestAfterFuncOfADirectContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := direct(t.Context(), attempt.Limits{Attempt: time.Second})
		ctx := a.Context()
		_, cancel := context.WithCancel(ctx) // it takes the first place
		defer cancel()
		called := make(chan struct{})
		context.AfterFunc(ctx, func() { close(called) })
		stop := context.AfterFunc(ctx, func() { t.Error("it was stopped") })
		require.True(t, stop())
		require.False(t, stop())
		<-called
		requireTimeout(t, context.Cause(ctx), outcome.ErrAttemptTimeout, time.Second)
		again := make(chan struct{})
		context.AfterFunc(ctx, func() { close(again) })
		<-again
		a.End()
	})
}

// What it costs to bound an attempt of net/http's: the attempt, a channel, how to end the
// one child and how to forget it, and what package context wraps that in.
func TestDirectContextAllocatesLittle(t *testing.T) {
	var w attempt.Watch
	child := func(ctx context.Context) {
		ctx, cancel := context.WithCancelCause(ctx)
		_ = ctx.Done()
		cancel(nil)
	}
	alone := testing.AllocsPerRun(100, func() { child(context.Background()) })
	got := testing.AllocsPerRun(100, func() {
		a := new(attempt.Attempt)
		a.Start(context.Background(), time.Time{}, &attempt.Limits{Attempt: time.Hour, Watch: &w})
		a.Direct()
		child(a.Context())
		_ = a.Headers()
		a.End()
	})
	require.LessOrEqual(t, got, alone+5)
}
