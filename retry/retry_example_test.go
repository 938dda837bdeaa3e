package retry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

func ExampleDo() {
	r, err := retry.New(&retry.Config{AttemptTimeout: time.Second})
	if err != nil {
		panic(err)
	}
	tries := 0
	price, err := retry.Do(context.Background(), r, func(ctx context.Context) (int, error) {
		if tries++; tries < 3 {
			return 0, errors.New("no answer")
		}
		return 42, nil
	})
	fmt.Println(price, err, "after", tries, "tries")
	// Output: 42 <nil> after 3 tries
}

func ExampleDo_permanent() {
	r, err := retry.New(nil)
	if err != nil {
		panic(err)
	}
	tries := 0
	err = r.Run(context.Background(), func(context.Context) error {
		tries++
		return outcome.Permanent(errors.New("no such order"))
	})
	fmt.Println(err, "after", tries, "try")
	// Output: no such order after 1 try
}

func ExampleNew() {
	tries := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if tries++; tries < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "hello")
	}))
	defer server.Close()

	r, err := retry.New(nil)
	if err != nil {
		panic(err)
	}
	client := &http.Client{Transport: r.Layer(nil)}
	resp, err := client.Get(server.URL)
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(text), err, "after", tries, "tries")
	// Output: 200 hello <nil> after 3 tries
}

func ExampleConfig() {
	_, err := retry.New(&retry.Config{
		Timeout:        time.Second,
		AttemptTimeout: 2 * time.Second,
		Backoff:        retry.Backoff{Max: 10 * time.Millisecond},
	})
	fmt.Println(err)
	// Output:
	// retry: Backoff.Max is 10ms, want >= Backoff.Base (50ms)
	// retry: AttemptTimeout is 2s, want <= Timeout (1s)
}

func ExampleNewBudget() {
	budget, err := retry.NewBudget(&retry.BudgetConfig{Ratio: 0.1, PerSecond: 2})
	if err != nil {
		panic(err)
	}
	now := time.Now()
	fmt.Println(budget.Balance(now))
	for range 50 {
		budget.Deposit(now)
	}
	fmt.Println(budget.Balance(now))
	// Output:
	// 20
	// 25
}

func ExampleGaveUp() {
	r, err := retry.New(&retry.Config{
		Name:    "orders",
		Backoff: retry.Backoff{Base: -1},
		Observer: event.ObserverFunc(func(_ context.Context, e event.Event) {
			fmt.Println(e.EventName(), e.LogValue())
		}),
	})
	if err != nil {
		panic(err)
	}
	_ = r.Run(context.Background(), func(context.Context) error { return errors.New("no answer") })
	// Output:
	// retry.retried [service=orders route= attempt=1 outcome=failure error=no answer sleep=0s]
	// retry.retried [service=orders route= attempt=2 outcome=failure error=no answer sleep=0s]
	// retry.gave_up [service=orders route= attempts=3 outcome=failure error=no answer reason=attempts]
}
