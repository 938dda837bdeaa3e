package backstay_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/internal/house"
)

// TestTuningTablesSayTheDefaultsOfTheCode compares docs/tuning.md, which has a
// section named after each config struct and in it a row for each field, with
// what the fields' comments say after "Default:".
func TestTuningTablesSayTheDefaultsOfTheCode(t *testing.T) {
	text, err := os.ReadFile("docs/tuning.md")
	require.NoError(t, err)
	heading := regexp.MustCompile("^#+ `(\\w+\\.\\w+)`$")
	row := regexp.MustCompile("^\\| `(\\w+)` \\| ([^|]+) \\| [^|]+ \\|$")
	said := make(map[string]string)
	section := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if m := heading.FindStringSubmatch(line); m != nil {
			section = m[1]
		} else if m := row.FindStringSubmatch(line); m != nil {
			said[section+"."+m[1]] = m[2]
		}
	}
	for field, value := range codeDefaults(t) {
		if said[field] != value {
			t.Errorf("docs/tuning.md says of %s %q, want %q", field, said[field], value)
		}
		delete(said, field)
	}
	require.Empty(t, said, "there are no such fields")
}

// codeDefaults returns the defaults of all fields that users set, by
// "package.Struct.Field".
func codeDefaults(t *testing.T) map[string]string {
	t.Helper()
	defaults := make(map[string]string)
	for _, f := range sourceTree(t).Files {
		if f.Test || f.Module != "." && f.Module != "backstaygrpc" || strings.Contains(f.Path, "internal/") || path.Dir(f.Path) == "backstaytest" {
			continue
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			body, ok := spec.Type.(*ast.StructType)
			name := spec.Name.Name
			if ok && (strings.HasSuffix(name, "Config") && ast.IsExported(name) || name == "Service" || name == "Backoff") {
				comment := ""
				for _, field := range body.Fields.List {
					if field.Doc != nil {
						comment = strings.Join(strings.Fields(field.Doc.Text()), " ")
					}
					for _, id := range field.Names {
						_, value, _ := strings.Cut(comment, "Default: ")
						defaults[f.Syntax.Name.Name+"."+name+"."+id.Name] = strings.TrimSuffix(value, ".")
					}
				}
			}
			return false
		})
	}
	return defaults
}

// TestDocsNameEveryEvent looks for each event in the table of docs/choosing.md.
func TestDocsNameEveryEvent(t *testing.T) {
	text, err := os.ReadFile("docs/choosing.md")
	require.NoError(t, err)
	events := 0
	for _, f := range sourceTree(t).Files {
		if f.Test || strings.Contains(f.Path, "examples/") || strings.Contains(f.Path, "internal/") {
			continue
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			fn, ok := n.(*ast.FuncDecl)
			if ok && fn.Name.Name == "EventName" && fn.Body != nil {
				name, ok := fn.Body.List[0].(*ast.ReturnStmt).Results[0].(*ast.BasicLit)
				require.True(t, ok, f.Path)
				require.Contains(t, string(text), "`"+strings.Trim(name.Value, `"`)+"`", f.Path)
				events++
			}
			return true
		})
	}
	require.NotZero(t, events)
}

func TestMarkdownConfigsAreValid(t *testing.T) {
	shown := 0
	for _, name := range markdownFiles(t) {
		for _, block := range markdownBlocks(t, name, "json") {
			var cfg backstay.Config
			require.NoError(t, json.Unmarshal([]byte(block.Text), &cfg), "%s:%d", name, block.Line)
			client, err := backstay.New(&cfg)
			require.NoError(t, err, "%s:%d", name, block.Line)
			require.NoError(t, client.Close())
			shown++
		}
	}
	require.NotZero(t, shown)
}

// TestMarkdownSnippetsCompile checks the types of the Go code that is no whole
// program. What it does not declare is taken for the reader's own; what begins
// with "// before" is another library's.
func TestMarkdownSnippetsCompile(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the go command")
	}
	fset := token.NewFileSet()
	packages := importer.ForCompiler(fset, "gc", exportData(t))
	checked := 0
	for _, name := range markdownFiles(t) {
		for _, block := range markdownBlocks(t, name, "go") {
			if block.Program() || strings.HasPrefix(block.Text, "// before") {
				continue
			}
			checked++
			for _, err := range check(fset, packages, block.Text) {
				t.Errorf("%s:%d: %v", name, block.Line, err)
			}
		}
	}
	require.NotZero(t, checked)
}

