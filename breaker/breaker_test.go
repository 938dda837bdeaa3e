package breaker_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

func TestOneFailureOfOneDoesNotOpen(t *testing.T) {
	b := newBench(t, nil)
	b.call(1, failure)
	require.Equal(t, breaker.Closed, b.State())
	b.call(18, failure)
	require.Equal(t, breaker.Closed, b.State(), "19 calls mean nothing yet")
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State())
}

func TestRatesAreComparedExactly(t *testing.T) {
	tests := []struct {
		name            string
		rate            float64
		failures, calls int
		want            breaker.State
	}{
		{"49.5 % is not 50 %", 0.5, 99, 200, breaker.Closed},
		{"50 % is 50 %", 0.5, 100, 200, breaker.Open},
		{"57 of 100 is 57 %", 0.57, 57, 100, breaker.Open},
		{"56 of 100 is not 57 %", 0.57, 56, 100, breaker.Closed},
		{"7 of 100 is 7 %, though 0.07*100 is more than 7", 0.07, 7, 100, breaker.Open},
		{"29 of 100 is 29 %", 0.29, 29, 100, breaker.Open},
		{"one of a thousand is 0.1 %", 0.001, 1, 1000, breaker.Open},
		{"99 of 100 is not all", 1, 99, 100, breaker.Closed},
		{"all is all", 1, 100, 100, breaker.Open},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t, exact(breaker.Config{FailureRate: test.rate, MinCalls: test.calls}))
			b.call(test.calls-test.failures, success)
			b.call(test.failures, failure)
			require.Equal(t, test.want, b.State())
		})
	}
}

func TestFailuresOnBothSidesOfABucketsEdgeOpen(t *testing.T) {
	b := newBench(t, nil)
	b.call(10, failure)
	b.pass(8 * time.Second)
	b.call(9, failure)
	require.Equal(t, breaker.Closed, b.State())
	b.pass(time.Second)
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State(), "10 failures of 9 s ago, 10 now")
}

func TestCallsBeyondTheWindowDoNotCount(t *testing.T) {
	b := newBench(t, nil)
	b.call(19, failure)
	b.pass(10 * time.Second)
	b.call(19, failure)
	require.Equal(t, breaker.Closed, b.State())
	require.EqualValues(t, 19, b.Snapshot(b.now).Failures)
}

func TestStatisticsExpireOnReadAfterIdleTime(t *testing.T) {
	b := newBench(t, nil)
	b.call(19, failure)
	require.InDelta(t, 1, b.Snapshot(b.now).FailureRate, 0)
	b.pass(time.Minute)
	s := b.Snapshot(b.now)
	require.Zero(t, s.Calls)
	require.Zero(t, s.FailureRate)
	b.call(1, failure)
	require.Equal(t, breaker.Closed, b.State())
}

func TestOutcomesThatSayNothingAreNotCounted(t *testing.T) {
	b := newBench(t, nil)
	for _, o := range []outcome.Outcome{throttled, neutral} {
		b.call(100, o)
		require.Zero(t, b.Snapshot(b.now).Calls, "%v", o.Class)
	}
	// Nor do they fill up the least number of calls, or thin the rate.
	b.call(19, failure)
	b.call(100, throttled)
	require.Equal(t, breaker.Closed, b.State())
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State())
}

func TestConsecutiveFailuresOpenAtAnyRateAndPace(t *testing.T) {
	b := newBench(t, exact(breaker.Config{FailureRate: -1, Consecutive: 3}))
	b.call(1000, success)
	b.call(2, failure)
	b.call(1, success)
	b.call(2, failure)
	b.call(5, neutral)
	require.Equal(t, breaker.Closed, b.State(), "a success ended the first run, neutral ones are of no run")
	b.pass(time.Hour)
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State())
}

