package cache_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/cache"
)

// TestReadsNeverGetWhatWasChangedBefore: clients change a resource and read it
// at the same time, slowly and in part, through caches with and without
// coalescing. What a read gets was the resource's state when it began or later.
func TestReadsNeverGetWhatWasChangedBefore(t *testing.T) {
	for _, coalesce := range []time.Duration{0, 5 * time.Millisecond} {
		t.Run(coalesce.String(), func(t *testing.T) {
			var state, floor atomic.Int64
			h := newHTTP(t, &cache.HTTPConfig{Coalesce: coalesce, MaxBytes: 1 << 20, MaxBody: 1 << 17})
			rt := h.Layer(&transport{do: func(req *http.Request) (*http.Response, error) {
				if req.Method == http.MethodPut {
					state.Add(1)
					return text(""), nil
				}
				now := strconv.FormatInt(state.Load(), 10)
				return text(strings.Repeat(now+" ", 1+rand.IntN(5000))), nil
			}})
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for range 1000 {
						oldest := floor.Load()
						resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
						if err != nil {
							t.Error(err)
							return
						}
						if rand.IntN(10) == 0 {
							_, _ = resp.Body.Read(make([]byte, 10))
							_ = resp.Body.Close()
							continue
						}
						body, err := io.ReadAll(resp.Body)
						_ = resp.Body.Close()
						words := strings.Fields(string(body))
						got, _ := strconv.ParseInt(words[0], 10, 64)
						if err != nil || got < oldest || strings.Count(string(body), words[0]+" ") != len(words) {
							t.Errorf("got %d in %d words, %v; want at least %d", got, len(words), err, oldest)
							return
						}
					}
				})
			}
			for range 500 {
				v := state.Load() + 1
				fetch(t, rt, newRequest(t, http.MethodPut, u))
				floor.Store(v)
			}
			wg.Wait()
			s := h.Stats()
			require.EqualValues(t, 4_000, s.Hits+s.Misses)
			require.NotZero(t, s.Hits, fmt.Sprint(s))
		})
	}
}
