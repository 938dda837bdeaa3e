package balancer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/inherit"
	"github.com/backstay/backstay/internal/jsonconf"
	"github.com/backstay/backstay/outcome"
)

// Config is how a [Balancer] behaves. The zero value of a field means its
// default.
type Config struct {
	// Policy chooses among the eligible nodes. Default: P2C{} with PeakEWMA.
	Policy Policy `json:"-"`
	// Breaker is how each node's breaker behaves. A node whose breaker has closed
	// regains its calls by its answers: it is full, as with MaxConcurrency, as long
	// as more await an answer than it has shown that it can bear.
	// Default: breaker's defaults.
	Breaker breaker.Config `json:"breaker,omitzero"`
	// Outliers says when a node that fails is left alone for a time, before its
	// breaker would open or beside it. Default: OutlierConfig's.
	Outliers OutlierConfig `json:"outliers,omitzero"`
	// Health says how nodes are checked while nobody calls them. Default: they are
	// not.
	Health HealthConfig `json:"health,omitzero"`
	// MaxConcurrency is how many leases a node may have at a time; a full node
	// is passed over, nothing queues. Negative: no limit. Default: no limit.
	MaxConcurrency int `json:"maxConcurrency,omitempty"`
	// SlowStart is the time over which a node that has joined comes up to its
	// full share, from a tenth. It does not apply while all nodes are new.
	// Negative: none. Default: 10s.
	SlowStart time.Duration `json:"slowStart,omitempty"`
	// PanicThreshold is the share of nodes, between 0 and 1, below which
	// ejections and health checks are ignored: if so few are left, it is more likely the judgment
	// that is wrong. Open breakers are never ignored. Negative: ejections are
	// never ignored. Default: 0.5.
	PanicThreshold float64 `json:"panicThreshold,omitempty"`
	// FailClosed means that calls are refused with [ErrPanic] where ejections and
	// health checks would be ignored: for services that are better not called
	// than overrun. Default: false.
	FailClosed bool `json:"failClosed,omitempty"`
	// Overprovisioning is how much more than its even part a priority, or a zone,
	// can carry: with 1.4 a priority takes all calls while 72 % of its nodes are
	// well, and below that the next one takes the rest. At least 1. Negative: no
	// limit; the next one waits until none is left. Default: 1.4.
	Overprovisioning float64 `json:"overprovisioning,omitempty"`
	// Zones says where this process runs, so that calls stay near. Default: zones
	// are ignored.
	Zones ZoneConfig `json:"zones,omitzero"`
	// Subsets are groups of nodes by their metadata, for routes and calls that
	// want only those: see Call.Subset, [WithSubset] and [Split]. Default: none.
	Subsets map[string]Subset `json:"subsets,omitempty"`
	// HashKey says what of a request is the key, for a Policy that hashes: an error
	// with any that is no [KeyReader]. Default: nothing but what [WithKey] sets.
	HashKey HashKey `json:"hashKey,omitzero"`
	// Override means that [WithNode] is heeded. Looking for it costs each call a
	// little. Default: false.
	Override bool `json:"override,omitempty"`
	// DrainTimeout is how long a node that has left the set may take to finish
	// what it has; then its connections are closed. Negative: no limit.
	// Default: 30s.
	DrainTimeout time.Duration `json:"drainTimeout,omitempty"`
	// ConnectTimeout is how long a connection to a node may take to be made,
	// TLS aside. Negative: no limit. Default: 1s.
	ConnectTimeout time.Duration `json:"connectTimeout,omitempty"`
	// Conns is how connections to each node are kept. Default: ConnConfig's.
	Conns ConnConfig `json:"conns,omitzero"`
	// AttemptTimeout is how long an HTTP attempt may take from the request
	// written to the response's headers; for long polls, set it higher than they
	// last. Negative: no limit. Default: 10s.
	AttemptTimeout time.Duration `json:"attemptTimeout,omitempty"`
	// H2C means that the nodes speak HTTP/2 without TLS, and that http requests
	// are sent so. Default: false.
	H2C bool `json:"h2c,omitempty"`
	// Dial makes the connections of [Balancer.DialContext]; those of a layer are
	// made by its template. Default: net.Dialer's DialContext.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error) `json:"-"`
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
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	c.Outliers, c.Health = c.Outliers.withDefaults(), c.Health.withDefaults()
	c.MaxConcurrency = max(c.MaxConcurrency, 0)
	c.SlowStart = inherit.Or(c.SlowStart, 10*time.Second)
	c.DrainTimeout = inherit.Or(c.DrainTimeout, 30*time.Second)
	switch {
	case c.Overprovisioning == 0:
		c.Overprovisioning = 1.4
	case c.Overprovisioning < 0:
		c.Overprovisioning = math.Inf(1)
	}
	c.Zones.MinNodes = inherit.Or(c.Zones.MinNodes, 6)
	c.ConnectTimeout = inherit.Or(c.ConnectTimeout, time.Second)
	c.Conns = c.Conns.withDefaults()
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
	if o := c.Overprovisioning; !(o <= 0 && !math.IsInf(o, 0)) && !(o >= 1 && finite(o)) {
		errs = append(errs, fmt.Errorf("balancer: Overprovisioning is %v, want a finite number >= 1", c.Overprovisioning))
	}
	errs = append(errs, c.Outliers.validate()...)
	errs = append(errs, c.Health.validate()...)
	errs = append(errs, c.Zones.validate()...)
	errs = append(errs, validateSubsets(c.Subsets)...)
	if p, ok := c.Policy.(interface{ Validate() error }); ok {
		errs = append(errs, p.Validate())
	}
	if c.HashKey != (HashKey{}) && !readsKeys(c.Policy) {
		policy := "the default one"
		if c.Policy != nil {
			policy = fmt.Sprintf("%T", c.Policy)
		}
		errs = append(errs, fmt.Errorf("balancer: HashKey is %+v, want a Policy that goes by keys, such as Rendezvous; have %s", c.HashKey, policy))
	}
	if _, err := breaker.New("", &c.Breaker); err != nil {
		errs = append(errs, fmt.Errorf("balancer: Breaker: %w", err))
	}
	if c.Breaker.Classifier != nil || c.Breaker.Classify != nil {
		errs = append(errs, errors.New("balancer: Breaker.Classifier is set, want none: Classifier says it"))
	}
	return errors.Join(append(errs, c.Conns.validate()...)...)
}

// UnmarshalJSON reads the config strictly: durations are strings such as "250ms",
// unknown names are refused, and all problems are reported. Fields that are functions
// or interfaces are not part of it.
func (c *Config) UnmarshalJSON(data []byte) error { return jsonconf.Unmarshal(data, c) }

// MarshalJSON writes what UnmarshalJSON reads.
func (c Config) MarshalJSON() ([]byte, error) { return jsonconf.Marshal(c) }
