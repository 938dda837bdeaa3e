package discovery

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStaticYieldsACopyOnceAndWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		endpoints := Addrs("a:1", "b:1")
		r := Static(endpoints...)
		endpoints[0].Addr = "c:1"
		rec := record(t.Context(), t, r, "orders")
		time.Sleep(time.Hour)
		got := rec.take()
		require.Len(t, got, 1)
		require.Equal(t, []string{"a:1", "b:1"}, addrsOf(got[0].set))
		select {
		case <-rec.ended:
			t.Error("the watch ended before its context")
		default:
		}
	})
}

func TestStaticWithoutEndpointsIsDecidedlyEmpty(t *testing.T) {
	set, err := askOnce(t, Supervise(Static(), nil), "orders")
	require.NoError(t, err)
	require.Equal(t, Set{Authoritative: true}, set)
}