func TestBrokenBodiesMakeARunOfFailures(t *testing.T) {
	b := newBench(t, exact(breaker.Config{FailureRate: -1, Consecutive: 3}))
	for range 3 {
		l := b.lease()
		l.Answered(b.now, success)
		l.Done(b.now, failure)
	}
	require.Equal(t, breaker.Open, b.State(), "an answer is no success before its body has ended")
}

func TestFailureRateCanBeOff(t *testing.T) {
	b := newBench(t, exact(breaker.Config{FailureRate: -1}))
	b.call(1000, failure)
	require.Equal(t, breaker.Closed, b.State())
	require.EqualValues(t, 1000, b.Snapshot(b.now).Failures)
}

func TestSlowSuccessesCountInTheSlowRateOnly(t *testing.T) {
	b := newBench(t, exact(breaker.Config{SlowTime: time.Second, SlowRate: 0.5, MinCalls: 4}))
	slow := func(o outcome.Outcome) {
		l := b.lease()
		b.pass(time.Second)
		l.Done(b.now, o)
	}
	b.call(2, success)
	slow(success)
	s := b.Snapshot(b.now)
	require.EqualValues(t, 3, s.Calls)
	require.EqualValues(t, 1, s.Slow)
	require.Zero(t, s.Failures)
	slow(neutral)
	require.EqualValues(t, 1, b.Snapshot(b.now).Slow, "a neutral one counts nowhere")
	slow(success)
	require.Equal(t, breaker.Open, b.State())
	require.NoError(t, b.refused().Err, "nothing failed")
}

func TestASlowBodyIsNotASlowAnswer(t *testing.T) {
	b := newBench(t, exact(breaker.Config{SlowTime: time.Second}))
	l := b.lease()
	l.Answered(b.now, success)
	b.pass(time.Hour)
	l.Done(b.now, success)
	require.Zero(t, b.Snapshot(b.now).Slow)
}

func TestATimeoutWaveOfHangingCallsOpens(t *testing.T) {
	b := newBench(t, nil)
	hanging := make([]*breaker.Lease, 1000)
	for i := range hanging {
		hanging[i] = b.lease()
	}
	b.pass(30 * time.Second) // their timeout, longer even than the window
	timeout := &outcome.TimeoutError{Kind: outcome.ErrAttemptTimeout, After: 30 * time.Second}
	for _, l := range hanging {
		l.Done(b.now, outcome.Of(timeout))
	}
	require.Equal(t, breaker.Open, b.State())
	require.ErrorIs(t, b.refused(), outcome.ErrAttemptTimeout)
}

func TestDoneAloneIsAnsweredToo(t *testing.T) {
	b := newBench(t, nil)
	b.call(3, failure)
	b.call(2, success)
	s := b.Snapshot(b.now)
	require.EqualValues(t, 5, s.Calls)
	require.EqualValues(t, 3, s.Failures)
}

func TestABodyThatBreaksIsOneFailureAndNoOtherCall(t *testing.T) {
	b := newBench(t, nil)
	l := b.lease()
	l.Answered(b.now, success)
	l.Done(b.now, failure)
	s := b.Snapshot(b.now)
	require.EqualValues(t, 1, s.Calls)
	require.EqualValues(t, 1, s.Failures)

	t.Run("also when its call has left the window", func(t *testing.T) {
		b := newBench(t, nil)
		l := b.lease()
		l.Answered(b.now, success)
		b.pass(time.Minute)
		l.Done(b.now, failure)
		s := b.Snapshot(b.now)
		require.EqualValues(t, 1, s.Calls)
		require.InDelta(t, 1, s.FailureRate, 0, "never more than all")
	})
}

