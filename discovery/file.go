package discovery

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"
)

// FileConfig says how [File] reads. The zero value means every default.
type FileConfig struct {
	// Interval is the time between two looks at the file. Negative: only hints
	// (see [WithHints]) make it look again. Default: 1s.
	Interval time.Duration `json:"interval,omitempty"`
	// Decode reads the file's content: the endpoints of each service. It must
	// not keep content. Default: JSON, as [File] describes it.
	Decode func(content []byte) (map[string][]Endpoint, error) `json:"-"`
}

// File returns a resolver that reads a file and follows its changes. The file is
// a JSON object with the endpoints of each service, as objects with the JSON
// names of [Endpoint] or, where there is nothing but an address, as strings:
//
//	{
//	  "orders": ["10.0.0.1:8080", {"addr": "10.0.0.2:8080", "zone": "b", "weight": 2}],
//	  "users":  ["unix:/run/users.sock"]
//	}
//
// A service is looked for by its whole name and then, if that has a port, by its
// host. One that is missing is [ErrNotFound]; an empty list is an empty set that
// is not authoritative, for it may be the work of a failing generator.
//
// The content is compared, not the time stamp, so that symbolic links that are
// swapped (Kubernetes ConfigMaps) and quick rewrites are seen. What cannot be
// read or decoded – a file half written, an unknown field, a service named twice
// – is an error that is yielded once, and the last good set holds. A nil cfg
// means every default.
func File(path string, cfg *FileConfig) Resolver {
	f := &file{path: path}
	if cfg != nil {
		f.cfg = *cfg
	}
	f.cfg.Interval = cmp.Or(f.cfg.Interval, time.Second)
	if f.cfg.Decode == nil {
		f.cfg.Decode = decodeFile
	}
	return f
}

type file struct {
	path string
	cfg  FileConfig
}

// fileHintInterval is the least time between two looks that hints ask for.
const fileHintInterval = 100 * time.Millisecond

// Watch reads the file again and again, on the caller's goroutine.
func (f *file) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		var (
			last    []byte // the content that was yielded
			problem string // the error that was
		)
		for first := true; ctx.Err() == nil; first = false {
			content, err := os.ReadFile(f.path)
			if err == nil && (first || problem != "" || !bytes.Equal(content, last)) {
				var set Set
				if set.Endpoints, err = f.endpoints(content, service); err == nil {
					last, problem = content, ""
					if !yield(set, nil) {
						return
					}
				}
			}
			if err != nil && err.Error() != problem {
				problem = err.Error()
				if !yield(Set{}, resolveError(service, err)) {
					return
				}
			}
			if !pause(ctx, f.cfg.Interval, fileHintInterval) {
				return
			}
		}
	}
}

// endpoints returns those of a service.
func (f *file) endpoints(content []byte, service string) ([]Endpoint, error) {
	services, err := f.cfg.Decode(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.path, err)
	}
	if endpoints, ok := services[service]; ok {
		return endpoints, nil
	}
	if host, port, err := splitHostPort(service); err == nil && port != "" {
		if endpoints, ok := services[host]; ok {
			return endpoints, nil
		}
	}
	return nil, fmt.Errorf("%w in %s", ErrNotFound, f.path)
}

// decodeFile reads the format that File describes. It reads the outer object
// token by token, because encoding/json takes the last of two equal names
// without a word.
func decodeFile(content []byte) (map[string][]Endpoint, error) {
	d := json.NewDecoder(bytes.NewReader(content))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, syntaxError(d, err, "want a JSON object of services")
	}
	services := make(map[string][]Endpoint)
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, syntaxError(d, err, "")
		}
		service, _ := name.(string)
		if _, twice := services[service]; twice {
			return nil, fmt.Errorf("%q is there twice, want each service once", service)
		}
		var list []json.RawMessage
		err = d.Decode(&list)
		if other := new(json.UnmarshalTypeError); errors.As(err, &other) {
			err = fmt.Errorf("is a JSON %s, want a list of endpoints", other.Value)
		}
		if err != nil || list == nil {
			return nil, fmt.Errorf("%q: %w", service, syntaxError(d, err, "want a list of endpoints"))
		}
		endpoints := make([]Endpoint, len(list))
		for i, raw := range list {
			if string(raw) == "null" {
				return nil, fmt.Errorf("%q[%d] is null, want a string or an object", service, i)
			}
			if err := json.Unmarshal(raw, &endpoints[i]); err != nil {
				return nil, fmt.Errorf("%q[%d]: %w", service, i, err)
			}
		}
		services[service] = endpoints
	}
	if _, err := d.Token(); err != nil {
		return nil, syntaxError(d, err, "")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, syntaxError(d, err, "want nothing after the object")
	}
	return services, nil
}

// syntaxError says where in the file something is wrong, and what: err, or else
// what was wanted.
func syntaxError(d *json.Decoder, err error, want string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the file ends too early: %w", io.ErrUnexpectedEOF)
	}
	if err == nil {
		err = errors.New(want)
	}
	return fmt.Errorf("at byte %d: %w", d.InputOffset(), err)
}
