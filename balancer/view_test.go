package balancer_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

func (r *rig) viewOf(keys ...string) *balancer.View {
	return r.View(func(n *balancer.Node) bool {
		for _, key := range keys {
			if n.Key() == key {
				return true
			}
		}
		return false
	})
}

// usedBy returns the nodes that a view gives calls to.
func usedBy(t *testing.T, v *balancer.View) map[string]bool {
	t.Helper()
	used := make(map[string]bool)
	for range 50 {
		l, err := tryAcquire(v, balancer.Call{})
		require.NoError(t, err)
		used[l.Node().Key()] = true
		l.Done(time.Time{}, success)
	}
	return used
}

func TestViewHasOnlyTheNodesThatAreReady(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{MaxConcurrency: 5}), endpoints(4), func(t *testing.T, r *rig) {
		require.Len(t, usedBy(t, r.View(nil)), 4)
		some := r.viewOf(addr(1), addr(2))
		require.Equal(t, map[string]bool{addr(1): true, addr(2): true}, usedBy(t, some))

		_, err := tryAcquire(r.viewOf(), balancer.Call{})
		require.ErrorIs(t, err, balancer.ErrNoNodes)

		var held []*balancer.Lease
		for range 10 {
			l, err := tryAcquire(some, balancer.Call{})
			require.NoError(t, err)
			held = append(held, &l)
		}
		_, err = tryAcquire(some, balancer.Call{})
		require.ErrorIs(t, err, limit.ErrFull, "others have room, but are not in the view")
		for _, l := range held {
			l.Done(time.Time{}, success)
		}
		idle(t, r.Nodes())
	})
}

func TestViewAvoidsTriedAndOpenNodes(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{}), endpoints(4), func(t *testing.T, r *rig) {
		l, err := tryAcquire(r.viewOf(addr(1), addr(2)), balancer.Call{Avoid: []*balancer.Node{r.node(addr(1))}})
		require.NoError(t, err)
		require.Equal(t, addr(2), l.Node().Key())
		l.Done(time.Time{}, success)

		before := r.viewOf(addr(1), addr(2))
		r.open(addr(1))
		for range 20 {
			l, err := tryAcquire(before, balancer.Call{})
			require.NoError(t, err, "a view that does not know yet passes over the node")
			require.Equal(t, addr(2), l.Node().Key())
			l.Done(time.Time{}, success)
		}
		only := r.viewOf(addr(1))
		_, err = tryAcquire(only, balancer.Call{})
		var open *breaker.OpenError
		require.ErrorAs(t, err, &open)
		require.Equal(t, 5*time.Second, open.RetryAfter)
		time.Sleep(5 * time.Second) // in the bubble: the breaker's open time
		require.Equal(t, map[string]bool{addr(1): true}, usedBy(t, only), "it probes")
		require.Equal(t, breaker.Closed, r.node(addr(1)).Breaker().State())
	})
}

func TestViewBeforeTheFirstSetAndAfterClose(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, r *rig) {
		for _, want := range []error{balancer.ErrNoNodes, balancer.ErrClosed} {
			v := r.View(nil)
			_, err := tryAcquire(v, balancer.Call{})
			var e *balancer.Error
			require.ErrorAs(t, err, &e)
			require.ErrorIs(t, err, want)
			require.NoError(t, r.Close())
		}
	})
}

func TestAViewWhoseWellNodesAreNotReadyUsesTheEjected(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  balancer.Config
		want map[string]bool
	}{
		"by default":                 {balancer.Config{}, map[string]bool{addr(3): true}},
		"not without panic mode":     {balancer.Config{PanicThreshold: -1}, nil},
		"not if calls are refused":   {balancer.Config{FailClosed: true}, nil},
		"not before an open breaker": {balancer.Config{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, anyOf(c.cfg), endpoints(4), func(t *testing.T, r *rig) {
				require.NoError(t, r.Eject(addr(3), time.Minute))
				require.NotContains(t, usedBy(t, r.viewOf(addr(2), addr(3))), addr(3))
				v := r.viewOf(addr(3))
				if name == "not before an open breaker" {
					r.open(addr(2))
					v = r.viewOf(addr(2), addr(3))
				}
				if c.want != nil {
					require.True(t, v.Ready())
					require.Equal(t, c.want, usedBy(t, v))
					return
				}
				_, err := tryAcquire(v, balancer.Call{})
				require.Error(t, err)
			})
		})
	}
}

