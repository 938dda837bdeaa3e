package discovery

import (
	"context"
	"errors"
	"iter"
)

// Filter returns r with only the endpoints that keep answers true for. It may
// leave none: that is an empty set, as authoritative as r's. keep must be safe
// for concurrent use.
func Filter(r Resolver, keep func(Endpoint) bool) Resolver {
	return edited{derived{r}, func(e Endpoint) (Endpoint, bool) { return e, keep(e) }}
}

// Map returns r with each endpoint replaced by what change makes of it. change
// gets a copy, but must not write to what its slices and maps refer to, and must
// be safe for concurrent use.
func Map(r Resolver, change func(Endpoint) Endpoint) Resolver {
	return edited{derived{r}, func(e Endpoint) (Endpoint, bool) { return change(e), true }}
}

// edited is a resolver whose endpoints are changed or left out one by one.
type edited struct {
	derived
	edit func(Endpoint) (Endpoint, bool)
}

// Watch is the source's watch, with its sets edited.
func (r edited) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		for set, err := range r.source.Watch(ctx, service) {
			if err == nil {
				kept := make([]Endpoint, 0, len(set.Endpoints))
				for _, e := range set.Endpoints {
					if e, ok := r.edit(e); ok {
						kept = append(kept, e)
					}
				}
				set.Endpoints = kept
			}
			if !yield(set, err) {
				return
			}
		}
	}
}

// validate asks resolvers that can tell whether their settings make sense.
func validate(resolvers ...Resolver) error {
	var errs []error
	for _, r := range resolvers {
		if v, ok := r.(interface{ Validate() error }); ok {
			errs = append(errs, v.Validate())
		}
	}
	return errors.Join(errs...)
}

// derived is what resolvers that are made of another one have in common.
type derived struct{ source Resolver }

// Validate asks the source.
func (d derived) Validate() error { return validate(d.source) }
