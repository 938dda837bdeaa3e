package call_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
)

func TestFrameBesideKnowsWhatIsKnownOfTheCall(t *testing.T) {
	member := new(int)
	f := call.New(t.Context(), call.NewChain(member), call.Info{Service: "orders", Route: "/", Start: start})
	f.SetDeadline(at(time.Second))
	f.SetAttemptTimeout(2 * ms)
	f.SetBodyIdle(3 * ms)
	f.SetLatencyNeutral(true)
	f.SetSubset("canary")
	require.True(t, f.BeginRetries())
	f.SetYoung(true)
	f.Lend()
	b := f.Beside(true)
	require.Equal(t, "orders", b.Service())
	require.Equal(t, "/", b.Route())
	require.Equal(t, start, b.Start())
	require.Equal(t, at(time.Second), b.Deadline())
	require.Equal(t, 2*ms, b.AttemptTimeout())
	require.Equal(t, 3*ms, b.BodyIdle())
	require.True(t, b.LatencyNeutral())
	require.Equal(t, "canary", b.Subset())
	require.False(t, b.BeginRetries(), "retries never multiply")
	require.NotEqual(t, start, call.Now(b), "time has passed")
	require.Same(t, b, call.Join(call.Carry(t.Context(), b), member))
	require.True(t, b.Elsewhere())
	require.False(t, f.Elsewhere())
	require.False(t, f.Beside(false).Elsewhere())
}

func TestNodeIsClaimedOnce(t *testing.T) {
	f, _ := push(t)
	one, two, three := new(int), new(int), new(int)
	f.Send(start, one, "s1", "10.0.0.1:80")
	hedge, other := f.Beside(true), f.Beside(true)
	require.False(t, hedge.Claim(one), "the call has tried it")
	require.True(t, hedge.Claim(two))
	require.False(t, other.Claim(two))
	require.True(t, other.Claim(three))
	for _, anywhere := range []*call.Frame{nil, f, f.Beside(false)} {
		require.True(t, anywhere.Claim(one))
		require.True(t, anywhere.Claim(one))
	}
	require.False(t, f.Tried(two), "nothing was sent there")
	require.True(t, hedge.Claim(two), "it is its own")
	require.False(t, hedge.Claim(three))
	require.True(t, hedge.Claim(new(int)))
	require.True(t, other.Claim(two), "it has been passed over")
}

func TestFramesBesideEachOtherShareNodesAndLogButNotAnswers(t *testing.T) {
	f, log := push(t)
	f.Lend()
	b := f.Beside(true)
	n1, n2 := new(int), new(int)
	i := f.Send(start, n1, "s1", "10.0.0.1:80")
	require.True(t, b.Tried(n1))
	require.Equal(t, []any{n1}, b.TriedNodes())
	require.Zero(t, b.Attempts())

	b.Refused("s3", "breaker", errOpen)
	require.Equal(t, 1, b.Refusals())
	require.Zero(t, f.Refusals())
	j := b.Send(at(ms), n2, "s2", "10.0.0.2:80")
	require.True(t, f.Tried(n2))
	require.Equal(t, 1, f.Attempts())
	require.Equal(t, 1, b.Attempts())

	answer := new(int)
	b.Answered(at(3*ms), j, answer, 200, fine)
	_, known := f.Outcome(answer, nil)
	require.False(t, known)
	f.Answered(at(4*ms), i, nil, 0, broken)
	o, known := b.Outcome(answer, nil)
	require.True(t, known)
	require.Equal(t, fine, o)
	_, known = f.Outcome(nil, broken.Err)
	require.True(t, known)
	f.Adopt(b)
	o, known = f.Outcome(answer, nil)
	require.True(t, known)
	require.Equal(t, fine, o)

	b.SetOthers(true)
	require.True(t, f.Others())
	b.Watched().Ended(at(5*ms), j, fine)
	f.Finish(at(4*ms), 200, nil)
	a := log.Calls()[0].Attempts
	require.Equal(t, []bool{false, true}, []bool{a[0].Hedge, a[1].Hedge})
	require.Len(t, a[1].Refusals, 1)
	require.Equal(t, 4*ms, a[1].Total)
	require.Equal(t, "GET orders /v1/items: 200 in 4ms; s1 (10.0.0.1:80) unexpected EOF in 4ms; "+
		"s3 refused by its breaker; hedge s2 (10.0.0.2:80) 200 in 2ms", log.String())
}

func TestFrameIsFreedAgainOnlyIfNothingWasPutBesideIt(t *testing.T) {
	f := call.New(t.Context(), nil, call.Info{Service: "orders"})
	f.Lend()
	b := f.Beside(false)
	f.Free()
	require.Equal(t, "orders", f.Service(), "a hedge may go on for longer than its call")
	require.Zero(t, b.Send(start, nil, "", ""))

	f = call.New(t.Context(), nil, call.Info{Service: "orders"})
	f.Lend()
	f.Reclaim()
	f.Free()
	require.Empty(t, f.Service())

	f = call.New(t.Context(), nil, call.Info{Service: "orders"})
	f.Lend()
	call.Carry(t.Context(), f)
	f.Reclaim()
	f.Free()
	require.Equal(t, "orders", f.Service(), "somebody may hold the context")
}

func TestNoFrameHasNoneBesideIt(t *testing.T) {
	var f *call.Frame
	f.Lend()
	require.Nil(t, f.Beside(true))
	require.False(t, f.Elsewhere())
	f.Adopt(nil)
	f.Reclaim()
}

func TestSharedFrameIsNotUsedAgain(t *testing.T) {
	member := new(int)
	f := call.New(t.Context(), call.NewChain(member), call.Info{Service: "orders"})
	f.Free()
	require.Empty(t, f.Service())

	f = call.New(t.Context(), call.NewChain(member), call.Info{Service: "orders"})
	f.Share()
	f.Free()
	require.Equal(t, "orders", f.Service(), "others may still look at it")
	(*call.Frame)(nil).Share()
}