func TestAViewSaysWhyNothingIsKnown(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, r *rig) {
		told := 0
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r.Subscribe(ctx, func() { told++ })
		gone := errors.New("no such name")
		r.feed.yields <- yield{err: gone}
		synctest.Wait()
		require.Equal(t, 1, told)
		_, err := tryAcquire(r.View(nil), balancer.Call{})
		require.ErrorIs(t, err, gone)
		require.False(t, r.View(nil).Ready())

		r.update(endpoints(1)...)
		synctest.Wait()
		require.Equal(t, 2, told)
		require.True(t, r.View(nil).Ready())

		require.NoError(t, r.Close())
		require.Equal(t, 3, told)
		_, err = tryAcquire(r.View(nil), balancer.Call{})
		require.ErrorIs(t, err, balancer.ErrClosed)
	})
}

func TestAViewsErrorLeavesNoLease(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		var l balancer.Lease
		require.NoError(t, r.View(nil).TryAcquire(new(balancer.Call), &l))
		require.NotNil(t, l.Node())
		l.Done(time.Time{}, outcome.Outcome{})
		require.ErrorIs(t, r.viewOf().TryAcquire(new(balancer.Call), &l), balancer.ErrNoNodes)
		require.Nil(t, l.Node())
	})
}

func TestPickersAreToldTheTime(t *testing.T) {
	var told []time.Time
	policy := balancer.PolicyFunc(func(nodes []*balancer.Node) balancer.Picker {
		return pickerFunc(func(c balancer.Call) *balancer.Node {
			told = append(told, c.Now)
			return nodes[0]
		})
	})
	inBubble(t, &balancer.Config{Policy: policy}, endpoints(1), func(t *testing.T, r *rig) {
		time.Sleep(time.Minute)
		l, err := r.Acquire(t.Context(), balancer.Call{})
		require.NoError(t, err)
		l.Done(time.Time{}, outcome.Outcome{})
		l, err = tryAcquire(r.View(nil), balancer.Call{})
		require.NoError(t, err)
		l.Done(time.Time{}, outcome.Outcome{})
		var c balancer.Call
		var a balancer.Attempt
		require.NoError(t, r.Begin(t.Context(), nil, &c, &a))
		a.Done(time.Time{}, outcome.Outcome{})
		for _, at := range append(told, c.Now) {
			require.True(t, at.Equal(time.Now()), "%v", at)
		}
		require.Len(t, told, 3)
	})
}

// pickerFunc is a function that is a picker.
type pickerFunc func(balancer.Call) *balancer.Node

func (f pickerFunc) Pick(c balancer.Call) *balancer.Node { return f(c) }

// What is not known yet when a call is made must not be kept in it for the next one,
// whatever the policy.
func TestACallThatIsUsedAgainIsOfItsOwnTime(t *testing.T) {
	for name, policy := range map[string]balancer.Policy{
		"peak EWMA": nil, "in flight": balancer.P2C{Cost: balancer.InFlight{}}, "round robin": balancer.RoundRobin{},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, exact(balancer.Config{Policy: policy}), endpoints(1), func(t *testing.T, r *rig) {
				var c balancer.Call
				var l balancer.Lease
				for range 2 {
					time.Sleep(time.Minute)
					require.NoError(t, r.View(nil).TryAcquire(&c, &l))
					time.Sleep(time.Millisecond)
					l.Done(time.Time{}, success)
				}
				latency, _ := r.node(addr(0)).Latency(time.Time{})
				require.Less(t, latency, time.Second)
			})
		})
	}
}
