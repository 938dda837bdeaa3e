package discovery

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// endpointsFile is a file in a test's own directory.
type endpointsFile struct {
	t    *testing.T
	path string
}

func newEndpointsFile(t *testing.T, content string) endpointsFile {
	t.Helper()
	f := endpointsFile{t, filepath.Join(t.TempDir(), "endpoints.json")}
	f.write(content)
	return f
}

func (f endpointsFile) write(content string) {
	f.t.Helper()
	require.NoError(f.t, os.WriteFile(f.path, []byte(content), 0o600))
}

func TestFileGivesTheEndpointsOfTheService(t *testing.T) {
	f := newEndpointsFile(t, `{
		"orders": ["10.0.0.1:80", {"id": "two", "addr": "10.0.0.2:80", "fallback": ["[::2]:80"], "serverName": "orders",
			"weight": 2.5, "draining": true, "priority": 1, "region": "r", "zone": "b", "metadata": {"v": "2"}}],
		"orders:81": ["unix:/run/orders.sock"],
		"empty": []
	}`)
	set, err := askOnce(t, File(f.path, nil), "orders")
	require.NoError(t, err)
	require.Equal(t, Set{Endpoints: []Endpoint{{Addr: "10.0.0.1:80"}, {
		ID: "two", Addr: "10.0.0.2:80", Fallback: []string{"[::2]:80"}, ServerName: "orders",
		Weight: 2.5, Draining: true, Priority: 1, Region: "r", Zone: "b", Metadata: map[string]string{"v": "2"},
	}}}, set)
	set, err = askOnce(t, File(f.path, nil), "orders:81")
	require.NoError(t, err)
	require.Equal(t, []string{"unix:/run/orders.sock"}, addrsOf(set))
	set, err = askOnce(t, File(f.path, nil), "orders:82")
	require.NoError(t, err)
	require.Len(t, set.Endpoints, 2, "a name with a port falls back to the host")
	set, err = askOnce(t, File(f.path, nil), "empty")
	require.NoError(t, err)
	require.Equal(t, Set{Endpoints: []Endpoint{}}, set)
	_, err = askOnce(t, File(f.path, nil), "users")
	require.ErrorIs(t, err, ErrNotFound)
}

func TestFileIsRefusedWholeWithAClearError(t *testing.T) {
	for name, test := range map[string]struct{ content, want string }{
		"empty":             {``, "the file ends too early"},
		"half written":      {`{"orders": ["10.0.0.1:80", "10.`, `"orders": the file ends too early`},
		"half the object":   {`{"orders": ["10.0.0.1:80"]`, "the file ends too early"},
		"half a name":       {`{"ord`, "the file ends too early"},
		"no object":         {`["10.0.0.1:80"]`, "want a JSON object of services"},
		"more":              {`{"orders": []} {}`, "want nothing after the object"},
		"rubbish after":     {`{"orders": []} x`, "invalid character 'x'"},
		"no list":           {`{"orders": "10.0.0.1:80"}`, `"orders": at byte 24: is a JSON string, want a list of endpoints`},
		"null":              {`{"orders": null}`, `"orders": at byte 15: want a list of endpoints`},
		"unknown field":     {`{"orders": ["a:1", {"addr": "b:1", "wieght": 2}]}`, `"orders"[1]: json: unknown field "wieght"`},
		"wrong type":        {`{"orders": [{"addr": "b:1", "weight": "2"}]}`, `"orders"[0]: json: cannot unmarshal string`},
		"number for a name": {`{"orders": [7]}`, `"orders"[0]: want a string or an object`},
		"twice":             {`{"orders": [], "users": [], "orders": []}`, `"orders" is there twice`},
	} {
		t.Run(name, func(t *testing.T) {
			f := newEndpointsFile(t, test.content)
			_, err := askOnce(t, File(f.path, nil), "orders")
			require.ErrorContains(t, err, f.path)
			require.ErrorContains(t, err, test.want)
			var re *ResolveError
			require.ErrorAs(t, err, &re)
		})
	}
}

func TestFileKeepsTheLastGoodSetAndReportsAnErrorOnce(t *testing.T) {
	f := newEndpointsFile(t, `{"orders": ["a:1"]}`)
	bubble(t, func(t *testing.T) {
		rec := record(t.Context(), t, Supervise(File(f.path, nil), nil), "orders")
		require.Equal(t, []string{"a:1"}, addrsOf(rec.take()[0].set))
		time.Sleep(time.Minute)
		require.Empty(t, rec.take())

		f.write(`{"orders": ["a:1", "b`)
		time.Sleep(time.Minute)
		got := rec.take()
		require.Len(t, got, 1)
		require.ErrorContains(t, got[0].err, "ends too early")

		f.write(`{"orders": ["a:1"]}`)
		time.Sleep(time.Minute)
		got = rec.take()
		require.Len(t, got, 1, "it says that the set is current again")
		require.Equal(t, []string{"a:1"}, addrsOf(got[0].set))

		require.NoError(t, os.Remove(f.path))
		time.Sleep(time.Minute)
		got = rec.take()
		require.Len(t, got, 1)
		require.ErrorIs(t, got[0].err, os.ErrNotExist)

		f.write(`{"orders": ["c:1"]}`)
		time.Sleep(time.Second)
		require.Equal(t, []string{"c:1"}, addrsOf(rec.take()[0].set))
	})
}

