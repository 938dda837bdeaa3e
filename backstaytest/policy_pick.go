package backstaytest

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/outcome"
)

// sizes are how many nodes there are.
func sizes() []int { return []int{1, 2, 3, 10, 100} }

func pickGiven(t *policyTrial) {
	for _, n := range sizes() {
		a := t.ask(t.nodes(n))
		for _, call := range []balancer.Call{{}, {Now: time.Now()}, {Now: time.Now(), LatencyNeutral: true}} {
			a.picks(1000, call)
		}
	}
}

func pickEvery(t *policyTrial) {
	for _, n := range sizes() {
		t.ask(t.nodes(n)).every()
	}
}

// pickSeldomAvoided does not ask for never: a picker need not look for the one
// node that is left, for the balancer does.
func pickSeldomAvoided(t *policyTrial) {
	const n = 1000
	for _, size := range sizes()[1:] {
		nodes := t.nodes(size)
		a := t.ask(nodes)
		for _, avoid := range [][]*balancer.Node{nodes[:1], nodes[size-1:], nodes[:size/2], nodes[:size-1], nodes[1:]} {
			avoid = slices.Clone(avoid)
			avoided := 0
			for node, times := range a.picks(n, balancer.Call{Now: time.Now(), Avoid: avoid}) {
				if slices.Contains(avoid, node) {
					avoided += times
				}
			}
			if avoided > n/3 {
				t.Errorf("of %d picks that should avoid %d of %d nodes, %d did not", n, len(avoid), size, avoided)
			}
		}
	}
}

func pickAllAvoided(t *policyTrial) {
	strangers := t.nodes(3)
	for _, n := range sizes() {
		nodes := t.nodes(n)
		a := t.ask(nodes)
		for _, avoid := range [][]*balancer.Node{slices.Clone(nodes), slices.Concat(nodes, nodes), slices.Concat(strangers, nodes), strangers} {
			a.picks(200, balancer.Call{Now: time.Now(), Avoid: avoid})
		}
	}
}

func pickChangesNothing(t *policyTrial) {
	nodes := t.nodes(10)
	for i := range nodes { // in each order of rotation, and then backwards: some are not sorted
		t.ask(slices.Concat(nodes[i:], nodes[:i])).picks(100, balancer.Call{Now: time.Now(), Avoid: slices.Concat(nodes[5:], nodes[:2])})
	}
	slices.Reverse(nodes)
	t.ask(nodes).picks(100, balancer.Call{Now: time.Now(), Avoid: slices.Clone(nodes[:3])})
}

var errUnwell = errors.New("backstaytest: the node is unwell")

// pickUnwell has nodes of all kinds of misery.
func pickUnwell(t *policyTrial) {
	b := t.balancer(nil, make([]float64, 5)...)
	nodes := b.Nodes()
	a := t.ask(nodes)
	begin := func(node *balancer.Node) *balancer.Lease {
		l, err := b.Acquire(t.Context(), balancer.Call{Avoid: slices.DeleteFunc(b.Nodes(), func(n *balancer.Node) bool { return n == node })})
		if err != nil {
			t.Fatalf("no call to %s: %v", node, err)
		}
		return &l
	}
	for _, node := range nodes { // calls to all that never end
		for range 3 {
			l := begin(node)
			t.Cleanup(func() { l.Done(time.Time{}, outcome.Outcome{}) })
		}
	}
	for range 10 { // failures in a row
		begin(nodes[1]).Done(time.Time{}, outcome.Outcome{Class: outcome.Failure, Err: errUnwell})
	}
	begin(nodes[2]).Done(time.Now().Add(time.Hour), outcome.Outcome{}) // an answer that took long
	nodes[3].Breaker().ForceOpen()
	if err := b.Eject(nodes[4].Key(), time.Hour); err != nil {
		t.Fatalf("ejecting %s: %v", nodes[4], err)
	}
	for _, after := range []time.Duration{0, time.Second, 24 * time.Hour, -time.Minute} {
		now := time.Now().Add(after)
		a.picks(1000, balancer.Call{Now: now})
		a.picks(200, balancer.Call{Now: now, Avoid: nodes[:2]})
	}
	for _, node := range nodes {
		node.Breaker().ForceOpen()
	}
	a.picks(1000, balancer.Call{Now: time.Now()})
	t.ask(b.Nodes()).picks(1000, balancer.Call{Now: time.Now()}) // one that is made now must bear it as well
}

// atOnce runs f on several goroutines.
func (t *policyTrial) atOnce(what string, f func(i int) error) {
	t.Helper()
	const callers = 8
	errs := make(chan error, callers)
	for i := range callers {
		go func() {
			defer func() {
				if p := recover(); p != nil {
					errs <- fmt.Errorf("panic: %v", p)
				}
			}()
			errs <- f(i)
		}()
	}
	t.promptly(what, func() {
		for range callers {
			if err := <-errs; err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func pickTogether(t *policyTrial) {
	for _, n := range sizes() {
		nodes := t.nodes(n)
		a := t.ask(nodes)
		t.atOnce("picks at once", func(i int) error {
			for j := range 1000 {
				call := balancer.Call{Now: time.Now()}
				if j%4 == i%4 {
					call.Avoid = nodes[:n/2]
				}
				if err := own(a.picker.Pick(call), a.was); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func pickAllocates(t *policyTrial) {
	for _, n := range sizes() {
		nodes := t.nodes(n)
		a := t.ask(nodes)
		for what, call := range map[string]balancer.Call{
			"a pick":                      {Now: time.Now()},
			"a pick that avoids a node":   {Now: time.Now(), Avoid: nodes[:1:1]},
			"a pick that avoids them all": {Now: time.Now(), Avoid: nodes},
		} {
			allocs := 1.0
			// What goes on beside is counted, too: so a few picks at a time.
			for try := 0; try < 50 && allocs > 0; try++ {
				t.safely(what, func() { allocs = testing.AllocsPerRun(10, func() { a.picker.Pick(call) }) })
			}
			if allocs > 0 {
				t.Errorf("%s among %d nodes allocates %v times", what, n, allocs)
			}
		}
	}
}

func pickWeighted(t *policyTrial) {
	const n = 100_000
	for _, weights := range [][]float64{{1, 2}, {5, 0, 2.5, 1.5}, {100, 100, 300}, {0, 0, 0}} {
		total := 0.0
		of := make(map[string]float64)
		b := t.balancer(nil, weights...)
		for _, node := range b.Nodes() {
			w := node.Endpoint().Weight
			if w == 0 {
				w = 1 // which 0 stands for
			}
			of[node.Key()] = w
			total += w
		}
		a := t.ask(b.Nodes())
		counts := a.picks(n, balancer.Call{Now: time.Now()})
		for _, node := range a.was {
			want := n * of[node.Key()] / total
			if got := float64(counts[node]); math.Abs(got-want) > want/20 {
				t.Errorf("of %d picks among nodes with the weights %v, %v were the one with %v, want %.0f", n, weights, got, of[node.Key()], want)
			}
		}
	}
}
