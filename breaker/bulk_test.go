package breaker_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
)

func TestSucceededCountsCallsAtTheirTime(t *testing.T) {
	b := newBench(t, nil)
	b.Succeeded(b.now, 7)
	b.pass(5 * time.Second)
	b.Succeeded(b.now, 100)
	s := b.Snapshot(b.now)
	require.EqualValues(t, 107, s.Calls)
	require.Zero(t, s.Failures)
	b.pass(6 * time.Second) // the first are more than a window old, the others not
	require.EqualValues(t, 100, b.Snapshot(b.now).Calls)
	b.pass(5 * time.Second)
	require.Zero(t, b.Snapshot(b.now).Calls)
}

func TestSucceededOfBeforeTheCurrentStepCountsInItsOwn(t *testing.T) {
	b := newBench(t, nil)
	b.pass(5 * time.Second)
	b.call(1, success)
	b.Succeeded(b.now.Add(-2*time.Second), 9)
	b.pass(7 * time.Second)
	require.EqualValues(t, 10, b.Snapshot(b.now).Calls)
	b.pass(1500 * time.Millisecond) // a window after the time they are of
	require.EqualValues(t, 1, b.Snapshot(b.now).Calls)
}

func TestSucceededOfBeforeTheWindowCountsNothing(t *testing.T) {
	b := newBench(t, nil)
	b.pass(time.Hour)
	b.call(1, failure)
	b.Succeeded(b.now.Add(-11*time.Second), 1000)
	b.Succeeded(b.now.Add(-time.Hour), 1000)
	require.EqualValues(t, 1, b.Snapshot(b.now).Calls)
}

// A metrics page must not decide when a breaker opens.
func TestSnapshotMakesNoOldSuccessesYoung(t *testing.T) {
	b := newBench(t, nil)
	of := b.now
	for range 60 {
		b.pass(time.Minute)
		require.Zero(t, b.Snapshot(b.now).Calls)
	}
	b.Succeeded(of, 1000) // they are told only now that one fails
	b.call(19, failure)
	require.EqualValues(t, 19, b.Snapshot(b.now).Calls)
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State())
}

func TestSnapshotChangesNothing(t *testing.T) {
	b := newBench(t, nil)
	b.call(5, failure)
	require.Zero(t, b.Snapshot(b.now.Add(time.Hour)).Calls, "what it will be by then")
	require.EqualValues(t, 5, b.Snapshot(b.now).Calls)
}

// Whenever successes are told and whoever looks in between, what the window holds
// is those of its own time.
func TestSucceededCountsByItsTimeInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in which the breaker begins at the bench's time
		for seed := range uint64(100) {
			random := rand.New(rand.NewPCG(seed, 2))
			b := newBench(t, nil)
			start := b.now
			b.pass(time.Minute)
			told := make(map[time.Duration]int) // by the second they are of
			for step := range 200 {
				switch random.IntN(3) {
				case 0:
					b.pass(time.Duration(random.Int64N(int64(3 * time.Second))))
				case 1:
					of := b.now.Add(-time.Duration(random.Int64N(int64(15 * time.Second))))
					n := 1 + random.IntN(9)
					b.Succeeded(of, n)
					told[of.Sub(start)/time.Second] += n
				default:
					want := 0
					for i := range time.Duration(10) {
						want += told[b.now.Sub(start)/time.Second-i]
					}
					require.EqualValues(t, want, b.Snapshot(b.now).Calls, "seed %d, step %d", seed, step)
				}
			}
		}
	})
}

func TestSucceededWithoutATimeIsNow(t *testing.T) {
	b := newBench(t, nil)
	b.Succeeded(time.Time{}, 3)
	require.EqualValues(t, 3, b.Snapshot(time.Time{}).Calls)
}

func TestSucceededOfNoneCountsNothing(t *testing.T) {
	b := newBench(t, nil)
	b.call(5, success)
	b.Succeeded(b.now, 0)
	b.Succeeded(b.now, -3)
	require.EqualValues(t, 5, b.Snapshot(b.now).Calls)
}

func TestSucceededKeepsTheRateDown(t *testing.T) {
	b := newBench(t, nil)
	b.Succeeded(b.now, 100)
	b.call(99, failure)
	require.Equal(t, breaker.Closed, b.State())
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State(), "half of all calls have failed")
}

