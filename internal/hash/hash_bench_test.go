package hash_test

import (
	"testing"

	"github.com/backstay/backstay/internal/hash"
)

func BenchmarkString(b *testing.B) {
	for _, s := range []string{"orders", "10.0.0.1:8080", "orders-7d9f8b6c5d-x2x7k"} {
		b.Run(s, func(b *testing.B) {
			b.ReportAllocs()
			var h uint64
			for b.Loop() {
				h ^= hash.String(h, s)
			}
		})
	}
}

func BenchmarkScore(b *testing.B) {
	b.ReportAllocs()
	sum := 0.0
	for b.Loop() {
		sum += hash.Score(0x62df1debb979165c, 2)
	}
	if sum == 0 {
		b.Fatal("no score")
	}
}
