package balancer_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
)

func TestAViewHeedsTheNodeAndTheSubsetOfACall(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{Subsets: canarySubsets()}), versions(4, 1), func(t *testing.T, r *rig) {
		v := r.View(func(n *balancer.Node) bool { return n.Key() != addr(3) })
		for range 20 {
			l, err := tryAcquire(v, balancer.Call{Node: addr(2)})
			require.NoError(t, err)
			require.Equal(t, addr(2), l.Node().Key())
			l.Done(time.Time{}, success)
			l, err = tryAcquire(v, balancer.Call{Subset: "canary"})
			require.NoError(t, err)
			require.Equal(t, addr(0), l.Node().Key())
			l.Done(time.Time{}, success)
		}
		_, err := tryAcquire(v, balancer.Call{Node: addr(3)})
		require.ErrorIs(t, err, balancer.ErrNoNodes, "it is not in the view")
	})
}

func TestAViewOnDemandHasTheResolverAsked(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{OnDemand: true}), nil, func(t *testing.T, r *rig) {
		_, err := tryAcquire(r.View(nil), balancer.Call{})
		require.ErrorIs(t, err, balancer.ErrNoNodes)
		r.update(endpoints(1)...)
		synctest.Wait()
		l, err := tryAcquire(r.View(nil), balancer.Call{})
		require.NoError(t, err)
		l.Done(time.Time{}, success)
	})
}

func TestEjectionMayBeForEver(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{}), endpoints(3), func(t *testing.T, r *rig) {
		require.NoError(t, r.Eject(addr(0), math.MaxInt64))
		time.Sleep(1000 * time.Hour)
		synctest.Wait()
		require.Equal(t, []string{addr(1), addr(2)}, r.used())
	})
}
