package event_test

import (
	"context"
	"testing"

	"github.com/backstay/backstay/event"
)

func BenchmarkQueue(b *testing.B) {
	ctx := context.Background()
	m := &machine{to: event.ObserverFunc(func(context.Context, event.Event) {})}
	b.Run("serial", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.step(ctx)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				m.step(ctx)
			}
		})
	})
}
