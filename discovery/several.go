package discovery

import (
	"context"
	"iter"
	"slices"
	"time"
)

// headStart is how long the first result of [Merge] and [Failover] waits for
// resolvers that have not answered yet.
const headStart = time.Second

// several is a resolver made of several.
type several struct {
	resolvers []Resolver
	// combiner returns what makes one watch out of several. That is called
	// after each yield of one, after headStart, and at the time that it
	// returned last, and says what to pass on. With late, nothing more is to be
	// waited for.
	combiner func() combine
}

type combine func(now time.Time, late bool, service string, inputs []input) (out []update, due time.Time)

// Validate asks all of them.
func (s several) Validate() error { return validate(s.resolvers...) }

// Watch follows every resolver on a goroutine of its own.
func (s several) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	if len(s.resolvers) == 0 {
		return Static().Watch(ctx, service)
	}
	return func(yield func(Set, error) bool) {
		if ctx.Err() != nil {
			return
		}
		hints := Hints(ctx)
		w := follow(ctx, service, defaultBackoffBase, defaultBackoffMax, s.resolvers...)
		defer w.stop()
		late := time.Now().Add(headStart)
		timer := newAlarm()
		defer timer.Stop()
		timer.set(time.Now(), late)
		combine := s.combiner()
		inputs := make([]input, len(s.resolvers))
		for {
			var out []update
			select {
			case <-ctx.Done():
				return
			case u := <-w.updates:
				if isWarning(u.err) {
					out = append(out, u)
				} else {
					inputs[u.from].take(time.Now(), u)
				}
			case _, ok := <-hints:
				if !ok {
					hints = nil // closed: there will be no more
				} else {
					w.hint()
				}
			case <-timer.C:
			}
			now := time.Now()
			more, due := combine(now, !now.Before(late), service, inputs)
			for _, u := range append(out, more...) {
				if ctx.Err() != nil || !yield(u.set, u.err) {
					return
				}
			}
			if now = time.Now(); now.Before(late) {
				timer.set(now, due, late)
			} else {
				timer.set(now, due)
			}
		}
	}
}

// input is what one of several resolvers has said so far.
type input struct {
	set      Set
	has      bool      // set is one of its, the last
	fresh    bool      // and has not been used yet
	err      error     // its failure since then
	told     bool      // err has been passed on
	failedAt time.Time // when its failures began
}

func (in *input) answered() bool { return in.has || in.err != nil }
func (in *input) filled() bool   { return in.has && len(in.set.Endpoints) > 0 }
func (in *input) news() bool     { return in.fresh || in.err != nil && !in.told }

func (in *input) take(now time.Time, u update) {
	if u.err == nil {
		*in = input{set: u.set, has: true, fresh: true}
		return
	}
	if in.err == nil {
		in.failedAt = now
	}
	in.err, in.told = u.err, false
}

// nobody is what to pass on where no resolver has endpoints: nothing as long as
// some have not answered, then a failure, and an empty set only if none failed.
func nobody(late bool, inputs []input) []update {
	news := false
	out := update{set: union(inputs)}
	for i := range inputs {
		in := &inputs[i]
		news = news || in.news()
		if in.err != nil && out.err == nil {
			out = update{err: in.err}
		}
	}
	if !news || !late && !answered(inputs) {
		return nil
	}
	for i := range inputs {
		inputs[i].fresh, inputs[i].told = false, true
	}
	return []update{out}
}

func answered(inputs []input) bool {
	return !slices.ContainsFunc(inputs, func(in input) bool { return !in.answered() })
}

// union is all endpoints of inputs, of each Key the first.
func union(inputs []input) Set {
	set := Set{Authoritative: true}
	seen := make(map[string]bool)
	for i := range inputs {
		in := &inputs[i]
		set.Authoritative = set.Authoritative && in.set.Authoritative
		if set.TTL == 0 || in.set.TTL > 0 && in.set.TTL < set.TTL {
			set.TTL = in.set.TTL
		}
		for _, e := range in.set.Endpoints {
			if key := e.Key(); !seen[key] {
				seen[key] = true
				set.Endpoints = append(set.Endpoints, e)
			}
		}
	}
	return set
}

// Merge returns a resolver whose sets are the endpoints of all resolvers. Of
// those with the same Key, the one of the earlier resolver counts.
//
// A resolver that fails keeps its last set in the union, and its error is passed
// on; one whose watch ends is started again, as [Supervise] does it. The first
// set, or error, waits until every resolver has answered, but no longer than a
// second.
func Merge(resolvers ...Resolver) Resolver {
	return several{slices.Clone(resolvers), func() combine { return merge }}
}

func merge(_ time.Time, late bool, _ string, inputs []input) ([]update, time.Time) {
	set := union(inputs)
	switch {
	case len(set.Endpoints) == 0:
		return nobody(late, inputs), time.Time{}
	case !late && !answered(inputs):
		return nil, time.Time{}
	}
	var sets, errs []update
	for i := range inputs {
		in := &inputs[i]
		if in.fresh {
			sets = []update{{set: set}}
		}
		if in.err != nil && !in.told {
			errs = append(errs, update{err: in.err})
		}
		in.fresh, in.told = false, true
	}
	return append(sets, errs...), time.Time{}
}

// failoverTolerance is how long Failover keeps to a resolver that has begun to
// fail: long enough for a few retries, so that one lost packet does not move all
// the traffic.
const failoverTolerance = 10 * time.Second

// Failover returns a resolver that follows the first of resolvers that has
// endpoints, and another only while those before it have none: their sets are
// empty, or they failed for ten seconds, or from the beginning. It returns to an
// earlier one as soon as that has endpoints again. While all fail, it keeps to
// the first that ever had any.
//
// All resolvers are watched all the time, so that the next one is ready; one
// whose watch ends is started again, as [Supervise] does it. To begin with,
// earlier resolvers are given a second to answer. The errors of a resolver that
// is not being followed are passed on as a [*Warning].
func Failover(resolvers ...Resolver) Resolver {
	return several{slices.Clone(resolvers), func() combine {
		current := -1
		return func(now time.Time, late bool, service string, inputs []input) ([]update, time.Time) {
			chosen, due := choose(now, late, inputs)
			if chosen < 0 {
				return nobody(late, inputs), due
			}
			var out []update
			if chosen != current || inputs[chosen].fresh {
				current, inputs[chosen].fresh = chosen, false
				out = append(out, update{set: inputs[chosen].set})
			}
			for i := range inputs {
				in := &inputs[i]
				if in.err == nil || in.told {
					continue
				}
				in.told = true
				if i == chosen {
					out = append(out, update{err: in.err})
				} else {
					out = append(out, update{err: &Warning{Service: service, Err: in.err}})
				}
			}
			return out, due
		}
	}}
}

// choose returns the resolver to follow, or -1, and when to look again.
func choose(now time.Time, late bool, inputs []input) (chosen int, due time.Time) {
	for i := range inputs {
		in := &inputs[i]
		switch {
		case in.filled() && in.err == nil:
			return i, time.Time{}
		case in.filled() && now.Before(in.failedAt.Add(failoverTolerance)):
			return i, in.failedAt.Add(failoverTolerance)
		case !in.answered() && !late:
			return -1, time.Time{}
		}
	}
	return slices.IndexFunc(inputs, func(in input) bool { return in.filled() }), time.Time{}
}