func TestALeaseCountsOnce(t *testing.T) {
	b := newBench(t, nil)
	l := b.lease()
	l.Answered(b.now, failure)
	l.Answered(b.now, failure)
	l.Done(b.now, failure)
	l.Done(b.now, failure)
	l.Answered(b.now, failure)
	s := b.Snapshot(b.now)
	require.EqualValues(t, 1, s.Calls)
	require.EqualValues(t, 1, s.Failures)

	l = b.lease()
	l.Answered(b.now, success)
	l.Done(b.now, failure)
	l.Done(b.now, failure)
	require.EqualValues(t, 2, b.Snapshot(b.now).Failures)

	l = b.lease()
	l.Answered(b.now, neutral)
	l.Done(b.now, failure)
	require.EqualValues(t, 2, b.Snapshot(b.now).Failures, "the answer has said it")
}

func TestTheZeroLeaseDoesNothing(t *testing.T) {
	var l breaker.Lease
	l.Answered(time.Time{}, failure)
	l.Done(time.Time{}, failure)
	l.Done(time.Time{}, failure)
	require.Equal(t, breaker.Lease{}, l)
}

func TestOpenTimeDoublesIsCappedAndResetsAfterAHealthyWindow(t *testing.T) {
	b := newBench(t, nil)
	b.open()
	for i, seconds := range []int{5, 10, 20, 40, 60, 60, 60} {
		want := time.Duration(seconds) * time.Second
		require.Equal(t, want, b.refused().RetryAfter)
		require.Equal(t, i+1, b.Snapshot(b.now).Opens)
		b.pass(want - 1)
		b.refused()
		b.pass(1)
		b.call(1, failure)
	}
	b.pass(time.Minute)
	b.call(3, success)
	require.Equal(t, breaker.Closed, b.State())

	b.pass(9 * time.Second)
	b.open()
	require.Equal(t, time.Minute, b.refused().RetryAfter, "not healthy for a whole window")

	b.pass(time.Minute)
	b.call(3, success)
	b.pass(10 * time.Second)
	b.open()
	require.Equal(t, 5*time.Second, b.refused().RetryAfter)
	require.Equal(t, 1, b.Snapshot(b.now).Opens)
}

func TestOpenTimeHasNoLimitIfSoConfigured(t *testing.T) {
	b := newBench(t, exact(breaker.Config{OpenTime: time.Hour, MaxOpenTime: -1}))
	b.open()
	last := time.Duration(0)
	for range 200 {
		now := b.refused().RetryAfter
		require.GreaterOrEqual(t, now, last, "no overflow")
		last = now
		b.now = b.Snapshot(b.now).Until
		if now > 30*365*24*time.Hour {
			break // a time.Time cannot go on for ever
		}
		b.call(1, failure)
	}
	require.Greater(t, last, 10*365*24*time.Hour)
}

func TestOpenTimeIsJitteredToBothSides(t *testing.T) {
	for _, test := range []struct {
		rand float64
		want time.Duration
	}{{0, 4500 * time.Millisecond}, {0.5, 5 * time.Second}, {0.75, 5250 * time.Millisecond}} {
		b := newBench(t, &breaker.Config{Rand: func() float64 { return test.rand }})
		b.open()
		require.Equal(t, test.want, b.refused().RetryAfter)
	}
	seen := map[time.Duration]bool{}
	for range 50 {
		b := newBench(t, &breaker.Config{})
		b.open()
		after := b.refused().RetryAfter
		require.InDelta(t, 5*time.Second, after, float64(500*time.Millisecond))
		seen[after] = true
	}
	require.Greater(t, len(seen), 40)
}

func TestOpenErrorTellsKeyTimeAndCause(t *testing.T) {
	b := newBench(t, nil)
	b.open()
	b.pass(2 * time.Second)
	_, err := b.Acquire(b.now)
	require.ErrorIs(t, err, breaker.ErrOpen)
	require.ErrorIs(t, err, errDown)
	require.True(t, outcome.Refused(err))
	require.True(t, outcome.NotSent(err))
	after, ok := outcome.RetryAfter(err)
	require.True(t, ok)
	require.Equal(t, 3*time.Second, after)
	require.Equal(t, "breaker: orders is open for 3s: down", err.Error())
	refusal := b.refused()
	require.Equal(t, "orders", refusal.Key)
	require.Equal(t, breaker.ReasonOpen, refusal.Reason)
	require.Equal(t, errDown, refusal.Err)
}

