package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/retry"
)

// scene is one thing that goes wrong.
type scene struct {
	title string
	play  func(context.Context) error
}

func scenes() []scene {
	return []scene{
		{"A node dies", func(ctx context.Context) error {
			return oneNodeBad(ctx, nil, (*server).kill)
		}},
		{"A node stalls", func(ctx context.Context) error {
			shorter := func(_ *stage, orders *backstay.Service) { orders.AttemptTimeout = 200 * time.Millisecond }
			return oneNodeBad(ctx, shorter, func(s *server) { s.is(stalled) })
		}},
		{"A node resets connections", func(ctx context.Context) error {
			return oneNodeBad(ctx, nil, func(s *server) { s.is(resets) })
		}},
		{"A node is slow", func(ctx context.Context) error {
			return oneNodeBad(ctx, nil, func(s *server) { s.is(slow) })
		}},
		{"A node fails fast, with 503", func(ctx context.Context) error {
			return oneNodeBad(ctx, nil, func(s *server) { s.is(answers(http.StatusServiceUnavailable)) })
		}},
		{"A node fails fast, with 500", func(ctx context.Context) error {
			return oneNodeBad(ctx, nil, func(s *server) { s.is(answers(http.StatusInternalServerError)) })
		}},
		{"A body breaks", bodyBreaks},
		{"A call that must not be repeated", notIdempotent},
		{"The whole service is dead", allDead},
		{"The retry budget is used up", budgetUsedUp},
		{"Throttling", throttling},
		{"The caller's deadline", deadline},
		{"A limit of ours", limited},
		{"All nodes are full", allFull},
		{"DNS is down", dnsDown},
		{"The registry is down", registryDown},
		{"A deployment", deployment},
	}
}

// oneNodeBad lets the node that is in favour turn bad, and shows the next call
// and where those after it go.
func oneNodeBad(ctx context.Context, change func(*stage, *backstay.Service), turn func(*server)) error {
	st, err := newStage(change)
	if err != nil {
		return err
	}
	defer st.close()
	turn(st.favourite())
	st.get(ctx)
	st.next(100)
	return nil
}

func bodyBreaks(ctx context.Context) error {
	st, err := newStage(nil)
	if err != nil {
		return err
	}
	defer st.close()
	st.a.is(breaksOff)
	st.b.is(breaksOff)
	st.get(ctx)
	return nil
}

func notIdempotent(ctx context.Context) error {
	st, err := newStage(nil)
	if err != nil {
		return err
	}
	defer st.close()
	unavailable := answers(http.StatusServiceUnavailable)
	st.a.is(unavailable)
	st.b.is(unavailable)
	st.do(ctx, http.MethodPost, nil)

	fmt.Println("with an Idempotency-Key:")
	st.do(ctx, http.MethodPost, http.Header{"Idempotency-Key": {"6f1c"}})

	fmt.Println("nothing was sent, since the node is dead:")
	st.a.is(well)
	st.b.is(well)
	st.favourite().kill()
	st.do(ctx, http.MethodPost, nil)
	return nil
}

func allDead(ctx context.Context) error {
	st, err := newStage(func(_ *stage, orders *backstay.Service) {
		orders.Breaker = breaker.Config{OpenTime: 500 * time.Millisecond} // 5 s are long for a reader
	})
	if err != nil {
		return err
	}
	defer st.close()
	st.a.kill()
	st.b.kill()
	st.get(ctx)
	st.next(40)
	st.get(ctx)

	fmt.Println("both are back, and the breakers' time is over:")
	if err := errors.Join(st.a.start(), st.b.start()); err != nil {
		return err
	}
	pause(ctx, 700*time.Millisecond)
	for range 8 {
		st.get(ctx)
	}
	return nil
}

