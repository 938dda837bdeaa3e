package backstaygrpc

import (
	"context"
	"iter"
	"maps"
	"sync"

	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/resolver"

	"github.com/backstay/backstay/discovery"
)

// feed hands on what one of gRPC's resolvers says to a balancer of ours, and its hints
// to gRPC.
type feed struct {
	cc grpcbalancer.ClientConn

	mu    sync.Mutex
	known bool
	last  discovery.Set
	err   error
	news  chan struct{}                 // closed and replaced with every change
	addrs map[string][]resolver.Address // of what there is, and of nodes that are about to leave

	current map[string][]resolver.Address // of what there is
}

func newFeed(cc grpcbalancer.ClientConn) *feed {
	return &feed{cc: cc, news: make(chan struct{}), addrs: make(map[string][]resolver.Address)}
}

func (f *feed) set(set discovery.Set, addrs map[string][]resolver.Address) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known, f.last, f.err = true, set, nil
	f.current = addrs
	maps.Copy(f.addrs, addrs)
	close(f.news)
	f.news = make(chan struct{})
}

func (f *feed) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	close(f.news)
	f.news = make(chan struct{})
}

func (f *feed) addresses(key string) []resolver.Address {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addrs[key]
}

// forget forgets the addresses of nodes that have left.
func (f *feed) forget(nodes map[string]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.addrs, func(key string, _ []resolver.Address) bool {
		return !nodes[key] && f.current[key] == nil
	})
}

// Watch yields what there is, and whatever comes.
func (f *feed) Watch(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		hints := discovery.Hints(ctx)
		for {
			f.mu.Lock()
			known, set, err, news := f.known, f.last, f.err, f.news
			f.mu.Unlock()
			switch {
			case err != nil:
				if !yield(discovery.Set{}, err) {
					return
				}
			case known:
				if !yield(set, nil) {
					return
				}
			}
			for told := false; !told; {
				select {
				case <-news:
					told = true
				case <-hints:
					f.cc.ResolveNow(resolver.ResolveNowOptions{})
				case <-ctx.Done():
					return
				}
			}
		}
	}
}

// endpointsOf returns the endpoints of a resolver of gRPC's, and what it says of each
// one's addresses.
func endpointsOf(state resolver.State) (discovery.Set, map[string][]resolver.Address) {
	var set discovery.Set // an empty one may be no more than a name server's whim
	addrs := make(map[string][]resolver.Address, len(state.Endpoints))
	for _, e := range state.Endpoints {
		if len(e.Addresses) == 0 {
			continue
		}
		key := e.Addresses[0].Addr
		if addrs[key] != nil {
			continue
		}
		addrs[key] = e.Addresses
		endpoint := discovery.Endpoint{ID: key, Addr: key, ServerName: e.Addresses[0].ServerName}
		for _, a := range e.Addresses[1:] {
			endpoint.Fallback = append(endpoint.Fallback, a.Addr)
		}
		set.Endpoints = append(set.Endpoints, endpoint)
	}
	return set, addrs
}