func TestFileThatIsMissingAtFirstFailsAtOnceAndIsFoundLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "later.json")
	bubble(t, func(t *testing.T) {
		rec := record(t.Context(), t, File(path, nil), "orders")
		got := rec.take()
		require.Len(t, got, 1)
		require.ErrorIs(t, got[0].err, os.ErrNotExist)
		require.NoError(t, os.WriteFile(path, []byte(`{"orders": ["a:1"]}`), 0o600))
		time.Sleep(time.Second)
		require.Equal(t, []string{"a:1"}, addrsOf(rec.take()[0].set))
	})
}

func TestFileSeesASwappedSymbolicLink(t *testing.T) {
	// As Kubernetes mounts a ConfigMap: file -> ..data/file, ..data -> ..1/.
	dir := t.TempDir()
	for version, content := range map[string]string{"..1": `{"orders": ["a:1"]}`, "..2": `{"orders": ["b:1"]}`} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		path := filepath.Join(dir, version, "endpoints.json")
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		require.NoError(t, os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0)))
	}
	if err := os.Symlink("..1", filepath.Join(dir, "..data")); err != nil {
		t.Skip("no symbolic links here: ", err)
	}
	path := filepath.Join(dir, "endpoints.json")
	require.NoError(t, os.Symlink(filepath.Join("..data", "endpoints.json"), path))
	bubble(t, func(t *testing.T) {
		rec := record(t.Context(), t, File(path, nil), "orders")
		require.Equal(t, []string{"a:1"}, addrsOf(rec.take()[0].set))
		require.NoError(t, os.Symlink("..2", filepath.Join(dir, "..data_tmp")))
		require.NoError(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
		time.Sleep(time.Second)
		require.Equal(t, []string{"b:1"}, addrsOf(rec.take()[0].set))
	})
}

func TestFileSeesARewriteOfTheSameSizeAndTime(t *testing.T) {
	f := newEndpointsFile(t, `{"orders": ["a:1"]}`)
	stamp := time.Unix(1e9, 0)
	require.NoError(t, os.Chtimes(f.path, stamp, stamp))
	bubble(t, func(t *testing.T) {
		rec := record(t.Context(), t, File(f.path, nil), "orders")
		rec.take()
		f.write(`{"orders": ["b:1"]}`)
		require.NoError(t, os.Chtimes(f.path, stamp, stamp))
		time.Sleep(time.Second)
		require.Equal(t, []string{"b:1"}, addrsOf(rec.take()[0].set))
	})
}

func TestFileIsReadAgainOnAHint(t *testing.T) {
	f := newEndpointsFile(t, `{"orders": ["a:1"]}`)
	bubble(t, func(t *testing.T) {
		hints := make(chan struct{})
		rec := record(WithHints(t.Context(), hints), t, File(f.path, &FileConfig{Interval: -1}), "orders")
		rec.take()
		f.write(`{"orders": ["b:1"]}`)
		time.Sleep(24 * time.Hour)
		require.Empty(t, rec.take())
		hints <- struct{}{}
		require.Equal(t, []string{"b:1"}, addrsOf(rec.take()[0].set))
	})
}

func TestFileTakesAnyFormat(t *testing.T) {
	f := newEndpointsFile(t, "orders a:1 b:1\n")
	lines := func(content []byte) (map[string][]Endpoint, error) {
		services := map[string][]Endpoint{}
		for line := range strings.Lines(string(content)) {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				return nil, errors.New("a line has no address")
			}
			services[fields[0]] = Addrs(fields[1:]...)
		}
		return services, nil
	}
	r := File(f.path, &FileConfig{Decode: lines})
	set, err := askOnce(t, r, "orders")
	require.NoError(t, err)
	require.Equal(t, []string{"a:1", "b:1"}, addrsOf(set))
	f.write("orders")
	_, err = askOnce(t, r, "orders")
	require.ErrorContains(t, err, "a line has no address")
	require.True(t, bytes.HasPrefix([]byte(err.Error()), []byte("discovery: orders: "+f.path)))
}
