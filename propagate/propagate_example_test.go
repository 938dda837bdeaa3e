package propagate_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/propagate"
)

func ExampleHandler() {
	server := httptest.NewServer(propagate.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		deadline, _ := r.Context().Deadline()
		in := call.InboundOf(r.Context())
		fmt.Println("attempt", in.Attempt, "with", time.Until(deadline).Round(time.Second), "left")
		w.WriteHeader(http.StatusNoContent)
	}), nil))
	defer server.Close()

	client := http.Client{Transport: propagate.Layer(nil)}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	resp, err := client.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Println(resp.StatusCode)
	// Output:
	// attempt 1 with 5s left
	// 204
}

func ExampleLayer() {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		fmt.Println(r.Header.Get(propagate.AttemptHeader), r.Header.Get(propagate.RetryHeader))
	}))
	defer server.Close()

	// On behalf of a request that is a second attempt itself.
	ctx := call.WithInbound(context.Background(), &call.Inbound{Attempt: 2})
	client := http.Client{Transport: propagate.Layer(nil)}
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	resp, err := client.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = resp.Body.Close()
	// Output: 1 no
}
