package backstay_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/house"
)

func TestMarkdownShowsOnlyWhatExists(t *testing.T) {
	for _, name := range markdownFiles(t) {
		problems, err := sourceTree(t).Markdown(os.DirFS("."), name)
		require.NoError(t, err)
		none(t, problems)
	}
}

// TestMarkdownProgramsRun builds every whole program that a Markdown file shows
// as a user would, in a module of its own, and runs it: it must end by itself,
// with status 0.
func TestMarkdownProgramsRun(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	dir := t.TempDir()
	var programs []string
	for _, name := range markdownFiles(t) {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, block := range house.Blocks(string(text)) {
			if block.Program() {
				program := fmt.Sprintf("%s_%d", regexp.MustCompile(`\W`).ReplaceAllString(name, "_"), block.Line)
				programs = append(programs, program)
				write(t, filepath.Join(dir, program, "main.go"), block.Text)
			}
		}
	}
	require.NotEmpty(t, programs, "README.md shows no whole program")
	writeModule(t, dir, programs)

	environment := append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod -buildvcs=false")
	run := func(t *testing.T, timeout time.Duration, args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir, cmd.Env = dir, environment
		output, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", output)
	}
	run(t, 5*time.Minute, "go", "build", "-o", "bin/", "./...")
	for _, program := range programs {
		t.Run(program, func(t *testing.T) { run(t, 2*time.Minute, filepath.Join(dir, "bin", program)) })
	}
}

// writeModule makes dir a module that takes all modules of the checkout from
// here, and requires those that the programs import.
func writeModule(t *testing.T, dir string, programs []string) {
	t.Helper()
	here, err := os.Getwd()
	require.NoError(t, err)
	var imports strings.Builder
	for _, program := range programs {
		text, err := os.ReadFile(filepath.Join(dir, program, "main.go"))
		require.NoError(t, err)
		imports.Write(text)
	}
	goMod, goSum := "module readme\n\ngo 1.26.0\n", ""
	for moduleDir, module := range sourceTree(t).Modules {
		goMod += fmt.Sprintf("replace %s => %s\n", module, filepath.Join(here, moduleDir))
		if moduleDir == "." || regexp.MustCompile(`"`+regexp.QuoteMeta(module)+`["/]`).MatchString(imports.String()) {
			goMod += fmt.Sprintf("require %s v0.0.0\n", module)
			sum, err := os.ReadFile(filepath.Join(moduleDir, "go.sum"))
			if !errors.Is(err, fs.ErrNotExist) { // a module that needs no other has none
				require.NoError(t, err)
			}
			goSum += string(sum)
		}
	}
	write(t, filepath.Join(dir, "go.mod"), goMod)
	write(t, filepath.Join(dir, "go.sum"), goSum)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
}
