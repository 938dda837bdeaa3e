package discovery

import (
	"context"
	"iter"
	"slices"
)

// Static is a resolver that knows the same endpoints for every service; see
// [Addrs] for those that have nothing but an address. It yields once, and its
// set is authoritative.
func Static(endpoints ...Endpoint) Resolver {
	return static{Endpoints: slices.Clone(endpoints), Authoritative: true}
}

type static Set

// Watch yields the set and waits for ctx.
func (s static) Watch(ctx context.Context, _ string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		if ctx.Err() == nil && yield(Set(s), nil) {
			<-ctx.Done()
		}
	}
}
