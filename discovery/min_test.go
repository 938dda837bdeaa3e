package discovery

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMinEndpointsMakesAnErrorOfASmallSet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSource()
		rec := record(t.Context(), t, MinEndpoints(s, 2), "orders")
		s.push(of("a:1", "b:1"), of("a:1"), Set{Authoritative: true}, of("a:1", "a:1"), of("a:1", "http://x"))
		s.fail(errDown)
		s.push(Set{Endpoints: []Endpoint{{Addr: "a:1", Draining: true}, {Addr: "b:1"}}})
		got := rec.take()
		require.Len(t, got, 7)
		require.Equal(t, of("a:1", "b:1"), got[0].set)
		for i, have := range []int{1, 0, 1, 1} {
			err, ok := errors.AsType[*TooFewError](got[1+i].err)
			require.True(t, ok)
			require.Equal(t, TooFewError{Have: have, Want: 2}, *err)
			require.Equal(t, have == 0, errors.Is(err, ErrNoEndpoints))
			require.Zero(t, got[1+i].set)
		}
		require.EqualError(t, got[1].err, "discovery: orders: 1 endpoints, want >= 2")
		require.Equal(t, errDown, got[5].err)
		require.Equal(t, []string{"a:1", "b:1"}, addrsOf(got[6].set), "those that drain are there")
	})
}

func TestMinEndpointsKeepsTheSetBeforeWhenSupervised(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSource()
		rec := record(t.Context(), t, Supervise(MinEndpoints(s, 2), &SuperviseConfig{MergeWindow: -1}), "orders")
		s.push(of("a:1", "b:1"), Set{Authoritative: true})
		got := rec.take()
		require.Len(t, got, 2, "and no empty set, though its source is sure")
		require.ErrorIs(t, got[1].err, ErrNoEndpoints)
		s.push(of("b:1", "c:1"))
		require.Equal(t, []string{"b:1", "c:1"}, addrsOf(rec.take()[0].set))
	})
}
