package backstaytest

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/backstay/backstay/discovery"
)

// FleetConfig configures [NewFleet].
type FleetConfig struct {
	// Handler answers the servers' requests. Default: 200 "ok".
	Handler http.Handler
	// HandlerOf makes each server's own handler, instead of Handler.
	// Default: nil.
	HandlerOf func(*Server) http.Handler
	// Service is the service's name, for which the certificates are good – for
	// it alone, not for the servers' addresses. Default: "orders.test".
	Service string
	// Protocol is what the servers speak. Default: HTTP1.
	Protocol Protocol
	// Network puts the fleet into memory, at 10.0.0.1:80 and on (443 with TLS),
	// for virtual time in a synctest bubble. Default: nil, which is real
	// sockets on 127.0.0.1.
	Network *Network
	// Endpoint may change what resolvers list for the i-th server: its zone,
	// its weight. Default: the server's ID and address and nothing else.
	Endpoint func(i int, e *discovery.Endpoint)
	// Key says which request it is, for [Fleet.Seen]; "" for one that is not
	// counted. Default: the Idempotency-Key header, or else X-Request-Id.
	Key func(*http.Request) string
}

// Fleet is the servers of one service. They join and leave while it runs, and
// its resolvers follow. All methods may be called concurrently.
type Fleet struct {
	// Service is the service's name.
	Service string
	// Authority issued the servers' certificates; nil without TLS.
	Authority *Authority

	t   testing.TB
	cfg FleetConfig

	mu      sync.Mutex
	all     []*Server // that ever joined
	members []*Server // that resolvers list
	err     error
	changed chan struct{} // closed at the next change; nil when nobody watches
}

// NewFleet starts n servers, s0, s1 and so on. They are closed, and waited for,
// when the test ends. A nil cfg is a fleet of plain HTTP/1.1 on loopback.
func NewFleet(t testing.TB, n int, cfg *FleetConfig) *Fleet {
	t.Helper()
	f := &Fleet{t: t}
	if cfg != nil {
		f.cfg = *cfg
	}
	f.Service = f.cfg.Service
	if f.Service == "" {
		f.Service = "orders.test"
	}
	if f.cfg.Protocol.secure() {
		f.Authority = NewAuthority(t)
	}
	for range n {
		f.Join()
	}
	return f
}

// Join starts another server and lists it.
func (f *Fleet) Join() *Server {
	f.t.Helper()
	s := &Server{
		Authority: f.Authority, t: f.t, protocol: f.cfg.Protocol, names: []string{f.Service},
		network: f.cfg.Network, handler: f.cfg.Handler, keyOf: f.cfg.Key, changed: f.announce,
	}
	f.mu.Lock()
	i := len(f.all)
	f.all = append(f.all, s)
	f.mu.Unlock()
	s.ID = fmt.Sprintf("s%d", i)
	if s.network != nil {
		s.Addr = fmt.Sprintf("10.0.%d.%d:%s", i/250, i%250+1, defaultPort(s.protocol))
	}
	if f.cfg.HandlerOf != nil {
		s.handler = f.cfg.HandlerOf(s)
	}
	s.start()
	if f.cfg.Endpoint != nil {
		f.cfg.Endpoint(i, &s.endpoint)
	}
	f.List(s)
	return s
}

// List makes resolvers list s, last, if they do not.
func (f *Fleet) List(s *Server) {
	f.mu.Lock()
	if !slices.Contains(f.members, s) {
		f.members = append(f.members, s)
	}
	f.mu.Unlock()
	f.announce()
}

// Unlist makes resolvers list s no more. The server itself goes on.
func (f *Fleet) Unlist(s *Server) {
	f.mu.Lock()
	f.members = slices.DeleteFunc(f.members, func(m *Server) bool { return m == s })
	f.mu.Unlock()
	f.announce()
}

