package balancer

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestExp2IsCloseAndFallsSteadily(t *testing.T) {
	before := math.Inf(1)
	for x := 0.0; x < 60; x += 0.001 {
		got := exp2(x)
		require.InEpsilon(t, math.Exp2(-x), got, 2e-4, "%v", x)
		require.Less(t, got, before, "%v", x)
		before = got
	}
	require.Equal(t, 1.0, exp2(0))
	require.Equal(t, 0.5, exp2(1))
	require.Positive(t, exp2(999))
	require.Zero(t, exp2(1001))
	require.Zero(t, exp2(math.Inf(1)))
}
