package balancer

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// scriptedConn is a connection whose peer reads when it is told to.
type scriptedConn struct {
	net.Conn
	mu     sync.Mutex
	held   chan struct{} // what a Write waits for; nil: it does not
	fails  error
	short  bool // it does not even say so
	comes  int  // how much of a Write that fails comes through
	got    []string
	closed chan struct{}
}

func (c *scriptedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	held := c.held
	c.mu.Unlock()
	if held != nil {
		<-held
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fails != nil || c.short {
		p = p[:c.comes]
	}
	c.got = append(c.got, string(p))
	return len(p), c.fails
}

func (c *scriptedConn) Read([]byte) (int, error) { <-c.closed; return 0, net.ErrClosed }
func (c *scriptedConn) RemoteAddr() net.Addr     { return &net.TCPAddr{} }

func (c *scriptedConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.closed:
	default:
		close(c.closed)
	}
	return nil
}

func (c *scriptedConn) received() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got
}

// newOutboxTo returns a connection with an outbox, over c.
func newOutboxTo(c *scriptedConn) *nodeConn {
	c.closed = make(chan struct{})
	nc := &nodeConn{Conn: c, conn: &conn{node: new(Node), open: make(map[*nodeConn]struct{})}, wire: &wire{lost: make(chan struct{})}}
	nc.out = newOutbox(nc)
	nc.conn.open[nc] = struct{}{}
	return nc
}

func put(t *testing.T, nc *nodeConn, text string) {
	t.Helper()
	n, err := nc.Write([]byte(text))
	require.NoError(t, err)
	require.Len(t, text, n)
}

func TestOutboxSendsAtOnceWhatHasComeMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &scriptedConn{held: make(chan struct{})}
		nc := newOutboxTo(c)
		defer nc.Close()
		put(t, nc, "a")
		synctest.Wait()
		require.False(t, nc.wire.writes.quiet())
		put(t, nc, "b")
		put(t, nc, "c")
		close(c.held)
		synctest.Wait()
		require.Equal(t, []string{"a", "bc"}, c.received())
		require.True(t, nc.wire.writes.quiet())
		put(t, nc, "d")
		synctest.Wait()
		require.Equal(t, []string{"a", "bc", "d"}, c.received())
	})
}

func TestOutboxSendsWhatIsLargeWithoutAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := new(scriptedConn)
		nc := newOutboxTo(c)
		defer nc.Close()
		large, huge := strings.Repeat("l", outboxLarge), strings.Repeat("h", outboxHuge)
		put(t, nc, large)
		require.Equal(t, []string{large}, c.received(), "when Write returns")

		c.held = make(chan struct{})
		put(t, nc, "a")
		synctest.Wait()
		put(t, nc, "b")
		var done sync.WaitGroup
		done.Go(func() { put(t, nc, large) })
		synctest.Wait()
		close(c.held)
		done.Wait()
		require.Equal(t, large+"a"+"b"+large, strings.Join(c.received(), ""))
		put(t, nc, "c")
		put(t, nc, huge)
		require.Equal(t, huge, c.received()[len(c.received())-1], "not copied")
		require.True(t, strings.HasSuffix(strings.Join(c.received(), ""), "c"+huge))
	})
}

// Whatever the sizes and however many write, each Write's bytes come in one piece, and
// those of one writer in their order.
func TestOutboxKeepsTheOrder(t *testing.T) {
	c := new(scriptedConn)
	nc := newOutboxTo(c)
	defer nc.Close()
	const writers, writes = 4, 500
	var all sync.WaitGroup
	for id := range writers {
		all.Go(func() {
			for i := range writes {
				size := 4 + rand.IntN([]int{16, 3 * outboxLarge, 2 * outboxHuge}[min(rand.IntN(20), 2)]) //nolint:gosec // a test
				p := bytes.Repeat([]byte{byte(id)}, size)
				p[1], p[2], p[3] = byte(i), byte(i>>8), byte(size>>10)
				p = append([]byte{byte(size >> 16), byte(size >> 8), byte(size)}, p...)
				if n, err := nc.Write(p); err != nil || n != len(p) {
					t.Error(n, err)
				}
			}
		})
	}
	all.Wait()
	require.Eventually(t, nc.wire.writes.quiet, 10*time.Second, time.Millisecond)
	got := strings.NewReader(strings.Join(c.received(), ""))
	next := make([]int, writers)
	for got.Len() > 0 {
		var size [3]byte
		_, err := io.ReadFull(got, size[:])
		require.NoError(t, err)
		p := make([]byte, int(size[0])<<16|int(size[1])<<8|int(size[2]))
		_, err = io.ReadFull(got, p)
		require.NoError(t, err)
		id := int(p[0])
		require.Equal(t, next[id], int(p[1])|int(p[2])<<8)
		require.Equal(t, bytes.Repeat(p[:1], len(p)-4), p[4:])
		next[id]++
	}
	for _, n := range next {
		require.Equal(t, writes, n)
	}
}

func TestOutboxThatIsFullWaitsForThePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &scriptedConn{held: make(chan struct{})}
		nc := newOutboxTo(c)
		piece := strings.Repeat("x", 1<<10)
		put(t, nc, piece) // is being sent
		synctest.Wait()
		for range outboxSize / len(piece) {
			put(t, nc, piece)
		}
		through := false
		go func() {
			put(t, nc, piece)
			through = true
		}()
		synctest.Wait()
		require.False(t, through)
		close(c.held)
		synctest.Wait()
		require.True(t, through)
		require.Len(t, strings.Join(c.received(), ""), outboxSize+2*len(piece))
		require.NoError(t, nc.Close())
	})
}

// Where sending fails before the first byte, none of what was in the outbox has been
// sent, nor ever will be; else all of it may have been.
func TestOutboxThatCannotSend(t *testing.T) {
	for _, comes := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			c := &scriptedConn{held: make(chan struct{}), fails: syscall.EPIPE, comes: comes}
			nc := newOutboxTo(c)
			mark := nc.wire.writes.mark()
			put(t, nc, "a")
			synctest.Wait()
			put(t, nc, "b")
			close(c.held)
			_, err := nc.Read(make([]byte, 1))
			require.ErrorIs(t, err, syscall.EPIPE, "and not that the connection is closed")
			_, err = nc.Write([]byte("c"))
			require.ErrorIs(t, err, syscall.EPIPE)
			require.True(t, nc.wire.writes.quiet())
			require.Equal(t, comes == 0, nc.wire.writes.noneSince(mark))
			require.Equal(t, []string{"a"[:comes]}, c.received())
			require.NoError(t, nc.Close())
		})
	}
}

// That is against the rules of io.Writer; net/http looks after it, too.
func TestOutboxLosesNothingInSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &scriptedConn{short: true, comes: 1}
		nc := newOutboxTo(c)
		put(t, nc, "ab")
		_, err := nc.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.ErrShortWrite)
		require.NoError(t, nc.Close())
	})
}

func TestOutboxIsDroppedWithItsConnection(t *testing.T) {
	c := new(scriptedConn)
	nc := newOutboxTo(c)
	mark := nc.wire.writes.mark()
	nc.out.sender, nc.out.woken = true, true // who has not had its turn
	put(t, nc, "request")
	require.False(t, nc.wire.writes.quiet())
	require.NoError(t, nc.Close())
	_, err := nc.Write([]byte("more"))
	require.ErrorIs(t, err, net.ErrClosed)
	require.True(t, nc.wire.writes.quiet())
	require.True(t, nc.wire.writes.noneSince(mark))
	require.Empty(t, c.received())
}

// Who is told that the connection is closed while his bytes are being sent must not
// take them for unsent.
func TestOutboxClosedWhileItSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &scriptedConn{held: make(chan struct{})}
		nc := newOutboxTo(c)
		mark := nc.wire.writes.mark()
		put(t, nc, "head")
		synctest.Wait()
		put(t, nc, "more")
		require.NoError(t, nc.Close())
		_, err := nc.Write([]byte("body"))
		require.ErrorIs(t, err, net.ErrClosed)
		require.False(t, nc.wire.writes.quiet())
		close(c.held)
		synctest.Wait()
		require.True(t, nc.wire.writes.quiet())
		require.False(t, nc.wire.writes.noneSince(mark))
		require.Equal(t, []string{"head"}, c.received())
	})
}

func TestCloseFreesThoseWhoWaitForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &scriptedConn{held: make(chan struct{})}
		nc := newOutboxTo(c)
		defer close(c.held)
		put(t, nc, "a")
		synctest.Wait()
		errs := make(chan error, 1)
		go func() {
			_, err := nc.Write(make([]byte, outboxLarge))
			errs <- err
		}()
		synctest.Wait()
		require.Empty(t, errs)
		require.NoError(t, nc.Close())
		require.ErrorIs(t, <-errs, net.ErrClosed)
	})
}