func TestSucceededMakesUpTheCallsThatARateNeeds(t *testing.T) {
	b := newBench(t, nil)
	b.call(10, failure)
	b.Succeeded(b.now, 10)
	require.Equal(t, breaker.Closed, b.State(), "a success opens no breaker")
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State())
}

func TestSucceededLeavesFailuresInARowAndSlowCallsAlone(t *testing.T) {
	b := newBench(t, exact(breaker.Config{Consecutive: 3, FailureRate: -1, SlowTime: time.Second}))
	b.call(2, failure)
	b.Succeeded(b.now, 1000)
	require.Zero(t, b.Snapshot(b.now).Slow)
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State())
}

func TestSucceededHasNoEffectWhileTheBreakerIsNotClosed(t *testing.T) {
	for name, bring := range map[string]func(*bench){
		"open":          (*bench).open,
		"forced open":   func(b *bench) { b.ForceOpen() },
		"open unheeded": func(b *bench) { b.open(); b.Disable() },
		"half-open": func(b *bench) {
			b.probing()
			b.lease()
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, r := observed(t, breaker.Config{})
			bring(b)
			state, events, before := b.State(), len(r.all()), b.Snapshot(b.now)
			require.NotEqual(t, breaker.Closed, state)
			b.Succeeded(b.now, 100)
			require.Equal(t, before, b.Snapshot(b.now))
			require.Len(t, r.all(), events)
			b.Release()
			b.Reset()
			require.Equal(t, breaker.Closed, b.State())
			require.Zero(t, b.Snapshot(b.now).Calls, "nor later")
		})
	}
}

func TestSucceededIsNoProbe(t *testing.T) {
	b := newBench(t, nil)
	b.probing()
	first := b.lease()
	b.Succeeded(b.now, 100)
	second, third := b.lease(), b.lease()
	b.refused()
	for _, l := range []*breaker.Lease{first, second, third} {
		require.Equal(t, breaker.HalfOpen, b.State())
		l.Done(b.now, success)
	}
	require.Equal(t, breaker.Closed, b.State())
}

func TestSucceededCountsWhereTheBreakerIsClosedWhateverItsMode(t *testing.T) {
	for name, force := range map[string]func(*bench){
		"forced closed":           func(b *bench) { b.ForceClosed() },
		"forced closed when open": func(b *bench) { b.open(); b.ForceClosed() },
		"disabled":                func(b *bench) { b.Disable() },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			force(b)
			b.Succeeded(b.now, 12)
			require.EqualValues(t, 12, b.Snapshot(b.now).Calls)
		})
	}
}

// To count successes at once is to count as many leases, whatever happens
// between.
func TestSucceededEqualsAsManyLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in which both breakers begin at the same time
		for seed := range uint64(200) {
			random := rand.New(rand.NewPCG(seed, 1))
			cfg := exact(breaker.Config{Window: time.Duration(1+random.IntN(5)) * time.Second, MinCalls: 1 + random.IntN(50)})
			bulk, single := newBench(t, cfg), newBench(t, cfg)
			opened := 0
			for step := range 300 {
				n := random.IntN(30)
				switch random.IntN(4) {
				case 0:
					d := time.Duration(random.Int64N(int64(cfg.Window)))
					bulk.pass(d)
					single.pass(d)
				case 1:
					for _, b := range []*bench{bulk, single} {
						for range n {
							if l, err := b.Acquire(b.now); err == nil {
								l.Done(b.now, failure)
							}
						}
					}
				default:
					bulk.Succeeded(bulk.now, n)
					for range n {
						if single.State() == breaker.Closed {
							single.lease().Done(single.now, success)
						}
					}
				}
				require.Equal(t, single.Snapshot(single.now), bulk.Snapshot(bulk.now), "seed %d, step %d", seed, step)
				if bulk.State() != breaker.Closed && random.IntN(4) == 0 {
					opened++
					bulk.Reset()
					single.Reset()
				}
			}
			require.Positive(t, opened, "seed %d opens nothing", seed)
		}
	})
}

func TestSucceededLosesNoCallsOfManyAtOnce(t *testing.T) {
	b := newBench(t, nil)
	const callers, each = 8, 1000
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				b.Succeeded(b.now, 3)
				l, err := b.Acquire(b.now)
				if err == nil {
					l.Done(b.now, success)
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, callers*each*4, b.Snapshot(b.now).Calls)
}

func TestSucceededDoesNotAllocate(t *testing.T) {
	b := newBench(t, nil)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		b.pass(time.Second / 3)
		b.Succeeded(b.now, 5)
	}))
}
