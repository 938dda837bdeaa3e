package retry_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/retry"
)

// budgetModel remembers every call and every extra attempt.
type budgetModel struct{ calls, extra []time.Time }

func within(times []time.Time, now time.Time, window time.Duration) int {
	n := 0
	for _, at := range times {
		if at.After(now.Add(-window)) {
			n++
		}
	}
	return n
}

// Against the model: what is given is never more than the promise over the exact
// window, and what is refused would not fit into it even if the calls of a
// tenth less and the extra attempts of a tenth more counted.
func TestBudgetKeepsItsPromiseOverAnyWindow(t *testing.T) {
	const perSecond, window = 2, 10 * time.Second
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 1))
		ratio := []float64{0.1, 0.2, 1}[rng.IntN(3)]
		b := newBudget(t, &retry.BudgetConfig{Ratio: ratio, PerSecond: perSecond})
		var m budgetModel
		now := time.Now()
		for range 3000 {
			switch rng.IntN(20) {
			case 0:
				now = now.Add(time.Duration(rng.Int64N(int64(3 * time.Second))))
			case 1, 2, 3, 4, 5:
				now = now.Add(time.Duration(rng.Int64N(int64(20 * time.Millisecond))))
			}
			if rng.IntN(3) > 0 {
				b.Deposit(now)
				m.calls = append(m.calls, now)
				continue
			}
			left := b.Balance(now)
			given := b.Withdraw(now)
			require.Equal(t, left > 0, given)
			if given {
				m.extra = append(m.extra, now)
				promise := ratio*float64(within(m.calls, now, window)) + perSecond*window.Seconds()
				require.LessOrEqual(t, float64(within(m.extra, now, window)), promise+1e-6)
			} else {
				least := ratio*float64(within(m.calls, now, window-window/10)) + perSecond*window.Seconds()
				require.Greater(t, float64(within(m.extra, now, window+window/10)+1), least-1e-6)
			}
		}
		require.NotEmpty(t, m.extra)
	}
}
