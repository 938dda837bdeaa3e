package breaker_test

import (
	"context"
	"math"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

func closed(b *testing.B, cfg *breaker.Config) *breaker.Breaker {
	br, err := breaker.New("bench", cfg)
	require.NoError(b, err)
	return br
}

// goroutines runs fn in n goroutines, b.N times in all.
func goroutines(b *testing.B, n int, fn func(times int)) {
	var wg sync.WaitGroup
	b.ResetTimer()
	for range n {
		wg.Go(func() { fn(b.N / n) })
	}
	wg.Wait()
}

func BenchmarkLease(b *testing.B) {
	configs := map[string]*breaker.Config{"plain": nil, "slow+consecutive": {SlowTime: time.Second, Consecutive: 5}}
	for name, cfg := range configs {
		b.Run(name+"/own-clock", func(b *testing.B) {
			br := closed(b, cfg)
			b.ReportAllocs()
			for b.Loop() {
				l, _ := br.Acquire(time.Time{})
				l.Done(time.Time{}, outcome.Outcome{})
			}
		})
		b.Run(name+"/given-clock", func(b *testing.B) {
			br := closed(b, cfg)
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				l, _ := br.Acquire(now)
				l.Done(now, outcome.Outcome{})
			}
		})
		b.Run(name+"/answered+done", func(b *testing.B) {
			br := closed(b, cfg)
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				l, _ := br.Acquire(now)
				l.Answered(now, outcome.Outcome{})
				l.Done(now, outcome.Outcome{})
			}
		})
	}
	for _, n := range []int{2, 64} {
		b.Run("plain/goroutines="+strconv.Itoa(n), func(b *testing.B) {
			br := closed(b, nil)
			b.ReportAllocs()
			goroutines(b, n, func(times int) {
				for range times {
					l, _ := br.Acquire(time.Time{})
					l.Done(time.Time{}, outcome.Outcome{})
				}
			})
		})
	}
}

func BenchmarkFailure(b *testing.B) {
	br := closed(b, &breaker.Config{FailureRate: 1, MinCalls: math.MaxInt32})
	failure := outcome.Outcome{Class: outcome.Failure}
	b.ReportAllocs()
	for b.Loop() {
		l, _ := br.Acquire(time.Time{})
		l.Done(time.Time{}, failure)
	}
}

func BenchmarkRefusal(b *testing.B) {
	br := closed(b, nil)
	br.ForceOpen()
	b.ReportAllocs()
	for b.Loop() {
		_, _ = br.Acquire(time.Time{})
	}
}

func BenchmarkDo(b *testing.B) {
	br := closed(b, nil)
	fn := func(context.Context) (int, error) { return 1, nil }
	b.ReportAllocs()
	for b.Loop() {
		_, _ = breaker.Do(context.Background(), br, fn)
	}
}

func BenchmarkGroupGet(b *testing.B) {
	g, err := breaker.NewGroup(nil)
	require.NoError(b, err)
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = "host-" + strconv.Itoa(i)
		g.Get(keys[i])
	}
	for _, n := range []int{1, 2, 64} {
		b.Run("goroutines="+strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			goroutines(b, n, func(times int) {
				for i := range times {
					g.Get(keys[i%len(keys)])
				}
			})
		})
	}
}
