//go:build unix

package backstaytest

import (
	"net"
	"syscall"
)

// holdPort keeps a port of 127.0.0.1 from being given to anybody else while
// nobody listens on it: a bound socket that does not listen refuses connections
// like none at all, and the kernel will not pick it for a dialer's own end,
// which could then connect to itself.
func holdPort(addr net.Addr) (release func()) {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || tcp.IP.To4() == nil {
		return func() {}
	}
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return func() {}
	}
	// Best effort: without the hold a test works nearly always.
	_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	_ = syscall.Bind(fd, &syscall.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())})
	return func() { _ = syscall.Close(fd) }
}
