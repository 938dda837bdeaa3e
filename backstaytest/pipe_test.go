package backstaytest

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whoever waits at the end that is reset may close it as soon as it knows, as a server
// does whose handler has found its connection gone.
func TestConnectionsThatAreResetHaveNoGoodEndForThePeer(t *testing.T) {
	client, server := pipe(&net.TCPAddr{}, &net.TCPAddr{})
	require.NoError(t, client.SetReadDeadline(time.Now().Add(10*time.Second)))
	server.in.mu.Lock() // so that nobody here gets to know
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Reset()
	}()
	_, err := client.Read(make([]byte, 1))
	server.in.mu.Unlock()
	<-done
	require.ErrorIs(t, err, syscall.ECONNRESET)
}
