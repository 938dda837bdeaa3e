package backstaytest

import (
	"context"
	"slices"
	"time"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/outcome"
)

// makeTogether has pickers made at once, of the same nodes and of others, as
// views of a balancer do it.
func makeTogether(t *policyTrial) {
	nodes := t.nodes(10)
	was := slices.Clone(nodes)
	t.atOnce("making pickers at once", func(i int) error {
		for range 50 {
			given := nodes
			if i%2 == 1 {
				given = nodes[i:] // the same array
			}
			picker := t.policy.NewPicker(given)
			if picker == nil {
				continue
			}
			for range 20 {
				if err := own(picker.Pick(balancer.Call{Now: time.Now()}), was[len(was)-len(given):]); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if !slices.Equal(nodes, was) {
		t.Errorf("the slice of nodes that NewPicker was given has been changed: %s, was %s", names(nodes), names(was))
	}
}

// makeAnother goes on with a picker after others were made.
func makeAnother(t *policyTrial) {
	nodes := t.nodes(6)
	all := t.ask(nodes)
	all.every()
	part, rest := t.ask(slices.Clone(nodes[:2])), t.ask(slices.Clone(nodes[2:]))
	one, strangers := t.ask(slices.Clone(nodes[5:])), t.ask(t.nodes(3))
	for range 2 {
		for _, a := range []*asked{all, part, rest, one, strangers} {
			a.every()
		}
	}
}

// call makes a call that is over at once, and returns where it went.
func (t *policyTrial) call(b *balancer.Balancer, avoid ...*balancer.Node) (node *balancer.Node, err error) {
	t.Helper()
	t.safely("a call", func() {
		ctx, cancel := context.WithTimeout(t.Context(), t.patience)
		defer cancel()
		var l balancer.Lease
		if l, err = b.Acquire(ctx, balancer.Call{Avoid: avoid}); err == nil {
			node = l.Node()
			l.Done(time.Time{}, outcome.Outcome{})
		}
	})
	return node, err
}

// served makes calls that must all get a node, and returns how many each got.
func (t *policyTrial) served(when string, b *balancer.Balancer) map[*balancer.Node]int {
	t.Helper()
	counts := make(map[*balancer.Node]int)
	for range 200 {
		node, err := t.call(b)
		if err != nil {
			t.Fatalf("a call %s got no node: %v", when, err)
		}
		counts[node]++
	}
	return counts
}

// callsGetThrough has one node after the other fall out of use.
func callsGetThrough(t *policyTrial) {
	b := t.balancer(t.policy, 0, 0, 0)
	nodes := b.Nodes()
	t.served("in the best of times", b)
	for range 10 { // calls that a node never answers
		l, err := b.Acquire(t.Context(), balancer.Call{Avoid: nodes[1:]})
		if err != nil {
			t.Fatalf("a call got no node: %v", err)
		}
		t.Cleanup(func() { l.Done(time.Time{}, outcome.Outcome{Class: outcome.Failure, Err: errUnwell}) })
	}
	t.served("beside a node that is dead", b)
	for i, node := range nodes {
		node.Breaker().ForceOpen()
		if i == len(nodes)-1 {
			break
		}
		for _, open := range nodes[:i+1] {
			if n := t.served("beside nodes whose breakers are open", b)[open]; n > 0 {
				t.Errorf("%d calls got a node whose breaker is open", n)
			}
		}
	}
	if _, err := t.call(b); !outcome.Refused(err) {
		t.Errorf("a call when all breakers are open ended with %v, want a refusal", err)
	}
	for _, node := range nodes {
		node.Breaker().Release()
	}
	t.served("when all is well again", b)
}

func callsAvoid(t *policyTrial) {
	for _, n := range []int{2, 3, 10} {
		b := t.balancer(t.policy, make([]float64, n)...)
		nodes := b.Nodes()
		for _, avoid := range [][]*balancer.Node{nodes[:1], nodes[:n-1], nodes[1:], nodes} {
			for range 100 {
				node, err := t.call(b, avoid...)
				if err != nil {
					t.Fatalf("a call that avoids %d of %d nodes got none: %v", len(avoid), n, err)
				}
				if len(avoid) < n && slices.Contains(avoid, node) {
					t.Errorf("a call that avoids %d of %d nodes got one of them", len(avoid), n)
				}
			}
		}
	}
}
