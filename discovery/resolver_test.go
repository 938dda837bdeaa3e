package discovery_test

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/discovery"
)

// list is a source in memory that yields what it holds now and whenever that
// changes. With endings each set is the last of its watch.
type list struct {
	endings bool

	mu      sync.Mutex
	addrs   []string
	changed chan struct{}
}

func newList(addrs ...string) *list { return &list{addrs: addrs, changed: make(chan struct{})} }

func (l *list) set(addrs ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addrs = addrs
	close(l.changed)
	l.changed = make(chan struct{})
}

// grow adds an address.
func (l *list) grow() {
	addrs, _ := l.now()
	l.set(append(slices.Clip(addrs), fmt.Sprintf("10.1.0.%d:80", len(addrs)))...)
}

// flip empties the list, or fills it again.
func (l *list) flip() {
	if addrs, _ := l.now(); len(addrs) > 0 {
		l.set()
	} else {
		l.set("10.2.0.1:80", "10.2.0.2:80")
	}
}

func (l *list) now() ([]string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addrs, l.changed
}

func (l *list) Watch(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		for ctx.Err() == nil {
			addrs, changed := l.now()
			if !yield(discovery.Set{Endpoints: discovery.Addrs(addrs...), Authoritative: true}, nil) || l.endings {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

// kept is a resolver that never changes.
func kept(r discovery.Resolver) func(testing.TB) (discovery.Resolver, func()) {
	return func(testing.TB) (discovery.Resolver, func()) { return r, nil }
}

// grown is a resolver over a list of two that grows.
func grown(over func(discovery.Resolver) discovery.Resolver) func(testing.TB) (discovery.Resolver, func()) {
	return func(testing.TB) (discovery.Resolver, func()) {
		l := newList("10.0.0.1:80", "10.0.0.2:80")
		return over(l), l.grow
	}
}

var two = []string{"10.0.0.1:80", "10.0.0.2:80"}

func TestSourcesAreResolvers(t *testing.T) {
	fast := discovery.DNSConfig{MinRefresh: 20 * time.Millisecond}
	for name, c := range map[string]struct {
		source func(testing.TB) (discovery.Resolver, func())
		want   []string
	}{
		"Static":            {kept(discovery.Static(discovery.Addrs(two...)...)), two},
		"Static of nobody":  {kept(discovery.Static()), []string{}},
		"the tests' source": {grown(func(r discovery.Resolver) discovery.Resolver { return r }), two},
		"DNS": {func(t testing.TB) (discovery.Resolver, func()) {
			s, n := discovery.NewNameServer(t), 2
			s.SetAddrs("orders.test.", n)
			cfg := fast
			cfg.Server = s.Addr
			return discovery.DNS(&cfg), func() {
				n++
				s.SetAddrs("orders.test.", n)
			}
		}, []string{"10.0.0.1", "10.0.0.2"}},
		"SRV": {func(t testing.TB) (discovery.Resolver, func()) {
			s, n := discovery.NewNameServer(t), 2
			s.SetTargets("_http._tcp.orders.test.", n)
			cfg := discovery.SRVConfig{Service: "http", DNS: fast}
			cfg.DNS.Server = s.Addr
			return discovery.SRV(&cfg), func() {
				n++
				s.SetTargets("_http._tcp.orders.test.", n)
			}
		}, []string{"t1.test:8080", "t2.test:8080"}},
		"File": {func(t testing.TB) (discovery.Resolver, func()) {
			path := filepath.Join(t.TempDir(), "endpoints.json")
			l := newList(two...)
			write := func() {
				addrs, _ := l.now()
				content, err := json.Marshal(map[string][]string{"orders.test": addrs})
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(path, content, 0o600))
			}
			write()
			return discovery.File(path, &discovery.FileConfig{Interval: 10 * time.Millisecond}), func() {
				l.grow()
				write()
			}
		}, two},
	} {
		t.Run(name, func(t *testing.T) {
			backstaytest.TestResolver(t, c.source, &backstaytest.ResolverOptions{Want: c.want, Patience: time.Minute})
		})
	}
}

func TestDecoratorsAreResolvers(t *testing.T) {
	static := discovery.Static(discovery.Addrs("10.9.0.1:80", "10.9.0.2:80")...)
	all := []string{"10.0.0.1:80", "10.0.0.2:80", "10.9.0.1:80", "10.9.0.2:80"}
	flipped := func(over func(discovery.Resolver) discovery.Resolver) func(testing.TB) (discovery.Resolver, func()) {
		return func(testing.TB) (discovery.Resolver, func()) {
			l := newList(two...)
			return over(l), l.flip
		}
	}
	for name, c := range map[string]struct {
		source func(testing.TB) (discovery.Resolver, func())
		want   []string
	}{
		"Merge of nobody": {kept(discovery.Merge()), []string{}},
		"Merge of one":    {grown(func(r discovery.Resolver) discovery.Resolver { return discovery.Merge(r) }), two},
		"Merge of two": {grown(func(r discovery.Resolver) discovery.Resolver {
			return discovery.Merge(static, r)
		}), all},
		"Merge with one that empties": {flipped(func(r discovery.Resolver) discovery.Resolver {
			return discovery.Merge(r, static)
		}), all},
		"Failover of nobody": {kept(discovery.Failover()), []string{}},
		"Failover to the first": {grown(func(r discovery.Resolver) discovery.Resolver {
			return discovery.Failover(r, static)
		}), two},
		"Failover to the second": {grown(func(r discovery.Resolver) discovery.Resolver {
			return discovery.Failover(discovery.Static(), r)
		}), two},
		"Failover to and fro": {flipped(func(r discovery.Resolver) discovery.Resolver {
			return discovery.Failover(r, static)
		}), two},
		"Filter": {grown(func(r discovery.Resolver) discovery.Resolver {
			return discovery.Filter(r, func(e discovery.Endpoint) bool { return e.Addr != two[0] })
		}), two[1:]},
		"Filter of all": {kept(discovery.Filter(static, func(discovery.Endpoint) bool { return false })), []string{}},
		"Map": {grown(func(r discovery.Resolver) discovery.Resolver {
			return discovery.Map(r, func(e discovery.Endpoint) discovery.Endpoint {
				e.ID, e.Zone = "id of "+e.Addr, "a"
				return e
			})
		}), []string{"id of 10.0.0.1:80", "id of 10.0.0.2:80"}},
		"Supervise": {grown(func(r discovery.Resolver) discovery.Resolver {
			return discovery.Supervise(r, nil)
		}), two},
		"Supervise without a window": {grown(func(r discovery.Resolver) discovery.Resolver {
			return discovery.Supervise(r, &discovery.SuperviseConfig{MergeWindow: -1, HintInterval: -1})
		}), two},
		"Supervise of a source that ends": {func(testing.TB) (discovery.Resolver, func()) {
			l := newList(two...)
			l.endings = true
			return discovery.Supervise(l, &discovery.SuperviseConfig{BackoffBase: 5 * time.Millisecond, BackoffMax: 10 * time.Millisecond}), l.grow
		}, two},
		"all of them": {grown(func(r discovery.Resolver) discovery.Resolver {
			r = discovery.Merge(discovery.Failover(discovery.Static(), r), static)
			r = discovery.Filter(r, func(e discovery.Endpoint) bool { return e.Addr != "10.9.0.2:80" })
			return discovery.Supervise(discovery.Map(r, func(e discovery.Endpoint) discovery.Endpoint { return e }), nil)
		}), all[:3]},
	} {
		t.Run(name, func(t *testing.T) {
			backstaytest.TestResolver(t, c.source, &backstaytest.ResolverOptions{Want: c.want, Patience: time.Minute})
		})
	}
}

// What is made of a resolver passes its Validate on.
func TestMistakesInAResolversSettingsAreToldBeforeItIsUsed(t *testing.T) {
	const want = `Family is "ipv5"`
	bad, fine := discovery.DNS(&discovery.DNSConfig{Family: "ipv5"}), discovery.DNS(nil)
	every := func(discovery.Endpoint) bool { return true }
	same := func(e discovery.Endpoint) discovery.Endpoint { return e }
	for name, r := range map[string]discovery.Resolver{
		"itself": bad, "srv": discovery.SRV(&discovery.SRVConfig{DNS: discovery.DNSConfig{Family: "ipv5"}}),
		"filter": discovery.Filter(bad, every), "map": discovery.Map(bad, same),
		"merge": discovery.Merge(fine, bad), "failover": discovery.Failover(fine, bad),
		"min": discovery.MinEndpoints(bad, 2), "subset": discovery.Subset(bad, &discovery.SubsetConfig{Client: "me"}),
		"supervised": discovery.Supervise(discovery.MinEndpoints(bad, 2), nil),
	} {
		v, ok := r.(interface{ Validate() error })
		require.True(t, ok, name)
		require.ErrorContains(t, v.Validate(), want, name)
	}
	for _, r := range []discovery.Resolver{
		discovery.Filter(fine, every), discovery.Merge(fine, discovery.Static()), discovery.Merge(),
		discovery.MinEndpoints(fine, 1), discovery.Supervise(fine, nil),
	} {
		v, _ := r.(interface{ Validate() error })
		require.NoError(t, v.Validate())
	}
}