// Leave takes s out of the fleet: it is unlisted, and then shut down in good
// order, with up to 5 s for the requests under way. A server that leaves like a
// crash is one to [Server.Kill] and then, or never, to Unlist.
func (f *Fleet) Leave(s *Server) {
	f.Unlist(s)
	s.mu.Lock()
	s.left = true
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = s.Shutdown(ctx)
}

// FailDiscovery makes the fleet's resolvers yield err, now and whenever a watch
// begins, until it is called with nil: then they yield the set again.
func (f *Fleet) FailDiscovery(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	f.announce()
}

// announce wakes the watches.
func (f *Fleet) announce() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// Server returns the i-th server of those that ever joined.
func (f *Fleet) Server(i int) *Server {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all[i]
}

// Servers returns all servers that ever joined, in that order.
func (f *Fleet) Servers() []*Server {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.all)
}

// Endpoints returns what resolvers list.
func (f *Fleet) Endpoints() []discovery.Endpoint {
	set, _, err := f.look(false)
	_ = err // it is what resolvers say of it
	return set.Endpoints
}

// look returns the set or the error to yield, and, if asked to, a channel that
// is closed when that changes.
func (f *Fleet) look(watch bool) (discovery.Set, <-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if watch && f.changed == nil {
		f.changed = make(chan struct{})
	}
	var set discovery.Set
	for _, s := range f.members {
		set.Endpoints = append(set.Endpoints, s.Endpoint())
	}
	return set, f.changed, f.err
}

// Resolver returns a resolver that lists the fleet, whatever the service it is
// asked for.
func (f *Fleet) Resolver() discovery.Resolver {
	return discovery.ResolverFunc(func(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
		return func(yield func(discovery.Set, error) bool) {
			for ctx.Err() == nil {
				set, changed, err := f.look(true)
				if err != nil {
					set = discovery.Set{}
				}
				if !yield(set, err) {
					return
				}
				select {
				case <-changed:
				case <-ctx.Done():
				}
			}
		}
	})
}

// URL returns the service's URL without a path: the name, not an address.
func (f *Fleet) URL() string {
	if f.cfg.Protocol.secure() {
		return "https://" + f.Service
	}
	return "http://" + f.Service
}

// Transport returns a new transport that reaches the servers by their
// addresses, speaks their protocol and trusts their certificates. Its idle
// connections are closed when the test ends.
func (f *Fleet) Transport() *http.Transport {
	return newTransport(f.t, f.cfg.Network, f.cfg.Protocol, f.Authority)
}

// Heal heals every server; see [Server.Heal].
func (f *Fleet) Heal() {
	f.t.Helper()
	for _, s := range f.Servers() {
		s.Heal()
	}
}

// Stats returns the sum of all servers' counts. MaxInFlight is the sum of the
// servers' own.
func (f *Fleet) Stats() Stats {
	var sum Stats
	for _, s := range f.Servers() {
		sum = sum.plus(s.Stats())
	}
	return sum
}

// ResetStats begins to count anew; see [Server.ResetStats].
func (f *Fleet) ResetStats() {
	for _, s := range f.Servers() {
		s.ResetStats()
	}
}

// Seen returns how many requests that bear key have arrived at any server; see
// [Server.Seen].
func (f *Fleet) Seen(key string) int {
	n := 0
	for _, s := range f.Servers() {
		n += s.Seen(key)
	}
	return n
}

// SeenBody returns how many requests with this body have arrived at any server;
// see [Server.SeenBody].
func (f *Fleet) SeenBody(body []byte) int {
	n := 0
	for _, s := range f.Servers() {
		n += s.SeenBody(body)
	}
	return n
}

// Repeated returns the keys that have arrived more than once at all servers
// together, and how often. After calls that must not be repeated it is empty.
func (f *Fleet) Repeated() map[string]int {
	sum := make(map[string]int)
	for _, s := range f.Servers() {
		s.mu.Lock()
		for key, n := range s.keys {
			sum[key] += n
		}
		s.mu.Unlock()
	}
	for key, n := range sum {
		if n < 2 {
			delete(sum, key)
		}
	}
	return sum
}
