package call_test

import (
	"context"
	"fmt"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

func ExampleWithLog() {
	ctx, log := call.WithLog(context.Background())

	// What the layers do during client.Do(req.WithContext(ctx)):
	start := time.Now()
	_, f := call.Push(ctx, nil, call.Info{Service: "orders", Method: "GET", Path: "/v1/items", Start: start})
	f.Send(start, nil, "", "10.0.0.1:80")
	f.Answered(start.Add(2*time.Millisecond), f.Attempts()-1, nil, 503, outcome.Outcome{Class: outcome.Failure, Err: outcome.StatusError(503)})
	f.Slept(41 * time.Millisecond)
	f.Send(start.Add(43*time.Millisecond), nil, "", "10.0.0.2:80")
	f.Answered(start.Add(63*time.Millisecond), f.Attempts()-1, nil, 200, outcome.Outcome{})
	f.Finish(start.Add(63*time.Millisecond), 200, nil)

	for _, c := range log.Calls() {
		fmt.Println(c)
	}
	// Output: GET orders /v1/items: 200 in 63ms; 10.0.0.1:80 503 in 2ms; slept 41ms; 10.0.0.2:80 200 in 20ms
}
