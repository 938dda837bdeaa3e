package limit

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/backstay/backstay/internal/clock"
)

// RateConfig configures a [Rate].
type RateConfig struct {
	// Key names what is limited, in errors.
	// Default: none.
	Key string `json:"key,omitempty"`
	// Limit is how many calls may begin in a second, on average: a finite number.
	// It must be given. Negative is no limit.
	// Default: none.
	Limit float64 `json:"limit,omitempty"`
	// Burst is how many may begin at once after a pause.
	// Default: Limit rounded up.
	Burst int `json:"burst,omitempty"`
	// MaxWait is how long Wait and the layer let a call wait for its turn. A call
	// that would have to wait longer is refused at once. Negative is as long as
	// its context lasts. 1ns lets none wait where 0 would inherit another value.
	// Default: 0, none waits.
	MaxWait time.Duration `json:"maxWait,omitempty"`
	// AsDeadline is On to make the refusal of a call whose turn would not come
	// before its context's deadline match context.DeadlineExceeded besides
	// ErrLimited.
	// Default: Off.
	AsDeadline Switch `json:"asDeadline,omitempty"`
}

func (c *RateConfig) resolve() (*RateConfig, error) {
	var r RateConfig
	if c != nil {
		r = *c
	}
	var errs []error
	switch {
	case math.IsInf(r.Limit, 0):
		errs = append(errs, fmt.Errorf("limit: Limit is %v, want a finite number, negative for no limit", r.Limit))
	case r.Limit < 0:
		r.Limit = math.Inf(1)
	case !(r.Limit > 0):
		errs = append(errs, fmt.Errorf("limit: Limit is %v, want > 0, or negative for no limit", r.Limit))
	}
	if r.Burst == 0 && r.Limit > 0 {
		r.Burst = int(min(math.Ceil(r.Limit), math.MaxInt32))
	}
	if r.Burst < 0 {
		errs = append(errs, fmt.Errorf("limit: Burst is %d, want >= 1", r.Burst))
	}
	if !r.AsDeadline.Valid() {
		errs = append(errs, fmt.Errorf("limit: AsDeadline is %d, want On or Off", r.AsDeadline))
	}
	return &r, errors.Join(errs...)
}

// Rate is a token bucket: it fills at Limit tokens per second up to Burst, and
// each call takes one. All methods may be called concurrently.
type Rate struct {
	key    string
	mu     sync.Mutex
	set    *RateConfig
	bucket *rate.Limiter
	last   time.Time // the latest time that bucket has seen
	line   list.List // of *turn: those who wait
}

// turn is a place in the line. Its channel tells that the place is the first
// now, or that the limit has changed.
type turn struct{ look chan struct{} }

func turnOf(e *list.Element) *turn {
	t, _ := e.Value.(*turn) // there is nothing else in the line
	return t
}

// NewRate returns a full bucket. The config must have a Limit.
func NewRate(cfg *RateConfig) (*Rate, error) {
	set, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	return newRate(set.Key, set), nil
}

func newRate(key string, set *RateConfig) *Rate {
	return &Rate{key: key, set: set, bucket: newBucket(set)}
}

func newBucket(set *RateConfig) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(set.Limit), set.Burst)
}

// Allow takes a token for a call that begins at the given time (zero for the
// present), or returns a [*RateError]. It does not wait, nor go ahead of those
// who do.
func (r *Rate) Allow(now time.Time) error {
	now = clock.Or(now)
	r.mu.Lock()
	defer r.mu.Unlock()
	now = r.forward(now)
	if r.line.Len() == 0 && r.bucket.AllowN(now, 1) {
		return nil
	}
	return &RateError{Key: r.key, RetryAfter: r.delay(now, r.line.Len())}
}

// Wait takes a token, and waits for its turn to do so if that comes within
// MaxWait and before the context's deadline. If not it returns a [*RateError] at
// once; if the context ends first, its cause. In both cases no token was taken,
// and those behind in the line move up.
func (r *Rate) Wait(ctx context.Context) error { return r.wait(ctx, nil) }

