package discovery

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"github.com/backstay/backstay/internal/hash"
)

// SubsetConfig says how [Subset] chooses. The zero value means every default.
type SubsetConfig struct {
	// Client is who chooses: each client has a subset of its own, the same one
	// in every process that gives this name. It should differ between the
	// instances of a client, or all of them choose the same endpoints, and
	// outlast a restart, or that changes all connections at once: a StatefulSet's
	// pod, a machine, a slot number. Default: the host's name and the program's.
	Client string `json:"client,omitempty"`
	// Size is how many endpoints of each priority are chosen; Google's SRE book
	// advises 20 to 100. A negative value means all. Default: 20.
	Size int `json:"size,omitempty"`
}

// Subset returns r with only some of its endpoints, so that neither each of many
// clients keeps connections to each of many servers, nor health checks multiply:
// of each priority cfg.Size, or all if there are fewer.
//
// Which they are is decided by rendezvous hashing of the client's name, the
// service's and the endpoints' Keys, so that the same client keeps its subset
// through restarts, and one endpoint that comes or goes changes at most one
// member. The clients' choices are as independent as dice: with 100 clients and
// 100 servers, at 20 each, the busiest server has about 1.6 times as many clients
// as the average one, and with 1,000 clients 1.2 times. Weights do not count for the
// choice, only, as ever, for the traffic within it.
//
// Endpoints that are draining do not count, nor do those that are not valid: the
// next in line takes their place. A member that drains stays in the set, as long
// as those that drain are not more than cfg.Size.
//
// A nil cfg means every default.
func Subset(r Resolver, cfg *SubsetConfig) Resolver {
	var c SubsetConfig
	if cfg != nil {
		c = *cfg
	}
	c.Size = cmp.Or(c.Size, 20)
	if c.Size < 0 {
		return r
	}
	if c.Client == "" {
		host, err := os.Hostname()
		if err != nil {
			return broken{fmt.Errorf("discovery: Client is empty, want a name, for the host has none: %w", err)}
		}
		c.Client = host + "/" + filepath.Base(os.Args[0])
	}
	return subset{derived{r}, hash.String(0, c.Client), c.Size}
}

type subset struct {
	derived
	client uint64
	size   int
}

// Watch is the source's watch, with a subset of its sets.
func (r subset) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		seed := hash.Mix(r.client, hash.String(0, service))
		for set, err := range r.source.Watch(ctx, service) {
			if err == nil {
				set.Endpoints = chosen(set.Endpoints, seed, r.size)
			}
			if !yield(set, err) {
				return
			}
		}
	}
}

// chosen returns the endpoints that are members, in their order, and those that
// are not valid, for whoever supervises to say so.
func chosen(endpoints []Endpoint, seed uint64, size int) []Endpoint {
	type candidate struct {
		*Endpoint
		index int
		score uint64
	}
	ranked := make([]candidate, 0, len(endpoints))
	member := make([]bool, len(endpoints))
	seen := make(map[string]bool, len(endpoints))
	for i := range endpoints {
		e := &endpoints[i]
		if key := e.Key(); e.Validate() != nil || seen[key] {
			member[i] = true
		} else {
			seen[key] = true
			ranked = append(ranked, candidate{e, i, hash.String(seed, key)})
		}
	}
	slices.SortFunc(ranked, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(b.score, a.score), cmp.Compare(a.Key(), b.Key()))
	})
	var active, draining int
	for i, c := range ranked {
		if i > 0 && c.Priority != ranked[i-1].Priority {
			active, draining = 0, 0
		}
		count := &active
		if c.Draining {
			count = &draining
		}
		// Whoever was a member before it began to drain ranks above the last of
		// those that do not.
		if active < size && *count < size {
			*count++
			member[c.index] = true
		}
	}
	kept := make([]Endpoint, 0, len(endpoints))
	for i, e := range endpoints {
		if member[i] {
			kept = append(kept, e)
		}
	}
	return kept
}
