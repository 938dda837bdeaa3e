package breaker_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

func TestHalfOpenAdmitsExactlyPProbesUnderHundredCallers(t *testing.T) {
	for _, probes := range []int{1, 3, 10} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, exact(breaker.Config{Probes: probes}))
			b.call(20, failure)
			time.Sleep(time.Until(b.Snapshot(time.Time{}).Until))

			var admitted, refused atomic.Int64
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() {
					l, err := b.Acquire(time.Time{})
					if err != nil {
						refused.Add(1)
						return
					}
					admitted.Add(1)
					time.Sleep(5 * time.Second) // a peer that hangs
					l.Done(time.Time{}, failure)
				})
			}
			wg.Wait()
			require.EqualValues(t, probes, admitted.Load())
			require.EqualValues(t, 100-probes, refused.Load())
			require.Equal(t, breaker.Open, b.State())
			require.Equal(t, 2, b.Snapshot(time.Time{}).Opens)
		})
	}
}

func TestProbesThatSucceedAtOnceAreNotReplaced(t *testing.T) {
	b := newBench(t, nil)
	b.probing()
	waiting := b.lease()
	b.call(2, success)
	require.Equal(t, breaker.HalfOpen, b.State())
	b.refused() // two have succeeded, one is out: that is all of them
	waiting.Done(b.now, success)
	require.Equal(t, breaker.Closed, b.State())
}

func TestTheFirstProbeThatFailsOpensAgain(t *testing.T) {
	b := newBench(t, nil)
	b.probing()
	b.call(2, success)
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State())
	require.Equal(t, 10*time.Second, b.refused().RetryAfter)
}

func TestASlowProbeOpensAgain(t *testing.T) {
	b := newBench(t, exact(breaker.Config{SlowTime: time.Second}))
	b.probing()
	l := b.lease()
	b.pass(time.Second)
	l.Done(b.now, success)
	require.Equal(t, breaker.Open, b.State())
}

func TestAProbeIsJudgedAtItsAnswerNotAtItsEnd(t *testing.T) {
	b := newBench(t, nil)
	b.probing()
	for range 3 {
		l := b.lease()
		l.Answered(b.now, success)
		defer l.Done(b.now, success) // a stream of hours
	}
	require.Equal(t, breaker.Closed, b.State())
}

func TestAProbesBodyThatBreaksOpensAgain(t *testing.T) {
	b := newBench(t, nil)
	b.probing()
	l := b.lease()
	l.Answered(b.now, success)
	require.Equal(t, breaker.HalfOpen, b.State())
	l.Done(b.now, failure)
	require.Equal(t, breaker.Open, b.State())
	require.Equal(t, 2, b.Snapshot(b.now).Opens)
}

func TestANeutralProbeGivesItsPlaceBackButKeepsThePace(t *testing.T) {
	for _, o := range []outcome.Outcome{neutral, throttled} {
		t.Run(o.Class.String(), func(t *testing.T) {
			b := newBench(t, nil)
			b.probing()
			b.call(3, o)
			require.Equal(t, breaker.HalfOpen, b.State())
			refusal := b.refused()
			require.Equal(t, breaker.ReasonProbing, refusal.Reason)
			require.Equal(t, time.Second, refusal.RetryAfter)

			admitted := 0
			for range 1002 { // ten seconds of callers at 100 a second
				b.pass(10 * time.Millisecond)
				if l, err := b.Acquire(b.now); err == nil {
					admitted++
					l.Done(b.now, o)
				}
			}
			require.Equal(t, 30, admitted, "three a second")
			b.pass(time.Second)
			b.call(3, success)
			require.Equal(t, breaker.Closed, b.State())
		})
	}
	t.Run("one that took longer is replaced at once", func(t *testing.T) {
		b := newBench(t, exact(breaker.Config{Probes: 1}))
		b.probing()
		l := b.lease()
		b.pass(2 * time.Second)
		b.refused()
		l.Done(b.now, neutral)
		b.call(1, success)
		require.Equal(t, breaker.Closed, b.State())
	})
	t.Run("no pace if so configured", func(t *testing.T) {
		b := newBench(t, exact(breaker.Config{Probes: 1, ProbeInterval: -1}))
		b.probing()
		b.call(100, neutral)
		require.Equal(t, breaker.HalfOpen, b.State())
	})
}

func TestAProbeThatIsNeverReturnedLosesItsPlace(t *testing.T) {
	b := newBench(t, exact(breaker.Config{Probes: 1}))
	b.probing()
	lost := b.lease()
	b.pass(10*time.Second - 1)
	b.refused()
	b.pass(1)
	second := b.lease()
	b.refused()

	// The first answers at last. It neither frees nor settles the second's place.
	lost.Answered(b.now, success)
	require.Equal(t, breaker.HalfOpen, b.State())
	b.refused()
	lost.Done(b.now, failure)
	require.Equal(t, breaker.HalfOpen, b.State())
	require.Zero(t, b.Snapshot(b.now).Calls, "nor is it counted")

	second.Done(b.now, success)
	require.Equal(t, breaker.Closed, b.State())
}

func TestAnExpiredLeaseCannotGiveANewerOnesPlaceBack(t *testing.T) {
	b := newBench(t, exact(breaker.Config{Probes: 1, ProbeInterval: -1}))
	b.probing()
	lost := b.lease()
	b.pass(10 * time.Second)
	b.lease()
	lost.Done(b.now, neutral)
	b.refused()
}

func TestALateAnswerCountsIfNobodyTookItsPlace(t *testing.T) {
	b := newBench(t, exact(breaker.Config{Probes: 1}))
	b.probing()
	l := b.lease()
	b.pass(time.Minute)
	l.Done(b.now, failure)
	require.Equal(t, breaker.Open, b.State(), "it is news, and nobody else's")
}
