package retry_test

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/retry"
)

func TestFirstRequestEverMayRetry(t *testing.T) {
	b := newBudget(t, nil)
	require.Equal(t, 100, b.Balance(time.Time{}))
	b.Deposit(time.Time{})
	require.True(t, b.Withdraw(time.Time{}))
}

func TestBudgetIsAShareOfTheCallsAndAReserve(t *testing.T) {
	b := newBudget(t, &retry.BudgetConfig{Ratio: 0.2, PerSecond: -1})
	now := time.Now()
	require.False(t, b.Withdraw(now))
	for i := 1; i <= 100; i++ {
		b.Deposit(now)
		require.Equal(t, i/5, b.Balance(now))
	}
	for range 20 {
		require.True(t, b.Withdraw(now))
	}
	require.False(t, b.Withdraw(now))
	require.Zero(t, b.Balance(now))
}

func TestBudgetRefillsWithinOneWindow(t *testing.T) {
	b := newBudget(t, nil)
	now := time.Now()
	for b.Withdraw(now) {
	}
	require.False(t, b.Withdraw(now.Add(9*time.Second)))
	require.Equal(t, 100, b.Balance(now.Add(11*time.Second)))
}

func TestCallsAreForgottenAfterTheWindow(t *testing.T) {
	b := newBudget(t, &retry.BudgetConfig{PerSecond: -1})
	now := time.Now()
	for range 50 {
		b.Deposit(now)
	}
	require.Equal(t, 10, b.Balance(now))
	require.Equal(t, 10, b.Balance(now.Add(8*time.Second)))
	require.Zero(t, b.Balance(now.Add(10*time.Second)))
}

func TestBudgetThatIsOffRefusesNothing(t *testing.T) {
	b := unlimited(t)
	for range 10_000 {
		require.True(t, b.Withdraw(time.Time{}))
	}
	require.Equal(t, math.MaxInt, b.Balance(time.Time{}))
}

func TestTimeThatStepsBackChangesNothing(t *testing.T) {
	b := newBudget(t, nil)
	now := time.Now().Add(time.Hour)
	for b.Withdraw(now) {
	}
	for _, step := range []time.Duration{-time.Second, -time.Hour, -1000 * time.Hour} {
		b.Deposit(now.Add(step))
		require.False(t, b.Withdraw(now.Add(step)))
	}
	require.False(t, b.Withdraw(now))
}

func TestThousandGoroutinesNeverExceedTheBudget(t *testing.T) {
	b := newBudget(t, nil)
	now := time.Now()
	var (
		wg    sync.WaitGroup
		taken atomic.Int64
	)
	for range 1000 {
		wg.Go(func() {
			b.Deposit(now)
			for range 3 {
				if b.Withdraw(now) {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, taken.Load(), int64(300))
	require.GreaterOrEqual(t, taken.Load(), int64(100))
	for b.Withdraw(now) {
		taken.Add(1)
	}
	require.EqualValues(t, 300, taken.Load(), "none is lost either")
}

func TestBudgetAllocatesNothing(t *testing.T) {
	b := newBudget(t, nil)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		now := time.Now()
		b.Deposit(now)
		b.Withdraw(now)
		b.Balance(now)
	}))
}

// Goroutines with clocks that differ by a little turn the slices together.
func TestBudgetUnderConcurrentTurns(t *testing.T) {
	b := newBudget(t, &retry.BudgetConfig{Window: time.Millisecond, Ratio: 0.5, PerSecond: -1})
	start := time.Now()
	var (
		wg                 sync.WaitGroup
		calls, withdrawals atomic.Int64
	)
	for range 8 {
		wg.Go(func() {
			for i := range 5000 {
				now := start.Add(time.Duration(i) * 10 * time.Microsecond)
				b.Deposit(now)
				calls.Add(1)
				if b.Withdraw(now) {
					withdrawals.Add(1)
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, withdrawals.Load()*2, calls.Load()+8*1000)
	require.Zero(t, b.Balance(start.Add(time.Hour)))
}

func TestBudgetsAreApartByHostAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, nil)
		dead, live := r.Budget("dead"), r.Budget("live")
		require.NotSame(t, dead, live)
		require.Same(t, dead, r.Budget("dead"))
		for dead.Withdraw(time.Time{}) {
		}
		require.True(t, live.Withdraw(time.Time{}))
		seen := map[*retry.Budget]bool{}
		for i := range 3000 {
			seen[r.Budget(string(rune('a'+i%26))+time.Duration(i).String())] = true
		}
		require.LessOrEqual(t, len(seen), 1025)
		require.Same(t, dead, r.Budget("dead"))

		shared := newBudget(t, nil)
		r = newRetrier(t, &retry.Config{Budget: shared})
		require.Same(t, shared, r.Budget("a"))
		require.Same(t, shared, r.Budget(""))
	})
}

// They are looked up with every call, as the others are.
func TestHostsBeyondThoseWithABudgetCostNothingMore(t *testing.T) {
	r := newRetrier(t, nil)
	for i := range 1100 {
		r.Budget(time.Duration(i).String())
	}
	require.Zero(t, testing.AllocsPerRun(100, func() { r.Budget("beyond") }))
}
