package backstaytest

import (
	"fmt"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// PolicyOptions says what [TestPolicy] may expect of a policy.
type PolicyOptions struct {
	// Weighted means that nodes that are alike otherwise are picked as often as
	// their endpoints' weights say, within a twentieth. Default: false, which
	// skips what is asked of weights.
	Weighted bool
	// Skip names subtests, as TestPolicy names them, that do not apply to the
	// policy, such as "picks do not allocate": say why, where you list them.
	// Default: none.
	Skip []string
	// Patience is how long up to 100,000 picks in a row may take. Default: 5s.
	Patience time.Duration
}

// TestPolicy checks that a policy keeps the contract of [balancer.Policy], and
// its pickers that of [balancer.Picker]; each rule is a subtest. A policy must
// bear to be used by all of them, one after the other.
//
//	backstaytest.TestPolicy(t, balancer.WeightedRoundRobin{}, &backstaytest.PolicyOptions{Weighted: true})
//
// Pickers are asked directly, and by way of a [balancer.Balancer] that makes up
// for what they may leave out. Run it under the race detector, too: what a
// policy shares without a lock shows only there.
//
// The subtests look for leaked goroutines and so must not run beside parallel
// tests.
func TestPolicy(t *testing.T, policy balancer.Policy, opts *PolicyOptions) {
	t.Helper()
	o := opts.withDefaults()
	checks := policyChecks()
	for _, name := range o.Skip {
		if !slices.ContainsFunc(checks, func(c policyCheck) bool { return c.name == name }) {
			t.Errorf("backstaytest: PolicyOptions.Skip names %q, which is no subtest", name)
		}
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			switch {
			case slices.Contains(o.Skip, c.name):
				t.Skip("by PolicyOptions.Skip")
			case c.weights && !o.Weighted:
				t.Skip("PolicyOptions.Weighted is not set")
			}
			c.start(t, policy, o)
		})
	}
}

func (o *PolicyOptions) withDefaults() PolicyOptions {
	var c PolicyOptions
	if o != nil {
		c = *o
	}
	if c.Patience <= 0 {
		c.Patience = 5 * time.Second
	}
	return c
}

type policyCheck struct {
	name    string
	run     func(*policyTrial)
	weights bool // it is about weights
}

func (c policyCheck) start(t testing.TB, policy balancer.Policy, o PolicyOptions) {
	t.Helper()
	checkLeaks(t, o.Patience)
	c.run(&policyTrial{rig: rig{t, o.Patience}, policy: policy})
}

func policyChecks() []policyCheck {
	return []policyCheck{
		{"picks only nodes that it was given", pickGiven, false},
		{"picks every node in the long run", pickEvery, false},
		{"picks seldom what is to be avoided", pickSeldomAvoided, false},
		{"picks or leaves it when all are to be avoided", pickAllAvoided, false},
		{"picks do not change what they are given", pickChangesNothing, false},
		{"picks do not wait for nodes to get well", pickUnwell, false},
		{"picks may be many at once", pickTogether, false},
		{"picks do not allocate", pickAllocates, false},
		{"picks follow the weights", pickWeighted, true},
		{"pickers may be made at once", makeTogether, false},
		{"pickers live beside each other", makeAnother, false},
		{"calls get through whatever becomes of a node", callsGetThrough, false},
		{"calls avoid what is to be avoided", callsAvoid, false},
	}
}

// policyTrial is one run of a check.
type policyTrial struct {
	rig
	policy balancer.Policy
}

// balancer returns one with a node for each weight, ready. Without a policy it
// has its own.
func (t *policyTrial) balancer(policy balancer.Policy, weights ...float64) *balancer.Balancer {
	t.Helper()
	endpoints := make([]discovery.Endpoint, len(weights))
	for i, w := range weights {
		endpoints[i] = discovery.Endpoint{Addr: fmt.Sprintf("10.0.0.%d:80", i+1), Weight: w}
	}
	b, err := balancer.New("orders.test", discovery.Static(endpoints...), &balancer.Config{Policy: policy})
	if err != nil {
		t.Fatalf("making a balancer: %v", err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("closing the balancer: %v", err)
		}
	})
	if err := b.Ready(t.Context()); err != nil {
		t.Fatalf("the balancer is not ready: %v", err)
	}
	return b
}

// nodes returns n nodes that are alike. A balancer of their own has them.
func (t *policyTrial) nodes(n int) []*balancer.Node {
	t.Helper()
	return t.balancer(nil, make([]float64, n)...).Nodes()
}

// safely runs what is the policy's doing: it must return, and not panic.
func (t *policyTrial) safely(what string, f func()) {
	t.Helper()
	var panicked string
	t.promptly(what, func() {
		defer func() {
			if p := recover(); p != nil {
				panicked = fmt.Sprintf("%v\n%s", p, debug.Stack())
			}
		}()
		f()
	})
	if panicked != "" {
		t.Fatalf("%s panicked: %s", what, panicked)
	}
}

// asked is a picker, and what it was made for.
type asked struct {
	t      *policyTrial
	picker balancer.Picker
	given  []*balancer.Node
	was    []*balancer.Node // what is in given, or was
}

// ask makes a picker for nodes.
func (t *policyTrial) ask(nodes []*balancer.Node) *asked {
	t.Helper()
	a := &asked{t: t, given: nodes, was: slices.Clone(nodes)}
	t.safely("making a picker", func() { a.picker = t.policy.NewPicker(nodes) })
	if a.picker == nil { // which leaves it to chance, as one that returns nil
		a.picker = balancer.PickerFunc(func(balancer.Call) *balancer.Node { return nil })
	}
	return a
}

// picks asks n times, and returns how often each node was the answer.
func (a *asked) picks(n int, call balancer.Call) map[*balancer.Node]int {
	a.t.Helper()
	avoid := slices.Clone(call.Avoid)
	counts := make(map[*balancer.Node]int)
	a.t.safely("a pick", func() {
		for range n {
			counts[a.picker.Pick(call)]++
		}
	})
	for node := range counts {
		if err := own(node, a.was); err != nil {
			a.t.Errorf("%v", err)
		}
	}
	if !slices.Equal(a.given, a.was) {
		a.t.Fatalf("the slice of nodes that NewPicker was given has been changed: %s, was %s", names(a.given), names(a.was))
	}
	if !slices.Equal(call.Avoid, avoid) {
		a.t.Fatalf("the call's Avoid has been changed: %s, was %s", names(call.Avoid), names(avoid))
	}
	return counts
}

func names(nodes []*balancer.Node) string { return short(fmt.Sprint(nodes)) }

// own returns an error if a picker for nodes must not pick node.
func own(node *balancer.Node, nodes []*balancer.Node) error {
	if node == nil || slices.Contains(nodes, node) {
		return nil
	}
	return fmt.Errorf("%q was picked, and the picker was made for %d nodes of which it is none", node, len(nodes))
}

// every complains if one of the nodes is not among many picks.
func (a *asked) every() {
	a.t.Helper()
	n := 200 * len(a.was)
	counts := a.picks(n, balancer.Call{Now: time.Now()})
	missed := slices.DeleteFunc(slices.Clone(a.was), func(node *balancer.Node) bool { return counts[node] > 0 })
	if len(missed) > 0 {
		a.t.Errorf("of %d picks among %d nodes that are alike, none was one of %s", n, len(a.was), names(missed))
	}
}
