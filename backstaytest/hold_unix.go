//go:build unix

package backstaytest

import (
	"net/netip"
	"syscall"
)

// holdPort takes an address of 127.0.0.1, with any port that is free if it has
// none of its own, until it is released. A bound socket that does not listen
// refuses connections like none at all, and the kernel will not give its port to a
// dialer for its own end: which would be in the way of who listens there again, or
// connect to itself. On Linux another socket may listen beside it.
func holdPort(addr string) (held string, release func(), ok bool) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil || !at.Addr().Is4() {
		return "", nil, false
	}
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return "", nil, false
	}
	release = func() { _ = syscall.Close(fd) }
	_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if syscall.Bind(fd, &syscall.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}) == nil {
		if name, err := syscall.Getsockname(fd); err == nil {
			if own, ok := name.(*syscall.SockaddrInet4); ok {
				return netip.AddrPortFrom(netip.AddrFrom4(own.Addr), uint16(own.Port)).String(), release, true //nolint:gosec // a port
			}
		}
	}
	release()
	return "", nil, false
}
