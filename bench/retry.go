package main

import (
	"context"

	retrygo "github.com/avast/retry-go/v4"
	"github.com/cenkalti/backoff/v4"
	"github.com/eapache/go-resiliency/retrier"
	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/retrypolicy"

	"github.com/backstay/backstay/retry"
)

const (
	moduleBackoff = "github.com/cenkalti/backoff/v4"
	moduleRetryGo = "github.com/avast/retry-go/v4"
)

// retryAttempts is how often a call is tried in all.
const retryAttempts = 3

func retryContests() []contest {
	modes := []mode{serial(), parallel()}
	return []contest{
		{name: "Retry/first-try", modes: modes, peers: retries(func() func() error { return succeed })},
		{name: "Retry/one-failure", modes: modes, peers: retries(failEveryOther)},
	}
}

// failEveryOther returns a function that fails the first of two attempts.
func failEveryOther() func() error {
	failed := false
	return func() error {
		if failed = !failed; failed {
			return errCall
		}
		return nil
	}
}

// retries has calls tried again at once. What a policy is made of is made once
// for all; newCall makes what each goroutine calls.
func retries(newCall func() func() error) []peer {
	// with is a job in which each goroutine does what newDo makes of its call.
	with := func(newDo func(call func() error) func() error) job {
		return func(l *loop) error { return each(newDo(newCall()))(l) }
	}
	return []peer{
		{name: "none", setup: stateless(with(func(call func() error) func() error {
			return func() error {
				var err error
				for range retryAttempts {
					if err = call(); err == nil {
						return nil
					}
				}
				return err
			}
		}))},
		// With the default budget, too, most of these calls would not be repeated:
		// in one-failure there are as many extra attempts as calls.
		{name: ours, setup: func(*stage) (job, error) {
			r, err := newRetrier(2)
			return with(runWith(r)), err
		}},
		{name: "backstay-no-budget", setup: func(*stage) (job, error) {
			r, err := newRetrier(-1)
			return with(runWith(r)), err
		}},
		{name: "failsafe", module: moduleFailsafe, setup: func(*stage) (job, error) {
			policy := retrypolicy.NewBuilder[any]().WithMaxAttempts(retryAttempts).Build()
			x := failsafe.With[any](policy)
			return with(func(call func() error) func() error {
				return func() error { return x.Run(call) }
			}), nil
		}},
		{name: "backoff-v4", module: moduleBackoff, setup: stateless(with(func(call func() error) func() error {
			policy := backoff.WithMaxRetries(&backoff.ZeroBackOff{}, retryAttempts-1) // not for concurrent use
			return func() error { return backoff.Retry(call, policy) }
		}))},
		{name: "retry-go", module: moduleRetryGo, setup: func(*stage) (job, error) {
			options := []retrygo.Option{
				retrygo.Attempts(retryAttempts), retrygo.Delay(0), retrygo.DelayType(retrygo.FixedDelay),
				retrygo.LastErrorOnly(true),
			}
			return with(func(call func() error) func() error {
				return func() error { return retrygo.Do(call, options...) }
			}), nil
		}},
		{name: "eapache", module: moduleEapache, setup: func(*stage) (job, error) {
			r := retrier.New(retrier.ConstantBackoff(retryAttempts-1, 0), nil)
			return with(func(call func() error) func() error {
				return func() error { return r.Run(call) }
			}), nil
		}},
	}
}

func newRetrier(ratio float64) (*retry.Retrier, error) {
	budget, err := retry.NewBudget(&retry.BudgetConfig{Ratio: ratio})
	if err != nil {
		return nil, err
	}
	return retry.New(&retry.Config{MaxAttempts: retryAttempts, Backoff: retry.Backoff{Base: -1}, Budget: budget})
}

func runWith(r *retry.Retrier) func(call func() error) func() error {
	ctx := context.Background()
	return func(call func() error) func() error {
		in := func(context.Context) error { return call() }
		return func() error { return r.Run(ctx, in) }
	}
}
