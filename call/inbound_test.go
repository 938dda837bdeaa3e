package call_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
)

func TestInboundTravelsInTheContext(t *testing.T) {
	require.Nil(t, call.InboundOf(t.Context()))
	in := &call.Inbound{Attempt: 2}
	require.Same(t, in, call.InboundOf(call.WithInbound(t.Context(), in)))
}

func TestRequestThatIsRepeatedOrMarkedIsFinal(t *testing.T) {
	require.False(t, (*call.Inbound)(nil).Final())
	for attempt, final := range []bool{false, false, true, true} {
		require.Equal(t, final, (&call.Inbound{Attempt: attempt}).Final())
	}
	require.True(t, (&call.Inbound{Attempt: 1, NoRetry: true}).Final())
}

func TestInboundKeepsThatACallWasExhausted(t *testing.T) {
	var none *call.Inbound
	none.SetExhausted()
	require.False(t, none.Exhausted())
	in := new(call.Inbound)
	require.False(t, in.Exhausted())
	in.SetExhausted()
	require.True(t, in.Exhausted())
}

func TestAttemptSaysWhyItWaitedAndWhatTheBudgetSaid(t *testing.T) {
	f, log := push(t)
	for i, why := range []string{"", call.NothingSent, call.Backoff, call.Hint} {
		if why != "" {
			f.Because(why, 10-i)
		}
		if why == call.Backoff || why == call.Hint {
			f.Slept(20 * ms)
		}
		require.Equal(t, i+1, f.Number())
		f.Send(at(ms), nil, "", "10.0.0.1:80")
		f.Answered(at(3*ms), i, nil, 503, bad)
	}
	f.GaveUp("attempts")
	f.Finish(at(60*ms), 503, nil)
	r := log.Calls()[0]
	require.Equal(t, "attempts", r.GaveUp)
	for i, want := range []struct {
		why    string
		budget int
	}{{"", 0}, {call.NothingSent, 9}, {call.Backoff, 8}, {call.Hint, 7}} {
		require.Equal(t, want.why, r.Attempts[i].Why)
		require.Equal(t, want.budget, r.Attempts[i].Budget)
	}
	require.Equal(t, "GET orders /v1/items: 503 in 60ms; 10.0.0.1:80 503 in 2ms; 10.0.0.1:80 503 in 2ms; "+
		"slept 20ms; 10.0.0.1:80 503 in 2ms; slept 20ms as told; 10.0.0.1:80 503 in 2ms; gave up: attempts", r.String())
}
