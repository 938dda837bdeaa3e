package outcome_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/backstay/backstay/outcome"
)

func ExampleHTTP() {
	req, _ := http.NewRequest(http.MethodGet, "http://orders/v1/items", nil)
	show := func(o outcome.Outcome) { fmt.Println(o.Class, "- retry", o.Retry, "- after", o.After) }
	show(outcome.HTTP(req, &http.Response{StatusCode: 404}, nil))
	show(outcome.HTTP(req, &http.Response{StatusCode: 502}, nil))
	show(outcome.HTTP(req, &http.Response{StatusCode: 503, Header: http.Header{"Retry-After": {"7"}}}, nil))
	show(outcome.HTTP(req, nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}))
	// Output:
	// success - retry never - after 0s
	// failure - retry if idempotent - after 0s
	// throttled - retry if idempotent - after 7s
	// failure - retry always - after 0s
}

// A classifier of one's own decides its cases and leaves the rest to HTTP.
func ExampleClassifier() {
	classify := outcome.Classifier(func(req *http.Request, resp *http.Response, err error) outcome.Outcome {
		if resp != nil && resp.StatusCode == 404 && resp.Header.Get("X-Replica") == "behind" {
			return outcome.Outcome{Class: outcome.Failure, Retry: outcome.Elsewhere, Err: outcome.StatusError(404)}
		}
		return outcome.HTTP(req, resp, err)
	})
	o := classify.Classify(nil, &http.Response{StatusCode: 404, Header: http.Header{"X-Replica": {"behind"}}}, nil)
	fmt.Println(o.Class, o.Retry, o.Err)
	// Output: failure elsewhere 404 Not Found
}

func ExamplePermanent() {
	err := fmt.Errorf("parse: %w", outcome.Permanent(errors.New("the answer makes no sense")))
	fmt.Println(outcome.Of(err).Retry)
	// Output: never
}