// wait is Wait that can also be cancelled by a channel.
func (r *Rate) wait(ctx context.Context, cancel <-chan struct{}) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	place, err := r.enter(ctx)
	if place == nil {
		return err
	}
	r.tellFirst() // which may be this one
	mine := turnOf(place)
	timer := time.NewTimer(time.Hour)
	timer.Stop() // until it is this one's turn
	defer timer.Stop()
	for {
		select {
		case <-mine.look:
		case <-timer.C:
		case <-ctx.Done():
			r.leave(place)
			return context.Cause(ctx)
		case <-cancel:
			r.leave(place)
			return context.Canceled
		}
		delay := r.advance()
		if delay == 0 {
			r.leave(place)
			return nil
		}
		timer.Reset(delay)
	}
}

// enter takes a token at once, or refuses, or gives a place in the line.
func (r *Rate) enter(ctx context.Context) (*list.Element, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.forward(clock.Now())
	if r.line.Len() == 0 && r.bucket.AllowN(now, 1) {
		return nil, nil
	}
	if err := r.refusal(ctx, now, r.delay(now, r.line.Len())); err != nil {
		return nil, err
	}
	return r.line.PushBack(&turn{look: make(chan struct{}, 1)}), nil
}

// refusal is the error for a call that would have to wait too long.
func (r *Rate) refusal(ctx context.Context, now time.Time, delay time.Duration) error {
	deadline, bounded := ctx.Deadline()
	late := bounded && deadline.Sub(now) <= delay
	if late || r.set.MaxWait >= 0 && delay > r.set.MaxWait {
		return &RateError{Key: r.key, RetryAfter: delay, deadline: late && r.set.AsDeadline == On}
	}
	return nil
}

// Reserve takes the token that Wait would take, without waiting for it: it
// returns how long Wait would have waited, or at once what Wait would have
// returned at once; then no token was taken. A token that is reserved cannot be
// given back, an Update forgets it, and those who Wait come after it.
func (r *Rate) Reserve(ctx context.Context) (time.Duration, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.forward(clock.Now())
	if r.bucket.AllowN(now, 1) {
		return 0, nil
	}
	delay := r.delay(now, 0)
	if err := r.refusal(ctx, now, delay); err != nil {
		return 0, err
	}
	r.bucket.ReserveN(now, 1)
	return delay, nil
}

// advance takes a token for the first in the line, or returns how long until
// there is one.
func (r *Rate) advance() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.forward(clock.Now())
	if r.bucket.AllowN(now, 1) {
		return 0
	}
	return r.delay(now, 0)
}

// leave ends a place in the line.
func (r *Rate) leave(place *list.Element) {
	r.mu.Lock()
	r.line.Remove(place)
	r.mu.Unlock()
	r.tellFirst()
}

// tellFirst makes the first in the line look at the bucket.
func (r *Rate) tellFirst() {
	r.mu.Lock()
	place := r.line.Front()
	r.mu.Unlock()
	if place == nil {
		return
	}
	select {
	case turnOf(place).look <- struct{}{}:
	default: // told already
	}
}

// Update replaces the configuration and returns what NewRate would about it;
// then nothing has changed. The key stays, and so do the tokens, up to the new
// Burst. Those who wait go on waiting at the new rate, even beyond MaxWait.
func (r *Rate) Update(cfg *RateConfig) error {
	set, err := cfg.resolve()
	if err != nil {
		return err
	}
	r.update(set)
	return nil
}

func (r *Rate) update(set *RateConfig) {
	r.mu.Lock()
	now := r.forward(clock.Now())
	// A limiter that is changed while its limit is Inf has NaN tokens from then
	// on, so there is a new one, brought down to the old one's level.
	bucket := newBucket(set)
	used := int(math.Ceil(float64(set.Burst) - r.bucket.TokensAt(now)))
	bucket.AllowN(now, min(max(used, 0), set.Burst))
	r.set, r.bucket = set, bucket
	r.mu.Unlock()
	r.tellFirst()
}

// forward keeps time from going back, which the bucket would take for time that
// has passed: https://github.com/golang/go/issues/71360.
func (r *Rate) forward(now time.Time) time.Time {
	if now.Before(r.last) {
		return r.last
	}
	r.last = now
	return now
}

// delay is how long until there is a token for one who has others ahead.
func (r *Rate) delay(now time.Time, ahead int) time.Duration {
	seconds := (float64(ahead+1) - r.bucket.TokensAt(now)) / r.set.Limit
	// Rounded up, so that the token is there when the time is over.
	return max(1, time.Duration(min(math.Ceil(seconds*1e9), math.MaxInt64/2)))
}
