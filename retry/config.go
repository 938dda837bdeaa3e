package retry

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/inherit"
	"github.com/backstay/backstay/outcome"
)

// Config says what is tried again, how often and when. The zero value is the
// default in every field.
type Config struct {
	// Name is the service that events name where no call's frame and no URL
	// does.
	// Default: none.
	Name string `json:"name,omitempty"`
	// MaxAttempts is how often a call is tried in all. Negative means once.
	// Default: 3.
	MaxAttempts int `json:"maxAttempts,omitempty"`
	// Backoff says how long a call waits before its next attempt.
	// Default: full jitter from 50ms to 2s.
	Backoff Backoff `json:"backoff,omitzero"`
	// MaxRetryAfter is the longest wait that a server may ask for. A call that
	// is asked to wait longer is over: its caller gets the server's answer at
	// once. Negative is no limit but the call's deadline and 1,000 hours.
	// Default: 30s.
	MaxRetryAfter time.Duration `json:"maxRetryAfter,omitempty"`

	// AttemptTimeout bounds each attempt: over HTTP from the request's being
	// written to the response's headers, in Do and Run the whole function.
	// Negative is no limit.
	// Default: over HTTP 10s, or Timeout if that is less; in Do and Run none.
	AttemptTimeout time.Duration `json:"attemptTimeout,omitempty"`
	// Timeout bounds the call: all attempts, the waits between them and, over
	// HTTP, the response's body. Negative is no limit.
	// Default: none; the caller's context rules.
	Timeout time.Duration `json:"timeout,omitempty"`

	// Budget bounds the extra attempts. It may be shared with other retriers.
	// Default: budgets of the retrier's own, each with BudgetConfig's defaults:
	// one for each of the first 1,024 hosts that requests go to, one for all
	// hosts beyond, and one for Do and Run.
	Budget *Budget `json:"-"`

	// Hedge says when an attempt that is without an answer for long gets another
	// one beside it.
	// Default: off; see HedgeConfig.
	Hedge HedgeConfig `json:"hedge,omitzero"`

	// RetryNonIdempotent is On to repeat also HTTP requests that may have been
	// acted on although outcome.Idempotent does not hold for them. What
	// [WithIdempotent] says of a call has priority.
	// Default: Off.
	RetryNonIdempotent Switch `json:"retryNonIdempotent,omitempty"`
	// GenerateKey is On to give POST and PATCH requests that have no
	// Idempotency-Key one: a random UUID (RFC 9562, version 4), the same in each
	// attempt of the call. So they may be repeated, which the server has to know
	// what to do with. The caller's request is not changed. No key is made for
	// calls that [WithIdempotent] forbids to repeat, nor where MaxAttempts is
	// one.
	// Default: Off.
	GenerateKey Switch `json:"generateKey,omitempty"`
	// Statuses are further HTTP statuses, from 400 to 599, that are tried again
	// where that is allowed, such as 500.
	// Default: none; outcome.HTTP knows 408, 429, 502, 503 and 504.
	Statuses []int `json:"statuses,omitempty"`
	// BodyLimit is how many bytes of a request's body are kept in memory to be
	// sent again, if the request has no GetBody. Negative is none.
	// Default: 64 KiB.
	BodyLimit int `json:"bodyLimit,omitempty"`
	// DrainLimit and DrainTime are how much of a failed response's body is
	// read before the next attempt, and for how long, so that its connection
	// can be used again. Negative is not at all.
	// Default: 64 KiB and 50ms.
	DrainLimit int           `json:"drainLimit,omitempty"`
	DrainTime  time.Duration `json:"drainTime,omitempty"`
	// BufferBody is On to read the responses to idempotent requests, up to 64
	// KiB, before they are handed on, so that a break in the body is tried again.
	// The attempt's timeout then runs to the end of the body. It is not for
	// responses that stream.
	// Default: Off.
	BufferBody Switch `json:"bufferBody,omitempty"`

	// Classify judges what a function run by Do or Run returns. It is not
	// called with nil.
	// Default: outcome.Of.
	Classify func(error) outcome.Outcome `json:"-"`
	// Classifier judges HTTP answers that no inner layer has judged.
	// Default: outcome.HTTP.
	Classifier outcome.Classifier `json:"-"`
	// Observer sees a Retried before each further attempt, a GaveUp where there is
	// none although the outcome calls for it, and a Hedged when a hedge begins.
	// Default: none.
	Observer event.Observer `json:"-"`
}

