// Command anyfunc puts a retry and a breaker around a function that has nothing
// to do with HTTP: a query, a queue, a client library.
//
//	go run ./examples/anyfunc
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// Stock asks a warehouse how much there is of something.
type Stock struct {
	warehouse *warehouse
	retrier   *retry.Retrier
	breaker   *breaker.Breaker
}

// NewStock returns a client of the warehouse that tells observer what it does.
func NewStock(w *warehouse, observer event.Observer) (*Stock, error) {
	r, rErr := retry.New(&retry.Config{
		Name:           "warehouse",
		Backoff:        retry.Backoff{Base: 10 * time.Millisecond},
		AttemptTimeout: 100 * time.Millisecond,
		Observer:       observer,
	})
	b, bErr := breaker.New("warehouse", &breaker.Config{
		Consecutive: 5,
		OpenTime:    200 * time.Millisecond,
		Probes:      1,
		Observer:    observer,
	})
	return &Stock{warehouse: w, retrier: r, breaker: b}, errors.Join(rErr, bErr)
}

// Of returns how many there are of an item. It only reads, so it may be repeated:
// what must not be, has its error wrapped by outcome.Permanent.
func (s *Stock) Of(ctx context.Context, item string) (int, error) {
	return retry.Do(ctx, s.retrier, func(ctx context.Context) (int, error) {
		// Inside the retry, the breaker sees each attempt. Its refusal ends the call.
		return breaker.Do(ctx, s.breaker, func(ctx context.Context) (int, error) {
			n, err := s.warehouse.query(ctx, item)
			if errors.Is(err, errNoSuchItem) {
				err = outcome.Permanent(err) // asking again would not help
			}
			return n, err
		})
	})
}

func main() {
	ctx := context.Background()
	w := &warehouse{stock: map[string]int{"anchor": 3}}
	stock, err := NewStock(w, event.Log(slog.New(slog.NewTextHandler(os.Stdout, nil))))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ask := func(item string) {
		n, err := stock.Of(ctx, item)
		switch wait, known := backstay.RetryAfter(err); {
		case err == nil:
			fmt.Printf("%s: %d\n\n", item, n)
		case backstay.Refused(err) && known:
			fmt.Printf("%s: not asked, there is no point for another %v\n\n", item, wait.Round(10*time.Millisecond))
		default:
			fmt.Printf("%s: %v\n\n", item, err)
		}
	}

	ask("anchor")
	w.failNext = 2
	ask("anchor") // at the third attempt
	ask("sextant")
	w.stallNext = 1
	ask("anchor") // the first attempt takes too long
	w.failNext = 8
	ask("anchor")
	ask("anchor") // opens the breaker
	ask("anchor") // is refused
	w.failNext = 0
	pause := time.NewTimer(300 * time.Millisecond)
	<-pause.C
	ask("anchor") // a probe, which closes the breaker
}

var (
	errNoSuchItem = errors.New("no such item")
	errOnStrike   = errors.New("on strike")
)

// warehouse stands for anything that can fail.
type warehouse struct {
	stock               map[string]int
	failNext, stallNext int
}

func (w *warehouse) query(ctx context.Context, item string) (int, error) {
	if w.stallNext--; w.stallNext >= 0 {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	if w.failNext--; w.failNext >= 0 {
		return 0, errOnStrike
	}
	n, ok := w.stock[item]
	if !ok {
		return 0, errNoSuchItem
	}
	return n, nil
}
