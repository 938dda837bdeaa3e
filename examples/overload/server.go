package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	slots = 5                      // requests that a server works on at a time
	work  = 100 * time.Millisecond // what each takes
)

// server is a real HTTP server with a queue that has no end, first come first
// served. It does not look whether whoever has sent a request still waits for
// the answer: hardly any handler does before it begins.
type server struct {
	arrived *atomic.Int64 // requests, at all servers of a kind of callers
	slots   chan struct{}
	closed  chan struct{}
	http    *http.Server
}

// ServeHTTP waits its turn, works and answers.
func (s *server) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.arrived.Add(1)
	select {
	case s.slots <- struct{}{}: // those who wait here are let in as they have come
	case <-s.closed:
		return
	}
	pause(context.Background(), work)
	<-s.slots
	_, _ = io.WriteString(w, "done\n")
}

// startServers starts all of them; what it returns closes them.
func startServers(listen func() (net.Listener, error), arrived *atomic.Int64) (addrs []string, closeAll func(), err error) {
	var servers []*server
	closeAll = func() {
		for _, s := range servers {
			s.close()
		}
	}
	for range nodes {
		s := &server{arrived: arrived}
		addr, err := s.start(listen)
		if err != nil {
			return nil, closeAll, err
		}
		servers, addrs = append(servers, s), append(addrs, addr)
	}
	return addrs, closeAll, nil
}

func (s *server) start(listen func() (net.Listener, error)) (addr string, err error) {
	l, err := listen()
	if err != nil {
		return "", fmt.Errorf("starting a server: %w", err)
	}
	s.slots, s.closed = make(chan struct{}, slots), make(chan struct{})
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.http.Serve(l) }()
	return l.Addr().String(), nil
}

// close sends those who wait away and waits for those who are served.
func (s *server) close() {
	close(s.closed)
	ctx, cancel := context.WithTimeout(context.Background(), 2*work)
	defer cancel()
	_ = s.http.Shutdown(ctx)
}