// Backoff is exponential with full jitter, if Kind does not say otherwise: before
// the nth repetition a call waits for a time drawn evenly from 0 to
// min(Max, Base·2ⁿ⁻¹).
type Backoff struct {
	// Kind is how the waits grow, and how they are drawn.
	// Default: FullJitter, "full".
	Kind BackoffKind `json:"kind,omitempty"`
	// Base bounds the first wait, or is its least; see Kind. If it is set, it is
	// less than a Timeout. Negative is no wait at all.
	// Default: 50ms.
	Base time.Duration `json:"base,omitempty"`
	// Max bounds every wait but those that a server asks for.
	// Default: 2s.
	Max time.Duration `json:"max,omitempty"`
	// ThrottledBase stands for Base after an answer that asks for less load
	// (outcome.Throttled) and does not say how long to wait. Negative means
	// the same as Base.
	// Default: 1s, or Max if that is less.
	ThrottledBase time.Duration `json:"throttledBase,omitempty"`
	// New makes another generator of waits, one for each call that is tried
	// again. What it yields is bounded by Max and replaces Kind, Base and
	// ThrottledBase; backoff.Stop ends the call. New must be safe for
	// concurrent use.
	// Default: one of Kind.
	New func() backoff.BackOff `json:"-"`
}

// Switch is a setting that is on, off, or inherited from a wider scope, such as
// by a route from its service; in JSON true, false, or left out.
type Switch = inherit.Switch

// What a [Switch] can be.
const (
	// Inherit leaves the choice to the next wider scope, where it ends as Off.
	Inherit = inherit.Inherit
	// On switches on.
	On = inherit.On
	// Off switches off what a wider scope has switched on.
	Off = inherit.Off
)

const (
	httpAttemptTimeout = 10 * time.Second // the default
	bufferLimit        = 64 << 10
	bodyLimit          = 64 << 10 // the default
)

// resolve returns a copy of c in which defaults are filled in and what is off is
// zero, or all that is wrong with it. An AttemptTimeout that was left out is -1.
func (c *Config) resolve() (*Config, error) {
	var r Config
	if c != nil {
		r = *c
	}
	r.Statuses = slices.Clone(r.Statuses)
	var errs []error
	check := func(ok bool, field string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("retry: %s is %v, want %s", field, value, want))
		}
	}

	r.MaxAttempts = max(inherit.Or(r.MaxAttempts, 3), 1)
	if r.MaxRetryAfter = inherit.Or(r.MaxRetryAfter, 30*time.Second); r.MaxRetryAfter == 0 {
		r.MaxRetryAfter = forever
	}
	r.Timeout = inherit.Or(r.Timeout, 0)
	r.AttemptTimeout = inherit.Or(r.AttemptTimeout, -1)
	r.BodyLimit = inherit.Or(r.BodyLimit, bodyLimit)
	r.DrainLimit = inherit.Or(r.DrainLimit, 64<<10)
	r.DrainTime = inherit.Or(r.DrainTime, 50*time.Millisecond)

	b := &r.Backoff
	check(backoffKinds().valid(uint8(b.Kind)), "Backoff.Kind", b.Kind, backoffKinds().want())
	base := b.Base // as it is set, for the default suits everybody
	b.Base = inherit.Or(base, 50*time.Millisecond)
	b.Max = cmp.Or(b.Max, 2*time.Second)
	throttled := b.ThrottledBase
	b.ThrottledBase = cmp.Or(inherit.Or(throttled, min(time.Second, b.Max)), b.Base)

	if r.Classify == nil {
		r.Classify = outcome.Of
	}
	check(r.MaxRetryAfter <= forever, "MaxRetryAfter", r.MaxRetryAfter, fmt.Sprintf("<= %v", forever))
	check(b.Max > 0, "Backoff.Max", b.Max, "> 0")
	check(b.Max <= 0 || b.Max >= b.Base, "Backoff.Max", b.Max, fmt.Sprintf(">= Backoff.Base (%v)", b.Base))
	check(b.Max <= 0 || b.Max >= throttled, "Backoff.Max", b.Max,
		fmt.Sprintf(">= Backoff.ThrottledBase (%v)", throttled))
	check(r.Timeout == 0 || r.AttemptTimeout <= r.Timeout, "AttemptTimeout", r.AttemptTimeout,
		fmt.Sprintf("<= Timeout (%v)", r.Timeout))
	check(r.Timeout == 0 || r.MaxAttempts == 1 || base <= 0 || base < r.Timeout, "Backoff.Base", base,
		fmt.Sprintf("less than Timeout (%v)", r.Timeout))
	r.Hedge.resolve(r.Timeout, r.AttemptTimeout, check)
	check(r.RetryNonIdempotent.Valid(), "RetryNonIdempotent", uint8(r.RetryNonIdempotent), "On or Off")
	check(r.GenerateKey.Valid(), "GenerateKey", uint8(r.GenerateKey), "On or Off")
	check(r.BufferBody.Valid(), "BufferBody", uint8(r.BufferBody), "On or Off")
	for _, status := range r.Statuses {
		check(status >= 400 && status <= 599, "Statuses", status, "from 400 to 599")
	}
	return &r, errors.Join(errs...)
}
