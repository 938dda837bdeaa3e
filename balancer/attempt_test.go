package balancer_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/call"
)

// A context that names no node had the call forget its own.
func TestAttemptGoesWhereItsCallSaysIfTheContextDoesNot(t *testing.T) {
	b := newStatic(t, 10, &balancer.Config{Override: true})
	for range 20 {
		var a balancer.Attempt
		require.NoError(t, b.Begin(t.Context(), nil, &balancer.Call{Node: addr(3)}, &a))
		require.Equal(t, addr(3), a.Node().Key())
		a.Done(time.Time{}, success)
		require.NoError(t, b.Begin(balancer.WithNode(t.Context(), addr(4)), nil, &balancer.Call{Node: addr(3)}, &a))
		require.Equal(t, addr(4), a.Node().Key())
		a.Done(time.Time{}, success)
	}
}

// It was taken for the call's first one.
func TestAttemptThatHasNotBeenSentIsNotedNowhere(t *testing.T) {
	b := newStatic(t, 2, nil)
	ctx, log := call.WithLog(t.Context())
	_, frame := call.Push(ctx, nil, call.Info{Service: "orders"})
	var a balancer.Attempt
	require.NoError(t, b.Begin(ctx, frame, new(balancer.Call), &a))
	a.Send(time.Time{})
	a.Answered(time.Time{}, nil, 200, success)
	a.Done(time.Time{}, success)
	require.NoError(t, b.Begin(ctx, frame, new(balancer.Call), &a))
	a.Fail(time.Time{}, failure)
	attempts := log.Calls()[0].Attempts
	require.Len(t, attempts, 1)
	require.Equal(t, 200, attempts[0].Status)
	require.Equal(t, success, attempts[0].Outcome)
}
