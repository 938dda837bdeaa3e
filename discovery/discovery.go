// Package discovery finds the endpoints of a service.
//
// A [Resolver] watches a service and yields its whole set of endpoints each
// time it changes:
//
//	for set, err := range resolver.Watch(ctx, "orders") {
//		if err != nil {
//			log.Print(err) // the set before still holds
//			continue
//		}
//		use(set.Endpoints)
//	}
//
// Sources: [Static], [DNS], [SRV], [File]. Decorators: [Merge], [Failover],
// [Filter], [Map], [Subset], [MinEndpoints], and [Supervise], which gives any
// source backoff, the last good set on failure, a grace for empty sets and a merge
// window. The balancer supervises every resolver it is given.
//
// Three rules hold everywhere. A yield is the whole set, never a change to it.
// A failure is not an empty set: whatever goes wrong, the set before holds. And
// what a watch holds – goroutines, timers, sockets – ends with its loop or its
// context.
//
// A name that cannot be found or resolved is a [*ResolveError] around
// [ErrNotFound], [ErrNoEndpoints] or what the source met with.
//
// The package imports nothing of Backstay's; anything that can list addresses
// can be a Resolver.
package discovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"maps"
	"slices"
	"time"
)

// Endpoint is the address of one instance of a service. It is a value: those
// in a [Set] must not be changed, including what its slices and maps refer to.
type Endpoint struct {
	// ID is the instance's identity across updates: a pod's name rather than
	// its address. Default: Addr.
	ID string `json:"id,omitempty"`
	// Addr is host:port, or unix:/path. Where the port is missing it is filled
	// in from the scheme of the call: 80 for http, 443 for https. Required.
	Addr string `json:"addr,omitempty"`
	// Fallback lists other addresses of the same instance, such as its IPv6
	// one, that are tried when Addr does not connect (RFC 8305). Default: none.
	Fallback []string `json:"fallback,omitempty"`
	// ServerName is the name to verify the instance's TLS certificate against.
	// Default: the service's name.
	ServerName string `json:"serverName,omitempty"`
	// Weight is the share of traffic relative to the other endpoints: a finite
	// number >= 0. Default: 1, for which 0 stands.
	Weight float64 `json:"weight,omitempty"`
	// Draining means the instance finishes what it has and gets nothing new,
	// unless nobody else is left. Default: false.
	Draining bool `json:"draining,omitempty"`
	// Priority orders groups of endpoints: 0 is used first, 1 when 0 is
	// unwell, and so on. Default: 0.
	Priority int `json:"priority,omitempty"`
	// Region and Zone say where the instance runs, for policies and filters of
	// the user's. Default: unknown.
	Region string `json:"region,omitempty"`
	Zone   string `json:"zone,omitempty"`
	// ForZones lists the zones whose clients should use the instance: the hints of
	// Kubernetes' EndpointSlices. Default: the source does not say.
	ForZones []string `json:"forZones,omitempty"`
	// Metadata is whatever the source knows besides. Default: none.
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Key returns the endpoint's identity: ID, or Addr if ID is empty.
func (e Endpoint) Key() string {
	if e.ID != "" {
		return e.ID
	}
	return e.Addr
}

// Equal reports whether e and o are the same in every field.
func (e Endpoint) Equal(o Endpoint) bool {
	return e.ID == o.ID && e.Addr == o.Addr && slices.Equal(e.Fallback, o.Fallback) &&
		e.ServerName == o.ServerName && e.Weight == o.Weight && e.Draining == o.Draining &&
		e.Priority == o.Priority && e.Region == o.Region && e.Zone == o.Zone &&
		slices.Equal(e.ForZones, o.ForZones) &&
		maps.Equal(e.Metadata, o.Metadata)
}

// UnmarshalJSON reads an object with the fields' names, none of them unknown, or
// a string, which is the Addr.
func (e *Endpoint) UnmarshalJSON(data []byte) error {
	var read endpoint
	switch data[0] {
	case '"':
		if err := json.Unmarshal(data, &read.Addr); err != nil {
			return err
		}
	case '{':
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err := d.Decode(&read); err != nil {
			return err
		}
	case 'n': // null, which by convention changes nothing
		return nil
	default:
		return errors.New("want a string or an object")
	}
	*e = Endpoint(read)
	return nil
}

type endpoint Endpoint // without the method

// Set is all endpoints of a service at one moment. It is immutable.
type Set struct {
	// Endpoints is the whole list. Several entries with the same Key are one
	// endpoint: the first counts.
	Endpoints []Endpoint
	// TTL is how long the source vouches for the set; 0 if it does not say.
	// DNS fills it from its records.
	TTL time.Duration
	// Authoritative means that the source is sure of the set even if it is
	// empty: [Supervise] then passes it on without a grace.
	Authoritative bool
}

// Equal reports whether s and o hold the same endpoints in the same order.
// TTL and Authoritative do not count.
func (s Set) Equal(o Set) bool {
	return slices.EqualFunc(s.Endpoints, o.Endpoints, Endpoint.Equal)
}

// Resolver watches services. Implementations must be safe for concurrent use.
//
// Watch yields the service's whole set first and whenever it changes. An error
// yield means that the source could not be asked: the set before keeps holding,
// and the watch goes on or ends as the source sees fit. (A [Warning] is the one
// error that puts no set in doubt.) It is up to the implementation whether equal
// sets are yielded again. Leaving the loop or ending ctx ends the watch and
// frees everything it holds; there is no Close. Watch must not yield after ctx
// has ended, and must not return before unless it cannot go on: whoever
// supervises it starts it again.
//
// Implementations that can be asked to look again soon listen to [Hints]. One that has a
// method Validate() error is asked by whoever will use it whether its settings make sense;
// those of this package ask what they are made of.
type Resolver interface {
	Watch(ctx context.Context, service string) iter.Seq2[Set, error]
}

// ResolverFunc is a function that is a [Resolver].
type ResolverFunc func(ctx context.Context, service string) iter.Seq2[Set, error]

// Watch calls f.
func (f ResolverFunc) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return f(ctx, service)
}

type hintsKey struct{}

// WithHints returns a context through which a watch is told to look again soon:
// a receive from hints means "something is wrong with the endpoints you gave".
// Hints travel in the context so that decorators pass them on untouched.
func WithHints(ctx context.Context, hints <-chan struct{}) context.Context {
	return context.WithValue(ctx, hintsKey{}, hints)
}

// Hints returns the channel of [WithHints], or nil, from which a receive blocks
// for ever. A source that polls selects on it beside its timer; it should look
// up no more often than its least interval however many hints come.
func Hints(ctx context.Context) <-chan struct{} {
	hints, _ := ctx.Value(hintsKey{}).(<-chan struct{})
	return hints
}
