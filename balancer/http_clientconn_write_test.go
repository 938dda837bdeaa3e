package balancer_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
)

// goneConn is a connection whose peer sends everything at some point, and is gone then:
// what it sent is there to be read, and what is written fails.
type goneConn struct {
	net.Conn
	mu     sync.Mutex
	got    bytes.Buffer
	more   sync.Cond
	gone   bool // writes fail, and what has come is read to its end
	paused bool
	closed bool
}

func (c *goneConn) receive() {
	p := make([]byte, 64<<10)
	for {
		n, err := c.Conn.Read(p)
		c.mu.Lock()
		c.got.Write(p[:n])
		c.more.Broadcast()
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *goneConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	for !c.closed && (c.paused && !c.gone || c.got.Len() == 0 && !c.gone) {
		c.more.Wait()
	}
	gone := c.gone
	c.mu.Unlock()
	if gone {
		time.Sleep(50 * time.Microsecond)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return 0, net.ErrClosed
	case c.got.Len() == 0:
		return 0, syscall.ECONNRESET
	}
	return c.got.Read(p)
}

func (c *goneConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	if gone {
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}
	}
	return c.Conn.Write(p)
}

func (c *goneConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.more.Broadcast()
	c.mu.Unlock()
	return c.Conn.Close()
}

func TestAnswerThatHasComeIsReadAlthoughNothingMoreCanBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Second) })
		const size = 1 << 20
		handler := func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Second)
			_, _ = w.Write(make([]byte, size))
		}
		fleet := backstaytest.FleetConfig{
			Network: backstaytest.NewNetwork(), Protocol: backstaytest.H2C, Handler: http.HandlerFunc(handler),
		}
		var conn *goneConn
		c := newCaller(t, 1, fleet, balancer.Config{}, func(tr *http.Transport) {
			dial := tr.DialContext
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := dial(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				conn = &goneConn{Conn: nc}
				conn.more.L = &conn.mu
				go conn.receive()
				return conn, nil
			}
		})
		resp, err := c.rt.RoundTrip(c.request(t.Context(), http.MethodGet, "/", nil))
		require.NoError(t, err)
		defer resp.Body.Close()
		conn.mu.Lock()
		conn.paused = true
		conn.mu.Unlock()
		time.Sleep(2 * time.Second)
		conn.mu.Lock()
		require.Greater(t, conn.got.Len(), size)
		conn.gone = true
		conn.more.Broadcast()
		conn.mu.Unlock()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Len(t, body, size)
	})
}
