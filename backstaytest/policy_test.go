package backstaytest

import (
	"cmp"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
)

// atRandom is a policy that is right but for the one fault that it names.
type atRandom struct {
	fault string
	busy  atomic.Bool
	mu    sync.Mutex
	last  []*balancer.Node
}

func (p *atRandom) NewPicker(nodes []*balancer.Node) balancer.Picker {
	p.mu.Lock()
	p.last = nodes
	p.mu.Unlock()
	switch p.fault {
	case "sorts the nodes":
		slices.SortFunc(nodes, func(a, b *balancer.Node) int { return cmp.Compare(a.Key(), b.Key()) })
	case "knows nobody":
		return nil
	case "wants two":
		_ = nodes[1]
	case "makes one at a time":
		defer p.enter()()
	}
	return &randomPicker{atRandom: p, nodes: nodes, known: make(map[*balancer.Node]bool)}
}

// enter panics if somebody else is in already.
func (p *atRandom) enter() (leave func()) {
	if !p.busy.CompareAndSwap(false, true) {
		panic("two at a time")
	}
	runtime.Gosched()
	return func() { p.busy.Store(false) }
}

type randomPicker struct {
	*atRandom
	nodes []*balancer.Node
	known map[*balancer.Node]bool
	stuck atomic.Bool
}

// stranger is a node of nobody's.
var stranger = new(balancer.Node)

func (p *randomPicker) Pick(call balancer.Call) *balancer.Node {
	nodes := p.nodes
	switch p.fault {
	case "picks a stranger":
		if rand.IntN(100) == 0 {
			return stranger
		}
	case "asks the last picker's nodes":
		p.mu.Lock()
		nodes = p.last
		p.mu.Unlock()
	case "picks the first":
		nodes = nodes[:1]
	case "never picks the last":
		nodes = nodes[:max(1, len(nodes)-1)]
	case "picks one at a time":
		defer p.enter()()
	case "needs the time":
		if call.Now.IsZero() {
			panic("no time")
		}
	case "clears Avoid":
		clear(call.Avoid)
	case "allocates":
		nodes = slices.Clone(nodes)
	case "waits for a node that is idle":
		p.wait(func() bool {
			return slices.ContainsFunc(nodes, func(n *balancer.Node) bool { return n.InFlight() == 0 })
		})
	case "waits for a node that is whole":
		p.wait(func() bool {
			return slices.ContainsFunc(nodes, func(n *balancer.Node) bool { return n.Breaker().Ready(call.Now) })
		})
	case "waits for every node":
		p.wait(func() bool {
			return !slices.ContainsFunc(nodes, func(n *balancer.Node) bool { return n.InFlight() > 5 })
		})
	case "waits for a node that is not to be avoided":
		p.wait(func() bool {
			return slices.ContainsFunc(nodes, func(n *balancer.Node) bool { return !slices.Contains(call.Avoid, n) })
		})
	}
	node := nodes[rand.IntN(len(nodes))]
	if p.fault == "goes by weights" {
		node = weighted(nodes)
	}
	for range 2 * len(call.Avoid) {
		if p.fault == "ignores Avoid" || !slices.Contains(call.Avoid, node) {
			break
		}
		node = nodes[rand.IntN(len(nodes))]
	}
	return node
}

// wait waits long, but not for ever: nothing must be left of the test.
func (p *randomPicker) wait(ok func() bool) {
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for start := time.Now(); !ok() && !p.stuck.Load(); <-look.C {
		if time.Since(start) > time.Second {
			p.stuck.Store(true)
		}
	}
}

// weighted draws by weights, of which it doubles the first.
func weighted(nodes []*balancer.Node) *balancer.Node {
	total := 0.0
	for i, n := range nodes {
		total += weightOf(i, n)
	}
	r := rand.Float64() * total
	for i, n := range nodes {
		if r -= weightOf(i, n); r < 0 {
			return n
		}
	}
	return nodes[0]
}

func weightOf(i int, n *balancer.Node) float64 {
	w := max(n.Endpoint().Weight, 1)
	if i == 0 {
		w *= 1.2
	}
	return w
}

func TestPolicyPassesOneThatIsRight(t *testing.T) {
	TestPolicy(t, &atRandom{}, nil)
}

func TestPolicyPassesOneThatLeavesAllToChance(t *testing.T) {
	// It reaches nodes by way of the balancer only.
	skip := []string{"picks every node in the long run", "pickers live beside each other"}
	TestPolicy(t, balancer.PolicyFunc(func([]*balancer.Node) balancer.Picker { return nil }), &PolicyOptions{Skip: skip})
}

func policyFaults() map[string][]string {
	return map[string][]string{
		"picks a stranger":                           {"picks only nodes that it was given", "picks may be many at once", "pickers may be made at once"},
		"wants two":                                  {"picks only nodes that it was given"},
		"needs the time":                             {"picks only nodes that it was given"},
		"picks the first":                            {"picks every node in the long run"},
		"never picks the last":                       {"picks every node in the long run"},
		"knows nobody":                               {"picks every node in the long run"},
		"ignores Avoid":                              {"picks seldom what is to be avoided"},
		"sorts the nodes":                            {"picks do not change what they are given"},
		"clears Avoid":                               {"picks do not change what they are given", "picks seldom what is to be avoided"},
		"allocates":                                  {"picks do not allocate"},
		"picks one at a time":                        {"picks may be many at once"},
		"makes one at a time":                        {"pickers may be made at once"},
		"asks the last picker's nodes":               {"pickers live beside each other"},
		"waits for a node that is idle":              {"picks do not wait for nodes to get well"},
		"waits for a node that is whole":             {"picks do not wait for nodes to get well"},
		"waits for every node":                       {"calls get through whatever becomes of a node"},
		"goes by weights":                            {"picks follow the weights"},
		"waits for a node that is not to be avoided": {"picks or leaves it when all are to be avoided", "calls avoid what is to be avoided"},
	}
}

func TestPolicyFindsEachFault(t *testing.T) {
	checks := policyChecks()
	opts := (&PolicyOptions{Patience: 500 * time.Millisecond}).withDefaults()
	for fault, names := range policyFaults() {
		for _, name := range names {
			t.Run(fault+"/"+name, func(t *testing.T) {
				i := slices.IndexFunc(checks, func(c policyCheck) bool { return c.name == name })
				require.NotEqual(t, -1, i, "there is no such check")
				failures := verdictOf(t, func(tb testing.TB) { checks[i].start(tb, &atRandom{fault: fault}, opts) })
				require.NotEmpty(t, failures, "the fault was not found")
				t.Log(strings.Join(failures, "\n"))
			})
		}
	}
}

func TestEveryPolicyCheckFindsAFault(t *testing.T) {
	proved := make(map[string]bool)
	for _, names := range policyFaults() {
		for _, name := range names {
			proved[name] = true
		}
	}
	for _, c := range policyChecks() {
		require.True(t, proved[c.name], "no fault of a policy is known to fail %q", c.name)
	}
}
