//go:build !unix

package backstaytest

import "net"

// holdPort does nothing where sockets differ too much.
func holdPort(net.Addr) (release func()) { return func() {} }
