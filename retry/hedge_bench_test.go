package retry_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/retry"
)

func armed() map[string]retry.HedgeConfig {
	return map[string]retry.HedgeConfig{
		"delay":      {Delay: time.Minute},
		"percentile": {Percentile: 0.95, Delay: time.Minute, MinDelay: time.Minute},
	}
}

func TestHedgeThatDoesNotBeginAllocatesNoMoreThanPromised(t *testing.T) {
	req := newRequest(t, t.Context(), "GET", nil)
	for name, cfg := range armed() {
		layer := newRetrier(t, &retry.Config{Hedge: cfg}).Layer(newNoop())
		require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { roundTrip(layer, req) }), 4.0, name)
	}
	fn := func(context.Context) (int, error) { return 1, nil }
	for name, cfg := range armed() {
		r := newRetrier(t, &retry.Config{Hedge: cfg})
		require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { _, _ = retry.Do(t.Context(), r, fn) }), 2.0, "Do: "+name)
	}
	layer := newRetrier(t, &retry.Config{Hedge: retry.HedgeConfig{Percentile: 0.95}}).Layer(newNoop())
	require.LessOrEqual(t, testing.AllocsPerRun(50, func() { roundTrip(layer, req) }), 2.0, "before there are samples")
}

func BenchmarkHedgeThatDoesNotBegin(b *testing.B) {
	for name, cfg := range armed() {
		layer := newRetrier(b, &retry.Config{Hedge: cfg}).Layer(newNoop())
		req := newRequest(b, b.Context(), "GET", nil)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				roundTrip(layer, req)
			}
		})
	}
}
