package backstaytest

import (
	"context"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/discovery"
)

// source is a resolver that is right but for the one fault that it names.
type source struct {
	fault string

	mu      sync.Mutex
	n       int // endpoints
	shared  []discovery.Endpoint
	changed chan struct{}
	used    bool
}

func newSource(fault string) func(testing.TB) (discovery.Resolver, func()) {
	return func(testing.TB) (discovery.Resolver, func()) {
		s := &source{fault: fault, n: 3, changed: make(chan struct{})}
		if fault == "does not change" {
			return s, func() {}
		}
		return s, s.change
	}
}

func (s *source) change() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	close(s.changed)
	s.changed = make(chan struct{})
	if s.fault == "changes what it gave" {
		for i := range s.shared {
			s.shared[i].Metadata["version"] = fmt.Sprint(s.n)
		}
	}
}

func (s *source) look() (discovery.Set, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var set discovery.Set
	for i := range s.n {
		e := discovery.Endpoint{Addr: fmt.Sprintf("10.0.0.%d:80", i+1), Metadata: map[string]string{"version": "0"}}
		switch s.fault {
		case "gives bad addresses":
			e.Addr = "http://10.0.0.1/"
		case "gives bad weights":
			e.Weight = math.NaN()
		}
		set.Endpoints = append(set.Endpoints, e)
	}
	if s.fault == "begins with a part" && !s.used {
		set.Endpoints = set.Endpoints[:1]
		s.used = true
	}
	if s.fault == "changes what it gave" && s.shared == nil {
		s.shared = set.Endpoints
	}
	return set, s.changed
}

func (s *source) Watch(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		switch s.fault {
		case "leaves a goroutine":
			go func() { <-ctx.Done() }()
		case "leaves a context":
			var cancel context.CancelFunc
			ctx, cancel = context.WithCancel(ctx)
			defer func() { s.forget(cancel) }()
		case "keeps a goroutine until the loop ends":
			stop := make(chan struct{})
			time.AfterFunc(10*time.Second, func() { close(stop) })
			go func() { <-stop }()
		case "swallows panics":
			defer func() { _ = recover() }()
		case "works once":
			if s.once() {
				<-ctx.Done()
				return
			}
		}
		watched := s.watched(ctx)
		for s.fault == "asks no context" || ctx.Err() == nil {
			set, changed := s.look()
			if s.fault == "yields nothing" {
				<-ctx.Done()
				return
			}
			if !yield(set, nil) || s.fault == "returns at once" {
				return
			}
			hints := discovery.Hints(ctx)
			if s.fault != "ends at a hint" {
				hints = nil
			}
			select {
			case <-changed:
			case <-watched:
				if s.fault == "yields once more at the end" {
					yield(set, ctx.Err())
				}
				if s.fault == "shares one end" {
					return
				}
			case <-hints:
				return
			}
		}
	}
}

func (*source) forget(context.CancelFunc) {}

func (s *source) once() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.used
	s.used = true
	return was
}

// watched is what ends the watch.
func (s *source) watched(ctx context.Context) <-chan struct{} {
	switch s.fault {
	case "asks no context":
		gone := make(chan struct{})
		time.AfterFunc(10*time.Second, func() { close(gone) })
		return gone
	case "shares one end":
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.shared == nil {
			s.shared = make([]discovery.Endpoint, 1)
			sharedEnds.Store(s, ctx.Done())
		}
		end, _ := sharedEnds.Load(s)
		return end.(<-chan struct{})
	}
	return ctx.Done()
}

var sharedEnds sync.Map

func TestResolverPassesAFleets(t *testing.T) {
	TestResolver(t, func(t testing.TB) (discovery.Resolver, func()) {
		fleet := NewFleet(t, 3, &FleetConfig{Network: NewNetwork()})
		return fleet.Resolver(), func() { fleet.Join() }
	}, &ResolverOptions{Want: []string{"s2", "s0", "s1"}})
}

func TestResolverPassesASourceThatIsRight(t *testing.T) {
	TestResolver(t, newSource(""), nil)
}

func TestResolverPassesASourceThatNeverChanges(t *testing.T) {
	TestResolver(t, func(t testing.TB) (discovery.Resolver, func()) {
		r, _ := newSource("")(t)
		return r, nil
	}, nil)
}

func resolverFaults() map[string][]string {
	return map[string][]string{
		"yields nothing":                        {"watch yields the whole set first"},
		"begins with a part":                    {"watch yields the whole set first", "watch may begin again", "watches do not disturb each other"},
		"gives bad addresses":                   {"watch yields endpoints that make sense"},
		"gives bad weights":                     {"watch yields endpoints that make sense"},
		"returns at once":                       {"watch goes on while its context lives"},
		"asks no context":                       {"watch ends with its context", "watch yields nothing once its context has ended"},
		"yields once more at the end":           {"watch yields nothing once its context has ended"},
		"leaves a goroutine":                    {"watch that is left frees everything", "watch whose loop panics frees everything"},
		"leaves a context":                      {"watch that is left frees everything"},
		"keeps a goroutine until the loop ends": {"watch that is left frees everything"},
		"swallows panics":                       {"watch whose loop panics frees everything"},
		"works once":                            {"watch may begin again"},
		"shares one end":                        {"watches do not disturb each other"},
		"ends at a hint":                        {"watch bears hints"},
		"does not change":                       {"watch yields the whole set when it changes", "watch bears hints"},
		"changes what it gave":                  {"sets stay as they were given"},
	}
}

func TestResolverFindsEachFault(t *testing.T) {
	checks := resolverChecks()
	opts := (&ResolverOptions{Patience: 100 * time.Millisecond, Want: []string{"10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"}}).withDefaults()
	for fault, names := range resolverFaults() {
		for _, name := range names {
			t.Run(fault+"/"+name, func(t *testing.T) {
				i := slices.IndexFunc(checks, func(c resolverCheck) bool { return c.name == name })
				require.NotEqual(t, -1, i, "there is no such check")
				failures := verdictOf(t, func(tb testing.TB) { checks[i].start(tb, newSource(fault), opts) })
				require.NotEmpty(t, failures, "the fault was not found")
				t.Log(strings.Join(failures, "\n"))
			})
		}
	}
}

func TestEveryResolverCheckFindsAFault(t *testing.T) {
	proved := make(map[string]bool)
	for _, names := range resolverFaults() {
		for _, name := range names {
			proved[name] = true
		}
	}
	for _, c := range resolverChecks() {
		require.True(t, proved[c.name], "no fault of a resolver is known to fail %q", c.name)
	}
}
