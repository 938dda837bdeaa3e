package limit_test

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/limit"
)

// Cancels and timeouts that come at the very moment of the admission must not
// lose the permit, nor make one.
func TestStressOfCancelsAtTheMomentOfAdmission(t *testing.T) {
	const permits = 2
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: permits, Queue: 6, MaxWait: 50 * time.Microsecond})
	var under, admitted, refused atomic.Int64
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 0))
			for range 3000 {
				ctx, cancel := context.WithCancel(limit.WithPriority(context.Background(), limit.Priority(random.IntN(3)-1)))
				if random.IntN(2) == 0 {
					go cancel()
				}
				l, err := c.Acquire(ctx)
				if err == nil {
					admitted.Add(1)
					if n := under.Add(1); n > permits {
						t.Errorf("%d under way", n)
					}
					if random.IntN(10) == 0 {
						for range random.IntN(100) {
							runtime.Gosched() // the race is the point
						}
					}
					under.Add(-1)
					l.Done()
				} else {
					refused.Add(1)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	require.NotZero(t, admitted.Load())
	require.NotZero(t, refused.Load())
	require.Zero(t, c.InFlight())
	require.Zero(t, c.Waiting())
	require.Len(t, fill(t, c), permits, "all permits are still there")
}

// The permit may come back between the look that found none and the place in the
// queue; nobody else will ever return one.
func TestStressOfReturnsAtTheMomentOfQueueing(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 1, MaxWait: 10 * time.Second})
	for range 20_000 {
		held, err := c.TryAcquire()
		require.NoError(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			l, err := c.Acquire(t.Context())
			if err != nil {
				t.Error(err)
			}
			l.Done()
		})
		runtime.Gosched()
		held.Done()
		wg.Wait()
		if t.Failed() {
			return
		}
	}
}

func TestStressOfRoomThatComesAndGoes(t *testing.T) {
	c := newConcurrency(t, limit.ConcurrencyConfig{Max: 1, Queue: 100, MaxWait: -1})
	stop := make(chan struct{})
	var config, wg sync.WaitGroup
	config.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				if err := c.Update(&limit.ConcurrencyConfig{Max: 1 + n%4, Queue: 100, MaxWait: -1}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				l, err := c.Acquire(t.Context())
				if err != nil {
					t.Error(err)
				}
				l.Done()
			}
		})
	}
	wg.Wait() // nobody is forgotten in the queue
	close(stop)
	config.Wait()
	require.Zero(t, c.InFlight())
	require.Zero(t, c.Waiting())
}

func TestStressOfWaitersForARate(t *testing.T) {
	const each, perSecond = 200, 20_000
	r := newRate(t, limit.RateConfig{Limit: perSecond, Burst: 1, MaxWait: -1})
	start := time.Now()
	var served atomic.Int64
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 0))
			for range each {
				ctx, cancel := context.WithCancel(context.Background())
				if random.IntN(2) == 0 {
					go cancel()
				}
				if r.Wait(ctx) == nil {
					served.Add(1)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	require.LessOrEqual(t, float64(served.Load()), 2+took.Seconds()*perSecond)
	require.NoError(t, r.Wait(t.Context()), "nobody blocks the line")
}
