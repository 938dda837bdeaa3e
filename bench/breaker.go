package main

import (
	"context"
	"errors"
	"time"

	"github.com/cep21/circuit/v4"
	"github.com/cep21/circuit/v4/closers/hystrix"
	eapache "github.com/eapache/go-resiliency/breaker"
	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	mercari "github.com/mercari/go-circuitbreaker"
	"github.com/sony/gobreaker/v2"
	gozero "github.com/zeromicro/go-zero/core/breaker"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

const (
	moduleGobreaker = "github.com/sony/gobreaker/v2"
	moduleFailsafe  = "github.com/failsafe-go/failsafe-go"
	moduleCep21     = "github.com/cep21/circuit/v4"
	moduleMercari   = "github.com/mercari/go-circuitbreaker"
	moduleEapache   = "github.com/eapache/go-resiliency"
	moduleGoZero    = "github.com/zeromicro/go-zero"
)

// What all breakers are set to, as far as they can be.
const (
	breakerWindow = 10 * time.Second
	breakerCalls  = 20
	breakerRate   = 0.5
	breakerOpen   = time.Hour // so that an open one stays open
)

var (
	errCall     = errors.New("the call failed")
	errAdmitted = errors.New("the open breaker let a call through")
	errRefused  = errors.New("the closed breaker refused a call")
)

func succeed() error                  { return nil }
func succeedIn(context.Context) error { return nil }
func fail() error                     { return errCall }
func failIn(context.Context) error    { return errCall }

func breakerContests() []contest {
	modes := []mode{serial(), parallel()}
	return []contest{
		{name: "Breaker/closed-success", modes: modes, peers: closedBreakers()},
		{name: "Breaker/open-reject", modes: modes, peers: openBreakers()},
		{name: "Breaker/keyed-1000", modes: modes, peers: keyedBreakers()},
	}
}

// The breakers, set up as alike as they can be.

func newOurs(cfg breaker.Config) (*breaker.Breaker, error) {
	cfg.OpenTime = breakerOpen
	return breaker.New("orders", &cfg)
}

// lease is one call that goes well.
func lease(b *breaker.Breaker) error {
	l, err := b.Acquire(time.Time{})
	if err != nil {
		return err
	}
	l.Done(time.Time{}, outcome.Outcome{})
	return nil
}

func newGobreaker(bucket time.Duration) *gobreaker.CircuitBreaker[struct{}] {
	return gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Name: "orders", Interval: breakerWindow, BucketPeriod: bucket, Timeout: breakerOpen,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return c.Requests >= breakerCalls && float64(c.TotalFailures) >= breakerRate*float64(c.Requests)
		},
	})
}

func newFailsafe() circuitbreaker.CircuitBreaker[any] {
	return circuitbreaker.NewBuilder[any]().WithFailureThreshold(5).WithDelay(breakerOpen).Build()
}

func newFailsafeRate() circuitbreaker.CircuitBreaker[any] {
	return circuitbreaker.NewBuilder[any]().
		WithFailureRateThreshold(breakerRate, breakerCalls, breakerWindow).WithDelay(breakerOpen).Build()
}

// permit is one call that goes well.
func permit(b circuitbreaker.CircuitBreaker[any]) error {
	if !b.TryAcquirePermit() {
		return errRefused
	}
	b.RecordSuccess()
	return nil
}

func cep21Config() circuit.Config {
	return circuit.Config{
		General: circuit.GeneralConfig{
			ClosedToOpenFactory: hystrix.OpenerFactory(hystrix.ConfigureOpener{
				ErrorThresholdPercentage: breakerRate * 100, RequestVolumeThreshold: breakerCalls,
				RollingDuration: breakerWindow, NumBuckets: 10,
			}),
			OpenToClosedFactory: hystrix.CloserFactory(hystrix.ConfigureCloser{SleepWindow: breakerOpen}),
		},
		Execution: circuit.ExecutionConfig{Timeout: -1, MaxConcurrentRequests: -1},
	}
}

func newMercari() *mercari.CircuitBreaker {
	return mercari.New(
		mercari.WithTripFunc(mercari.NewTripFuncFailureRate(breakerCalls, breakerRate)),
		mercari.WithOpenTimeout(breakerOpen),
	)
}

func newEapache() *eapache.Breaker { return eapache.New(5, 1, breakerOpen) }

