package limit_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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
	c, _ := limit.NewConcurrency(&limit.ConcurrencyConfig{Max: 100, Queue: 50})
	client := &http.Client{Transport: c.Layer(nil)}

	ctx := limit.WithPriority(context.Background(), limit.Low)
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/report", nil)
	_, _ = client, req // the report waits behind the others
}
