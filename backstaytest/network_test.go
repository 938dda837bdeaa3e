package backstaytest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/nettest"

	"github.com/backstay/backstay/backstaytest"
)

// connect returns both ends of a connection in memory.
func connect(t testing.TB) (client, server net.Conn) {
	t.Helper()
	n := backstaytest.NewNetwork()
	l, err := n.Listen("peer.test:1")
	require.NoError(t, err)
	client, err = n.DialContext(context.Background(), "tcp", "peer.test:1")
	require.NoError(t, err)
	server, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = errors.Join(client.Close(), server.Close(), l.Close()) })
	return client, server
}

func TestConnectionsInMemoryAreConnections(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, c2 = connect(t)
		return c1, c2, func() { _ = errors.Join(c1.Close(), c2.Close()) }, nil
	})
}

func TestConnectionsBufferWhatIsWrittenBeforeAClose(t *testing.T) {
	client, server := connect(t)
	_, err := client.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, client.Close())
	data, err := io.ReadAll(server)
	require.NoError(t, err)
	require.Equal(t, "hello", string(data))
	_, err = server.Write([]byte("late"))
	require.ErrorIs(t, err, syscall.EPIPE)
	_, err = client.Read(make([]byte, 1))
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestConnectionsCloseHalfway(t *testing.T) {
	client, server := connect(t)
	half, ok := client.(interface{ CloseWrite() error })
	require.True(t, ok)
	require.NoError(t, half.CloseWrite())
	_, err := server.Read(make([]byte, 1))
	require.Equal(t, io.EOF, err)
	_, err = server.Write([]byte("still"))
	require.NoError(t, err)
	p := make([]byte, 5)
	_, err = io.ReadFull(client, p)
	require.NoError(t, err)
}

func TestDeadlinesFollowTheFakeClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := connect(t)
		start := time.Now()
		require.NoError(t, client.SetReadDeadline(start.Add(time.Minute)))
		_, err := client.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, time.Minute, time.Since(start))

		require.NoError(t, client.SetWriteDeadline(time.Now().Add(time.Minute)))
		n, err := client.Write(make([]byte, 1<<20)) // nobody reads
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, 64<<10, n)
		require.Equal(t, 2*time.Minute, time.Since(start))
	})
}

func TestNetworkAddressesAreOpenedOnce(t *testing.T) {
	n := backstaytest.NewNetwork()
	l, err := n.Listen("a.test:80")
	require.NoError(t, err)
	_, err = n.Listen("a.test:80")
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	_, err = n.Listen("no port")
	require.Error(t, err)

	waiting, err := n.DialContext(t.Context(), "tcp", "a.test:80")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	_, err = waiting.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET, "it was never accepted")
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = n.DialContext(t.Context(), "tcp", "a.test:80")
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	_, err = n.Listen("a.test:80")
	require.NoError(t, err)
}

func TestNetworkBlackholeHangsDialsUntilTheirContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := backstaytest.NewNetwork()
		_, err := n.Listen("a.test:80")
		require.NoError(t, err)
		n.Blackhole("a.test:80", true)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = n.DialContext(ctx, "tcp", "a.test:80")
		var op *net.OpError
		require.ErrorAs(t, err, &op)
		require.True(t, op.Timeout())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(start))
		n.Blackhole("a.test:80", false)
		_, err = n.DialContext(t.Context(), "tcp", "a.test:80")
		require.NoError(t, err)
	})
}
