package balancer

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// It took the lock for each of them, and counted less than none.
func TestCallsThatAreGivenUpAreNoneOfANodeThatRegainsNothing(t *testing.T) {
	b, err := New("orders", discovery.Static(discovery.Endpoint{Addr: "10.0.0.1:80"}), nil)
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, b.Ready(t.Context()))
	l, err := b.Acquire(t.Context(), Call{})
	require.NoError(t, err)
	n := l.Node()
	l.Done(time.Time{}, outcome.Outcome{Class: outcome.Neutral, Err: context.Canceled})
	require.Zero(t, n.regain.awaiting)
}
