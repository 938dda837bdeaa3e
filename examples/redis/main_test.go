package main

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNoReadIsLostWhileAServerIsKilledAndComesBack(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("redis-server is not installed")
	}
	var out strings.Builder
	require.NoError(t, run(t.Context(), &out), out.String())
	t.Logf("\n%s", &out)
	lines := strings.Split(out.String(), "\n")
	reads := regexp.MustCompile(`(\d+) reads from A, +(\d+) from B, 0 lost$`)
	for i, phase := range []struct {
		title string
		fromA bool
	}{{"both are well", true}, {"A is killed", true}, {"A is still gone", false}, {"A is back", true}} {
		require.Contains(t, lines[i], phase.title)
		m := reads.FindStringSubmatch(lines[i])
		require.NotNil(t, m, lines[i])
		require.Equal(t, phase.fromA, m[1] != "0", lines[i])
		require.NotEqual(t, "0", m[2], lines[i])
	}
}
