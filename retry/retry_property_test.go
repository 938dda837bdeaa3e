package retry_test

import (
	"context"
	"sort"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/retry"
)

// A service that fails altogether gets at most 1.2 times the calls and 100 over
// any 10 seconds, at whatever rate.
func TestTotalOutageIsNotAmplified(t *testing.T) {
	for i, rate := range []int{1, 5, 50, 50, 50, 500, 500, 1000} {
		// The outage begins anywhere in a slice of the budget's window.
		healthy := 12*time.Second + time.Duration(i)*137*time.Millisecond
		synctest.Test(t, func(t *testing.T) {
			r := newRetrier(t, nil)
			var (
				wg       sync.WaitGroup
				mu       sync.Mutex
				calls    []time.Time
				attempts []time.Time
			)
			down := false
			const outage = 25 * time.Second
			interval := time.Second / time.Duration(rate)
			for at := time.Duration(0); at < healthy+outage; at += interval {
				if at >= healthy {
					down = true
				}
				fail := down
				calls = append(calls, time.Now())
				wg.Go(func() {
					_ = r.Run(t.Context(), func(context.Context) error {
						mu.Lock()
						attempts = append(attempts, time.Now())
						mu.Unlock()
						if fail {
							return errBoom
						}
						return nil
					})
				})
				time.Sleep(interval)
			}
			wg.Wait()
			sort.Slice(attempts, func(i, j int) bool { return attempts[i].Before(attempts[j]) })
			require.Greater(t, len(attempts), len(calls), "it retries at all")
			for _, end := range attempts {
				if end.After(calls[len(calls)-1]) {
					break // retries of the last calls, and no calls to compare with
				}
				from := end.Add(-10 * time.Second)
				made := between(attempts, from, end)
				asked := between(calls, from, end)
				if limit := 1.2*float64(asked) + 100; float64(made) > limit {
					t.Fatalf("rate %d: %d attempts for %d calls within 10 s, want at most %v", rate, made, asked, limit)
				}
			}
		})
	}
}

// between counts the times in (from, to] of a sorted list.
func between(times []time.Time, from, to time.Time) int {
	after := func(at time.Time) int {
		return sort.Search(len(times), func(i int) bool { return times[i].After(at) })
	}
	return after(to) - after(from)
}

// After an outage the budget is whole again within one window.
func TestRetriesResumeAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, &retry.Config{Backoff: retry.Backoff{Base: -1}})
		for r.Budget("").Withdraw(time.Time{}) {
		}
		calls := 0
		_, err := retry.Do(t.Context(), r, failing(1, errBoom, &calls))
		require.ErrorIs(t, err, retry.ErrBudget)
		time.Sleep(11 * time.Second)
		calls = 0
		_, err = retry.Do(t.Context(), r, failing(1, errBoom, &calls))
		require.NoError(t, err)
	})
}
