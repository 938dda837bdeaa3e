package balancer

import (
	"fmt"
	"math"
	"time"

	"github.com/backstay/backstay/internal/inherit"
)

// OutlierConfig says when a node that does worse than it should is left alone for
// a time: ejected. The knobs are those of gRFC A50 and of Envoy's outlier
// detection.
//
// An ejection lasts BaseEjection times the number of the node's ejections, which
// goes down by one for each Interval that the node is well. Unlike there, an
// ejection for failures in a row is cut short: one call at a time goes to the node,
// every Probe, and the first that does not fail ends the ejection. Otherwise a node
// whose second ejection has just begun when it heals would be missed for a minute,
// and a restart of two seconds would cost thirty. A call that fails costs nothing
// more, and after an ejection has passed without a success, one failure begins the
// next. An ejection by a rate is not cut short: of a node that fails half of its
// calls, one that succeeds says nothing.
//
// A call that began before an ejection ended says nothing about the node after it.
// An ejection stays with the node while its endpoint's other fields change, and
// goes with it when it leaves the set.
type OutlierConfig struct {
	// Consecutive is how many failures in a row eject a node, at the last of them;
	// at most 255. Negative: off. Default: 5.
	Consecutive int `json:"consecutive,omitempty"`
	// Enforcement is the chance, in percent, that failures in a row eject.
	// Negative: never. Default: 100.
	Enforcement float64 `json:"enforcement,omitempty"`
	// SplitLocal is On to count failures without an answer – no connection, a reset,
	// a timeout – apart from answers that are failures: those whose outcome's error
	// is an outcome.StatusError, or none. Default: Off.
	SplitLocal Switch `json:"splitLocal,omitempty"`
	// ConsecutiveLocal is Consecutive for failures without an answer, with
	// SplitLocal. Negative: off. Default: 5.
	ConsecutiveLocal int `json:"consecutiveLocal,omitempty"`
	// Probe is how often a node that is ejected for failures in a row gets a call
	// all the same, if none waits there; varied by Jitter. Negative: never.
	// Default: 5s.
	Probe time.Duration `json:"probe,omitempty"`
	// Interval is how often rates are looked at, and how long a node must be well
	// for one of its ejections to be forgotten. At least 100ms. Default: 10s.
	Interval time.Duration `json:"interval,omitempty"`
	// BaseEjection is how long the first ejection lasts, and how much longer each
	// further one. Default: 30s.
	BaseEjection time.Duration `json:"baseEjection,omitempty"`
	// MaxEjection is the longest ejection, Jitter aside; BaseEjection if that is
	// longer. Default: 300s.
	MaxEjection time.Duration `json:"maxEjection,omitempty"`
	// Jitter is the share, up to 1, by which each ejection is longer at random, so
	// that not all clients come back to a node at once. Negative: none.
	// Default: 0.1.
	Jitter float64 `json:"jitter,omitempty"`
	// MaxPercent is how many of the nodes may be ejected at a time, in percent, not
	// counting those that drain: rounded down, but one if there are two nodes, and
	// never the last. Negative: all but one. Default: 10.
	MaxPercent float64 `json:"maxPercent,omitempty"`
	// SuccessRate ejects nodes that succeed less often than the others.
	// Default: off.
	SuccessRate SuccessRate `json:"successRate,omitzero"`
	// FailurePercentage ejects nodes that fail too often. Default: off.
	FailurePercentage FailurePercentage `json:"failurePercentage,omitzero"`
}

// SuccessRate ejects, once per interval, the nodes whose share of successes is
// lower than the mean of all nodes' by more than StdevFactor standard deviations.
type SuccessRate struct {
	// Enforcement is the chance, in percent, that such a node is ejected.
	// Default: 0, which is off.
	Enforcement float64 `json:"enforcement,omitempty"`
	// StdevFactor is how many standard deviations are too many. Default: 1.9.
	StdevFactor float64 `json:"stdevFactor,omitempty"`
	// MinHosts is how many nodes must have had RequestVolume calls in the interval
	// for them to be compared. Default: 5.
	MinHosts int `json:"minHosts,omitempty"`
	// RequestVolume is how many calls a node must have had in the interval to be
	// counted, and to be ejected. Default: 100.
	RequestVolume int `json:"requestVolume,omitempty"`
}