func TestRefusalsOfItsOwnAreNotFailures(t *testing.T) {
	b := newBench(t, nil)
	b.open()
	for range 1000 {
		require.Equal(t, outcome.Neutral, outcome.Of(b.refused()).Class)
	}
	b.pass(5 * time.Second)
	b.call(3, success)
	require.Equal(t, breaker.Closed, b.State())
	require.Equal(t, 1, b.Snapshot(b.now).Opens)
}

func TestResultsOfAnEarlierPeriodHaveNoEffect(t *testing.T) {
	t.Run("late success after opening", func(t *testing.T) {
		b := newBench(t, nil)
		late := []*breaker.Lease{b.lease(), b.lease(), b.lease()}
		b.probing()
		probe := b.lease()
		for _, l := range late {
			l.Done(b.now, success)
		}
		require.Equal(t, breaker.HalfOpen, b.State())
		probe.Done(b.now, failure)
		require.Equal(t, breaker.Open, b.State())
	})
	t.Run("late failures after closing", func(t *testing.T) {
		b := newBench(t, nil)
		late := make([]*breaker.Lease, 100)
		for i := range late {
			late[i] = b.lease()
		}
		b.probing()
		b.call(3, success)
		for _, l := range late {
			l.Done(b.now, failure)
		}
		require.Equal(t, breaker.Closed, b.State())
		require.Zero(t, b.Snapshot(b.now).Calls)
	})
	t.Run("late probe after reopening", func(t *testing.T) {
		b := newBench(t, nil)
		b.probing()
		first, second := b.lease(), b.lease()
		first.Done(b.now, failure)
		second.Done(b.now, failure)
		require.Equal(t, 2, b.Snapshot(b.now).Opens, "opened twice, not three times")
	})
	t.Run("a body that breaks after the breaker has closed", func(t *testing.T) {
		b := newBench(t, nil)
		b.probing()
		probe := b.lease()
		probe.Answered(b.now, success)
		b.call(2, success)
		require.Equal(t, breaker.Closed, b.State())
		probe.Done(b.now, failure)
		require.Equal(t, breaker.Closed, b.State())
		require.Zero(t, b.Snapshot(b.now).Failures)
	})
}

func TestRampUpAdmitsAShareThatGrowsEvenly(t *testing.T) {
	b := newBench(t, exact(breaker.Config{RampUp: 10 * time.Second}))
	b.probing()
	b.call(3, success)
	require.Equal(t, breaker.Closed, b.State())
	b.call(1, success) // the first comes through at once
	refusal := b.refused()
	require.Equal(t, breaker.ReasonRampingUp, refusal.Reason)
	require.ErrorIs(t, refusal, breaker.ErrOpen)

	for percent := 10; percent < 100; percent += 10 {
		b.pass(time.Second)
		admitted := 0
		for range 1000 {
			if l, err := b.Acquire(b.now); err == nil {
				admitted++
				l.Done(b.now, success)
			}
		}
		require.InDelta(t, percent*10, admitted, 1)
	}
	b.pass(time.Second)
	b.call(1000, success)
}

func TestAFailingRampUpOpensAgainForLonger(t *testing.T) {
	b := newBench(t, exact(breaker.Config{RampUp: 10 * time.Second}))
	b.probing()
	b.call(3, success)
	b.pass(5 * time.Second)
	for b.State() == breaker.Closed {
		if l, err := b.Acquire(b.now); err == nil {
			l.Done(b.now, failure)
		}
	}
	require.Equal(t, 10*time.Second, b.refused().RetryAfter)
}

