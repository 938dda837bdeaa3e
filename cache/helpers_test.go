package cache_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/cache"
)

var errDown = errors.New("down")

// exact has nothing at random.
func exact[K comparable, V any](cfg cache.Config[K, V]) *cache.Config[K, V] {
	if cfg.Jitter == 0 {
		cfg.Jitter = -1
	}
	return &cfg
}

func newCache[K comparable, V any](t testing.TB, cfg *cache.Config[K, V]) *cache.Cache[K, V] {
	t.Helper()
	c, err := cache.New(cfg)
	require.NoError(t, err)
	return c
}

// never is a loader that must not be called.
func never[K comparable, V any](t testing.TB) func(context.Context, K) (V, error) {
	return func(_ context.Context, key K) (V, error) {
		t.Errorf("a load of %v", key)
		var zero V
		return zero, nil
	}
}

// origin is a loader that counts, and answers when it is told to.
type origin struct {
	loads, running, most atomic.Int32
	begun                chan context.Context // if not nil, gets each load's context
	answers              chan answer          // if not nil, each load takes one
	deaf                 bool                 // whether to ignore the context
}

type answer struct {
	v   string
	err error
}

func (o *origin) load(ctx context.Context, key string) (string, error) {
	o.loads.Add(1)
	defer o.running.Add(-1)
	for n := o.running.Add(1); ; {
		if most := o.most.Load(); n <= most || o.most.CompareAndSwap(most, n) {
			break
		}
	}
	if o.begun != nil {
		o.begun <- ctx
	}
	if o.answers == nil {
		return "v of " + key, nil
	}
	done := ctx.Done()
	if o.deaf {
		done = nil
	}
	select {
	case a := <-o.answers:
		return a.v, a.err
	case <-done:
		return "", ctx.Err()
	}
}

// manual is an origin whose loads wait for an answer.
func manual() *origin {
	return &origin{begun: make(chan context.Context, 100), answers: make(chan answer)}
}

// result is what one Get returned, and when.
type result struct {
	v    string
	err  error
	took time.Duration
}

// goGet starts a Get.
func goGet(ctx context.Context, c *cache.Cache[string, string], key string, load func(context.Context, string) (string, error)) <-chan result {
	ch := make(chan result, 1)
	start := time.Now()
	go func() {
		v, err := c.Get(ctx, key, load)
		ch <- result{v, err, time.Since(start)}
	}()
	return ch
}

// evictions records what OnEvict is told.
type evictions[K comparable, V any] struct {
	mu   sync.Mutex
	list []eviction[K, V]
}

type eviction[K comparable, V any] struct {
	key   K
	value V
	cause cache.Cause
}

func (e *evictions[K, V]) note(key K, value V, cause cache.Cause) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, eviction[K, V]{key, value, cause})
}

// take returns what was recorded since the last take.
func (e *evictions[K, V]) take() []eviction[K, V] {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := e.list
	e.list = nil
	return list
}
