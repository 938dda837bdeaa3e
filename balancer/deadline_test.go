package balancer_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

// A caller's deadline says nothing of the node by itself. It does when the node
// had time enough, or when nobody has got an answer out of it for a while. All
// tests of it run in bubbles, where that takes no time.

// late has a call to the node end by its caller's deadline, in a bubble, and
// returns what that counts as.
func (r *rig) late(key string, after time.Duration) outcome.Class {
	r.t.Helper()
	l := r.on(key)
	time.Sleep(after)
	o := l.Answered(time.Time{}, deadline)
	require.ErrorIs(r.t, o.Err, context.DeadlineExceeded)
	l.Done(time.Time{}, o)
	return o.Class
}

func TestCallersDeadlineIsNeutralUnlessTheNodeHadTimeEnough(t *testing.T) {
	for _, c := range []struct {
		median, after time.Duration
		want          outcome.Class
	}{
		{10 * time.Millisecond, 900 * time.Millisecond, outcome.Neutral},
		{10 * time.Millisecond, time.Second, outcome.Failure},
		{300 * time.Millisecond, time.Second, outcome.Failure},
		{time.Second, 2 * time.Second, outcome.Neutral},
		{time.Second, 3 * time.Second, outcome.Failure},
	} {
		t.Run(fmt.Sprintf("%v of %v", c.after, c.median), func(t *testing.T) {
			inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
				for i := range 3 {
					r.call(addr(i), c.median, success)
				}
				time.Sleep(refresh)
				for i := range 3 {
					r.call(addr(i), c.median, success)
				}
				// What is usual is as old as the last answer, and decays not at all.
				require.Equal(t, c.want, r.late(addr(0), c.after))
				failures := map[outcome.Class]int64{outcome.Neutral: 0, outcome.Failure: 1}[c.want]
				s := r.node(addr(0)).Breaker().Snapshot(time.Now())
				require.Equal(t, failures, s.Failures)
			})
		})
	}
}

func TestFiveDeadlinesWithoutAnAnswerBetweenAreFailures(t *testing.T) {
	inBubble(t, nil, endpoints(2), func(t *testing.T, r *rig) {
		r.call(addr(0), 10*time.Millisecond, success)
		for range 4 {
			require.Equal(t, outcome.Neutral, r.late(addr(0), 50*time.Millisecond))
		}
		require.Equal(t, outcome.Neutral, r.late(addr(1), 50*time.Millisecond), "each node for itself")
		r.on(addr(0)).Done(time.Time{}, cancelled) // says nothing, one way or the other
		for range 3 {
			require.Equal(t, outcome.Failure, r.late(addr(0), 50*time.Millisecond))
		}
		r.call(addr(0), 10*time.Millisecond, failure) // an answer, if a bad one
		for range 4 {
			require.Equal(t, outcome.Neutral, r.late(addr(0), 50*time.Millisecond))
		}
		require.Equal(t, outcome.Failure, r.late(addr(0), 50*time.Millisecond))
	})
}

func TestBlackHoleSeenOnlyThroughShortDeadlinesOpens(t *testing.T) {
	inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
		for range 20 {
			for i := range 3 {
				r.call(addr(i), 10*time.Millisecond, success)
			}
		}
		for i := 0; r.node(addr(0)).Breaker().State() == breaker.Closed; i++ {
			require.Less(t, i, 60)
			r.late(addr(0), 100*time.Millisecond)
		}
		require.NotContains(t, r.used(), addr(0))
	})
}

func TestSlowButAliveNodeIsNotCondemned(t *testing.T) {
	inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
		for i := range 3 {
			r.call(addr(i), 10*time.Millisecond, success)
		}
		for range 100 { // one in four callers has the patience
			for range 3 {
				require.Equal(t, outcome.Neutral, r.late(addr(0), 100*time.Millisecond))
			}
			r.call(addr(0), 800*time.Millisecond, success)
		}
		s := r.node(addr(0)).Breaker().Snapshot(time.Now())
		require.Zero(t, s.Failures)
		require.Zero(t, r.node(addr(0)).FailureRate(time.Now()))
	})
}

func TestNeutralOutcomesThatAreNoDeadlineStayNeutral(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		r.call(addr(0), 10*time.Millisecond, success)
		for range 20 {
			for _, o := range []outcome.Outcome{
				cancelled,
				{Class: outcome.Neutral},
				{Class: outcome.Neutral, Err: errDown},
				{Class: outcome.Neutral, Err: refusedDeadline{}},
			} {
				l := r.on(addr(0))
				time.Sleep(10 * time.Second)
				require.Equal(t, o, l.Answered(time.Time{}, o))
				l.Done(time.Time{}, o)
			}
		}
		require.Zero(t, r.node(addr(0)).Breaker().Snapshot(time.Now()).Failures)
	})
}

// refusedDeadline is a limit's refusal: the wait would have passed the deadline.
type refusedDeadline struct{}

func (refusedDeadline) Error() string        { return "would not be in time" }
func (refusedDeadline) Refused() bool        { return true }
func (refusedDeadline) Is(target error) bool { return target == context.DeadlineExceeded }

func TestDeadlineInTheBodyIsNoFailure(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		for range 20 {
			l := r.on(addr(0))
			l.Answered(time.Time{}, success)
			time.Sleep(time.Minute)
			l.Done(time.Time{}, deadline)
		}
		require.Zero(t, r.node(addr(0)).Breaker().Snapshot(time.Now()).Failures)
		require.Equal(t, outcome.Neutral, r.late(addr(0), time.Millisecond))
	})
}

// Half-open, a deadline gives back the probe's place without a verdict, unless
// it counts as a failure.
func TestDeadlineOfAProbe(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		r.open(addr(0))
		time.Sleep(5 * time.Second)
		l := r.acquire(balancer.Call{})
		l.Done(time.Time{}, deadline)
		require.Equal(t, breaker.HalfOpen, r.node(addr(0)).Breaker().State())
		l = r.acquire(balancer.Call{})
		time.Sleep(2 * time.Second)
		l.Done(time.Time{}, deadline)
		require.Equal(t, breaker.Open, r.node(addr(0)).Breaker().State())
	})
}
