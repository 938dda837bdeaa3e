package backstaytest

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backstay/backstay/discovery"
)

// ResolverOptions says what [TestResolver] may expect of a resolver.
type ResolverOptions struct {
	// Service is the service to watch. Default: "orders.test".
	Service string
	// Want lists the keys of the endpoints that the first set holds, in any
	// order. Default: nil, which takes any.
	Want []string
	// Patience is how long a set, a change of it or an end may take: more than
	// the resolver's own interval. Default: 5s.
	Patience time.Duration
}

// TestResolver checks that a resolver keeps the contract of
// [discovery.Resolver]; each rule is a subtest. It calls source once in each,
// for a fresh resolver and a function that changes what it lists, in whichever
// way, each time it is called; nil if that cannot change. The source's own
// resources are freed by t.Cleanup.
//
//	backstaytest.TestResolver(t, func(t testing.TB) (discovery.Resolver, func()) {
//		fleet := backstaytest.NewFleet(t, 3, nil)
//		return fleet.Resolver(), func() { fleet.Join() }
//	}, nil)
//
// The subtests look for leaked goroutines and so must not run beside parallel
// tests.
func TestResolver(t *testing.T, source func(t testing.TB) (r discovery.Resolver, change func()), opts *ResolverOptions) {
	t.Helper()
	for _, c := range resolverChecks() {
		t.Run(c.name, func(t *testing.T) { c.start(t, source, opts.withDefaults()) })
	}
}

func (o *ResolverOptions) withDefaults() ResolverOptions {
	var c ResolverOptions
	if o != nil {
		c = *o
	}
	if c.Service == "" {
		c.Service = "orders.test"
	}
	if c.Patience <= 0 {
		c.Patience = 5 * time.Second
	}
	return c
}

type resolverCheck struct {
	name    string
	run     func(*watchTrial)
	changes bool // it needs a source that changes
}

func (c resolverCheck) start(t testing.TB, source func(testing.TB) (discovery.Resolver, func()), o ResolverOptions) {
	t.Helper()
	checkLeaks(t, o.Patience)
	r, change := source(t)
	if c.changes && change == nil {
		t.Skip("the source does not change")
	}
	c.run(&watchTrial{rig: rig{t, o.Patience}, opts: o, resolver: r, change: change})
}

func resolverChecks() []resolverCheck {
	return []resolverCheck{
		{"watch yields the whole set first", watchFirst, false},
		{"watch yields endpoints that make sense", watchSense, false},
		{"watch goes on while its context lives", watchGoesOn, false},
		{"watch ends with its context", watchEnds, false},
		{"watch yields nothing once its context has ended", watchSilent, false},
		{"watch that is left frees everything", watchLeft, false},
		{"watch whose loop panics frees everything", watchPanics, false},
		{"watch may begin again", watchAgain, false},
		{"watches do not disturb each other", watchMany, false},
		{"watch bears hints", watchHints, false},
		{"watch yields the whole set when it changes", watchChange, true},
		{"sets stay as they were given", watchImmutable, true},
	}
}

func keys(set discovery.Set) []string {
	all := make([]string, len(set.Endpoints))
	for i, e := range set.Endpoints {
		all[i] = e.Key()
	}
	slices.Sort(all)
	return all
}

func watchFirst(t *watchTrial) {
	set := t.first(t.watch(t.Context()))
	want := slices.Sorted(slices.Values(t.opts.Want))
	if t.opts.Want != nil && !slices.Equal(keys(set), want) {
		t.Errorf("the first set has the keys %q, want %q", keys(set), want)
	}
}

func watchSense(t *watchTrial) {
	set := t.first(t.watch(t.Context()))
	for _, e := range set.Endpoints {
		for _, addr := range append([]string{e.Addr}, e.Fallback...) {
			if problem := addrProblem(addr); problem != "" {
				t.Errorf("endpoint %q has the address %q: %s", e.Key(), addr, problem)
			}
		}
		if !(e.Weight >= 0) || math.IsInf(e.Weight, 0) { // NaN too
			t.Errorf("endpoint %q has the weight %v, want a finite number >= 0", e.Key(), e.Weight)
		}
		if e.Priority < 0 {
			t.Errorf("endpoint %q has the priority %d, want >= 0", e.Key(), e.Priority)
		}
	}
	if set.TTL < 0 {
		t.Errorf("the set's TTL is %v, want >= 0", set.TTL)
	}
}

// addrProblem says what is wrong with an address, or returns "".
func addrProblem(addr string) string {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if path == "" {
			return "it has no path"
		}
		return ""
	}
	host, port, err := net.SplitHostPort(addr)
	switch {
	case addr == "", err == nil && host == "":
		return "it has no host"
	case err == nil && port == "":
		return "it has a colon and no port"
	case strings.ContainsAny(addr, "/ @"):
		return "it is no host:port"
	}
	return ""
}

func watchGoesOn(t *watchTrial) {
	w := t.watch(t.Context())
	t.first(w)
	t.goesOn(w)
}

