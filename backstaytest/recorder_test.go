package backstaytest_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/event"
)

type opened struct{ Key string }

func (opened) EventName() string      { return "breaker.opened" }
func (e opened) LogValue() slog.Value { return slog.GroupValue(slog.String("key", e.Key)) }

type retried struct{ Attempt int }

func (retried) EventName() string      { return "retry.retried" }
func (e retried) LogValue() slog.Value { return slog.GroupValue(slog.Int("attempt", e.Attempt)) }
func (retried) Level() slog.Level      { return slog.LevelDebug }

func TestRecorderKeepsEventsInOrder(t *testing.T) {
	rec := new(backstaytest.Recorder)
	require.Empty(t, rec.Events())
	require.Empty(t, rec.String())
	ctx := t.Context()
	rec.Observe(ctx, retried{1})
	rec.Observe(ctx, opened{"orders"})
	rec.Observe(ctx, retried{2})
	require.Equal(t, []event.Event{retried{1}, opened{"orders"}, retried{2}}, rec.Events())
	require.Equal(t, []string{"retry.retried", "breaker.opened", "retry.retried"}, rec.Names())
	require.Equal(t, []retried{{1}, {2}}, backstaytest.EventsOf[retried](rec))
	require.Equal(t, "retry.retried attempt=1\nbreaker.opened key=orders\nretry.retried attempt=2\n", rec.String())
	rec.Clear()
	require.Empty(t, rec.Events())
}

func TestRecorderWaitsForAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(backstaytest.Recorder)
		ctx := t.Context()
		rec.Observe(ctx, retried{1})
		require.Equal(t, retried{1}, rec.Wait(ctx, nil), "one that is there already")
		go func() {
			for i := 2; i < 5; i++ {
				time.Sleep(time.Minute)
				if i == 3 {
					rec.Clear()
				}
				rec.Observe(ctx, retried{i})
			}
			rec.Observe(ctx, opened{"orders"})
		}()
		start := time.Now()
		require.Equal(t, opened{"orders"}, rec.Wait(ctx, backstaytest.Named("breaker.opened")))
		require.Equal(t, 3*time.Minute, time.Since(start))
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		require.Nil(t, rec.Wait(short, backstaytest.Named("nothing")))
	})
}

func TestRecorderTakesEventsFromManyGoroutines(t *testing.T) {
	rec := new(backstaytest.Recorder)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 100 {
				rec.Observe(t.Context(), opened{fmt.Sprint(i, j)})
			}
		})
	}
	for i := range 8 {
		require.NotNil(t, rec.Wait(t.Context(), func(e event.Event) bool { return e == event.Event(opened{fmt.Sprint(i, 99)}) }))
	}
	wg.Wait()
	require.Len(t, rec.Events(), 800)
}
