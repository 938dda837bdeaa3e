package backstay_test

import (
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/house"
)

// importEdges says who may import whom. Production code only; internal/ is
// looked through.
var importEdges = house.Edges{
	"outcome":              nil,
	"event":                nil,
	"discovery":            nil,
	"discovery/kubernetes": {"discovery", "event"},
	"call":                 {"discovery", "outcome"},
	"breaker":              {"outcome", "event", "call"},
	"limit":                {"outcome", "event", "call"},
	"retry":                {"outcome", "event", "call"},
	"propagate":            {"outcome", "event", "call"},
	"cache":                {"outcome", "event", "call"},
	"cache/httpcache":      {"outcome", "event", "call", "cache"},
	"balancer":             {"discovery", "call", "outcome", "event", "breaker", "limit", "balancer/loadreport"},
	"balancer/loadreport":  {"discovery", "call", "outcome", "event", "breaker", "limit", "balancer"},
	"backstaytest":         libraries,
	".":                    libraries,
	"debug":                slices.Concat(libraries, []string{"."}),
	"examples/...":         slices.Concat(libraries, []string{".", "debug", "backstaytest"}),
}

// libraries is what the root composes.
var libraries = []string{
	"outcome", "event", "discovery/...", "call", "breaker", "limit", "retry", "propagate", "cache/...", "balancer/...",
}

// policies are the packages whose core knows nothing of net/http.
var policies = []string{"breaker", "limit", "retry", "propagate", "cache", "balancer", "balancer/loadreport"}

// requirements are the modules that the root module may require.
var requirements = []string{
	"github.com/cenkalti/backoff/v4",
	"github.com/hashicorp/golang-lru/v2",
	"github.com/stretchr/testify",
	"go.yaml.in/yaml/v3", // testify's
	"golang.org/x/net",
	"golang.org/x/sync",
	"golang.org/x/text", // x/net's
	"golang.org/x/time",
}

const mostLines = 600

// tree is the checkout, read once for all tests.
var tree = sync.OnceValues(func() (*house.Tree, error) { return house.Load(os.DirFS(".")) })

func sourceTree(t *testing.T) *house.Tree {
	t.Helper()
	loaded, err := tree()
	require.NoError(t, err)
	return loaded
}

func none(t *testing.T, problems []string) {
	t.Helper()
	if len(problems) > 0 {
		t.Errorf("%d problems:\n%s", len(problems), strings.Join(problems, "\n"))
	}
}

func TestPackagesImportOnlyWhatTheDesignAllows(t *testing.T) {
	none(t, sourceTree(t).Imports(importEdges))
}

func TestNestedModulesStayOutOfInternal(t *testing.T) {
	none(t, sourceTree(t).InternalOfOthers())
}

func TestOnlyHTTPFilesOfPolicyPackagesImportNetHTTP(t *testing.T) {
	none(t, sourceTree(t).Importing("net/http", func(f *house.File) bool {
		name := path.Base(f.Path)
		return f.Module == "." && slices.Contains(policies, path.Dir(f.Path)) &&
			name != "http.go" && !strings.HasPrefix(name, "http_")
	}))
}

func TestProductionCodeDoesNotImportTestingPackages(t *testing.T) {
	for _, target := range []string{"testing", "github.com/stretchr/testify"} {
		none(t, sourceTree(t).Importing(target, func(f *house.File) bool {
			return path.Dir(f.Path) != "backstaytest" && f.Module != "bench"
		}))
	}
}

func TestRootModuleRequiresOnlyWhatIsAllowed(t *testing.T) {
	goMod, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	required := house.Requirements(string(goMod))
	require.NotEmpty(t, required)
	require.Subset(t, requirements, required, "a new dependency needs a reason and a place in this list")
}

func TestPackagesAreNamedForWhatTheyAre(t *testing.T) {
	none(t, sourceTree(t).PackageNames("util", "utils", "common", "helper", "helpers", "misc", "types"))
}

func TestEveryPackageHasAComment(t *testing.T) {
	none(t, sourceTree(t).PackageComments())
}

func TestEveryExportedNameHasADocComment(t *testing.T) {
	none(t, sourceTree(t).DocComments())
}

func TestConfigFieldsSayTheirDefaultAndJSONName(t *testing.T) {
	none(t, sourceTree(t).ConfigFields(func(f *house.File) bool {
		return path.Dir(f.Path) != "backstaytest" // what tests are made of is not read from files
	}))
}

func TestProductionFilesAreShort(t *testing.T) {
	none(t, sourceTree(t).LongFiles(mostLines))
}

func TestNoInitFunctions(t *testing.T) {
	// gRPC reads its registry of balancers without a lock.
	none(t, sourceTree(t).InitFunctions("backstaygrpc/bridge.go"))
}

func TestNoTimersThatNobodyStops(t *testing.T) {
	production := func(f *house.File) bool { return !f.Test }
	none(t, sourceTree(t).Uses("time", "After", production))
	none(t, sourceTree(t).Uses("time", "Tick", production))
}

func TestSleepsHonourTheContext(t *testing.T) {
	none(t, sourceTree(t).Uses("time", "Sleep", func(f *house.File) bool {
		return !f.Test && path.Dir(f.Path) != "backstaytest"
	}))
}

// TestTestsSleepOnlyInBubbles lets the files alone that use synctest or say
// that what they hold runs in one of its bubbles.
func TestTestsSleepOnlyInBubbles(t *testing.T) {
	none(t, sourceTree(t).Uses("time", "Sleep", func(f *house.File) bool {
		return f.Test && !strings.Contains(f.Text, "synctest") && !strings.Contains(f.Text, "bubble")
	}))
}

func TestProductionCodeIsFinished(t *testing.T) {
	none(t, sourceTree(t).Matches(regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)))
}

// TestNothingNamesAMachine looks for home and checkout directories and for the
// hosts that modules are downloaded from here.
func TestNothingNamesAMachine(t *testing.T) {
	here, err := os.Getwd()
	require.NoError(t, err)
	words := []string{`/(home|root|Users|work|builds)/`, regexp.QuoteMeta(here)}
	for _, proxy := range strings.FieldsFunc(os.Getenv("GOPROXY"), func(r rune) bool { return r == ',' || r == '|' }) {
		if _, host, ok := strings.Cut(proxy, "://"); ok {
			host, _, _ = strings.Cut(host, "/")
			words = append(words, regexp.QuoteMeta(host))
		}
	}
	machine := regexp.MustCompile(strings.Join(words, "|"))
	none(t, sourceTree(t).Matches(machine))
	problems, err := house.MatchesIn(os.DirFS("."), textFiles(t), machine)
	require.NoError(t, err)
	none(t, problems)
}

// textFiles lists the project's files that are not Go code.
func textFiles(t *testing.T) []string {
	t.Helper()
	names := slices.Concat(markdownFiles(t), []string{"Makefile", ".golangci.yml", ".ci/run"})
	for name := range sourceTree(t).Modules {
		names = append(names, path.Join(name, "go.mod"))
	}
	return names
}

// markdownFiles lists the Markdown files at the root and below docs/ and
// examples/.
func markdownFiles(t *testing.T) []string {
	t.Helper()
	names, err := fs.Glob(os.DirFS("."), "*.md")
	require.NoError(t, err)
	require.NotEmpty(t, names)
	for _, dir := range []string{"docs", "examples"} {
		err := fs.WalkDir(os.DirFS("."), dir, func(name string, _ fs.DirEntry, err error) error {
			if err == nil && path.Ext(name) == ".md" {
				names = append(names, name)
			}
			return nil
		})
		require.NoError(t, err)
	}
	return names
}
