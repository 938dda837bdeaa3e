package limit

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/internal/inherit"
)

// ConcurrencyConfig configures a [Concurrency].
type ConcurrencyConfig struct {
	// Key names what is limited, in errors.
	// Default: none.
	Key string `json:"key,omitempty"`
	// Max is how many calls may be under way. Negative is no limit.
	// Default: 1,000.
	Max int `json:"max,omitempty"`
	// Queue is how many more may wait for their turn. Negative is none.
	// Default: 0, none waits.
	Queue int `json:"queue,omitempty"`
	// MaxWait is how long a call waits before it is refused. Negative is as long
	// as its context lasts.
	// Default: 1s.
	MaxWait time.Duration `json:"maxWait,omitempty"`
	// UntilHeaders is On to make the HTTP layer take a call for over when its
	// response's headers have come. Otherwise it is over at the end of the body.
	// Default: Off.
	UntilHeaders Switch `json:"untilHeaders,omitempty"`
}

func (c *ConcurrencyConfig) resolve() (*ConcurrencyConfig, error) {
	var r ConcurrencyConfig
	if c != nil {
		r = *c
	}
	r.Max = cmp.Or(r.Max, 1000)
	if r.Max < 0 {
		r.Max = math.MaxInt
	}
	r.Queue = inherit.Or(r.Queue, 0)
	r.MaxWait = cmp.Or(r.MaxWait, time.Second)
	if !r.UntilHeaders.Valid() {
		return nil, fmt.Errorf("limit: UntilHeaders is %d, want On or Off", r.UntilHeaders)
	}
	return &r, nil
}

// Concurrency bounds how many calls are under way: a bulkhead. All methods may
// be called concurrently.
type Concurrency struct {
	set      atomic.Pointer[ConcurrencyConfig]
	max      atomic.Int64
	inFlight atomic.Int64
	waiting  atomic.Int64 // the length of queue, for those who do not take mu
	mu       sync.Mutex
	queue    queue
}

// NewConcurrency returns a limit with nothing under way. A nil config is the
// default.
func NewConcurrency(cfg *ConcurrencyConfig) (*Concurrency, error) {
	c := new(Concurrency)
	if err := c.Update(cfg); err != nil {
		return nil, err
	}
	return c, nil
}

// Update replaces the configuration and returns what NewConcurrency would about
// it; then nothing has changed. If Max is less than what is under way, that is
// let be and no other call begins until it has gone down. Calls that wait keep
// their places and the MaxWait that they came with.
func (c *Concurrency) Update(cfg *ConcurrencyConfig) error {
	set, err := cfg.resolve()
	if err != nil {
		return err
	}
	c.set.Store(set)
	c.max.Store(int64(set.Max))
	c.grant()
	return nil
}

// InFlight returns how many calls are under way.
func (c *Concurrency) InFlight() int { return int(c.inFlight.Load()) }

// Waiting returns how many calls wait.
func (c *Concurrency) Waiting() int { return int(c.waiting.Load()) }

// Lease is permission for one call. It is a value for the caller's stack or
// struct, not to be copied once Done was called. The zero Lease does nothing.
type Lease struct{ c *Concurrency }

// Done returns the permission once the call is over, on every way out: defer it
// where the call may panic. Only the first call has an effect.
func (l *Lease) Done() {
	if c := l.c; c != nil {
		l.c = nil
		c.release()
	}
}

// TryAcquire asks for one call without waiting. It returns a [*FullError] if
// there is no room, or if others wait for it.
func (c *Concurrency) TryAcquire() (Lease, error) {
	if c.waiting.Load() == 0 && c.take() {
		return Lease{c}, nil
	}
	return Lease{}, c.full(0)
}

// Acquire asks for one call, and waits for it in the queue if there is room
// there. It returns a [*FullError] if there is none, or after MaxWait, or when a
// call of higher priority takes its place; and the context's cause if that ends
// first.
func (c *Concurrency) Acquire(ctx context.Context) (Lease, error) { return c.acquire(ctx, nil) }

// acquire is Acquire that can also be cancelled by a channel.
func (c *Concurrency) acquire(ctx context.Context, cancel <-chan struct{}) (Lease, error) {
	if ctx.Err() != nil {
		return Lease{}, context.Cause(ctx)
	}
	if c.waiting.Load() == 0 && c.take() {
		return Lease{c}, nil
	}
	set := c.set.Load()
	if set.Queue == 0 {
		return Lease{}, c.full(0)
	}
	return c.wait(ctx, cancel, set)
}

// Run calls fn when Acquire admits it, and returns what fn returns. The
// permission is returned also if fn panics or ends its goroutine.
func (c *Concurrency) Run(ctx context.Context, fn func(context.Context) error) error {
	l, err := c.Acquire(ctx)
	if err != nil {
		return err
	}
	defer l.Done()
	return fn(ctx)
}

func (c *Concurrency) take() bool {
	for {
		n := c.inFlight.Load()
		if n >= c.max.Load() {
			return false
		}
		if c.inFlight.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release returns what take took. First the room is made and then the queue
// looked at; who waits enters the queue first and then looks for room: so one of
// the two sees the other.
func (c *Concurrency) release() {
	c.inFlight.Add(-1)
	if c.waiting.Load() > 0 {
		c.grant()
	}
}

// grant admits those who wait as far as there is room.
func (c *Concurrency) grant() {
	for {
		c.mu.Lock()
		if c.queue.len() == 0 || !c.take() {
			c.mu.Unlock()
			return
		}
		w := c.queue.next()
		w.state = admitted
		c.waiting.Add(-1)
		c.mu.Unlock()
		close(w.settled)
	}
}

func (c *Concurrency) full(waited time.Duration) error {
	set := c.set.Load()
	return &FullError{Key: set.Key, Max: set.Max, Waited: waited}
}

func (c *Concurrency) wait(ctx context.Context, cancel <-chan struct{}, set *ConcurrencyConfig) (Lease, error) {
	begin := time.Now()
	w := &waiter{level: levelOf(ctx), settled: make(chan struct{})}
	c.mu.Lock()
	var displaced *waiter
	if c.queue.len() >= set.Queue {
		if displaced = c.queue.displace(w.level); displaced == nil {
			c.mu.Unlock()
			return Lease{}, c.full(0)
		}
		displaced.state = refused
		c.waiting.Add(-1)
	}
	c.queue.push(w)
	c.waiting.Add(1)
	c.mu.Unlock()
	if displaced != nil {
		close(displaced.settled)
	}
	c.grant() // what was taken a moment ago may have been returned

	var timeout <-chan time.Time
	if set.MaxWait > 0 {
		timer := time.NewTimer(set.MaxWait)
		defer timer.Stop()
		timeout = timer.C
	}
	var err error
	select {
	case <-w.settled:
	case <-timeout:
		err = c.full(time.Since(begin))
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-cancel:
		err = context.Canceled
	}

	c.mu.Lock()
	if w.state == queued {
		c.queue.remove(w)
		c.waiting.Add(-1)
	}
	state := w.state
	c.mu.Unlock()
	switch {
	case state == admitted && err == nil:
		return Lease{c}, nil
	case state == admitted:
		c.release() // came too late: it is the next one's
	case state == refused:
		err = c.full(time.Since(begin))
	}
	return Lease{}, err
}
