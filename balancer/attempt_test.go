package balancer_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

func newFrame() *call.Frame {
	_, f := call.Push(context.Background(), call.NewChain(), call.Info{Service: "orders", Start: time.Now()})
	return f
}

func TestAttemptGoesElsewhereAndIsNotedInItsFrame(t *testing.T) {
	b := newStatic(t, 2, nil)
	f := newFrame()
	var first, second, third balancer.Attempt
	require.NoError(t, b.Begin(t.Context(), f, &balancer.Call{}, &first))
	first.Send(time.Time{})
	require.Equal(t, 1, b.InFlight())
	first.Fail(time.Time{}, failure)
	require.Zero(t, b.InFlight())
	require.True(t, f.Others())

	require.NoError(t, b.Begin(t.Context(), f, &balancer.Call{}, &second))
	require.NotSame(t, first.Node(), second.Node())
	second.Send(time.Time{})
	answer := new(int)
	second.Answered(time.Time{}, answer, 200, success)
	o, known := f.Outcome(answer, nil)
	require.True(t, known)
	require.Equal(t, success, o)
	second.Done(time.Time{}, success)
	second.Done(time.Time{}, failure)
	second.Fail(time.Time{}, failure)
	require.Zero(t, b.InFlight())
	require.Len(t, f.Record().Attempts, 2)

	require.NoError(t, b.Begin(t.Context(), f.Beside(false), &balancer.Call{}, &third))
	third.Done(time.Time{}, success)
	require.ErrorIs(t, b.Begin(t.Context(), f.Beside(true), &balancer.Call{}, &third), balancer.ErrNoOther)
	require.Zero(t, b.InFlight())
}

// Hedges that choose their nodes at the same time, before any of them is sent.
func TestHedgesOfOneCallGoToDifferentNodes(t *testing.T) {
	b := newStatic(t, 4, nil)
	for range 50 {
		f := newFrame()
		attempts := make([]balancer.Attempt, 4)
		require.ErrorIs(t, b.Begin(t.Context(), f.Beside(true), &balancer.Call{}, &attempts[0]), balancer.ErrNoOther,
			"nor where the attempt may go that has not got a node yet")
		require.NoError(t, b.Begin(t.Context(), f, &balancer.Call{}, &attempts[0]))
		attempts[0].Send(time.Time{})
		used := map[*balancer.Node]bool{attempts[0].Node(): true}
		for i := range attempts[1:] {
			a := &attempts[1+i]
			require.NoError(t, b.Begin(t.Context(), f.Beside(true), &balancer.Call{}, a))
			require.False(t, used[a.Node()])
			used[a.Node()] = true
		}
		require.ErrorIs(t, b.Begin(t.Context(), f.Beside(true), &balancer.Call{}, new(balancer.Attempt)), balancer.ErrNoOther)
		for i := range attempts {
			attempts[i].Done(time.Time{}, success)
		}
		require.Zero(t, b.InFlight())
	}
}

func TestAttemptThatIsPassedOverIsARefusal(t *testing.T) {
	b := newStatic(t, 2, nil)
	f := newFrame()
	var a balancer.Attempt
	c := balancer.Call{}
	require.NoError(t, b.Begin(t.Context(), f, &c, &a))
	passed := a.Node()
	a.Pass(time.Time{}, "connection", outcome.Outcome{Class: outcome.Neutral, Err: errors.New("none")})
	require.Zero(t, b.InFlight())
	c.Avoid = append(c.Avoid, passed)
	require.NoError(t, b.Begin(t.Context(), f, &c, &a))
	require.NotSame(t, passed, a.Node())
	a.Send(time.Time{})
	a.Done(time.Time{}, success)
	refusals := f.Record().Attempts[0].Refusals
	require.Len(t, refusals, 1)
	require.Equal(t, "connection", refusals[0].By)
}

func TestWaitForTheFirstEndpointsIsBoundedByTheFramesDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := balancer.New("orders", newFeed(), nil)
		require.NoError(t, err)
		defer b.Close()
		f := newFrame()
		f.SetDeadline(time.Now().Add(time.Second))
		start := time.Now()
		var a balancer.Attempt
		require.ErrorIs(t, b.Begin(t.Context(), f, &balancer.Call{}, &a), outcome.ErrCallTimeout)
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestOnLeaveIsCalledWhenANodeHasNothingMoreToDoAndAtClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := newFeed(discovery.Endpoint{ID: "a", Addr: addr(1)}, discovery.Endpoint{ID: "b", Addr: addr(2)})
		b, err := balancer.New("orders", set, nil)
		require.NoError(t, err)
		require.NoError(t, b.Ready(t.Context()))
		left := make(chan string, 10)
		stop, ok := b.OnLeave(func(n *balancer.Node) { left <- n.Key() })
		require.True(t, ok)
		var a balancer.Attempt
		require.NoError(t, b.Begin(t.Context(), nil, &balancer.Call{}, &a))
		gone := a.Node().Key()
		stays := map[string]string{"a": "b", "b": "a"}[gone]
		set.yield(discovery.Endpoint{ID: stays, Addr: addr(1)})
		synctest.Wait()
		require.Empty(t, left)
		a.Done(time.Time{}, success)
		require.Equal(t, gone, <-left)
		require.NoError(t, b.Close())
		require.Equal(t, stays, <-left)
		stop()
		_, ok = b.OnLeave(func(*balancer.Node) {})
		require.False(t, ok)
	})
}

func TestDialNodeTriesTheNodesAddresses(t *testing.T) {
	b := newStatic(t, 1, nil)
	var dialed string
	_, err := b.DialNode(t.Context(), b.Nodes()[0], func(_ context.Context, network, addr string) (net.Conn, error) {
		dialed = network + " " + addr
		return nil, errDown
	}, "443")
	require.ErrorIs(t, err, errDown)
	require.ErrorAs(t, err, new(*balancer.ConnectError))
	require.Contains(t, dialed, "tcp ")
}

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
