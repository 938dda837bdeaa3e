package event_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/backstay/backstay/event"
)

func ExampleLog() {
	handler := slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	observer := event.Log(slog.New(handler))
	observer.Observe(context.Background(), opened{Key: "orders"})
	// Output: level=INFO msg=breaker.opened key=orders
}

func ExampleTee() {
	count := 0
	metrics := event.ObserverFunc(func(context.Context, event.Event) { count++ })
	log := event.ObserverFunc(func(_ context.Context, e event.Event) { fmt.Println(e.EventName()) })
	observer := event.Tee(metrics, log)
	observer.Observe(context.Background(), opened{Key: "orders"})
	fmt.Println(count)
	// Output:
	// breaker.opened
	// 1
}
