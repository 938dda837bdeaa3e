package limit_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/backstay/backstay/limit"
)

func ExampleNewRate() {
	r, err := limit.NewRate(&limit.RateConfig{Key: "search", Limit: 10, Burst: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Now()
	for range 3 {
		fmt.Println(r.Allow(now))
	}
	// Output:
	// <nil>
	// <nil>
	// limit: rate exceeded for search, next in 100ms
}

func ExampleNewRateGroup() {
	g, err := limit.NewRateGroup(&limit.RateGroupConfig{RateConfig: limit.RateConfig{Limit: 1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, tenant := range []string{"red", "blue", "red"} {
		err := g.Get(tenant).Allow(time.Time{})
		fmt.Println(tenant, errors.Is(err, limit.ErrLimited))
	}
	// Output:
	// red false
	// blue false
	// red true
}

func ExampleNewConcurrency() {
	c, err := limit.NewConcurrency(&limit.ConcurrencyConfig{Key: "orders", Max: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	lease, err := c.Acquire(context.Background())
	fmt.Println(err)
	_, err = c.Acquire(context.Background())
	fmt.Println(err)
	lease.Done()
	lease, err = c.Acquire(context.Background())
	fmt.Println(err)
	lease.Done()
	// Output:
	// <nil>
	// limit: full for orders, 1 calls under way
	// <nil>
}

func ExampleWithPriority() {
	c, err := limit.NewConcurrency(&limit.ConcurrencyConfig{Key: "orders", Max: 1, Queue: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	busy, _ := c.Acquire(ctx)

	report, order := make(chan error), make(chan error)
	go func() {
		report <- c.Run(limit.WithPriority(ctx, limit.Low), func(context.Context) error { return nil })
	}()
	for c.Waiting() == 0 {
		runtime.Gosched()
	}
	go func() { // takes the report's place in the queue
		order <- c.Run(ctx, func(context.Context) error { return nil })
	}()
	fmt.Println("report refused:", errors.Is(<-report, limit.ErrFull))
	busy.Done()
	fmt.Println("order:", <-order)
	// Output:
	// report refused: true
	// order: <nil>
}
