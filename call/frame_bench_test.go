package call_test

import (
	"context"
	"testing"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

func BenchmarkFrame(b *testing.B) {
	a := &layer{"a"}
	chain, now := call.NewChain(&layer{"b"}, a), time.Now()
	once := func() {
		ctx, f := call.Push(context.Background(), chain, call.Info{Service: "orders", Start: now})
		i := f.Send(now, nil, "s0", "10.0.0.1:80")
		if call.Join(ctx, a) != f {
			b.Error("another frame")
		}
		f.Answered(now, f.Attempts()-1, nil, 200, outcome.Outcome{})
		f.Ended(now, i, outcome.Outcome{})
		f.Finish(now, 200, nil)
	}
	b.Run("serial", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			once()
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				once()
			}
		})
	})
}
