package main

import (
	"context"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/discovery"
)

// server is a real HTTP server on a port of loopback that it keeps for life.
type server struct {
	name          string
	addr          string
	slow, failing atomic.Bool
	draining      atomic.Bool // says the list

	mu   sync.Mutex
	http *http.Server
	held []net.Conn // keep the port while it is dead
}

// ServeHTTP takes from 2 to 8 ms, unless something is wrong.
func (s *server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if s.failing.Load() {
		http.Error(w, "out of order", http.StatusServiceUnavailable)
		return
	}
	work := 2*time.Millisecond + rand.N(6*time.Millisecond)
	if s.slow.Load() {
		work += 200 * time.Millisecond
	}
	pause(req.Context(), work)
	_, _ = io.Copy(io.Discard, req.Body)
	fmt.Fprintf(w, "%s by %s\n", req.URL.Path, s.name)
}

// start starts the server: on any port at first, on the same one ever after.
func (s *server) start() error {
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("starting server %s: %w", s.name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.addr = l.Addr().String(); s.held == nil {
		if s.held, err = hold(l); err != nil {
			return fmt.Errorf("starting server %s: %w", s.name, err)
		}
	}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func(h *http.Server) { _ = h.Serve(l) }(s.http)
	return nil
}

// hold connects a listener to itself. As long as that connection stands, which is to
// the end of the program, nobody else is given the port of a server that is dead for a
// while, and its calls with it.
func hold(l net.Listener) ([]net.Conn, error) {
	out, err := new(net.Dialer).DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	in, err := l.Accept()
	return []net.Conn{out, in}, err
}

// kill closes the port and cuts all connections, like a crash.
func (s *server) kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.http.Close()
}

// fleet is all servers. It is a discovery.Resolver: whoever watches it gets the
// list at once, and again when it has changed.
type fleet struct {
	mu      sync.Mutex
	servers []*server
	changed chan struct{} // closed and replaced when the list changes
}

func newFleet(names ...string) (*fleet, error) {
	f := &fleet{changed: make(chan struct{})}
	for _, name := range names {
		if err := f.join(name); err != nil {
			f.close()
			return nil, err
		}
	}
	return f, nil
}

// join starts another server and lists it.
func (f *fleet) join(name string) error {
	s := &server{name: name, addr: "127.0.0.1:0"}
	if err := s.start(); err != nil {
		return err
	}
	f.change(func() { f.servers = append(f.servers, s) })
	return nil
}

// drain lists a server as one that is about to go.
func (f *fleet) drain(s *server) { f.change(func() { s.draining.Store(true) }) }

// leave takes a server off the list.
func (f *fleet) leave(s *server) {
	f.change(func() {
		f.servers = slices.DeleteFunc(f.servers, func(other *server) bool { return other == s })
	})
}

func (f *fleet) change(list func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list()
	close(f.changed)
	f.changed = make(chan struct{})
}

// list returns the servers, and a channel that is closed when there are others.
func (f *fleet) list() ([]*server, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.servers), f.changed
}

// Watch makes the fleet a discovery.Resolver.
func (f *fleet) Watch(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		for {
			servers, changed := f.list()
			var set discovery.Set
			for _, s := range servers {
				set.Endpoints = append(set.Endpoints, discovery.Endpoint{
					ID: s.name, Addr: s.addr, Draining: s.draining.Load(),
				})
			}
			if !yield(set, nil) {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (f *fleet) server(name string) *server {
	servers, _ := f.list()
	return servers[slices.IndexFunc(servers, func(s *server) bool { return s.name == name })]
}

func (f *fleet) names() []string {
	servers, _ := f.list()
	var names []string
	for _, s := range servers {
		names = append(names, s.name)
	}
	return names
}

func (f *fleet) close() {
	servers, _ := f.list()
	for _, s := range servers {
		_ = s.kill()
	}
}
