package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// loopbackSize is the length of all bodies.
const loopbackSize = 1 << 10

// loopback compares whole calls to servers in this process: the time is that of
// both sides.
type loopback struct {
	method  string
	h2c     bool // HTTP/2 without TLS, else HTTP/1.1
	servers int
}

func loopbackContests() []contest {
	var all []contest
	for _, servers := range []int{1, 4} {
		for _, h2c := range []bool{false, true} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				all = append(all, loopback{method: method, h2c: h2c, servers: servers}.contest())
			}
		}
	}
	return all
}

func (l loopback) contest() contest {
	protocol, h2c, plain := "http1", backstay.Off, "http"
	otherPool, clientConns := "backstay-clientconn", balancer.On // than the default one
	if l.h2c {
		protocol, h2c, plain = "h2c", backstay.On, "h2c"
		otherPool, clientConns = "backstay-nethttp-pool", balancer.Off
	}
	c := contest{
		name:  fmt.Sprintf("HTTPLoopback/%s-%s-1KiB/servers=%d", protocol, strings.ToLower(l.method), l.servers),
		modes: []mode{serial(), {name: "64-callers", goroutines: 64}},
		peers: []peer{
			{name: "bare", setup: func(s *stage) (job, error) {
				addrs, err := startServers(s, l.servers)
				// Somebody without a balancer would take the servers in turn.
				urls := make([]string, len(addrs))
				for i, addr := range addrs {
					urls[i] = "http://" + addr + "/v1/items"
				}
				return l.job(&http.Client{Transport: pooled(s, l.h2c)}, urls...), err
			}},
			{name: ours, setup: func(s *stage) (job, error) {
				addrs, err := startServers(s, l.servers)
				if err != nil {
					return nil, err
				}
				client, err := ourClient(ours, h2c, addrs...).wrap(s, pooled(s, false))
				return l.job(client, "http://orders/v1/items"), err
			}},
			{name: otherPool, setup: func(s *stage) (job, error) {
				addrs, err := startServers(s, l.servers)
				if err != nil {
					return nil, err
				}
				c, err := backstay.New(&backstay.Config{Base: pooled(s, false), Default: backstay.Service{
					Endpoints: discovery.Addrs(addrs...), H2C: h2c, Conns: balancer.ConnConfig{ClientConns: clientConns},
				}})
				if err != nil {
					return nil, err
				}
				s.cleanup(func() { _ = c.Close() })
				return l.job(c, "http://orders/v1/items"), nil
			}},
			{name: "httplb", module: moduleHTTPLB, setup: func(s *stage) (job, error) {
				addrs, err := startServers(s, l.servers)
				return l.job(httplbClient(s, addrs, nil), plain+"://orders/v1/items"), err
			}},
		},
	}
	if l.h2c {
		return c
	}
	c.peers = append(c.peers, peer{name: "httplb-pooled", module: moduleHTTPLB, setup: func(s *stage) (job, error) {
		addrs, err := startServers(s, l.servers)
		transports := httplbTransport(func() http.RoundTripper { return pooled(s, false) })
		return l.job(httplbClient(s, addrs, transports), "http://orders/v1/items"), err
	}})
	if l.servers > 1 {
		return c
	}
	for _, w := range []wrapper{failsafeClient(true, false), retryableClient()} {
		c.peers = append(c.peers, peer{name: w.name, module: w.module, setup: func(s *stage) (job, error) {
			addrs, err := startServers(s, l.servers)
			if err != nil {
				return nil, err
			}
			client, err := w.wrap(s, pooled(s, false))
			return l.job(client, "http://"+addrs[0]+"/v1/items"), err
		}})
	}
	return c
}

// job makes calls to the URLs in turn.
func (l loopback) job(client doer, urls ...string) job {
	ctx := context.Background()
	payload := bytes.Repeat([]byte("x"), loopbackSize)
	return func(calls *loop) error {
		for i := calls.goroutine; calls.next(); i++ {
			var body io.Reader
			if l.method == http.MethodPost {
				body = bytes.NewReader(payload)
			}
			req, err := http.NewRequestWithContext(ctx, l.method, urls[i%len(urls)], body)
			if err != nil {
				return err
			}
			if err := exchange(client, req, loopbackSize); err != nil {
				return err
			}
		}
		return nil
	}
}

// pooled returns a transport that keeps as many connections as are used.
func pooled(s *stage, h2c bool) *http.Transport {
	t := &http.Transport{MaxIdleConnsPerHost: 128}
	if h2c {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	s.cleanup(t.CloseIdleConnections)
	return t
}

// startServers starts servers that read what they get and answer, and returns
// their addresses.
func startServers(s *stage, n int) ([]string, error) {
	payload := bytes.Repeat([]byte("x"), loopbackSize)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(payload)
	})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	addrs := make([]string, n)
	for i := range addrs {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		server := &http.Server{Handler: handler, Protocols: protocols}
		go func() { _ = server.Serve(listener) }()
		s.cleanup(func() { _ = server.Close() })
		addrs[i] = listener.Addr().String()
	}
	return addrs, nil
}
