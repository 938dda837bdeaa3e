package breaker_test

import (
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

// Everything at once: whatever happens, there are never more probes out than may
// be, events alternate, and the breaker is of use afterwards.
func TestStressOfEveryMethodAtOnce(t *testing.T) {
	const probes = 3
	r := new(recorder)
	cfg := &breaker.Config{
		Observer: r, MinCalls: 5, Window: time.Millisecond, OpenTime: 10 * time.Microsecond, MaxOpenTime: 50 * time.Microsecond,
		Probes: probes, ProbeTimeout: time.Hour, ProbeInterval: -1, SlowTime: 100 * time.Microsecond, Consecutive: 10,
	}
	b, err := breaker.New("stress", cfg)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 0))
			for range 5000 {
				switch n := random.IntN(1000); {
				case n == 0:
					b.Reset()
				case n == 1:
					b.ForceOpen()
				case n == 2:
					b.ForceClosed()
				case n == 3:
					b.Disable()
				case n < 10:
					b.Release()
				case n == 10:
					if err := b.Update(cfg); err != nil {
						t.Error(err)
					}
				case n < 20:
					if s := b.Snapshot(time.Time{}); s.Calls < 0 || s.Failures < 0 || s.FailureRate > 1 || s.SlowRate > 1 {
						t.Errorf("snapshot %+v", s)
					}
				default:
					l, err := b.Acquire(time.Time{})
					if err != nil {
						b.Ready(time.Time{})
						continue
					}
					if random.IntN(2) == 0 {
						l.Answered(time.Time{}, outcome.Outcome{Class: outcome.Class(random.IntN(2))})
					}
					l.Done(time.Time{}, outcome.Outcome{Class: outcome.Class(random.IntN(4))})
				}
			}
		})
	}
	wg.Wait()
	b.Release()
	path := r.path(t)
	require.Equal(t, b.State(), path[len(path)-1])
	require.Greater(t, len(path), 100)
	b.Reset()
	require.NoError(t, b.Run(t.Context(), returns(nil)))
}

func TestStressOfProbesNeverHasMoreOutThanMayBe(t *testing.T) {
	const probes = 3
	b, err := breaker.New("stress", &breaker.Config{
		MinCalls: 1, OpenTime: time.Nanosecond, MaxOpenTime: time.Nanosecond, Probes: probes, ProbeInterval: -1, Jitter: -1,
	})
	require.NoError(t, err)
	for round := range 500 {
		b.Reset()
		trip, err := b.Acquire(time.Time{})
		require.NoError(t, err)
		trip.Done(time.Time{}, failure)
		require.Equal(t, breaker.Open, b.State())

		var admitted atomic.Int64
		start, verdict := make(chan struct{}), make(chan struct{})
		var asked, wg sync.WaitGroup
		asked.Add(8)
		for range 8 {
			wg.Go(func() {
				<-start
				l, err := b.Acquire(time.Time{})
				asked.Done()
				if err == nil {
					admitted.Add(1)
					<-verdict
					l.Done(time.Time{}, success)
				}
			})
		}
		close(start)
		asked.Wait()
		close(verdict)
		wg.Wait()
		require.EqualValues(t, probes, admitted.Load(), "round %d", round)
		require.Equal(t, breaker.Closed, b.State())
	}
}

func TestStressOfAGroupKeepsItsBound(t *testing.T) {
	const keys, bound = 200, 50
	g, err := breaker.NewGroup(&breaker.GroupConfig{Config: breaker.Config{MinCalls: 1}, MaxKeys: bound})
	require.NoError(t, err)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 1))
			for range 5000 {
				key := strconv.Itoa(random.IntN(keys))
				if random.IntN(20) == 0 {
					g.Remove(key)
					continue
				}
				b := g.Get(key)
				if b.Key() != key {
					t.Errorf("got %s for %s", b.Key(), key)
				}
				if l, err := b.Acquire(time.Time{}); err == nil {
					l.Done(time.Time{}, outcome.Outcome{Class: outcome.Class(random.IntN(2))})
				}
				if n := g.Len(); n > bound {
					t.Errorf("%d breakers", n)
				}
			}
		})
	}
	wg.Wait()
}
