package discovery

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestManyWatchesOfOneTree runs every decorator at once, from many goroutines,
// with watches that are left at any moment. The bubble ends only if nothing of
// them stays.
func TestManyWatchesOfOneTree(t *testing.T) {
	bubble(t, func(t *testing.T) {
		flapping := &flapping{}
		tree := Supervise(Filter(Merge(
			Failover(flapping, Map(Static(Addrs("a:1")...), func(e Endpoint) Endpoint { return e })),
			Supervise(flapping, nil),
			Static(Addrs("z:1", "y:1")...),
		), func(e Endpoint) bool { return e.Addr != "y:1" }), nil)
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				hints := make(chan struct{}, 1)
				// Not at a whole second, when hints are let through: a yield of that very
				// instant would be after the context's end or before it, by chance.
				ctx, cancel := context.WithTimeout(WithHints(t.Context(), hints), time.Duration(1+i)*time.Second+1)
				defer cancel()
				left := 3 + i*10
				for set, err := range tree.Watch(ctx, "orders") {
					if ctx.Err() != nil {
						t.Error("a yield after the context's end")
					}
					for _, e := range set.Endpoints {
						if e.Addr == "y:1" || err != nil {
							t.Error("not the tree's set: ", set, err)
						}
					}
					select {
					case hints <- struct{}{}:
					default:
					}
					if left--; left == 0 {
						break
					}
				}
			})
		}
		wg.Wait()
		require.Positive(t, flapping.watches())
	})
}

// flapping yields now a set, now an error, and ends now and then.
type flapping struct {
	mu sync.Mutex
	n  int
}

func (f *flapping) watches() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

func (f *flapping) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		f.mu.Lock()
		f.n++
		f.mu.Unlock()
		for range 1 + rand.IntN(5) {
			if rand.IntN(2) == 0 {
				if !yield(of(fmt.Sprintf("10.0.0.%d:80", rand.IntN(5))), nil) {
					return
				}
			} else if !yield(Set{}, errDown) {
				return
			}
			if !pause(ctx, time.Duration(rand.IntN(300))*time.Millisecond, time.Millisecond) {
				return
			}
		}
	}
}
