package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/discovery"
)

// kind is a kind of callers. Its client makes a call and reports whether there
// was an answer.
type kind struct {
	name   string
	client func(base *http.Transport, addrs []string) (call func(context.Context) bool, end func(), err error)
}

func kinds() []kind {
	return []kind{
		{"naive", naive},
		{"defaults", ours(backstay.Service{
			AttemptTimeout: patience,
		})},
		{"bounded", ours(backstay.Service{
			AttemptTimeout: patience,
			// The twentieth waits for 300 ms and has its answer after 400 ms.
			NodeConcurrency: 4 * slots,
		})},
	}
}

// ours are callers with a client of Backstay's.

func ours(orders backstay.Service) func(*http.Transport, []string) (func(context.Context) bool, func(), error) {
	return func(base *http.Transport, addrs []string) (func(context.Context) bool, func(), error) {
		for _, addr := range addrs {
			orders.Endpoints = append(orders.Endpoints, discovery.Endpoint{Addr: addr})
		}
		client, err := backstay.New(&backstay.Config{
			Base:     base,
			Services: map[string]backstay.Service{"orders": orders},
		})
		if err != nil {
			return nil, nil, err
		}
		call := func(ctx context.Context) bool { return get(ctx, client.Client, "orders") == nil }
		return call, func() { _ = client.Close() }, nil
	}
}

// naive are callers that take the servers in turn and try again when something
// fails, with waits that double and differ: what many programs do.
func naive(base *http.Transport, addrs []string) (func(context.Context) bool, func(), error) {
	client := &http.Client{Transport: base, Timeout: patience}
	var turn atomic.Uint64
	call := func(ctx context.Context) bool {
		for attempt := range 3 {
			if attempt > 0 {
				pause(ctx, rand.N(100*time.Millisecond<<attempt))
			}
			if get(ctx, client, addrs[turn.Add(1)%uint64(len(addrs))]) == nil {
				return true
			}
		}
		return false
	}
	return call, client.CloseIdleConnections, nil
}

// get returns nil if there is a good answer, and all of it.
func get(ctx context.Context, client *http.Client, host string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/v1/items", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answer was %s", resp.Status)
	}
	return nil
}
