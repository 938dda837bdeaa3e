package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"time"

	"github.com/redis/go-redis/v9"
)

// server is a redis-server of our own, which knows its name.
type server struct {
	name, addr string
	process    *exec.Cmd  // nil while it does not run
	held       []net.Conn // keep the port meanwhile
}

// startServers starts servers with these names. Those that it returns are to be
// killed, also after an error.
func startServers(ctx context.Context, names ...string) ([]*server, error) {
	var servers []*server
	for _, name := range names {
		// A port that is free now: redis-server cannot choose one itself.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return servers, err
		}
		s := &server{name: name, addr: l.Addr().String()}
		s.held, err = hold(ctx, l)
		_ = l.Close()
		if err != nil {
			return servers, err
		}
		servers = append(servers, s)
		if err := s.start(ctx); err != nil {
			return servers, err
		}
	}
	return servers, nil
}

// hold connects a listener to itself. As long as that connection stands, which is to
// the end of the program, nobody else is given the port of a server that is dead for a
// while, and its calls with it.
func hold(ctx context.Context, l net.Listener) ([]net.Conn, error) {
	out, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	in, err := l.Accept()
	return []net.Conn{out, in}, err
}

// start runs the server and waits until it answers.
func (s *server) start(ctx context.Context) error {
	_, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "redis-server", "--bind", "127.0.0.1", "--port", port,
		"--save", "", "--appendonly", "no") // nothing is written to disk
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting redis-server: %w", err)
	}
	s.process = cmd
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.addr)
		if err == nil {
			_ = conn.Close()
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("redis-server does not come up: %w", err)
		}
		pause(ctx, 10*time.Millisecond)
	}
	client := redis.NewClient(&redis.Options{Addr: s.addr})
	defer client.Close()
	return client.Set(ctx, "name", s.name, 0).Err()
}

// kill ends the process at once, and all connections with it.
func (s *server) kill() {
	if s.process == nil {
		return
	}
	_ = s.process.Process.Kill()
	_ = s.process.Wait() // that it was killed is no news
	s.process = nil
}
