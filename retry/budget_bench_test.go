package retry_test

import (
	"testing"
	"time"
)

func BenchmarkBudget(b *testing.B) {
	now := time.Now()
	b.Run("deposit", func(b *testing.B) {
		budget := newBudget(b, nil)
		b.ReportAllocs()
		for b.Loop() {
			budget.Deposit(now)
		}
	})
	b.Run("withdraw", func(b *testing.B) {
		budget := newBudget(b, nil)
		b.ReportAllocs()
		for b.Loop() {
			budget.Withdraw(now)
		}
	})
	b.Run("deposit parallel", func(b *testing.B) {
		budget := newBudget(b, nil)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				budget.Deposit(now)
			}
		})
	})
	b.Run("withdraw parallel", func(b *testing.B) {
		budget := newBudget(b, nil)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				budget.Withdraw(now)
			}
		})
	})
}
