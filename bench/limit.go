package main

import (
	"context"
	"errors"
	"time"

	"github.com/failsafe-go/failsafe-go/bulkhead"
	"github.com/failsafe-go/failsafe-go/ratelimiter"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/backstay/backstay/limit"
)

const (
	moduleSync = "golang.org/x/sync"
	moduleTime = "golang.org/x/time"
)

// What the limits are is more than can be reached: nobody is refused.
const (
	limitRate        = 1_000_000_000
	limitConcurrency = 1_000
)

var errLimited = errors.New("the limit refused a call")

func limitContests() []contest {
	modes := []mode{serial(), parallel()}
	return []contest{
		{name: "Limit/rate-allow", modes: modes, peers: rates()},
		{name: "Limit/bulkhead", modes: modes, peers: bulkheads()},
	}
}

// granted turns a yes or no into an error.
func granted(ok bool) error {
	if !ok {
		return errLimited
	}
	return nil
}

func rates() []peer {
	return []peer{
		{name: "none", setup: always(succeed)},
		{name: ours, setup: func(*stage) (job, error) {
			r, err := limit.NewRate(&limit.RateConfig{Limit: limitRate})
			return each(func() error { return r.Allow(time.Time{}) }), err
		}},
		{name: "x-time-rate", module: moduleTime, setup: func(*stage) (job, error) {
			r := rate.NewLimiter(limitRate, limitRate)
			return each(func() error { return granted(r.Allow()) }), nil
		}},
		{name: "failsafe-bursty", module: moduleFailsafe, setup: func(*stage) (job, error) {
			r := ratelimiter.NewBursty[any](limitRate, time.Second)
			return each(func() error { return granted(r.TryAcquirePermit()) }), nil
		}},
	}
}

// bulkheads take a permission and give it back. With -ctx it is the form that
// could wait.
func bulkheads() []peer {
	ctx := context.Background()
	return []peer{
		{name: "none", setup: always(succeed)},
		{name: ours, setup: func(*stage) (job, error) {
			c, err := limit.NewConcurrency(&limit.ConcurrencyConfig{Max: limitConcurrency})
			return each(func() error {
				l, err := c.TryAcquire()
				l.Done()
				return err
			}), err
		}},
		{name: "backstay-ctx", setup: func(*stage) (job, error) {
			c, err := limit.NewConcurrency(&limit.ConcurrencyConfig{Max: limitConcurrency, Queue: limitConcurrency})
			return each(func() error {
				l, err := c.Acquire(ctx)
				l.Done()
				return err
			}), err
		}},
		{name: "x-semaphore", module: moduleSync, setup: func(*stage) (job, error) {
			s := semaphore.NewWeighted(limitConcurrency)
			return each(func() error {
				if !s.TryAcquire(1) {
					return errLimited
				}
				s.Release(1)
				return nil
			}), nil
		}},
		{name: "x-semaphore-ctx", module: moduleSync, setup: func(*stage) (job, error) {
			s := semaphore.NewWeighted(limitConcurrency)
			return each(func() error {
				if err := s.Acquire(ctx, 1); err != nil {
					return err
				}
				s.Release(1)
				return nil
			}), nil
		}},
		{name: "failsafe", module: moduleFailsafe, setup: func(*stage) (job, error) {
			b := bulkhead.New[any](limitConcurrency)
			return each(func() error {
				if !b.TryAcquirePermit() {
					return errLimited
				}
				b.ReleasePermit()
				return nil
			}), nil
		}},
		{name: "failsafe-ctx", module: moduleFailsafe, setup: func(*stage) (job, error) {
			b := bulkhead.New[any](limitConcurrency)
			return each(func() error {
				if err := b.AcquirePermit(ctx); err != nil {
					return err
				}
				b.ReleasePermit()
				return nil
			}), nil
		}},
		{name: "channel", setup: func(*stage) (job, error) {
			c := make(chan struct{}, limitConcurrency)
			return each(func() error {
				select {
				case c <- struct{}{}:
				default:
					return errLimited
				}
				<-c
				return nil
			}), nil
		}},
	}
}