func closedBreakers() []peer {
	ctx := context.Background()
	return []peer{
		{name: "none", setup: always(succeed)},
		{name: ours, setup: func(*stage) (job, error) {
			b, err := newOurs(breaker.Config{})
			return each(func() error { return lease(b) }), err
		}},
		{name: "backstay-slow-calls", setup: func(*stage) (job, error) {
			b, err := newOurs(breaker.Config{SlowTime: time.Second})
			return each(func() error { return lease(b) }), err
		}},
		{name: "backstay-run", setup: func(*stage) (job, error) {
			b, err := newOurs(breaker.Config{})
			return each(func() error { return b.Run(ctx, succeedIn) }), err
		}},
		{name: "gobreaker", module: moduleGobreaker, setup: func(*stage) (job, error) {
			b := newGobreaker(0)
			return each(func() error { return execute(b, succeed) }), nil
		}},
		{name: "gobreaker-rolling", module: moduleGobreaker, setup: func(*stage) (job, error) {
			b := newGobreaker(breakerWindow / 10)
			return each(func() error { return execute(b, succeed) }), nil
		}},
		{name: "failsafe", module: moduleFailsafe, setup: func(*stage) (job, error) {
			b := newFailsafe()
			return each(func() error { return permit(b) }), nil
		}},
		{name: "failsafe-rate", module: moduleFailsafe, setup: func(*stage) (job, error) {
			b := newFailsafeRate()
			return each(func() error { return permit(b) }), nil
		}},
		{name: "failsafe-rate-exec", module: moduleFailsafe, setup: func(*stage) (job, error) {
			x := failsafe.With[any](newFailsafeRate())
			return each(func() error { return x.Run(succeed) }), nil
		}},
		{name: "cep21", module: moduleCep21, setup: func(*stage) (job, error) {
			b := circuit.NewCircuitFromConfig("orders", cep21Config())
			return each(func() error { return b.Execute(ctx, succeedIn, nil) }), nil
		}},
		{name: "mercari", module: moduleMercari, setup: func(*stage) (job, error) {
			b := newMercari()
			return each(func() error {
				if !b.Ready() {
					return errRefused
				}
				b.Success()
				return nil
			}), nil
		}},
		{name: "eapache", module: moduleEapache, setup: func(*stage) (job, error) {
			b := newEapache()
			return each(func() error { return b.Run(succeed) }), nil
		}},
		{name: "go-zero", module: moduleGoZero, setup: func(*stage) (job, error) {
			b := gozero.NewBreaker()
			return each(func() error { return promise(b) }), nil
		}},
	}
}

// execute runs f under gobreaker.
func execute(b *gobreaker.CircuitBreaker[struct{}], f func() error) error {
	_, err := b.Execute(func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// promise is one call that goes well.
func promise(b gozero.Breaker) error {
	p, err := b.Allow()
	if err != nil {
		return err
	}
	p.Accept()
	return nil
}

// openBreakers opens each of them by as many failures as it takes.
func openBreakers() []peer {
	ctx := context.Background()
	return []peer{
		{name: "none", setup: always(succeed)},
		{name: ours, setup: func(*stage) (job, error) {
			b, err := newOurs(breaker.Config{})
			if err != nil {
				return nil, err
			}
			return opened(func() error {
				l, err := b.Acquire(time.Time{})
				if err != nil {
					return err
				}
				l.Done(time.Time{}, outcome.Outcome{Class: outcome.Failure, Err: errCall})
				return errCall
			}), nil
		}},
		{name: "gobreaker", module: moduleGobreaker, setup: func(*stage) (job, error) {
			b := newGobreaker(0)
			return opened(func() error { return execute(b, fail) }), nil
		}},
		{name: "gobreaker-rolling", module: moduleGobreaker, setup: func(*stage) (job, error) {
			b := newGobreaker(breakerWindow / 10)
			return opened(func() error { return execute(b, fail) }), nil
		}},
		{name: "failsafe", module: moduleFailsafe, setup: func(*stage) (job, error) {
			b := newFailsafe()
			return opened(func() error { return failWithPermit(b) }), nil
		}},
		{name: "failsafe-rate", module: moduleFailsafe, setup: func(*stage) (job, error) {
			b := newFailsafeRate()
			return opened(func() error { return failWithPermit(b) }), nil
		}},
		{name: "failsafe-rate-exec", module: moduleFailsafe, setup: func(*stage) (job, error) {
			x := failsafe.With[any](newFailsafeRate())
			return opened(func() error { return x.Run(fail) }), nil
		}},
		{name: "cep21", module: moduleCep21, setup: func(*stage) (job, error) {
			b := circuit.NewCircuitFromConfig("orders", cep21Config())
			return opened(func() error { return b.Execute(ctx, failIn, nil) }), nil
		}},
		{name: "mercari", module: moduleMercari, setup: func(*stage) (job, error) {
			b := newMercari()
			return opened(func() error {
				if !b.Ready() {
					return errRefused
				}
				b.Fail()
				return errCall
			}), nil
		}},
		{name: "eapache", module: moduleEapache, setup: func(*stage) (job, error) {
			b := newEapache()
			return opened(func() error { return b.Run(fail) }), nil
		}},
		{name: "go-zero", module: moduleGoZero, setup: func(*stage) (job, error) {
			b := gozero.NewBreaker()
			call := func() error {
				// It refuses most calls and never all of them.
				if p, err := b.Allow(); err == nil {
					p.Reject(errCall.Error())
				}
				return nil
			}
			for range 100 * breakerCalls {
				_ = call()
			}
			return each(call), nil
		}},
	}
}

// opened opens a breaker by calls that fail, and is then refused by it. The call
// returns errCall itself when it is admitted: a refusal may wrap it.
func opened(call func() error) job {
	for range breakerCalls {
		_ = call()
	}
	return each(func() error {
		if err := call(); err == nil || err == errCall { //nolint:errorlint // see above
			return errAdmitted
		}
		return nil
	})
}

func failWithPermit(b circuitbreaker.CircuitBreaker[any]) error {
	if !b.TryAcquirePermit() {
		return errRefused
	}
	b.RecordFailure()
	return errCall
}
