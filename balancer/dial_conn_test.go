package balancer_test

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

func TestConnectionIsInFlightUntilItIsClosed(t *testing.T) {
	backstaytest.CheckLeaks(t)
	_, list := newLineServers(t, 1)
	b := overTCP(t, balancer.Config{MaxConcurrency: 2}, list...)
	n := b.Nodes()[0]
	one, two := dialed(t, b), dialed(t, b)
	require.Equal(t, 2, n.InFlight())
	require.Zero(t, n.Awaiting(), "it has answered")
	_, err := b.DialContext(t.Context(), "tcp", "orders:1")
	require.ErrorContains(t, err, "2")
	require.NoError(t, one.Close())
	require.ErrorIs(t, one.Close(), net.ErrClosed)
	require.Equal(t, 1, n.InFlight())
	_, err = one.Read(make([]byte, 1))
	require.ErrorIs(t, err, net.ErrClosed)
	require.NoError(t, two.Close())
	require.Zero(t, n.InFlight())
	require.Zero(t, failuresOf(n))
}

func TestConnectionThatBreaksIsOneFailure(t *testing.T) {
	backstaytest.CheckLeaks(t)
	servers, list := newLineServers(t, 1)
	b := overTCP(t, balancer.Config{}, list...)
	n := b.Nodes()[0]
	c := dialed(t, b)
	_, err := ask(c)
	require.NoError(t, err)
	servers[0].reset()
	for range 3 {
		_, err = c.Read(make([]byte, 1))
		require.Error(t, err)
		_, err = c.Write([]byte("x"))
		require.Error(t, err)
	}
	require.Equal(t, int64(1), failuresOf(n))
	require.Zero(t, n.InFlight(), "nobody is there any more")
	require.NoError(t, c.Close())
	require.Equal(t, int64(1), failuresOf(n))
}

func TestConnectionThatEndsIsNoFailure(t *testing.T) {
	backstaytest.CheckLeaks(t)
	server, client := net.Pipe()
	defer server.Close()
	errs := make(chan error, 8)
	b := newStatic(t, 1, &balancer.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
		return failingConn{client, errs}, nil
	}})
	n := b.Nodes()[0]
	c := dialed(t, b)
	require.NoError(t, c.SetReadDeadline(time.Unix(1, 0)))
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Equal(t, 1, n.InFlight())
	for _, err := range []error{io.EOF, syscall.ECONNRESET, syscall.EPIPE} {
		errs <- err
		_, got := c.Read(make([]byte, 1))
		require.Equal(t, err, got, "passed on as it is")
	}
	require.Equal(t, 1, n.InFlight())
	require.NoError(t, c.Close())
	require.Zero(t, failuresOf(n), "after the end of its own accord nothing can break")
	require.Zero(t, n.InFlight())
}

// failingConn reads the errors that a test gives it.
type failingConn struct {
	net.Conn
	errs chan error
}

func (c failingConn) Read(p []byte) (int, error) {
	select {
	case err := <-c.errs:
		return 0, err
	default:
		return c.Conn.Read(p)
	}
}

func TestConnectionsHaveTheAbilitiesOfThoseBeneath(t *testing.T) {
	backstaytest.CheckLeaks(t)
	path := filepath.Join(t.TempDir(), "s")
	tcp, unix := newLineServer(t, "tcp", "127.0.0.1:0"), newLineServer(t, "unix", path)

	c := dialed(t, overTCP(t, balancer.Config{}, discovery.Endpoint{Addr: tcp.addr}))
	defer c.Close()
	sys, ok := c.(syscall.Conn)
	require.True(t, ok)
	raw, err := sys.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(uintptr) {}))
	require.Implements(t, (*io.ReaderFrom)(nil), c)
	require.Implements(t, (*io.WriterTo)(nil), c)
	require.NoError(t, c.(interface{ SetKeepAlive(on bool) error }).SetKeepAlive(true))
	require.NoError(t, c.(interface{ SetNoDelay(on bool) error }).SetNoDelay(true))
	require.IsType(t, (*net.TCPConn)(nil), c.(interface{ NetConn() net.Conn }).NetConn())
	_, err = io.Copy(c, strings.NewReader("one\ntwo\n"))
	require.NoError(t, err)
	require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, strings.Repeat(tcp.addr+"\n", 2), string(got), "half-closed, the peer still answers")

	c = dialed(t, overTCP(t, balancer.Config{}, discovery.Endpoint{Addr: unix.addr}))
	defer c.Close()
	require.Implements(t, (*syscall.Conn)(nil), c)
	who, err := ask(c)
	require.NoError(t, err)
	require.Equal(t, unix.addr, who)

	server, client := net.Pipe()
	defer server.Close()
	b := newStatic(t, 1, &balancer.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return client, nil }})
	c = dialed(t, b)
	require.NotImplements(t, (*syscall.Conn)(nil), c, "it has no such thing")
	require.Equal(t, client, c.(interface{ NetConn() net.Conn }).NetConn())
	require.NoError(t, c.Close())
}
