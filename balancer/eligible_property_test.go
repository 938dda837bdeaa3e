package balancer_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
)

// modelNode is all that decides about a node's eligibility, written down plainly.
type modelNode struct {
	endpoint discovery.Endpoint
	forced   bool
	ejected  time.Time
}

// eligible says who should get calls.
func eligible(nodes map[string]*modelNode, threshold float64) []string {
	type level struct {
		well, ejected []*modelNode
		draining      int
		total         float64
	}
	levels := make(map[int]*level)
	var draining []*modelNode
	someWell := false
	for _, n := range nodes {
		l := levels[n.endpoint.Priority]
		if l == nil {
			l = new(level)
			levels[n.endpoint.Priority] = l
		}
		l.total++
		switch {
		case n.forced:
		case n.ejected.After(time.Now()):
			l.ejected = append(l.ejected, n)
		case n.endpoint.Draining:
			l.draining++
			draining = append(draining, n)
		default:
			l.well = append(l.well, n)
			someWell = true
		}
	}
	var well []*modelNode
	for _, l := range levels {
		// Without a limit to overprovisioning one node of any priority can bear it all.
		canBear := someWell && len(levels) > 1
		if !canBear && float64(len(l.well)+l.draining) < threshold*l.total {
			well = append(well, l.ejected...)
		}
		well = append(well, l.well...)
	}
	if len(well) == 0 {
		well = draining
	}
	var keys []string
	for _, n := range well {
		if !slices.ContainsFunc(well, func(o *modelNode) bool { return o.endpoint.Priority < n.endpoint.Priority }) {
			keys = append(keys, n.endpoint.Key())
		}
	}
	slices.Sort(keys)
	return keys
}

// Whatever happens to the nodes, in whatever order, exactly those get calls that
// should.
func TestWhoIsEligibleFollowsTheRules(t *testing.T) {
	const most = 8
	for _, threshold := range []float64{0.5, -1, 1} {
		for seed := range uint64(30) {
			t.Run(fmt.Sprintf("threshold %v/seed %d", threshold, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					random := rand.New(rand.NewPCG(seed, 3))
					r := newRig(t, anyOf(balancer.Config{PanicThreshold: threshold, Overprovisioning: -1}), endpoints(most/2))
					model := make(map[string]*modelNode)
					for _, e := range endpoints(most / 2) {
						model[e.Key()] = &modelNode{endpoint: e}
					}
					for range 100 {
						changeEligibility(r, random, model)
						synctest.Wait()
						want := eligible(model, max(threshold, 0))
						got := make(map[string]bool)
						var err error
						for range 2 * most {
							var l balancer.Lease
							if l, err = r.Acquire(t.Context(), balancer.Call{}); err != nil {
								break
							}
							got[l.Node().Key()] = true
							l.Done(time.Time{}, success)
						}
						require.Equal(t, want, slices.Sorted(maps.Keys(got)))
						someForced := slices.ContainsFunc(slices.Collect(maps.Values(model)), func(n *modelNode) bool { return n.forced })
						switch {
						case len(want) > 0:
							require.NoError(t, err)
						case someForced:
							require.ErrorIs(t, err, breaker.ErrOpen)
						default:
							require.ErrorIs(t, err, balancer.ErrNoNodes)
						}
					}
				})
			})
		}
	}
}

// changeEligibility does one thing or another to the nodes and the model.
func changeEligibility(r *rig, random *rand.Rand, model map[string]*modelNode) {
	keys := slices.Sorted(maps.Keys(model))
	one := func() *modelNode { return model[keys[random.IntN(len(keys))]] }
	switch what := random.IntN(8); {
	case what == 0:
		time.Sleep(time.Duration(random.IntN(40)) * time.Second)
	case what < 3: // another set
		next := make(map[string]*modelNode)
		var list []discovery.Endpoint
		for _, i := range random.Perm(8)[:random.IntN(9)] {
			e := discovery.Endpoint{Addr: addr(i), Draining: random.IntN(4) == 0, Priority: random.IntN(2)}
			n := model[e.Key()]
			if n == nil {
				n = new(modelNode)
			}
			n.endpoint = e
			next[e.Key()] = n
			list = append(list, e)
		}
		clear(model)
		maps.Copy(model, next)
		r.update(list...)
	case len(keys) == 0:
	case what < 5:
		n, d := one(), time.Duration(1+random.IntN(60))*time.Second
		n.ejected = time.Now().Add(d)
		require.NoError(r.t, r.Eject(n.endpoint.Key(), d))
	case what == 5:
		n := one()
		n.ejected = time.Time{}
		require.NoError(r.t, r.Restore(n.endpoint.Key()))
	case what == 6:
		n := one()
		n.forced = true
		r.node(n.endpoint.Key()).Breaker().ForceOpen()
	default:
		n := one()
		n.forced = false
		r.node(n.endpoint.Key()).Breaker().Release()
	}
}
