package balancer_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// A pick with a key, while nothing is in flight, and while every node has so much
// that it has to be counted.
func BenchmarkHashingPick(b *testing.B) {
	for _, name := range []string{"rendezvous", "rendezvous weighted", "maglev"} {
		for _, n := range []int{3, 10, 200, 1000} {
			for _, load := range []int{0, 3} {
				b.Run(fmt.Sprintf("%s/n=%d/load=%d", name, n, load), func(b *testing.B) {
					list := endpoints(n)
					if name == "rendezvous weighted" {
						list[0].Weight = 2
					}
					bal := newOver(b, list, nil)
					p := hashing(0)[strings.Fields(name)[0]].NewPicker(bal.Nodes())
					for range load {
						for _, node := range bal.Nodes() {
							hold(b, bal, node)
						}
					}
					keys := keys(1024)
					now := time.Now()
					b.ReportAllocs()
					for i := 0; b.Loop(); i++ {
						p.Pick(balancer.Call{Now: now, Key: keys[i%len(keys)]})
					}
				})
			}
		}
	}
}

func BenchmarkHashingPickTogether(b *testing.B) {
	for name, policy := range hashing(0) {
		p := policy.NewPicker(newStatic(b, 100, nil).Nodes())
		for _, parallelism := range []int{1, 50} {
			b.Run(name+"/"+strconv.Itoa(parallelism), func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(parallelism)
				keys := keys(1024)
				b.RunParallel(func(pb *testing.PB) {
					now := time.Now()
					for i := 0; pb.Next(); i++ {
						p.Pick(balancer.Call{Now: now, Key: keys[i%len(keys)]})
					}
				})
			})
		}
	}
}

// What a change of the nodes costs. For Maglev it is the table, unless the same
// nodes have had one.
func BenchmarkHashingNewPicker(b *testing.B) {
	for _, n := range []int{10, 1000} {
		list := endpoints(n)
		even := newOver(b, list, nil).Nodes()
		for i := range list {
			list[i].Weight = float64(1 + i%10)
		}
		list[0].Weight = 1e6
		weighted := newOver(b, list, nil).Nodes()
		for kind, nodes := range map[string][]*balancer.Node{"even": even, "weighted": weighted} {
			b.Run(fmt.Sprintf("rendezvous/%s/n=%d", kind, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					balancer.Rendezvous{}.NewPicker(nodes)
				}
			})
			for _, known := range []bool{true, false} {
				b.Run(fmt.Sprintf("maglev/%s/n=%d/known=%t", kind, n, known), func(b *testing.B) {
					b.ReportAllocs()
					for seed := uint64(0); b.Loop(); {
						balancer.Maglev{Seed: seed}.NewPicker(nodes)
						if !known {
							seed++
						}
					}
				})
			}
		}
	}
}

// newOver returns a balancer over those endpoints, ready.
func newOver(t testing.TB, list []discovery.Endpoint, cfg *balancer.Config) *balancer.Balancer {
	t.Helper()
	b, err := balancer.New("orders", discovery.Static(list...), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	require.NoError(t, b.Ready(t.Context()))
	return b
}

// hashing are the policies that hash, by a seed.
func hashing(seed uint64) map[string]balancer.Policy {
	return map[string]balancer.Policy{
		"rendezvous": balancer.Rendezvous{Seed: seed},
		"maglev":     balancer.Maglev{Seed: seed},
	}
}

// hold takes a lease on that very node.
func hold(t testing.TB, b *balancer.Balancer, n *balancer.Node) *balancer.Lease {
	t.Helper()
	l, err := b.Acquire(t.Context(), balancer.Call{Node: n.Key()})
	require.NoError(t, err)
	return &l
}

func keys(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = "user-" + strconv.Itoa(i)
	}
	return list
}
