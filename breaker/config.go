package breaker

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/inherit"
	"github.com/backstay/backstay/outcome"
)

// Config says when a breaker opens and how it closes again. The zero value is
// the default in every field.
type Config struct {
	// FailureRate is the share of failed calls in the window, in (0, 1], that
	// opens the breaker. Negative turns the rate off.
	// Default: 0.5.
	FailureRate float64 `json:"failureRate,omitempty"`
	// MinCalls is how many calls the window must hold before a rate means
	// anything. Negative means one.
	// Default: 20.
	MinCalls int `json:"minCalls,omitempty"`
	// Window is how far back calls count. It rolls in ten steps and should be at
	// least twice the timeout of a call.
	// Default: 10s.
	Window time.Duration `json:"window,omitempty"`
	// Consecutive is how many failures in a row open the breaker, at whatever
	// rate and however far apart. Negative is off.
	// Default: off.
	Consecutive int `json:"consecutive,omitempty"`

	// SlowTime is the time to the answer from which on a call is slow. Negative
	// is off.
	// Default: off.
	SlowTime time.Duration `json:"slowTime,omitempty"`
	// SlowRate is the share of slow calls in the window, in (0, 1], that opens
	// the breaker. It needs a SlowTime. Negative turns the rate off, and leaves
	// slow calls counted.
	// Default: 0.8.
	SlowRate float64 `json:"slowRate,omitempty"`

	// OpenTime is how long the breaker stays open the first time. It doubles
	// each time the breaker opens again before it was closed for a Window.
	// Default: 5s.
	OpenTime time.Duration `json:"openTime,omitempty"`
	// MaxOpenTime bounds the doubling. Negative is no limit.
	// Default: 1m, or OpenTime where that is longer.
	MaxOpenTime time.Duration `json:"maxOpenTime,omitempty"`
	// Jitter is the share, below 1, by which each open time varies at random to
	// either side, after it was bounded. Negative is none.
	// Default: 0.1.
	Jitter float64 `json:"jitter,omitempty"`

	// Probes is how many calls a half-open breaker admits, and how many must
	// succeed for it to close.
	// Default: 3.
	Probes int `json:"probes,omitempty"`
	// ProbeTimeout is how long a probe may stay unanswered before another call
	// takes its place. It should be no less than the timeout of a call.
	// Default: 10s.
	ProbeTimeout time.Duration `json:"probeTimeout,omitempty"`
	// ProbeInterval is how soon after the begin of a probe that ended without a
	// verdict another may take its place. Negative is at once.
	// Default: 1s.
	ProbeInterval time.Duration `json:"probeInterval,omitempty"`
	// RampUp is how long it takes a breaker that has closed to admit every call
	// again: until then it admits a share that grows evenly. Negative is off.
	// Default: off.
	RampUp time.Duration `json:"rampUp,omitempty"`

	// Classify judges what a function run by Do or Run returns.
	// Default: outcome.Of.
	Classify func(error) outcome.Outcome `json:"-"`
	// Classifier judges HTTP answers that no inner layer has judged.
	// Default: outcome.HTTP.
	Classifier outcome.Classifier `json:"-"`
	// Observer sees a StateChanged for each change of state.
	// Default: none.
	Observer event.Observer `json:"-"`
	// Rand returns a number in [0, 1) and must be safe for concurrent use.
	// Default: math/rand/v2.Float64.
	Rand func() float64 `json:"-"`
}

// forever stands for "no limit": far away, but far from overflow too.
const forever = time.Duration(math.MaxInt64 / 8)

// resolve returns a copy of c in which defaults are filled in and what is off is
// zero, or all that is wrong with it.
func (c *Config) resolve() (*Config, error) {
	var r Config
	if c != nil {
		r = *c
	}
	var errs []error
	check := func(ok bool, field string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("breaker: %s is %v, want %s", field, value, want))
		}
	}
	check(r.SlowRate <= 0 || r.SlowTime > 0, "SlowTime", r.SlowTime, "> 0 where SlowRate is set")

	r.FailureRate = inherit.Or(r.FailureRate, 0.5)
	r.MinCalls = max(inherit.Or(r.MinCalls, 20), 1)
	r.Window = cmp.Or(r.Window, 10*time.Second)
	r.Consecutive = inherit.Or(r.Consecutive, 0)
	r.SlowTime = inherit.Or(r.SlowTime, 0)
	r.SlowRate = inherit.Or(r.SlowRate, 0.8)
	r.OpenTime = cmp.Or(r.OpenTime, 5*time.Second)
	r.Jitter = inherit.Or(r.Jitter, 0.1)
	r.Probes = cmp.Or(r.Probes, 3)
	r.ProbeTimeout = cmp.Or(r.ProbeTimeout, 10*time.Second)
	r.ProbeInterval = inherit.Or(r.ProbeInterval, time.Second)
	r.RampUp = inherit.Or(r.RampUp, 0)
	switch {
	case r.MaxOpenTime < 0:
		r.MaxOpenTime = forever
	case r.MaxOpenTime == 0:
		r.MaxOpenTime = max(time.Minute, r.OpenTime)
	}
	if r.Classify == nil {
		r.Classify = outcome.Of
	}
	if r.Rand == nil {
		r.Rand = rand.Float64
	}

	check(r.FailureRate >= 0 && r.FailureRate <= 1, "FailureRate", r.FailureRate, "<= 1")
	check(r.SlowRate >= 0 && r.SlowRate <= 1, "SlowRate", r.SlowRate, "<= 1")
	check(r.Window >= buckets && r.Window <= forever, "Window", r.Window, ">= 10ns and < 36 years")
	check(r.OpenTime > 0, "OpenTime", r.OpenTime, "> 0")
	check(r.MaxOpenTime >= r.OpenTime && r.MaxOpenTime <= forever, "MaxOpenTime", r.MaxOpenTime,
		fmt.Sprintf(">= OpenTime (%v) and < 36 years", r.OpenTime))
	check(r.Jitter >= 0 && r.Jitter < 1, "Jitter", r.Jitter, "< 1")
	check(r.Probes >= 1, "Probes", r.Probes, ">= 1")
	check(r.ProbeTimeout > 0 && r.ProbeTimeout <= forever, "ProbeTimeout", r.ProbeTimeout, "> 0 and < 36 years")
	check(r.ProbeInterval <= forever, "ProbeInterval", r.ProbeInterval, "< 36 years")
	return &r, errors.Join(errs...)
}

// openTime is how long the breaker stays open when it opens for the nth time in
// a row, the first being 1, given a random number in [0, 1).
func (c *Config) openTime(n int, random float64) time.Duration {
	d := c.OpenTime
	for ; n > 1 && d < c.MaxOpenTime; n-- {
		d *= 2 // cannot overflow: MaxOpenTime is at most forever
	}
	d = min(d, c.MaxOpenTime)
	return time.Duration(float64(d) * (1 + c.Jitter*(2*random-1)))
}
