package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/outcome"
)

func ExampleNew() {
	b, err := breaker.New("orders", &breaker.Config{MinCalls: 2, Jitter: -1})
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 2 {
		err := b.Run(context.Background(), func(context.Context) error { return errors.New("no route to host") })
		fmt.Println(err)
	}
	err = b.Run(context.Background(), func(context.Context) error { panic("not called while it is open") })
	var open *breaker.OpenError
	fmt.Println(errors.As(err, &open) && open.RetryAfter > 0, errors.Is(err, breaker.ErrOpen))
	// Output:
	// no route to host
	// no route to host
	// true true
}

func ExampleDo() {
	b, _ := breaker.New("stock", nil)
	n, err := breaker.Do(context.Background(), b, func(context.Context) (int, error) { return 42, nil })
	fmt.Println(n, err)
	// Output: 42 <nil>
}

func ExampleBreaker_Acquire() {
	b, _ := breaker.New("orders", nil)

	lease, err := b.Acquire(time.Now())
	if err != nil {
		return // *breaker.OpenError: nothing may be sent
	}
	err = errors.New("connection reset") // what came of the call
	lease.Done(time.Now(), outcome.Of(err))

	s := b.Snapshot(time.Now())
	fmt.Println(s.State, s.Calls, s.Failures)
	// Output: closed 1 1
}

func ExampleNewGroup() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer server.Close()

	g, err := breaker.NewGroup(&breaker.GroupConfig{Config: breaker.Config{
		MinCalls: 2,
		Observer: event.ObserverFunc(func(_ context.Context, e event.Event) {
			change := e.(breaker.StateChanged)
			fmt.Println(change.From, "to", change.To, "by", change.Reason)
		}),
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: g.Layer(nil)}
	for range 3 {
		resp, err := client.Get(server.URL)
		if err != nil {
			fmt.Println(errors.Is(err, breaker.ErrOpen))
			continue
		}
		fmt.Println(resp.Status)
		resp.Body.Close()
	}
	// Output:
	// 500 Internal Server Error
	// closed to open by failure rate
	// 500 Internal Server Error
	// true
}
