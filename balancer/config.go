package balancer

import (
	"errors"
	"fmt"
	"time"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/inherit"
	"github.com/backstay/backstay/outcome"
)

// Config is how a [Balancer] behaves. The zero value of a field means its
// default.
type Config struct {
	// Policy chooses among the eligible nodes. Default: P2C{} with PeakEWMA.
	Policy Policy `json:"-"`
	// Breaker is how each node's breaker behaves. Default: breaker's defaults.
	Breaker breaker.Config `json:"breaker,omitzero"`
	// MaxConcurrency is how many leases a node may have at a time; a full node
	// is passed over, nothing queues. Negative: no limit. Default: no limit.
	MaxConcurrency int `json:"maxConcurrency,omitempty"`
	// SlowStart is the time over which a node that has joined comes up to its
	// full share, from a tenth. It does not apply while all nodes are new.
	// Negative: none. Default: 10s.
	SlowStart time.Duration `json:"slowStart,omitempty"`
	// PanicThreshold is the share of nodes, between 0 and 1, below which
	// ejections are ignored: if so few are left, it is more likely the judgment
	// that is wrong. Open breakers are never ignored. Negative: ejections are
	// never ignored. Default: 0.5.
	PanicThreshold float64 `json:"panicThreshold,omitempty"`
	// DrainTimeout is how long a node that has left the set may take to finish
	// what it has; then its connections are closed. Negative: no limit.
	// Default: 30s.
	DrainTimeout time.Duration `json:"drainTimeout,omitempty"`
	// ConnectTimeout is how long a connection to a node may take to be made,
	// TLS aside. Negative: no limit. Default: 1s.
	ConnectTimeout time.Duration `json:"connectTimeout,omitempty"`
	// AttemptTimeout is how long an HTTP attempt may take from the request
	// written to the response's headers; for long polls, set it higher than they
	// last. Negative: no limit. Default: 10s.
	AttemptTimeout time.Duration `json:"attemptTimeout,omitempty"`
	// H2C means that the nodes speak HTTP/2 without TLS, and that http requests
	// are sent so. Default: false.
	H2C bool `json:"h2c,omitempty"`
	// Classifier decides how an HTTP attempt ended. Default: outcome.HTTP.
	Classifier outcome.Classifier `json:"-"`
	// OnDemand means that no goroutine follows the resolver: it is asked when a
	// call needs nodes and again, in the background, when a call finds that what
	// is known has expired. For services that may never be called again.
	// Default: false.
	OnDemand bool `json:"onDemand,omitempty"`
	// ObserveOnly means that the balancer judges its nodes and tells, but leaves
	// none of them alone: open breakers and ejections have no effect.
	// Default: false.
	ObserveOnly bool `json:"observeOnly,omitempty"`
	// Observer sees the events of the balancer, of its nodes and of their
	// breakers. Default: none.
	Observer event.Observer `json:"-"`
}

func (c Config) withDefaults() Config {
	if c.Policy == nil {
		c.Policy = P2C{}
	}
	c.MaxConcurrency = max(c.MaxConcurrency, 0)
	c.SlowStart = inherit.Or(c.SlowStart, 10*time.Second)
	c.DrainTimeout = inherit.Or(c.DrainTimeout, 30*time.Second)
	c.ConnectTimeout = inherit.Or(c.ConnectTimeout, time.Second)
	c.AttemptTimeout = inherit.Or(c.AttemptTimeout, 10*time.Second)
	switch {
	case c.PanicThreshold == 0:
		c.PanicThreshold = 0.5
	case c.PanicThreshold < 0:
		c.PanicThreshold = 0
	}
	return c
}

// Validate returns all that is wrong with c, joined; New does so too.
func (c Config) Validate() error {
	var errs []error
	if !(c.PanicThreshold <= 1) { // NaN as well
		errs = append(errs, fmt.Errorf("balancer: PanicThreshold is %v, want <= 1", c.PanicThreshold))
	}
	if _, err := breaker.New("", &c.Breaker); err != nil {
		errs = append(errs, fmt.Errorf("balancer: Breaker: %w", err))
	}
	if c.Breaker.Classifier != nil || c.Breaker.Classify != nil {
		errs = append(errs, errors.New("balancer: Breaker.Classifier is set, want none: Classifier says it"))
	}
	return errors.Join(errs...)
}