// TestFailuresShowWhatTheExamplePrints compares each line of output in
// docs/failures.md with those that the program prints now, but for what differs
// from run to run: addresses, times, counts, and which of the two nodes it is.
func TestFailuresShowWhatTheExamplePrints(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a program")
	}
	printed := make(map[string]bool)
	missing := func() (lines []string) {
		for _, block := range markdownBlocks(t, "docs/failures.md", "text") {
			for line := range strings.Lines(block.Text) {
				if !printed[shape(line)] {
					lines = append(lines, line)
				}
			}
		}
		return lines
	}
	for range 8 { // what a reset looks like is a matter of timing, and which node is the favourite
		output, err := exec.CommandContext(t.Context(), "go", "run", "./examples/failures").Output()
		require.NoError(t, err)
		for line := range strings.Lines(string(output)) {
			printed[shape(line)] = true
		}
		if len(missing()) == 0 {
			return
		}
	}
	t.Errorf("examples/failures prints nothing like\n%s", strings.Join(missing(), ""))
}

// shape is a line of output without what differs from run to run.
func shape(line string) string {
	if strings.HasPrefix(line, "then ") {
		return "then" // nothing but counts
	}
	line = regexp.MustCompile(`\d+\.\d+\.\d+\.\d+:\d+`).ReplaceAllString(line, "addr")
	line = regexp.MustCompile(`\b\d+(\.\d+)?(ns|µs|ms|s)\b`).ReplaceAllString(line, "time")
	line = regexp.MustCompile(`\b(calls|failures)=\d+`).ReplaceAllString(line, "${1}=count")
	return regexp.MustCompile(`(\bnode[ =]|\borders/|; )[ab]\b`).ReplaceAllString(line, "${1}node")
}

func markdownBlocks(t *testing.T, name, language string) []house.Block {
	t.Helper()
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	var blocks []house.Block
	for _, block := range house.Blocks(string(text)) {
		if block.Language == language {
			blocks = append(blocks, block)
		}
	}
	return blocks
}

// exportData finds what the compiler exports of a package.
func exportData(t *testing.T) func(path string) (io.ReadCloser, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-export", "-deps",
		"-f", "{{.ImportPath}}={{.Export}}", ".", "./backstaytest", "./backstaygrpc")
	var output, complaints strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &complaints
	require.NoError(t, cmd.Run(), "%s", &complaints)
	files := make(map[string]string)
	for line := range strings.Lines(output.String()) {
		name, file, _ := strings.Cut(strings.TrimSpace(line), "=")
		files[name] = file
	}
	return func(path string) (io.ReadCloser, error) {
		if files[path] == "" {
			return nil, fmt.Errorf("no package %s", path)
		}
		return os.Open(files[path])
	}
}

// check returns what is wrong with a snippet: declarations, or statements.
func check(fset *token.FileSet, packages types.Importer, snippet string) []error {
	head := "package snippet\n"
	ours := []string{"balancer", "breaker", "cache", "call", "discovery", "event", "limit", "outcome", "retry", "backstaytest", "backstaygrpc"}
	theirs := []string{
		"context", "encoding/json", "errors", "fmt", "io", "iter", "log/slog", "net", "net/http", "net/url", "os",
		"strings", "testing", "testing/synctest", "time", "google.golang.org/grpc",
	}
	for _, p := range ours {
		theirs = append(theirs, "github.com/backstay/backstay/"+p)
	}
	for _, p := range append(theirs, "github.com/backstay/backstay") {
		if regexp.MustCompile(`\b` + path.Base(p) + `\.`).MatchString(snippet) {
			head += fmt.Sprintf("import %q\n", p)
		}
	}
	file, err := parser.ParseFile(fset, "", head+snippet, parser.SkipObjectResolution)
	if err != nil {
		file, err = parser.ParseFile(fset, "", head+"func _() {\n"+snippet+"}", parser.SkipObjectResolution)
	}
	if err != nil {
		return []error{err}
	}
	var errs []error
	own := regexp.MustCompile(`^undefined: \w+$`)
	config := types.Config{Importer: packages, Error: func(err error) {
		var problem types.Error
		if errors.As(err, &problem) && !problem.Soft && !own.MatchString(problem.Msg) {
			errs = append(errs, errors.New(problem.Msg))
		}
	}}
	_, _ = config.Check("snippet", fset, []*ast.File{file}, nil) // Error has them all
	return errs
}
