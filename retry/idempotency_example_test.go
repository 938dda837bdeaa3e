package retry_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/backstay/backstay/retry"
)

// A POST that the server can tell from its repetition by what is in it.
func ExampleWithIdempotent() {
	attempts := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if attempts++; attempts < 3 {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	defer server.Close()
	r, err := retry.New(nil)
	if err != nil {
		panic(err)
	}
	client := &http.Client{Transport: r.Layer(nil)}
	ctx := retry.WithIdempotent(context.Background(), true)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+"/orders/7/confirm", nil)
	if err != nil {
		panic(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status, "after", attempts, "attempts")
	// Output: 200 OK after 3 attempts
}
