package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNoCallIsLostWhileAServerIsKilled(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(t.Context(), &out), out.String())
	t.Logf("\n%s", &out)
	require.Equal(t, 2, strings.Count(out.String(), "cut short; 0 lost"))
	require.Contains(t, out.String(), "streams, 0 cut short; 0 lost", "while all are well")
	require.Contains(t, out.String(), "a canary")
}
