// Package examples_test runs the examples as a reader would.
package examples_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestExamplesRun builds every example and runs it: it must end by itself, with
// status 0, and say something.
func TestExamplesRun(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	dirs, err := filepath.Glob("*/main.go")
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	bin := t.TempDir() + string(os.PathSeparator)
	output, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./...").CombinedOutput()
	require.NoError(t, err, "%s", output)
	for _, main := range dirs {
		name := filepath.Base(filepath.Dir(main))
		if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
			continue // a module of its own, with a test of its own
		}
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // overload takes half a minute
			defer cancel()
			output, err := exec.CommandContext(ctx, filepath.Join(bin, name)).CombinedOutput()
			require.NoError(t, err, "%s", output)
			require.NotEmpty(t, output)
		})
	}
}
