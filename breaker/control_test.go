package breaker_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
)

// observed is a bench and what its observer has seen.
func observed(t testing.TB, cfg breaker.Config) (*bench, *recorder) {
	r := new(recorder)
	cfg.Observer = r
	return newBench(t, exact(cfg)), r
}

func TestForceOpenRefusesProbesTooAndReleaseRestoresTheState(t *testing.T) {
	b, r := observed(t, breaker.Config{})
	b.open()
	b.ForceOpen()
	b.ForceOpen()
	b.pass(time.Hour)
	refusal := b.refused()
	require.Equal(t, breaker.ReasonForcedOpen, refusal.Reason)
	require.Zero(t, refusal.RetryAfter)
	require.Zero(t, b.Snapshot(b.now).Until)
	require.Equal(t, breaker.ForcedOpen, b.Snapshot(b.now).Mode)
	b.Reset()
	b.refused()
	require.Len(t, r.all(), 1, "open before, open now")

	b.Release()
	b.Release()
	require.Equal(t, breaker.Closed, b.State(), "it was reset meanwhile")
	require.Equal(t, []breaker.State{breaker.Closed, breaker.Open, breaker.Closed}, r.path(t))
	require.Equal(t, breaker.ReasonReleased, r.all()[1].Reason)
}

func TestReleaseOfForceOpenLetsAnOpenBreakerGoOnWithWhatIsLeft(t *testing.T) {
	b, r := observed(t, breaker.Config{})
	b.open()
	b.pass(time.Second)
	b.ForceOpen()
	b.pass(time.Second)
	b.Release()
	require.Equal(t, 3*time.Second, b.refused().RetryAfter)
	require.Len(t, r.all(), 1)
}

func TestForceOpenOfAClosedBreakerComesAndGoesWithOneEventEach(t *testing.T) {
	b, r := observed(t, breaker.Config{})
	b.ForceOpen()
	for range 100 {
		b.refused()
	}
	b.Release()
	b.call(100, success)
	require.Equal(t, []breaker.State{breaker.Closed, breaker.Open, breaker.Closed}, r.path(t))
	require.Equal(t, breaker.ReasonForcedOpen, r.all()[0].Reason)
	require.Zero(t, r.all()[0].Until)
}

func TestForceClosedAdmitsEverythingAndCounts(t *testing.T) {
	b, r := observed(t, breaker.Config{Consecutive: 5})
	b.ForceClosed()
	b.call(1000, failure)
	s := b.Snapshot(b.now)
	require.Equal(t, breaker.Closed, s.State)
	require.Equal(t, breaker.ForcedClosed, s.Mode)
	require.EqualValues(t, 1000, s.Failures)
	require.Empty(t, r.all())
	b.Release()
	require.Equal(t, breaker.Closed, b.State())
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State(), "what was counted still counts")
}

func TestForceClosedOfAnOpenBreakerRestoresItOnRelease(t *testing.T) {
	b, r := observed(t, breaker.Config{})
	b.open()
	b.ForceClosed()
	b.call(100, failure)
	b.Release()
	require.Equal(t, breaker.Open, b.State())
	require.Equal(t, 5*time.Second, b.refused().RetryAfter)
	require.Equal(t, []breaker.State{breaker.Closed, breaker.Open, breaker.Closed, breaker.Open}, r.path(t))
}

func TestDisabledRecordsAndJudgesButNeverRefuses(t *testing.T) {
	b, r := observed(t, breaker.Config{})
	b.Disable()
	b.call(20, failure)
	require.Equal(t, breaker.Open, b.State(), "what it would do")
	b.call(50, failure)
	s := b.Snapshot(b.now)
	require.EqualValues(t, 50, s.Failures, "it goes on counting")
	require.Equal(t, 1, s.Opens, "and does not open again and again")

	b.pass(5 * time.Second)
	leases := make([]*breaker.Lease, 100)
	for i := range leases {
		leases[i] = b.lease()
	}
	for _, l := range leases[3:] {
		l.Done(b.now, failure) // no probes: in earnest they would not have been sent
	}
	require.Equal(t, breaker.HalfOpen, b.State())
	for _, l := range leases[:3] {
		l.Done(b.now, success)
	}
	require.Equal(t, []breaker.State{breaker.Closed, breaker.Open, breaker.HalfOpen, breaker.Closed}, r.path(t))

	b.call(20, failure)
	b.Release()
	require.Equal(t, breaker.Open, b.State())
	b.refused()
}

func TestResetClosesInEveryState(t *testing.T) {
	for name, prepare := range map[string]func(*bench){
		"closed":    func(b *bench) { b.call(19, failure) },
		"open":      func(b *bench) { b.open() },
		"half-open": func(b *bench) { b.probing(); b.lease() },
		"ramping":   func(b *bench) { b.probing(); b.call(3, success) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, exact(breaker.Config{RampUp: time.Minute}))
			prepare(b)
			b.Reset()
			b.Reset()
			s := b.Snapshot(b.now)
			require.Equal(t, breaker.Snapshot{Key: "orders"}, s)
			b.call(100, success)
			b.pass(time.Minute)
			b.open()
			require.Equal(t, 5*time.Second, b.refused().RetryAfter, "the doubling is forgotten too")
		})
	}
}

func TestUpdateWhileOpenMovesTheEndOfTheOpenTime(t *testing.T) {
	b := newBench(t, nil)
	b.open()
	b.pass(2 * time.Second)
	require.NoError(t, b.Update(exact(breaker.Config{OpenTime: 20 * time.Second})))
	require.Equal(t, 18*time.Second, b.refused().RetryAfter)
	require.NoError(t, b.Update(exact(breaker.Config{OpenTime: time.Second, Probes: 1})))
	b.call(1, success)
	require.Equal(t, breaker.Closed, b.State())
}

func TestUpdateWhileClosedKeepsWhatTheSameWindowHolds(t *testing.T) {
	b := newBench(t, nil)
	b.call(10, failure)
	require.NoError(t, b.Update(exact(breaker.Config{MinCalls: 11})))
	require.EqualValues(t, 10, b.Snapshot(b.now).Failures)
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State())

	b = newBench(t, nil)
	b.call(10, failure)
	require.NoError(t, b.Update(exact(breaker.Config{Window: time.Minute})))
	require.Zero(t, b.Snapshot(b.now).Calls)
}

func TestUpdateWhileHalfOpenBeginsTheProbesAnew(t *testing.T) {
	b := newBench(t, nil)
	b.probing()
	old := b.lease()
	require.NoError(t, b.Update(exact(breaker.Config{Probes: 1})))
	old.Done(b.now, failure)
	require.Equal(t, breaker.HalfOpen, b.State())
	b.call(1, success)
	require.Equal(t, breaker.Closed, b.State())
}

func TestUpdateThatIsWrongChangesNothing(t *testing.T) {
	b := newBench(t, nil)
	require.ErrorContains(t, b.Update(&breaker.Config{FailureRate: 2}), "breaker: FailureRate is 2, want <= 1")
	b.open()
}

func TestUpdateCanSwitchSlowCallsOnUnderWay(t *testing.T) {
	b := newBench(t, nil)
	before := b.lease()
	require.NoError(t, b.Update(exact(breaker.Config{SlowTime: time.Second})))
	b.pass(time.Minute)
	before.Done(b.now, success)
	require.Zero(t, b.Snapshot(b.now).Slow, "nobody knows when that call began")
}