func budgetUsedUp(ctx context.Context) error {
	st, err := newStage(func(_ *stage, orders *backstay.Service) {
		orders.Budget = retry.BudgetConfig{PerSecond: 1} // with 10 it would take a while
		orders.Breaker = breaker.Config{FailureRate: -1} // they are another scene
	})
	if err != nil {
		return err
	}
	defer st.close()
	unavailable := answers(http.StatusServiceUnavailable)
	st.a.is(unavailable)
	st.b.is(unavailable)
	st.next(20)
	st.get(ctx)
	return nil
}

func throttling(ctx context.Context) error {
	st, err := newStage(nil)
	if err != nil {
		return err
	}
	defer st.close()
	busy := answers(http.StatusTooManyRequests, "Retry-After", "1")
	st.a.is(busy)
	st.b.is(busy)
	time.AfterFunc(500*time.Millisecond, func() { st.a.is(well); st.b.is(well) })
	st.get(ctx)

	fmt.Println("with a deadline before that:")
	st.a.is(busy)
	st.b.is(busy)
	short, cancel := context.WithTimeout(ctx, 800*time.Millisecond)
	defer cancel()
	st.get(short)
	return nil
}

func deadline(ctx context.Context) error {
	st, err := newStage(nil)
	if err != nil {
		return err
	}
	defer st.close()
	st.a.is(slow)
	st.b.is(slow)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	st.get(short)

	fmt.Println("with the service's Timeout in its place:")
	tight, err := newStage(func(_ *stage, orders *backstay.Service) { orders.Timeout = 50 * time.Millisecond })
	if err != nil {
		return err
	}
	defer tight.close()
	tight.a.is(slow)
	tight.b.is(slow)
	tight.get(ctx)
	return nil
}

func limited(ctx context.Context) error {
	st, err := newStage(func(_ *stage, orders *backstay.Service) {
		orders.Rate = limit.RateConfig{Limit: 1, Burst: 1}
	})
	if err != nil {
		return err
	}
	defer st.close()
	st.get(ctx)
	st.get(ctx)
	return nil
}

func allFull(ctx context.Context) error {
	st, err := newStage(func(_ *stage, orders *backstay.Service) { orders.NodeConcurrency = 1 })
	if err != nil {
		return err
	}
	defer st.close()
	st.a.is(slow)
	st.b.is(slow)
	var busy sync.WaitGroup
	for range 2 {
		busy.Go(func() { st.quietly(1) })
	}
	pause(ctx, 50*time.Millisecond)
	st.get(ctx)
	busy.Wait()
	return nil
}

func dnsDown(ctx context.Context) error {
	st, err := newStage(func(_ *stage, orders *backstay.Service) {
		orders.Endpoints = nil
		orders.Resolver = discovery.DNS(&discovery.DNSConfig{Server: "127.0.0.1:1"}) // nobody is there
		orders.Retry.MaxAttempts = -1                                                // the line is long enough
	})
	if err != nil {
		return err
	}
	defer st.close()
	st.get(ctx)
	return nil
}

func registryDown(ctx context.Context) error {
	list := make(registry)
	st, err := newStage(func(_ *stage, orders *backstay.Service) {
		orders.Endpoints, orders.Resolver = nil, list
	})
	if err != nil {
		return err
	}
	defer st.close()
	list <- endpoints(st.a, st.b)
	st.get(ctx)
	list <- errors.New("registry: connection refused")
	pause(ctx, 50*time.Millisecond)
	st.get(ctx)
	return nil
}

func deployment(ctx context.Context) error {
	list := make(registry)
	st, err := newStage(func(_ *stage, orders *backstay.Service) {
		orders.Endpoints, orders.Resolver = nil, list
	})
	if err != nil {
		return err
	}
	defer st.close()
	list <- endpoints(st.a)
	st.quietly(5)

	fmt.Println("b joins, a drains:")
	leaving := endpoints(st.a, st.b)
	leaving[0].Draining = true
	list <- leaving
	pause(ctx, 200*time.Millisecond)
	st.next(20)

	fmt.Println("a leaves the list:")
	list <- endpoints(st.b)
	pause(ctx, 200*time.Millisecond)
	st.get(ctx)
	return nil
}