// FailurePercentage ejects, once per interval, the nodes that failed more than a
// fixed share of their calls.
type FailurePercentage struct {
	// Enforcement is the chance, in percent, that such a node is ejected.
	// Default: 0, which is off.
	Enforcement float64 `json:"enforcement,omitempty"`
	// Threshold is the share of failed calls, in percent, above which a node is
	// ejected. Default: 85.
	Threshold float64 `json:"threshold,omitempty"`
	// MinHosts is how many nodes must have had RequestVolume calls in the interval.
	// Default: 5.
	MinHosts int `json:"minHosts,omitempty"`
	// RequestVolume is how many calls a node must have had in the interval to be
	// counted, and to be ejected. Default: 50.
	RequestVolume int `json:"requestVolume,omitempty"`
}

// maxEjection is far beyond what anybody means, and far from overflow.
const maxEjection = 1000 * time.Hour

func (c OutlierConfig) withDefaults() OutlierConfig {
	c.Consecutive = inherit.Or(c.Consecutive, 5)
	c.ConsecutiveLocal = inherit.Or(c.ConsecutiveLocal, 5)
	c.Enforcement = inherit.Or(c.Enforcement, 100)
	c.Probe = inherit.Or(c.Probe, 5*time.Second)
	c.Interval = inherit.Or(c.Interval, 10*time.Second)
	c.BaseEjection = inherit.Or(c.BaseEjection, 30*time.Second)
	c.MaxEjection = max(inherit.Or(c.MaxEjection, 300*time.Second), c.BaseEjection)
	c.Jitter = inherit.Or(c.Jitter, 0.1)
	if c.MaxPercent = inherit.Or(c.MaxPercent, 10); c.MaxPercent == 0 {
		c.MaxPercent = 100
	}
	s, f := &c.SuccessRate, &c.FailurePercentage
	s.Enforcement, f.Enforcement = max(s.Enforcement, 0), max(f.Enforcement, 0)
	s.StdevFactor, f.Threshold = inherit.Or(s.StdevFactor, 1.9), inherit.Or(f.Threshold, 85)
	s.MinHosts, f.MinHosts = inherit.Or(s.MinHosts, 5), inherit.Or(f.MinHosts, 5)
	s.RequestVolume, f.RequestVolume = inherit.Or(s.RequestVolume, 100), inherit.Or(f.RequestVolume, 50)
	return c
}

func (c *OutlierConfig) validate() (errs []error) {
	const name = "balancer: Outliers."
	atMost := func(field string, value, most float64) {
		if !(value <= most) || math.IsInf(value, 0) { // NaN as well
			errs = append(errs, fmt.Errorf(name+"%s is %v, want <= %v", field, value, most))
		}
	}
	atMost("Consecutive", float64(c.Consecutive), 255)
	atMost("Enforcement", c.Enforcement, 100)
	atMost("ConsecutiveLocal", float64(c.ConsecutiveLocal), 255)
	atMost("Jitter", c.Jitter, 1)
	atMost("MaxPercent", c.MaxPercent, 100)
	atMost("SuccessRate.Enforcement", c.SuccessRate.Enforcement, 100)
	atMost("SuccessRate.StdevFactor", c.SuccessRate.StdevFactor, 1000)
	atMost("FailurePercentage.Enforcement", c.FailurePercentage.Enforcement, 100)
	atMost("FailurePercentage.Threshold", c.FailurePercentage.Threshold, 100)
	if c.ConsecutiveLocal != 0 && c.SplitLocal != On {
		errs = append(errs, fmt.Errorf(name+"ConsecutiveLocal is %d without SplitLocal, want SplitLocal to be on", c.ConsecutiveLocal))
	}
	if i := c.Interval; i != 0 && i < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf(name+"Interval is %v, want >= 100ms", i))
	}
	within := func(field string, d time.Duration) {
		if d < 0 || d > maxEjection {
			errs = append(errs, fmt.Errorf(name+"%s is %v, want between 0 and %v", field, d, maxEjection))
		}
	}
	within("BaseEjection", c.BaseEjection)
	within("MaxEjection", c.MaxEjection)
	positive := func(field string, n int) {
		if n < 0 {
			errs = append(errs, fmt.Errorf(name+"%s is %d, want >= 1", field, n))
		}
	}
	positive("SuccessRate.MinHosts", c.SuccessRate.MinHosts)
	positive("SuccessRate.RequestVolume", c.SuccessRate.RequestVolume)
	positive("FailurePercentage.MinHosts", c.FailurePercentage.MinHosts)
	positive("FailurePercentage.RequestVolume", c.FailurePercentage.RequestVolume)
	return errs
}
