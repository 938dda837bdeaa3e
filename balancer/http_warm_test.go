package balancer_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

func TestFirstCallToANodeThatJoinedFindsItsConnectionReady(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		var handshakes, dials atomic.Int32
		cfg := balancer.Config{Policy: balancer.RoundRobin{}, Conns: balancer.ConnConfig{Min: 3}}
		c := newCaller(t, 2, backstaytest.FleetConfig{Protocol: p, Handler: echo}, cfg, func(tr *http.Transport) {
			if tr.TLSClientConfig != nil {
				tr.TLSClientConfig.VerifyConnection = func(tls.ConnectionState) error { handshakes.Add(1); return nil }
			}
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dials.Add(1)
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			tr.ForceAttemptHTTP2 = p == backstaytest.HTTP2
		})
		want := 3
		if p != backstaytest.HTTP1 {
			want = 1
		}
		c.fetch("/")
		for _, s := range c.fleet.Servers() {
			eventually(t, func() bool { return s.Stats().OpenConnections >= want }, "%s has %d connections", s.ID, s.Stats().OpenConnections)
		}
		joined := c.fleet.Join()
		eventually(t, func() bool { return joined.Stats().OpenConnections == want }, "it has %d connections", joined.Stats().OpenConnections)
		if p == backstaytest.HTTP2 {
			eventually(t, func() bool { return handshakes.Load() == dials.Load() }, "their handshakes are not done")
		}
		eventually(t, func() bool { return !balancer.Filling(c.rt) }, "net/http has not got them all")
		require.Zero(t, joined.Stats().Requests)
		before := dials.Load()
		for range 9 {
			c.fetch("/")
		}
		require.Equal(t, 3, joined.Stats().Requests)
		require.Equal(t, before, dials.Load(), "no call has dialed")
		require.Equal(t, want, joined.Stats().Connections)
		c.settled()
	})
}

func TestHandshakeIsDoneAheadForHTTP1OverTLS(t *testing.T) {
	backstaytest.CheckLeaks(t)
	var handshakes atomic.Int32
	cfg := balancer.Config{Conns: balancer.ConnConfig{Min: 4}}
	c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: backstaytest.HTTP2, Handler: echo}, cfg, func(tr *http.Transport) {
		tr.Protocols = new(http.Protocols)
		tr.Protocols.SetHTTP1(true)
		tr.TLSClientConfig.VerifyConnection = func(tls.ConnectionState) error { handshakes.Add(1); return nil }
	})
	require.Contains(t, c.fetch("/"), "HTTP/1.1")
	eventually(t, func() bool { return handshakes.Load() == 4 }, "%d handshakes", handshakes.Load())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { c.fetch("/") })
	}
	wg.Wait()
	require.EqualValues(t, 4, handshakes.Load())
	require.Equal(t, 4, c.fleet.Stats().Connections)
}

func TestConnectionsAheadAreBoundedByMax(t *testing.T) {
	virtually(t, 1, nil, balancer.Config{Conns: balancer.ConnConfig{Min: 3, Max: 3}}, func(t *testing.T, c *caller) {
		for range 10 {
			c.fetch("/")
		}
		time.Sleep(time.Hour)
		require.Equal(t, 3, c.fleet.Stats().Connections)
	})
}

// No call pays for the change from one generation to the next.
func TestConnectionsAreReplacedByOnesThatAreReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &slowDialer{network: backstaytest.NewNetwork(), takes: map[string]time.Duration{"10.0.0.1:80": 500 * time.Millisecond}, begun: make(map[string]time.Duration), start: time.Now()}
		server := backstaytest.NewServer(t, nil, &backstaytest.ServerConfig{Network: d.network, Addr: "10.0.0.1:80"})
		cfg := balancer.Config{Conns: balancer.ConnConfig{Min: 1, MaxAge: 10 * time.Second}}
		b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{Addr: "10.0.0.1:80"}), &cfg)
		require.NoError(t, err)
		defer b.Close()
		rt := b.Layer(&http.Transport{DialContext: d.DialContext})
		for i := range 600 {
			start := time.Now()
			resp, err := getFrom(t, rt, "http://orders/")
			require.NoError(t, err)
			read(t, resp)
			if i > 0 {
				require.Zero(t, time.Since(start))
			}
			time.Sleep(100 * time.Millisecond)
		}
		require.InDelta(t, 6, server.Stats().Connections, 1)
	})
}

func TestLostConnectionsAreMadeAgain(t *testing.T) {
	virtually(t, 1, nil, balancer.Config{Conns: balancer.ConnConfig{Min: 3}}, func(t *testing.T, c *caller) {
		server := c.fleet.Server(0)
		c.fetch("/")
		time.Sleep(2 * time.Second) // it may make a pause of 1 s between two
		synctest.Wait()
		require.Equal(t, 3, server.Stats().OpenConnections)
		for range 5 {
			server.Kill()
			server.Restart()
			time.Sleep(2 * time.Minute) // with a pause, since they may be closed again at once
			synctest.Wait()
			require.Equal(t, 3, server.Stats().OpenConnections)
		}
		require.Equal(t, 1, server.Stats().Requests)
		c.fetch("/")
	})
}

func TestNodeThatIsDownIsNotDialedAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := backstaytest.NewNetwork()
		c := newCaller(t, 2, backstaytest.FleetConfig{Network: network}, balancer.Config{Policy: first(balancer.Config{}).Policy, Conns: balancer.ConnConfig{Min: 3}}, nil)
		c.fleet.Server(1).Kill()
		c.fetch("/")
		synctest.Wait()
		before := network.Dials()
		time.Sleep(10 * time.Minute)
		require.InDelta(t, 15, network.Dials()-before, 3, "1, 2, 4 … 60 s apart")
		c.fleet.Server(1).Restart()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.GreaterOrEqual(t, c.fleet.Server(1).Stats().OpenConnections, 1)
	})
}

// A server that closes what is idle for some seconds has reason to.
func TestConnectionsThatTheServerDoesNotWantAreMadeMoreAndMoreSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := backstaytest.NewNetwork()
		listener, err := network.Listen("10.0.0.1:80")
		require.NoError(t, err)
		var accepted atomic.Int32
		server := &http.Server{Handler: echo, ReadHeaderTimeout: 2 * time.Second, ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				accepted.Add(1)
			}
		}}
		go func() { _ = server.Serve(listener) }()
		defer server.Close()
		b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{Addr: "10.0.0.1:80"}), &balancer.Config{Conns: balancer.ConnConfig{Min: 2}})
		require.NoError(t, err)
		defer b.Close()
		rt := b.Layer(network.Transport())
		resp, err := getFrom(t, rt, "http://orders/")
		require.NoError(t, err)
		read(t, resp)
		time.Sleep(time.Hour)
		require.Less(t, accepted.Load(), int32(80))
		require.Greater(t, accepted.Load(), int32(40))
		for range 100 { // and none of those that it has closed is handed out
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://orders/", once("hello"))
			require.NoError(t, err)
			resp, err := rt.RoundTrip(req)
			require.NoError(t, err)
			read(t, resp)
			rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
			time.Sleep(1700 * time.Millisecond)
		}
	})
}

// A call that changes protocols needs HTTP/1.1, also where all others go by HTTP/2.
func TestUpgradeOverTLSWithConnectionsAhead(t *testing.T) {
	backstaytest.CheckLeaks(t)
	upgrade := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			echo(w, r)
			return
		}
		nc, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		fmt.Fprint(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		line, _ := bufio.NewReader(nc).ReadString('\n')
		fmt.Fprint(nc, "got "+line)
	})
	c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: backstaytest.HTTP2, Handler: upgrade}, balancer.Config{Conns: balancer.ConnConfig{Min: 1}}, func(tr *http.Transport) {
		tr.Protocols, tr.ForceAttemptHTTP2 = nil, true
	})
	require.Contains(t, c.fetch("/"), "HTTP/2.0")
	req := c.request(t.Context(), http.MethodGet, "/", nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "websocket")
	resp, err := c.rt.RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	_, err = io.WriteString(resp.Body.(io.Writer), "hello\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "got hello\n", line)
	require.NoError(t, resp.Body.Close())
}

// Most handshakes go wrong in the background then, and calls say why.
func TestCertificateIsCheckedAlsoAhead(t *testing.T) {
	backstaytest.CheckLeaks(t)
	c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: backstaytest.HTTP2}, balancer.Config{Conns: balancer.ConnConfig{Min: 2}}, func(tr *http.Transport) {
		tr.TLSClientConfig.ServerName = "elsewhere.test"
	})
	for range 3 {
		_, err := c.rt.RoundTrip(c.request(t.Context(), http.MethodGet, "/", nil))
		var e *tls.CertificateVerificationError
		require.ErrorAs(t, err, &e)
	}
}

func TestHandshakeTimeoutOfTheTemplateHoldsWithConnectionsAhead(t *testing.T) {
	backstaytest.CheckLeaks(t)
	c := newCaller(t, 1, backstaytest.FleetConfig{Protocol: backstaytest.HTTP2}, balancer.Config{AttemptTimeout: -1, Conns: balancer.ConnConfig{Min: 1}}, func(tr *http.Transport) {
		tr.TLSHandshakeTimeout = 100 * time.Millisecond
	})
	c.fleet.Server(0).Freeze()
	defer c.fleet.Server(0).Thaw()
	_, err := c.rt.RoundTrip(c.request(t.Context(), http.MethodGet, "/", nil))
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout())
	require.EqualValues(t, 1, c.failures())
}
