package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/bufbuild/httplb/conn"
	"github.com/bufbuild/httplb/picker"
	"github.com/bufbuild/httplb/resolver"
	"github.com/go-kratos/kratos/v2/registry"
	"github.com/go-kratos/kratos/v2/selector"
	"github.com/go-kratos/kratos/v2/selector/p2c"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

const (
	moduleHTTPLB = "github.com/bufbuild/httplb"
	moduleKratos = "github.com/go-kratos/kratos/v2"
)

func nodeCounts() []int { return []int{3, 8, 10, 1000, 10000} }

func pickContests() []contest {
	var all []contest
	for _, n := range nodeCounts() {
		c := contest{
			name: fmt.Sprintf("Pick/n=%d", n), modes: []mode{serial(), parallel()},
			peers: append([]peer{
				{name: "none", setup: always(succeed)},
				ourPick(ours, n, nil, clockHanded),
				ourPick("backstay-apart", n, nil, callsApart),
				ourPick("backstay-ownclock", n, nil, clockOwn),
				ourPick("backstay-inflight", n, balancer.P2C{Cost: balancer.InFlight{}}, clockHanded),
				ourPick("backstay-roundrobin", n, balancer.RoundRobin{}, clockHanded),
				httplbPick("roundrobin", n, picker.NewRoundRobin),
				httplbPick("random", n, picker.NewRandom),
				httplbPick("poweroftwo", n, picker.NewPowerOfTwo),
				httplbPick("leastloaded", n, picker.NewLeastLoadedRoundRobin),
				kratosPick(n),
			}, grpcPicks(n)...),
		}
		if n > mostCompared {
			c.peers = slices.DeleteFunc(c.peers, func(p peer) bool { return !slices.Contains(comparedAlways(), p.name) })
		}
		all = append(all, c)
	}
	return all
}

// mostCompared is how many nodes all pickers are measured over. With ten thousand it
// takes minutes to collect the garbage before every sample, and beside all the others
// the same pick cost half as much again: what is measured then is what they leave of the
// processor's caches. The bridge makes its picker anew for each node that becomes ready,
// which takes minutes, too.
const mostCompared = 1000

// comparedAlways are those that the bars are about.
func comparedAlways() []string {
	return []string{"none", ours, "backstay-ownclock", "httplb-poweroftwo", "go-zero-p2c"}
}

func nodeAddr(i int) string { return fmt.Sprintf("10.1.%d.%d:8080", i/256, i%256) }

// ourPick takes a lease on one of n nodes and gives it back, with every default
// on but the policy.
func ourPick(name string, n int, policy balancer.Policy, calls func(*balancer.Balancer) job) peer {
	return peer{name: name, setup: func(s *stage) (job, error) {
		addrs := make([]string, n)
		for i := range addrs {
			addrs[i] = nodeAddr(i)
		}
		b, err := balancer.New("orders", discovery.Static(discovery.Addrs(addrs...)...), &balancer.Config{Policy: policy})
		if err != nil {
			return nil, err
		}
		s.cleanup(func() { _ = b.Close() })
		return calls(b), b.Ready(context.Background())
	}}
}

// clockOwn has the balancer read the clock, at the begin and at the end of each
// call.
func clockOwn(b *balancer.Balancer) job {
	ctx := context.Background()
	return each(func() error {
		lease, err := b.Acquire(ctx, balancer.Call{})
		lease.Done(time.Time{}, outcome.Outcome{})
		return err
	})
}

// clockHanded hands the balancer the real time, as a caller does who knows it
// already. It is read once in 16 calls, so that what is left of the price of
// the reading is small; the time passes as it does for the peers.
func clockHanded(b *balancer.Balancer) job {
	ctx := context.Background()
	return func(l *loop) error {
		now := time.Now()
		for i := 0; l.next(); i++ {
			if i%16 == 0 {
				now = time.Now()
			}
			lease, err := b.Acquire(ctx, balancer.Call{Now: now})
			if err != nil {
				return err
			}
			lease.Done(now, outcome.Outcome{})
		}
		return nil
	}
}

// callsApart is clockHanded with calls that take a microsecond each, by a clock
// that exists only here. In a loop that does nothing but pick, the time stands
// still compared with real use; here there is decay to be worked out.
func callsApart(b *balancer.Balancer) job {
	ctx := context.Background()
	start := time.Now()
	var passed atomic.Int64 // where the next sample goes on
	return func(l *loop) error {
		now := start.Add(time.Duration(passed.Load()))
		for l.next() {
			lease, err := b.Acquire(ctx, balancer.Call{Now: now})
			if err != nil {
				return err
			}
			now = now.Add(time.Microsecond)
			lease.Done(now, outcome.Outcome{})
		}
		for end := int64(now.Sub(start)); ; {
			if old := passed.Load(); old >= end || passed.CompareAndSwap(old, end) {
				return nil
			}
		}
	}
}

// httplbPick is one of httplb's pickers over connections that do nothing.
func httplbPick(name string, n int, newPicker func(picker.Picker, conn.Conns) picker.Picker) peer {
	return peer{name: "httplb-" + name, module: moduleHTTPLB, setup: func(*stage) (job, error) {
		conns := make(httplbConns, n)
		for i := range conns {
			conns[i] = &httplbConn{address: resolver.Address{HostPort: nodeAddr(i)}}
		}
		p := newPicker(nil, conns)
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://orders/", http.NoBody)
		return func(l *loop) error {
			for l.next() {
				_, done, err := p.Pick(req)
				if err != nil {
					return err
				}
				if done != nil {
					done()
				}
			}
			return nil
		}, err
	}}
}

type httplbConns []conn.Conn

func (c httplbConns) Len() int            { return len(c) }
func (c httplbConns) Get(i int) conn.Conn { return c[i] }

// httplbConn is nothing but an address.
type httplbConn struct {
	conn.Conn // nil: no picker calls anything else

	address resolver.Address
}

func (c *httplbConn) Address() resolver.Address { return c.address }

// kratosPick is kratos's p2c, as its clients use it.
func kratosPick(n int) peer {
	return peer{name: "kratos-p2c", module: moduleKratos, setup: func(*stage) (job, error) {
		nodes := make([]selector.Node, n)
		for i := range nodes {
			nodes[i] = selector.NewNode("http", nodeAddr(i), &registry.ServiceInstance{ID: nodeAddr(i), Name: "orders"})
		}
		s := p2c.New()
		s.Apply(nodes)
		ctx := context.Background()
		return func(l *loop) error {
			for l.next() {
				_, done, err := s.Select(ctx)
				if err != nil {
					return err
				}
				done(ctx, selector.DoneInfo{})
			}
			return nil
		}, nil
	}}
}
