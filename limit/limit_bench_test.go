package limit_test

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/backstay/backstay/limit"
)

func parallel(b *testing.B, fn func(times int)) {
	for _, n := range []int{1, 2, 64} {
		b.Run("goroutines="+strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() { fn(b.N / n) })
			}
			wg.Wait()
		})
	}
}

func BenchmarkConcurrency(b *testing.B) {
	c := newConcurrency(b, limit.ConcurrencyConfig{Queue: 10})
	ctx := context.Background()
	b.Run("loop", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l, _ := c.Acquire(ctx)
			l.Done()
		}
	})
	parallel(b, func(times int) {
		for range times {
			l, _ := c.Acquire(ctx)
			l.Done()
		}
	})
}

func BenchmarkConcurrencyRefusal(b *testing.B) {
	c := newConcurrency(b, limit.ConcurrencyConfig{Max: 1})
	fill(b, c)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = c.TryAcquire()
	}
}

func BenchmarkConcurrencyQueued(b *testing.B) {
	c := newConcurrency(b, limit.ConcurrencyConfig{Max: 1, Queue: 100})
	parallel(b, func(times int) {
		for range times {
			l, _ := c.Acquire(context.Background())
			l.Done()
		}
	})
}

func BenchmarkRateAllow(b *testing.B) {
	r := newRate(b, limit.RateConfig{Limit: 1e9})
	b.Run("loop", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = r.Allow(time.Time{})
		}
	})
	parallel(b, func(times int) {
		for range times {
			_ = r.Allow(time.Time{})
		}
	})
}

func BenchmarkRateGroupGet(b *testing.B) {
	g := newRates(b, limit.RateGroupConfig{RateConfig: limit.RateConfig{Limit: 1}})
	parallel(b, func(times int) {
		for range times {
			g.Get("orders")
		}
	})
}
