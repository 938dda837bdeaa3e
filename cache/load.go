package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/event"
)

var (
	// ErrNotFound is what a loader returns, alone or wrapped, to say that there
	// is no value for the key. With Config.NegativeTTL it is remembered.
	ErrNotFound = errors.New("cache: not found")
	// ErrReentrant is what Get returns to a loader that asks for the very key
	// that it is loading: to wait for itself would never end.
	ErrReentrant = errors.New("cache: the loader of a key asked for the same key")
	// ErrGoexit is what Get returns when the loader ended its goroutine by
	// runtime.Goexit, as a test's FailNow does.
	ErrGoexit = errors.New("cache: the loader called runtime.Goexit")
	// ErrClosed is what Get returns after Close.
	ErrClosed = errors.New("cache: closed")

	errNil     = errors.New("cache: Get needs a context and a loader, got nil")
	errRunning = errors.New("cache: closed while loads go on that ignore their context")
)

// PanicError is what Get returns to all who waited for a loader that panicked.
type PanicError struct {
	// Value is what the loader panicked with.
	Value any
	// Stack is where, as runtime/debug.Stack has it.
	Stack []byte
}

// Error is the value. The stack is not in it, for errors find their way to callers and
// into answers: [LoadFailed] logs it.
func (e *PanicError) Error() string { return fmt.Sprintf("cache: the loader panicked: %v", e.Value) }

// Unwrap returns the value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// SetTTL lets a loader decide how long the value that it is going to return may
// be kept, instead of the cache's config: 0 means as configured, a negative one
// that the value does not expire. It also decides for how long an ErrNotFound is
// remembered, if it is. ctx is the loader's, or one made from it; with another
// one SetTTL does nothing. The last call counts.
func SetTTL(ctx context.Context, ttl time.Duration) {
	if p, ok := ctx.Value(ttlKey{}).(*atomic.Int64); ok {
		p.Store(int64(ttl))
	}
}

// flight is one run of a loader, for all who wait for it.
type flight[V any] struct {
	done chan struct{} // closed when the load is over and its value stored
	v    V             // set before done is closed, as is err
	err  error

	cancel context.CancelFunc
	ttl    atomic.Int64 // what SetTTL said

	waiters   int  // guarded by the shard's lock, as is abandoned
	abandoned bool // all waiters have left and the load's context is cancelled
}

// loadContext is what a loader's context says of the load.
type loadContext[K comparable, V any] struct {
	context.Context //nolint:containedctx // it is a context
	cache           *Cache[K, V]
	key             K
	flight          *flight[V]
}

type (
	ttlKey                       struct{}
	loadKey[K comparable, V any] struct{ *Cache[K, V] }
)

// Value answers for SetTTL and for the check against re-entrance.
func (l *loadContext[K, V]) Value(key any) any {
	switch key {
	case ttlKey{}:
		return &l.flight.ttl
	case loadKey[K, V]{l.cache}:
		return l
	}
	return l.Context.Value(key)
}

// loading reports whether ctx is that of a loader of key, or of one that it
// called, and the load is not over.
func (c *Cache[K, V]) loading(ctx context.Context, key K) bool {
	for {
		l, _ := ctx.Value(loadKey[K, V]{c}).(*loadContext[K, V])
		if l == nil {
			return false
		}
		if l.key == key {
			select {
			case <-l.flight.done: // the context has outlived its load
			default:
				return true
			}
		}
		ctx = l.Context
	}
}

// load is Get after a look that found no value.
func (c *Cache[K, V]) load(ctx context.Context, s *shard[K, V], key K, load func(context.Context, K) (V, error)) (V, error) {
	var zero V
	if c.loading(ctx, key) {
		return zero, ErrReentrant
	}
	for again := false; ; again = true {
		if err := ctx.Err(); err != nil {
			return zero, err
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return zero, ErrClosed
		}
		// Look again: a load may have ended since, and another one for the
		// same generation would be one too many.
		v, what := c.look(s, key)
		if what >= foundAbsence {
			s.mu.Unlock()
			s.count(what)
			if what == foundAbsence {
				return zero, ErrNotFound
			}
			return v, nil
		}
		f := s.flights[key]
		joined := f != nil
		if !joined {
			f = c.takeOff(ctx, s, key, load)
		}
		// An abandoned load cannot be called back, and a second one beside it
		// would break the promise of one at a time. So wait for its end, and
		// start anew unless it brought a value after all.
		late := f.abandoned
		if !late {
			f.waiters++
		}
		s.mu.Unlock()
		if !again {
			s.count(what)
		}
		if joined {
			s.coalesced.Add(1)
		}
		if !s.wait(ctx, f, late) {
			return zero, ctx.Err()
		}
		if late && f.err != nil {
			continue
		}
		return f.v, f.err
	}
}

