package discovery

import (
	"context"
	"fmt"
	"iter"
)

// MinEndpoints returns r without sets of fewer than n endpoints. Instead of one
// it yields an error, a [*ResolveError] around a [*TooFewError], so that the set
// before keeps holding: for services that are known to be larger, where a small
// set means that the registry has lost its data. While there has been no larger
// one, there is none. Each Key counts once, and endpoints that are not valid do
// not count; those that drain do.
func MinEndpoints(r Resolver, n int) Resolver {
	return atLeast{derived{r}, n}
}

type atLeast struct {
	derived
	n int
}

// Watch is the source's watch, with an error in place of sets that are too small.
func (r atLeast) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		for set, err := range r.source.Watch(ctx, service) {
			if err == nil {
				if valid, _ := validEndpoints(set.Endpoints); len(valid) < r.n {
					set, err = Set{}, resolveError(service, &TooFewError{len(valid), r.n})
				}
			}
			if !yield(set, err) {
				return
			}
		}
	}
}

// TooFewError says that a set was smaller than [MinEndpoints] allows.
type TooFewError struct {
	// Have is the number of endpoints that the set had, Want the least number.
	Have, Want int
}

// Error names both numbers.
func (e *TooFewError) Error() string { return fmt.Sprintf("%d endpoints, want >= %d", e.Have, e.Want) }

// Unwrap returns [ErrNoEndpoints] if there were none at all.
func (e *TooFewError) Unwrap() error {
	if e.Have == 0 {
		return ErrNoEndpoints
	}
	return nil
}
