package retry_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/retry"
)

// Ten thousand callers that are told to come back in a second do not come back
// together: no slot of 100 ms has more than 15 % of them.
func TestCallersWithTheSameHintAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const callers = 10_000
		var slots [10]atomic.Int64
		begin := time.Now()
		rt := newRetrier(t, &retry.Config{Budget: unlimited(t)}).Layer(roundTripper(func(req *http.Request) (*http.Response, error) {
			since := time.Since(begin)
			if since == 0 {
				return replies(503, "busy", "Retry-After", "1")(req)
			}
			slots[(since-time.Second)/(100*time.Millisecond)].Add(1) // or panic: not before 1 s, nor after 2 s
			return replies(200, "ok")(req)
		}))
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				resp, err := rt.RoundTrip(newRequest(t, t.Context(), "GET", nil))
				if err != nil || resp.StatusCode != 200 {
					t.Error(resp, err)
					return
				}
				_ = resp.Body.Close()
			})
		}
		wg.Wait()
		all := int64(0)
		for i := range slots {
			n := slots[i].Load()
			all += n
			require.LessOrEqual(t, n, int64(callers*15/100), "slot %d", i)
		}
		require.EqualValues(t, callers, all)
	})
}

// A service is down for half a minute; then every tenth call fails once. Within
// one window of the budget all of those are tried again.
func TestRetriesResumeWithinOneWindowAfterAnOutage(t *testing.T) {
	for _, rate := range []int{1, 20, 500} {
		synctest.Test(t, func(t *testing.T) {
			const outage, window = 30 * time.Second, 10 * time.Second
			r := newRetrier(t, nil)
			begin := time.Now()
			interval := time.Second / time.Duration(rate)
			var (
				wg             sync.WaitGroup
				refused, saved atomic.Int64
			)
			for i := 0; time.Since(begin) < outage+2*window; i++ {
				since := time.Since(begin)
				wg.Go(func() {
					attempts := 0
					err := r.Run(t.Context(), func(context.Context) error {
						attempts++
						if since < outage || i%10 == 0 && attempts == 1 {
							return errBoom
						}
						return nil
					})
					switch {
					case since < outage:
						if errors.Is(err, retry.ErrBudget) {
							refused.Add(1)
						}
					case since >= outage+window && err != nil:
						t.Errorf("at rate %d, %v after the outage: %v", rate, since-outage, err)
					case attempts > 1:
						saved.Add(1)
					}
				})
				time.Sleep(interval)
			}
			wg.Wait()
			require.Equal(t, rate > 5, refused.Load() > 0, "at rate %d the budget was used up", rate)
			require.Positive(t, saved.Load())
		})
	}
}
