package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/cep21/circuit/v4"
	"github.com/sony/gobreaker/v2"
	gozero "github.com/zeromicro/go-zero/core/breaker"

	"github.com/backstay/backstay/breaker"
)

// keyedBreakers has a breaker for each of a thousand keys, found anew for every
// call. Peers that know no keys get a sync.Map.
func keyedBreakers() []peer {
	ctx := context.Background()
	return []peer{
		{name: "none", setup: keyed(func(string) error { return nil })},
		{name: ours, setup: func(s *stage) (job, error) {
			g, err := breaker.NewGroup(&breaker.GroupConfig{Config: breaker.Config{OpenTime: breakerOpen}})
			if err != nil {
				return nil, err
			}
			return keyed(func(key string) error { return lease(g.Get(key)) })(s)
		}},
		{name: "gobreaker-rolling+syncmap", module: moduleGobreaker, setup: func(s *stage) (job, error) {
			get := byKey(func() *gobreaker.CircuitBreaker[struct{}] { return newGobreaker(breakerWindow / 10) })
			return keyed(func(key string) error { return execute(get(key), succeed) })(s)
		}},
		{name: "failsafe+syncmap", module: moduleFailsafe, setup: func(s *stage) (job, error) {
			get := byKey(newFailsafe)
			return keyed(func(key string) error { return permit(get(key)) })(s)
		}},
		{name: "failsafe-rate+syncmap", module: moduleFailsafe, setup: func(s *stage) (job, error) {
			get := byKey(newFailsafeRate)
			return keyed(func(key string) error { return permit(get(key)) })(s)
		}},
		{name: "cep21-manager", module: moduleCep21, setup: func(s *stage) (job, error) {
			var all circuit.Manager
			for _, key := range breakerKeys() {
				if _, err := all.CreateCircuit(key, cep21Config()); err != nil {
					return nil, err
				}
			}
			return keyed(func(key string) error { return all.GetCircuit(key).Execute(ctx, succeedIn, nil) })(s)
		}},
		{name: "go-zero", module: moduleGoZero, setup: keyed(func(key string) error {
			return promise(gozero.GetBreaker(key))
		})},
	}
}

// keyed is the setup of a job that calls f with one key after the other.
func keyed(f func(key string) error) func(*stage) (job, error) {
	keys := breakerKeys()
	return stateless(func(l *loop) error {
		for i := 503 * l.goroutine; l.next(); i += 379 { // not in the order of their making, nor of each other
			if err := f(keys[i%len(keys)]); err != nil {
				return err
			}
		}
		return nil
	})
}

func breakerKeys() []string {
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprintf("orders-%03d.example:8080", i)
	}
	return keys
}

// byKey makes a set of breakers from something that makes one.
func byKey[B any](newBreaker func() B) func(key string) B {
	var all sync.Map
	return func(key string) B {
		b, ok := all.Load(key)
		if !ok {
			b, _ = all.LoadOrStore(key, newBreaker())
		}
		return b.(B) //nolint:errcheck // nothing else is stored
	}
}
