package balancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/backstay/backstay/call"
)

// Subset is some of a service's nodes, by their metadata: a version, a shard, a
// tenant's own.
type Subset struct {
	// Match lists what an endpoint's Metadata must have for it to belong to the
	// subset: all of it. Required.
	Match map[string]string `json:"match,omitempty"`
	// Else names the subset that takes the calls while this one has nobody who is
	// well, and those that have tried all of it. Default: all nodes do.
	Else string `json:"else,omitempty"`
	// Strict means that nobody else takes them: they fail with [ErrNoNodes].
	// Default: false.
	Strict bool `json:"strict,omitempty"`
}

func (s *Subset) has(n *Node) bool {
	metadata := n.endpoint.Load().Metadata
	for k, v := range s.Match {
		if got, ok := metadata[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Share is a part of the calls, for one subset.
type Share struct {
	// Subset is one of Config.Subsets; "" is all nodes. Default: "".
	Subset string `json:"subset,omitempty"`
	// Weight is how many of the calls it gets, relative to the other shares: a
	// finite number >= 0. Default: 0, none.
	Weight float64 `json:"weight,omitempty"`
}

// Split divides calls among subsets: 5 for "canary" and 95 for "stable".
type Split []Share

// Draw returns the subset for one call, by a number of r's; nil is the runtime's.
func (s Split) Draw(r rand.Source) string {
	total := 0.0
	for _, part := range s {
		total += part.Weight
	}
	at := float64(draw{r}.uint64()>>11) / (1 << 53) * total
	for _, part := range s {
		if at -= part.Weight; at < 0 {
			return part.Subset
		}
	}
	return ""
}

// Validate returns all that is wrong with s, joined, where subsets are those that
// there are.
func (s Split) Validate(subsets map[string]Subset) error {
	var errs []error
	total := 0.0
	for i, part := range s {
		if !finite(part.Weight) {
			errs = append(errs, fmt.Errorf("balancer: Split[%d].Weight is %v, want a finite number >= 0", i, part.Weight))
		}
		if _, ok := subsets[part.Subset]; !ok && part.Subset != "" {
			errs = append(errs, fmt.Errorf("balancer: Split[%d].Subset is %q, want one of Subsets (%q)", i, part.Subset, sortedNames(subsets)))
		}
		total += part.Weight
	}
	if len(s) > 0 && total == 0 {
		errs = append(errs, errors.New("balancer: Split has no weight, want at least one share above 0"))
	}
	return errors.Join(errs...)
}

func sortedNames(subsets map[string]Subset) []string { return slices.Sorted(maps.Keys(subsets)) }

// validateSubsets returns what is wrong with the subsets.
func validateSubsets(subsets map[string]Subset) (errs []error) {
	for _, name := range sortedNames(subsets) {
		s := subsets[name]
		if name == "" {
			errs = append(errs, errors.New(`balancer: Subsets has the name "", want another: it stands for all nodes`))
		}
		if len(s.Match) == 0 {
			errs = append(errs, fmt.Errorf("balancer: Subsets[%q].Match is empty, want what tells its endpoints from others", name))
		}
		if s.Strict && s.Else != "" {
			errs = append(errs, fmt.Errorf("balancer: Subsets[%q].Else is %q, want none with Strict", name, s.Else))
		}
		seen := map[string]bool{name: true}
		for next := s.Else; next != ""; next = subsets[next].Else {
			if _, ok := subsets[next]; !ok {
				errs = append(errs, fmt.Errorf("balancer: Subsets[%q].Else is %q, want one of Subsets (%q)", name, next, sortedNames(subsets)))
				break
			}
			if seen[next] {
				errs = append(errs, fmt.Errorf("balancer: Subsets[%q].Else comes back to %q, want an end", name, next))
				break
			}
			seen[next] = true
		}
	}
	return errs
}

// chooseSubset takes a lease on a node of the call's subset or, if nobody of it is
// well, will have the call or has not been tried, of those that stand in for it. A
// subset that is half-open gets its probes first.
func (b *Balancer) chooseSubset(s *snapshot, c *Call, at int64, frame *call.Frame, l *Lease) error {
	for name := c.Subset; name != ""; {
		def, ok := b.cfg.Subsets[name]
		sub := s.subsets[name]
		switch {
		case !ok:
			return &Error{Service: b.service, Err: fmt.Errorf("%w: there is no subset %q", ErrNoNodes, name)}
		case def.Strict && sub.empty():
			return &Error{Service: b.service, Err: fmt.Errorf("%w in subset %q", ErrNoNodes, name)}
		case def.Strict:
			return b.choose(sub, c, at, frame, l)
		case sub.able(c):
			if b.choose(sub, c, at, frame, l) == nil {
				return nil
			}
		case b.probes(sub, c, at, l):
			return nil
		}
		name = def.Else
	}
	return b.choose(s, c, at, frame, l)
}

func (s *snapshot) empty() bool {
	return len(s.eligible)+len(s.probing)+len(s.refusing)+len(s.standby) == 0 && !s.closed
}

// able reports whether the snapshot has nodes that are well and that the call has
// not been to.
func (s *snapshot) able(c *Call) bool {
	return !s.panicking && slices.ContainsFunc(s.eligible, func(n *Node) bool { return !c.avoids(n) })
}

// arrangeSubsets adds the subsets to a new snapshot. b.mu is held.
func (b *Balancer) arrangeSubsets(s, old *snapshot, nodes []judged, fresh bool) {
	if len(b.cfg.Subsets) == 0 {
		return
	}
	s.subsets = make(map[string]*snapshot, len(b.cfg.Subsets))
	for _, name := range sortedNames(b.cfg.Subsets) {
		def := b.cfg.Subsets[name]
		var members []judged
		for _, n := range nodes {
			if def.has(n.Node) {
				members = append(members, n)
			}
		}
		var was *snapshot
		if old != nil {
			was = old.subsets[name]
		}
		sub := b.arrange(members, was, fresh)
		s.subsets[name] = sub
		if empty := len(members) == 0; empty != (was != nil && was.unmatched) {
			b.events.Add(b.ctx, b.cfg.Observer, SubsetChanged{Service: b.service, Subset: name, Nodes: len(members)})
		}
		sub.unmatched = len(members) == 0
	}
}

// The ways in which a context says where a call should go.
type pins struct{ subset, key, node string }

type pinsKey struct{}

func pinsOf(ctx context.Context) pins {
	p, _ := ctx.Value(pinsKey{}).(*pins)
	if p == nil {
		return pins{}
	}
	return *p
}

func withPins(ctx context.Context, change func(*pins)) context.Context {
	p := pinsOf(ctx)
	change(&p)
	return context.WithValue(ctx, pinsKey{}, &p)
}

// WithSubset returns a context whose calls go to a subset, whatever the split
// says: one of Config.Subsets. Balancers that have no subsets do not look.
func WithSubset(ctx context.Context, name string) context.Context {
	return withPins(ctx, func(p *pins) { p.subset = name })
}

// WithKey returns a context whose calls have that key for policies that hash,
// whatever Config.HashKey says. Only balancers with such a policy look.
func WithKey(ctx context.Context, key string) context.Context {
	return withPins(ctx, func(p *pins) { p.key = key })
}

// WithNode returns a context whose calls go to the node with that identity and to
// no other, even if it is ejected or drains: to look into what is wrong with it.
// Only balancers with Config.Override look.
func WithNode(ctx context.Context, key string) context.Context {
	return withPins(ctx, func(p *pins) { p.node = key })
}

// Aim has c go where ctx says: what [WithSubset], [WithKey] and [WithNode] have put
// there, as far as the balancer looks for it. For HTTP the balancer's layer does it.
func (b *Balancer) Aim(ctx context.Context, c *Call) {
	if !b.pinned {
		return
	}
	p := pinsOf(ctx)
	if p.subset != "" {
		c.Subset = p.subset
	}
	if p.key != "" {
		c.Key = p.key
	}
	if b.cfg.Override && p.node != "" {
		c.Node = p.node
	}
}
