package balancer_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

var (
	errDown   = errors.New("down")
	success   = outcome.Outcome{}
	failure   = outcome.Outcome{Class: outcome.Failure, Retry: outcome.IfIdempotent, Err: errDown}
	cancelled = outcome.Outcome{Class: outcome.Neutral, Err: context.Canceled}
	deadline  = outcome.Outcome{Class: outcome.Neutral, Err: context.DeadlineExceeded}
)

func throttled(after time.Duration) outcome.Outcome {
	return outcome.Outcome{Class: outcome.Throttled, After: after, Err: outcome.StatusError(429)}
}

// feed is a resolver that yields what the test says.
type feed struct {
	yields  chan yield
	watches atomic.Int32 // begun
	under   atomic.Int32 // way
}

type yield struct {
	set discovery.Set
	err error
}

func newFeed(endpoints ...discovery.Endpoint) *feed {
	f := &feed{yields: make(chan yield, 16)}
	if len(endpoints) > 0 {
		f.yield(endpoints...)
	}
	return f
}

func (f *feed) yield(endpoints ...discovery.Endpoint) {
	f.yields <- yield{set: discovery.Set{Endpoints: endpoints, Authoritative: true}}
}

func (f *feed) Watch(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		f.watches.Add(1)
		f.under.Add(1)
		defer f.under.Add(-1)
		for {
			select {
			case y := <-f.yields:
				if !yield(y.set, y.err) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// addr is the address of the i-th endpoint, and its key.
func addr(i int) string { return fmt.Sprintf("10.%d.%d.%d:80", i>>16, i>>8&255, i&255) }

func endpoints(n int) []discovery.Endpoint {
	list := make([]discovery.Endpoint, n)
	for i := range list {
		list[i].Addr = addr(i)
	}
	return list
}

// exact is a configuration with nothing at random in the breakers.
func exact(cfg balancer.Config) *balancer.Config {
	cfg.Breaker.Jitter = -1
	return &cfg
}

// newStatic returns a balancer over n nodes, ready.
func newStatic(t testing.TB, n int, cfg *balancer.Config) *balancer.Balancer {
	t.Helper()
	b, err := balancer.New("orders", discovery.Static(endpoints(n)...), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	require.NoError(t, b.Ready(t.Context()))
	return b
}

// rig is a balancer inside a bubble, with everything that the test moves.
type rig struct {
	*balancer.Balancer
	t    testing.TB
	feed *feed
	rec  *backstaytest.Recorder
}

// inBubble runs the test over a balancer of the given endpoints, in a bubble.
func inBubble(t *testing.T, cfg *balancer.Config, list []discovery.Endpoint, test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t, newRig(t, cfg, list))
	})
}

func newRig(t testing.TB, cfg *balancer.Config, list []discovery.Endpoint) *rig {
	t.Helper()
	if cfg == nil {
		cfg = exact(balancer.Config{})
	}
	r := &rig{t: t, feed: newFeed(list...), rec: new(backstaytest.Recorder)}
	c := *cfg
	if c.Observer == nil {
		c.Observer = r.rec
	}
	if c.Outliers == (balancer.OutlierConfig{}) {
		c.Outliers.Consecutive = -1 // who tests something else has other failures in mind
	}
	var err error
	r.Balancer, err = balancer.New("orders", r.feed, &c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	if len(list) > 0 {
		require.NoError(t, r.Ready(t.Context()))
		synctest.Wait()
	}
	return r
}

// mergeWindow is discovery's: sets come no faster.
const mergeWindow = 100 * time.Millisecond

// update has the resolver yield a new set, and waits until it is in use.
func (r *rig) update(list ...discovery.Endpoint) {
	r.t.Helper()
	r.feed.yield(list...)
	time.Sleep(mergeWindow)
	synctest.Wait()
}

func (r *rig) node(key string) *balancer.Node {
	r.t.Helper()
	nodes := r.Nodes()
	i := slices.IndexFunc(nodes, func(n *balancer.Node) bool { return n.Key() == key })
	require.GreaterOrEqual(r.t, i, 0, "no node %s", key)
	return nodes[i]
}

// acquire takes a lease that must be given.
func (r *rig) acquire(call balancer.Call) *balancer.Lease {
	r.t.Helper()
	l, err := r.Acquire(r.t.Context(), call)
	require.NoError(r.t, err)
	return &l
}

// others are all nodes but those with the given keys.
func (r *rig) others(keys ...string) []*balancer.Node {
	return slices.DeleteFunc(r.Nodes(), func(n *balancer.Node) bool { return slices.Contains(keys, n.Key()) })
}

// on takes a lease on that very node.
func (r *rig) on(key string) *balancer.Lease {
	r.t.Helper()
	return r.onCall(key, balancer.Call{})
}

func (r *rig) onCall(key string, call balancer.Call) *balancer.Lease {
	r.t.Helper()
	call.Avoid = r.others(key)
	l := r.acquire(call)
	require.Equal(r.t, key, l.Node().Key())
	return l
}

// call makes one call to the node that takes d.
func (r *rig) call(key string, d time.Duration, o outcome.Outcome) {
	r.t.Helper()
	l := r.on(key)
	time.Sleep(d)
	l.Done(time.Time{}, o)
}

// open opens the nodes' breakers.
func (r *rig) open(keys ...string) {
	r.t.Helper()
	for _, key := range keys {
		n := r.node(key)
		for i := 0; n.Breaker().State() != breaker.Open; i++ {
			require.Less(r.t, i, 10_000)
			r.on(key).Done(time.Time{}, failure)
		}
	}
}

// counts makes n calls that all end well at once, and returns how many each
// node got.
func (r *rig) counts(n int) map[string]int {
	r.t.Helper()
	got := make(map[string]int)
	for range n {
		l := r.acquire(balancer.Call{})
		got[l.Node().Key()]++
		l.Done(time.Time{}, success)
	}
	return got
}

// idle requires that every lease has been given back.
func idle(t testing.TB, nodes []*balancer.Node) {
	t.Helper()
	for _, n := range nodes {
		require.Zero(t, n.InFlight(), "in flight on %s", n)
		require.Zero(t, n.Awaiting(), "awaiting on %s", n)
	}
}

// tryAcquire is TryAcquire by value, for tests.
func tryAcquire(v *balancer.View, c balancer.Call) (l balancer.Lease, err error) {
	err = v.TryAcquire(&c, &l)
	return l, err
}