func TestReadySaysWhetherACallWouldComeThroughAndTakesNothing(t *testing.T) {
	b := newBench(t, exact(breaker.Config{Probes: 1}))
	require.True(t, b.Ready(b.now))
	b.open()
	require.False(t, b.Ready(b.now))
	b.pass(5 * time.Second)
	for range 100 {
		require.True(t, b.Ready(b.now))
	}
	require.Equal(t, breaker.Open, b.State(), "who asks does not probe")
	probe := b.lease()
	require.False(t, b.Ready(b.now), "the only probe is out")
	probe.Done(b.now, success)
	require.True(t, b.Ready(b.now))
	b.ForceOpen()
	require.False(t, b.Ready(b.now.Add(time.Hour)))
	b.Disable()
	b.open()
	require.True(t, b.Ready(b.now), "whatever it would do")
}

func TestSnapshotSaysWhenAProbeMayComeThrough(t *testing.T) {
	b := newBench(t, nil)
	require.Zero(t, b.Snapshot(b.now).Until)
	b.open()
	s := b.Snapshot(b.now)
	require.Equal(t, 5*time.Second, s.Until.Sub(b.now))
	require.Equal(t, "orders", s.Key)
	require.Equal(t, breaker.Auto, s.Mode)
	b.pass(5 * time.Second)
	for range 3 {
		b.lease()
	}
	s = b.Snapshot(b.now)
	require.Equal(t, breaker.HalfOpen, s.State)
	require.Equal(t, 10*time.Second, s.Until.Sub(b.now), "when the first probe loses its place")
}

// A simulation's clock may stand anywhere and bear no monotonic reading.
func TestAClockThatBeganLongAgoWorksLikeAnyOther(t *testing.T) {
	for _, start := range []time.Time{time.Unix(0, 0), time.Now().AddDate(100, 0, 0)} {
		b := newBench(t, nil)
		b.now = start
		b.call(10, failure)
		b.pass(9 * time.Second)
		b.call(9, failure)
		require.EqualValues(t, 19, b.Snapshot(b.now).Calls)
		b.pass(9 * time.Second)
		require.EqualValues(t, 9, b.Snapshot(b.now).Calls)
		b.call(11, failure)
		require.Equal(t, 5*time.Second, b.refused().RetryAfter)
		b.pass(5 * time.Second)
		b.call(3, success)
		require.Equal(t, breaker.Closed, b.State())
	}
}

func TestATimeOfTheCallersMayBeALittleOld(t *testing.T) {
	b := newBench(t, nil)
	b.call(10, failure)
	b.pass(-3 * time.Second)
	b.call(10, failure)
	require.Equal(t, breaker.Open, b.State(), "time does not go back: all count as of now")
}

// The error that a nil-safe caller keeps must not be a typed nil.
func TestAcquireReturnsAPlainNilError(t *testing.T) {
	b := newBench(t, nil)
	_, err := b.Acquire(time.Time{})
	require.True(t, err == nil)
	var refusal *breaker.OpenError
	require.False(t, errors.As(err, &refusal))
}

func TestConcurrentUseInEveryStateIsOrderly(t *testing.T) {
	b := newBench(t, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if l, err := b.Acquire(time.Time{}); err == nil {
					l.Answered(time.Time{}, success)
					l.Done(time.Time{}, failure)
				}
				b.Ready(time.Time{})
				b.Snapshot(time.Time{})
			}
		})
	}
	wg.Wait()
	require.Equal(t, breaker.Open, b.State())
	require.Equal(t, 1, b.Snapshot(time.Time{}).Opens)
}

func TestTheSuccessPathDoesNotAllocate(t *testing.T) {
	for name, cfg := range map[string]*breaker.Config{
		"defaults": nil, "all on": {SlowTime: time.Second, Consecutive: 5},
	} {
		b := newBench(t, cfg)
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			l, _ := b.Acquire(time.Time{})
			l.Answered(time.Time{}, success)
			l.Done(time.Time{}, success)
		}), name)
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			l, _ := b.Acquire(time.Time{})
			l.Done(time.Time{}, success)
		}), name)
	}
}
