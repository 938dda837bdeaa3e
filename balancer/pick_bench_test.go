package balancer_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
)

func TestPickAllocatesNothing(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	for name, policy := range policies(1) {
		for _, n := range []int{1, 3, 1000} {
			for service, cfg := range map[string]balancer.Config{
				"always on": {Policy: policy, MaxConcurrency: 10},
				"on demand": {Policy: policy, OnDemand: true},
			} {
				b := newStatic(t, n, &cfg)
				avoid := b.Nodes()[:1]
				ctx := context.Background()
				allocs := testing.AllocsPerRun(1000, func() {
					l, err := b.Acquire(ctx, balancer.Call{Avoid: avoid})
					if err != nil {
						t.Fatal(err)
					}
					l.Answered(time.Time{}, success)
					l.Done(time.Time{}, success)
				})
				require.Zero(t, allocs, "%s, %d nodes, %s", name, n, service)
			}
		}
	}
}

// A pick and the end of its call. With the clock given it is the work alone.
func BenchmarkPick(b *testing.B) {
	for _, n := range []int{3, 8, 10, 1000, 10_000} {
		bal := newStatic(b, n, nil)
		ctx := context.Background()
		one := func(now time.Time) {
			l, err := bal.Acquire(ctx, balancer.Call{Now: now})
			if err != nil {
				b.Error(err)
			}
			l.Done(now, success)
		}
		b.Run(fmt.Sprintf("n=%d/clock=given", n), func(b *testing.B) {
			b.ReportAllocs()
			now := time.Now()
			for i := 0; b.Loop(); i++ {
				if i%16 == 0 { // so that the price of the reading is small, and yet the time passes
					now = time.Now()
				}
				one(now)
			}
		})
		b.Run(fmt.Sprintf("n=%d/clock=own", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				one(time.Time{})
			}
		})
		b.Run(fmt.Sprintf("n=%d/parallel", n), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					one(time.Time{})
				}
			})
		})
		b.Run(fmt.Sprintf("n=%d/many", n), func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(50)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					one(time.Time{})
				}
			})
		})
	}
}

// The policies, for the same call.
func BenchmarkPolicies(b *testing.B) {
	for name, policy := range policies(1) {
		p := policy.NewPicker(newStatic(b, 10, nil).Nodes())
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			call := balancer.Call{Now: time.Now()}
			for b.Loop() {
				p.Pick(call)
			}
		})
	}
}

// What the layer adds to a transport that does nothing.
func BenchmarkRoundTrip(b *testing.B) {
	_, rt := over(b, 10, nil, func(req *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: req}, nil
	})
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://orders/", http.NoBody)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rt.RoundTrip(req); err != nil {
			b.Fatal(err)
		}
	}
}