func watchEnds(t *watchTrial) {
	for _, wait := range []bool{true, false} {
		w := t.watch(t.Context())
		if wait {
			t.first(w)
		}
		w.cancel()
		t.over(w)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	w := t.watch(ctx)
	t.promptly("a watch whose deadline has passed", func() {
		for {
			select {
			case <-w.yields:
			case <-w.ended:
				return
			}
		}
	})
}

func watchSilent(t *watchTrial) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	t.promptly("a watch whose context had ended before", func() {
		for set, err := range t.resolver.Watch(ended, t.opts.Service) {
			t.Errorf("a watch whose context had ended before yielded %q, %v", keys(set), err)
			break
		}
	})
	for i := range 10 {
		ctx, cancel := context.WithCancel(t.Context())
		t.promptly("a watch whose context ended inside its loop", func() {
			yields := 0
			for set, err := range t.resolver.Watch(ctx, t.opts.Service) {
				if yields++; yields > 1 {
					t.Errorf("a watch yielded %q, %v after its context had ended", keys(set), err)
					break
				}
				cancel()
				if t.change != nil && i%2 == 1 {
					t.change() // news is no excuse
				}
			}
		})
		cancel()
	}
}

// watchLeft leaves loops under a context that lives on.
func watchLeft(t *watchTrial) {
	t.letGo(func(ctx context.Context) {
		for set, err := range t.resolver.Watch(ctx, t.opts.Service) {
			_, _ = set, err
			break
		}
	})
}

func watchPanics(t *watchTrial) {
	thrown := &struct{ why string }{"a bug in the loop"}
	t.letGo(func(ctx context.Context) {
		defer func() {
			if p := recover(); p != any(thrown) {
				t.Errorf("after a panic in the loop, the watch's is %v", p)
			}
		}()
		for set, err := range t.resolver.Watch(ctx, t.opts.Service) {
			_, _ = set, err
			panic(thrown) //nolint:forbidigo // what is tested
		}
	})
}

func watchAgain(t *watchTrial) {
	var want []string
	for i := range 3 {
		w := t.watch(t.Context())
		got := keys(t.first(w))
		w.cancel()
		t.over(w)
		if i > 0 && !slices.Equal(got, want) {
			t.Errorf("watch %d began with %q, the one before with %q", i, got, want)
		}
		want = got
	}
}

func watchMany(t *watchTrial) {
	const n = 8
	watches := make([]*watching, n)
	watches[0] = t.watch(t.Context())
	want := keys(t.first(watches[0])) // the first, and the first to end
	for i := 1; i < n; i++ {
		watches[i] = t.watch(t.Context())
	}
	for _, w := range watches[1:] {
		if got := keys(t.first(w)); !slices.Equal(got, want) {
			t.Errorf("one watch began with %q, another with %q", got, want)
		}
	}
	for _, w := range watches[:n/2] {
		w.cancel()
		t.over(w)
	}
	for _, w := range watches[n/2:] {
		t.goesOn(w)
	}
	if t.change == nil {
		return
	}
	t.change()
	for _, w := range watches[n/2:] {
		t.next(w, "a change, when other watches had ended", func(set discovery.Set) bool { return !slices.Equal(keys(set), want) })
	}
}

// watchHints sends many more hints than any source should follow.
func watchHints(t *watchTrial) {
	hints := make(chan struct{})
	stop := make(chan struct{})
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		for {
			select {
			case hints <- struct{}{}:
			case <-stop:
				return
			}
		}
	}()
	defer func() { close(stop); <-flooded }()
	w := t.watch(discovery.WithHints(t.Context(), hints))
	before := keys(t.first(w))
	t.goesOn(w)
	if t.change != nil {
		t.change()
		t.next(w, "a change, with hints", func(set discovery.Set) bool { return !slices.Equal(keys(set), before) })
	}
	w.cancel()
	t.over(w)
}

func watchChange(t *watchTrial) {
	w := t.watch(t.Context())
	before := t.first(w)
	for range 3 {
		t.change()
		before = t.next(w, "a change", func(set discovery.Set) bool { return !set.Equal(before) })
		fresh := t.watch(t.Context())
		if now := t.first(fresh); !slices.Equal(keys(now), keys(before)) {
			t.Errorf("after a change the watch yielded %q, and a fresh one %q", keys(before), keys(now))
		}
		fresh.cancel()
	}
}

func watchImmutable(t *watchTrial) {
	w := t.watch(t.Context())
	set := t.first(w)
	was := deepCopy(set)
	for range 2 {
		t.change()
		t.next(w, "a change", func(now discovery.Set) bool { return !now.Equal(was) })
		if !set.Equal(was) {
			t.Fatalf("a set that was given was changed: it is %s, was %s", describe(set), describe(was))
		}
	}
}

func deepCopy(set discovery.Set) discovery.Set {
	set.Endpoints = slices.Clone(set.Endpoints)
	for i := range set.Endpoints {
		set.Endpoints[i].Fallback = slices.Clone(set.Endpoints[i].Fallback)
		set.Endpoints[i].Metadata = maps.Clone(set.Endpoints[i].Metadata)
	}
	return set
}

func describe(set discovery.Set) string { return short(fmt.Sprintf("%+v", set.Endpoints)) }
