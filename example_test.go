package backstay_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
)

// exampleServer answers with a status and a word. Its address is what a service's
// endpoint needs.
func exampleServer(status int, word string) (addr string, stop func()) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, word)
	}))
	return s.Listener.Addr().String(), s.Close
}

// One client serves a whole process. What needs no setting is not mentioned;
// here it is where the service is, for which DNS would be asked.
func ExampleNew() {
	addr, stop := exampleServer(http.StatusOK, "anchors")
	defer stop()
	client, err := backstay.New(&backstay.Config{
		Services: map[string]backstay.Service{
			"orders": {Endpoints: discovery.Addrs(addr), Timeout: 5 * time.Second},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()

	resp, err := client.Get("http://orders/v1/items")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Printf("%d %s %v\n", resp.StatusCode, body, err)
	// Output: 200 anchors <nil>
}

// New reports everything that is wrong at once.
func ExampleNew_invalid() {
	_, err := backstay.New(&backstay.Config{
		Services: map[string]backstay.Service{
			"Orders": {},
			"users":  {Timeout: time.Second, AttemptTimeout: 2 * time.Second},
		},
	})
	fmt.Println(err)
	// Output:
	// backstay: Services["Orders"]: want a host in lower case, with a port if it is not 80, such as "orders" or "orders:8080"
	// backstay: Services["users"]: AttemptTimeout is 2s, want <= Timeout (1s)
}

// A Client is an http.RoundTripper: an http.Client that exists keeps its cookies,
// its redirects and its users.
func ExampleClient() {
	addr, stop := exampleServer(http.StatusOK, "anchors")
	defer stop()
	client, err := backstay.New(&backstay.Config{
		Services: map[string]backstay.Service{"orders": {Endpoints: discovery.Addrs(addr)}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()

	existing := &http.Client{Timeout: time.Minute}
	existing.Transport = client
	resp, err := existing.Get("http://orders/v1/items")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}

// In a readiness probe, Ready says whether the endpoints of all services in the
// config are known.
func ExampleClient_Ready() {
	client, err := backstay.New(&backstay.Config{
		Services: map[string]backstay.Service{"orders": {Endpoints: discovery.Addrs("10.0.0.1:8080")}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	fmt.Println(client.Ready(ctx))
	// Output: <nil>
}

// The first layer is the outermost.
func ExampleChain() {
	announce := func(name string) func(http.RoundTripper) http.RoundTripper {
		return func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				fmt.Println(name)
				return next.RoundTrip(req)
			})
		}
	}
	base := roundTripper(func(*http.Request) (*http.Response, error) {
		fmt.Println("base")
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	})

	hc := &http.Client{Transport: backstay.Chain(base, announce("a"), announce("b"), announce("c"))}
	resp, err := hc.Get("http://orders/")
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = resp.Body.Close()
	// Output:
	// a
	// b
	// c
	// base
}

// A config can be read from JSON. What it does not say has its default; unknown
// names are refused.
func ExampleConfig() {
	var cfg backstay.Config
	err := json.Unmarshal([]byte(`{
		"default":  {"timeout": "5s"},
		"services": {"orders": {"attemptTimeout": "500ms", "retry": {"maxAttempts": 4}}},
		"routes":   {"GET orders/v1/items/{id}": {"cacheTTL": "2s"}}
	}`), &cfg)
	fmt.Println(cfg.Default.Timeout, cfg.Services["orders"].AttemptTimeout, err)

	err = json.Unmarshal([]byte(`{"idleTimeout": 300}`), new(backstay.Config))
	fmt.Println(err)
	// Output:
	// 5s 500ms <nil>
	// config: idleTimeout is 300, want a duration such as "250ms"
}

// Refused tells a call that Backstay refused from one that a server answered
// badly: nothing was sent, and the caller may fall back on something else.
func ExampleRefused() {
	addr, stop := exampleServer(http.StatusOK, "anchors")
	defer stop()
	client, err := backstay.New(&backstay.Config{
		Services: map[string]backstay.Service{"orders": {
			Endpoints: discovery.Addrs(addr),
			Rate:      limit.RateConfig{Limit: 1},
		}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()

	for range 2 {
		resp, err := client.Get("http://orders/v1/items")
		switch {
		case backstay.Refused(err):
			fmt.Println("refused:", errors.Is(err, limit.ErrLimited))
		case err != nil:
			fmt.Println("failed:", err)
		default:
			fmt.Println(resp.Status)
			_ = resp.Body.Close()
		}
	}
	// Output:
	// 200 OK
	// refused: true
}

// RetryAfter says when it may be worth another try, if the error knows.
func ExampleRetryAfter() {
	b, err := breaker.New("orders", &breaker.Config{Consecutive: 1, Jitter: -1})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	_ = b.Run(ctx, func(context.Context) error { return errors.New("out of order") })

	err = b.Run(ctx, func(context.Context) error { return nil })
	wait, known := backstay.RetryAfter(err)
	fmt.Println(wait.Round(time.Second), known)
	// Output: 5s true
}

// A log in the context collects what happens to the calls made under it. It
// prints as one line for each of them; here are some of its parts.
func Example_log() {
	addr, stop := exampleServer(http.StatusServiceUnavailable, "closed")
	defer stop()
	client, err := backstay.New(&backstay.Config{
		Services: map[string]backstay.Service{"orders": {
			Endpoints: []discovery.Endpoint{{ID: "a", Addr: addr}},
		}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()

	ctx, log := call.WithLog(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/v1/items", http.NoBody)
	if err != nil {
		fmt.Println(err)
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()

	for _, c := range log.Calls() {
		fmt.Println(c.Method, c.Service, c.Path, c.Status)
		for _, attempt := range c.Attempts {
			fmt.Println(attempt.Node, attempt.Status, attempt.Outcome.Class)
		}
	}
	// Output:
	// GET orders /v1/items 503
	// a 503 failure
	// a 503 failure
	// a 503 failure
}