// wait waits for the end of f, or for that of ctx and then returns false.
func (s *shard[K, V]) wait(ctx context.Context, f *flight[V], late bool) bool {
	select {
	case <-f.done:
		return true
	case <-ctx.Done():
	}
	if late {
		return false
	}
	s.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	f.abandoned = f.abandoned || last
	s.mu.Unlock()
	if last {
		f.cancel()
	}
	return false
}

// takeOff starts a load and registers it. The caller holds s.mu.
func (c *Cache[K, V]) takeOff(ctx context.Context, s *shard[K, V], key K, load func(context.Context, K) (V, error)) *flight[V] {
	f := &flight[V]{done: make(chan struct{})}
	ctx, f.cancel = context.WithCancel(&loadContext[K, V]{context.WithoutCancel(ctx), c, key, f})
	if key == key { //nolint:gocritic // false for NaN, which a map would never give back
		s.flights[key] = f
	} else {
		s.strays[f] = struct{}{}
	}
	s.loads.Add(1)
	c.loads.Go(func() {
		defer f.cancel()
		c.run(ctx, s, key, f, load)
	})
	return f
}

// run loads. However load ends, the flight lands.
func (c *Cache[K, V]) run(ctx context.Context, s *shard[K, V], key K, f *flight[V], load func(context.Context, K) (V, error)) {
	began := c.clock.now()
	var it item[V]
	var err error
	returned := false
	defer func() {
		if !returned {
			err = ErrGoexit
			if p := recover(); p != nil {
				err = &PanicError{Value: p, Stack: debug.Stack()}
			}
		}
		c.land(ctx, s, key, f, it, err, began)
	}()
	if it.value, err = load(ctx, key); err == nil {
		it.weight = c.weigh(key, it.value)
	}
	returned = true
}

// land stores the result of a load, unless its key has been set or deleted
// since it began, and hands it to those who wait.
func (c *Cache[K, V]) land(ctx context.Context, s *shard[K, V], key K, f *flight[V], it item[V], err error, began int64) {
	now := c.clock.now()
	ttl, keep := time.Duration(f.ttl.Load()), err == nil
	if err != nil {
		it = item[V]{missing: isNotFound(err)}
		if keep = it.missing && c.cfg.NegativeTTL > 0; keep && ttl == 0 {
			ttl = c.cfg.NegativeTTL
		}
	}
	it.deadline = c.deadline(now, ttl)

	var gone []record[K, V]
	s.mu.Lock()
	if s.flights[key] == f {
		delete(s.flights, key)
		if keep {
			gone = s.put(now, key, it, nil)
		}
	} else {
		delete(s.strays, f)
	}
	closed, cancelled := s.closed, s.closed || f.abandoned
	s.mu.Unlock()

	failed := err != nil && !it.missing && !(cancelled && errors.Is(err, context.Canceled))
	if failed {
		s.loadErrors.Add(1)
	}
	if closed && err != nil {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	f.v, f.err = it.value, err
	close(f.done)

	c.report(gone)
	if failed && c.cfg.Observer != nil {
		event.Emit(ctx, c.cfg.Observer, LoadFailed{
			Cache: c.cfg.Name, Key: key, Err: err, Duration: time.Duration(now - began),
		})
	}
}

// isNotFound reports whether a loader said that there is no value. A panic with
// ErrNotFound says nothing of the kind.
func isNotFound(err error) bool {
	var p *PanicError
	return errors.Is(err, ErrNotFound) && !errors.As(err, &p)
}

// detach makes sure that the load of key, if there is one, is not stored. The
// caller holds s.mu.
func (s *shard[K, V]) detach(key K) {
	if f := s.flights[key]; f != nil {
		delete(s.flights, key)
		s.strays[f] = struct{}{}
	}
}
