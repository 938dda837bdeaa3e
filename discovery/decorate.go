package discovery

import (
	"context"
	"iter"
)

// Filter returns r with only the endpoints that keep answers true for. It may
// leave none: that is an empty set, as authoritative as r's. keep must be safe
// for concurrent use.
func Filter(r Resolver, keep func(Endpoint) bool) Resolver {
	return edited{r, func(e Endpoint) (Endpoint, bool) { return e, keep(e) }}
}

// Map returns r with each endpoint replaced by what change makes of it. change
// gets a copy, but must not write to what its slices and maps refer to, and must
// be safe for concurrent use.
func Map(r Resolver, change func(Endpoint) Endpoint) Resolver {
	return edited{r, func(e Endpoint) (Endpoint, bool) { return change(e), true }}
}

// edited is a resolver whose endpoints are changed or left out one by one.
type edited struct {
	source Resolver
	edit   func(Endpoint) (Endpoint, bool)
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
