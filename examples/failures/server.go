package main

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/discovery"
)

// server is a real HTTP server on a port of loopback.
type server struct {
	name, addr string
	behaviour  atomic.Pointer[http.HandlerFunc]
	http       *http.Server // its present life
	held       []net.Conn   // keep the port while it is dead
}

func newServer(name string) (*server, error) {
	s := &server{name: name, addr: "127.0.0.1:0"}
	s.is(well)
	err := s.start()
	return s, err
}

// is makes the server behave from now on.
func (s *server) is(h http.HandlerFunc) { s.behaviour.Store(&h) }

func (s *server) start() error {
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		return err
	}
	if s.addr = l.Addr().String(); s.held == nil {
		if s.held, err = hold(l); err != nil {
			return err
		}
	}
	s.http = &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(
		func(w http.ResponseWriter, req *http.Request) {
			_, _ = io.Copy(io.Discard, req.Body)
			(*s.behaviour.Load())(w, req)
		})}
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
func (s *server) kill() {
	_ = s.http.Close()
	pause(context.Background(), 10*time.Millisecond) // what was being accepted is cut too
}

func endpoints(servers ...*server) []discovery.Endpoint {
	var list []discovery.Endpoint
	for _, s := range servers {
		list = append(list, discovery.Endpoint{ID: s.name, Addr: s.addr})
	}
	return list
}

func well(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "here you are") }

func stalled(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }

func slow(w http.ResponseWriter, req *http.Request) {
	pause(req.Context(), 100*time.Millisecond)
	well(w, req)
}

// answers returns a behaviour with a fixed status and headers in pairs.
func answers(status int, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
	}
}

// resets breaks the connection instead of answering.
func resets(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// breaksOff sends half of what it promises. net/http cuts the connection then.
func breaksOff(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	_, _ = w.Write(make([]byte, 500))
}

// registry is a resolver whose list the scenes change: an error in its place
// means that it is out of order.
type registry chan any

func (r registry) Watch(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		for {
			var goOn bool
			select {
			case <-ctx.Done():
				return
			case news := <-r:
				switch news := news.(type) {
				case []discovery.Endpoint:
					goOn = yield(discovery.Set{Endpoints: news}, nil)
				case error:
					goOn = yield(discovery.Set{}, news)
				}
			}
			if !goOn {
				return
			}
		}
	}
}
