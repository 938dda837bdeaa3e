// Command wrapclient takes an http.Client that exists and makes it resilient:
// one policy after the other, and then with all of them.
//
//	go run ./examples/wrapclient
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/retry"
)

func main() {
	one, two := newServer(), newServer()
	defer one.Close()
	defer two.Close()

	// The client that exists. Its transport may be anything; here it is a plain one.
	existing := &http.Client{Transport: &http.Transport{}}
	defer existing.CloseIdleConnections()
	base := existing.Transport

	one.failNext(1)
	get(existing, "as it is", "http://"+one.addr+"/items")

	// Retries: idempotent calls are tried again, with backoff and within a budget.
	r, err := retry.New(nil)
	check(err)
	existing.Transport = r.Layer(base)
	one.failNext(2)
	get(existing, "retry", "http://"+one.addr+"/items")

	// A breaker per host, inside the retry, so that it sees each attempt. What it
	// refuses is not tried again.
	hosts, err := breaker.NewGroup(&breaker.GroupConfig{Config: breaker.Config{Consecutive: 3}})
	check(err)
	existing.Transport = backstay.Chain(base, r.Layer, hosts.Layer)
	one.failNext(3)
	get(existing, "retry, breaker", "http://"+one.addr+"/items")
	get(existing, "retry, breaker", "http://"+one.addr+"/items")

	// A balancer gives the service a name, and finds out by itself whom to ask. Each
	// of its nodes has a breaker.
	orders, err := balancer.New("orders", discovery.Static(discovery.Addrs(one.addr, two.addr)...), nil)
	check(err)
	defer orders.Close()
	existing.Transport = backstay.Chain(base, r.Layer, orders.Layer)
	one.failNext(1)
	two.failNext(1)
	get(existing, "retry, balancer", "http://orders/items")

	// Everything at once, for all services: base serves as the template for
	// connections.
	client, err := backstay.New(&backstay.Config{
		Base: base,
		Services: map[string]backstay.Service{
			"orders": {Endpoints: discovery.Addrs(one.addr, two.addr), Timeout: 2 * time.Second},
		},
	})
	check(err)
	defer client.Close()
	existing.Transport = client
	one.failNext(1)
	two.failNext(1)
	get(existing, "backstay.New", "http://orders/items")
}

// get makes a call and prints what came of it, and what happened to it.
func get(client *http.Client, with, url string) {
	ctx, calls := call.WithLog(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	check(err)
	fmt.Println(with)
	resp, err := client.Do(req)
	var open *breaker.OpenError
	switch {
	case errors.As(err, &open):
		fmt.Printf("  refused, nothing was sent; in %v it may work again\n", open.RetryAfter.Round(time.Second))
	case err != nil:
		fmt.Println(" ", err)
	default:
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		fmt.Println(" ", resp.Status)
	}
	for _, c := range calls.Calls() {
		fmt.Println(" ", c)
	}
}

// server is a server on loopback that fails when it is told to.
type server struct {
	*http.Server
	addr     string
	failures atomic.Int32
}

func newServer() *server {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	s := &server{addr: l.Addr().String()}
	s.Server = &http.Server{Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: time.Second}
	go func() { _ = s.Serve(l) }()
	return s
}

func (s *server) failNext(n int32) { s.failures.Store(n) }

func (s *server) serve(w http.ResponseWriter, _ *http.Request) {
	if s.failures.Add(-1) >= 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

// check keeps what follows short. A program of yours returns the error.
func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
