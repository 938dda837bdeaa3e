package backstaytest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
)

// Network is a network in memory: listeners by address, and connections to
// them. Several servers can share one. It needs no name service: an address is
// any "host:port", and a name is what it was listened on by.
//
// A Network that is used inside a testing/synctest bubble must be used there
// only. Its connections buffer 64 KiB in each direction, honour deadlines, and
// give the errors that sockets give (ECONNREFUSED, ECONNRESET, EPIPE) inside a
// *net.OpError.
//
// The zero Network is ready for use. All methods may be called concurrently.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*memListener
	dark      map[string]bool
	dials     int
	ports     int
}

// NewNetwork returns an empty network.
func NewNetwork() *Network { return new(Network) }

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

// Listen opens addr, a "host:port". It is an error (EADDRINUSE) if it is open
// already. Closing the listener frees the address and resets the connections
// that were not accepted yet.
func (n *Network) Listen(addr string) (net.Listener, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, &net.OpError{Op: "listen", Net: "mem", Addr: memAddr(addr), Err: err}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: "mem", Addr: memAddr(addr), Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	if n.listeners == nil {
		n.listeners = make(map[string]*memListener)
	}
	l := &memListener{network: n, addr: memAddr(addr), backlog: make(chan *pipeConn, 128), closed: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

// DialContext connects to addr. The network's name does not matter. Where nobody
// listens the dial is refused at once; where [Network.Blackhole] is on it waits
// until ctx ends. It has the signature of net.Dialer's method and so fits
// http.Transport.DialContext.
func (n *Network) DialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	refused := func(err error) error {
		return &net.OpError{Op: "dial", Net: "mem", Addr: memAddr(addr), Err: err}
	}
	n.mu.Lock()
	l, dark := n.listeners[addr], n.dark[addr]
	n.dials++
	n.ports++
	local := memAddr("client:" + strconv.Itoa(n.ports))
	n.mu.Unlock()
	if dark {
		<-ctx.Done()
		return nil, refused(dialEnd(ctx))
	}
	if l == nil {
		return nil, refused(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	if ctx.Err() != nil {
		return nil, refused(dialEnd(ctx))
	}
	client, server := pipe(local, l.addr)
	select {
	case l.backlog <- server:
		select {
		case <-l.closed: // perhaps after Close had emptied the backlog
			server.Reset()
		default:
		}
		return client, nil
	case <-l.closed:
		return nil, refused(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	case <-ctx.Done():
		return nil, refused(dialEnd(ctx))
	}
}

// dialEnd is the error of a dial that ctx ended.
func dialEnd(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return dialTimeout{}
	}
	return ctx.Err()
}

// dialTimeout is what net.Dialer returns when its context's deadline passes: an
// error of its own that answers to context.DeadlineExceeded.
type dialTimeout struct{}

func (dialTimeout) Error() string        { return "i/o timeout" }
func (dialTimeout) Timeout() bool        { return true }
func (dialTimeout) Temporary() bool      { return true }
func (dialTimeout) Is(target error) bool { return target == context.DeadlineExceeded }

// Blackhole makes dials to addr hang until their context ends, as if its packets
// were dropped, or stops doing so. Connections that stand are not affected.
func (n *Network) Blackhole(addr string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dark == nil {
		n.dark = make(map[string]bool)
	}
	n.dark[addr] = on
}

// Dials returns how many dials have been made, whatever came of them.
func (n *Network) Dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

// Transport returns a new transport whose connections go through the network:
// HTTP/1.1 for http URLs, what TLS negotiates for https ones. It keeps up to 100
// idle connections per host. The caller owns it and closes its idle connections.
func (n *Network) Transport() *http.Transport {
	return &http.Transport{DialContext: n.DialContext, MaxIdleConnsPerHost: 100, ForceAttemptHTTP2: true}
}

type memListener struct {
	network *Network
	addr    memAddr
	backlog chan *pipeConn
	once    sync.Once
	closed  chan struct{}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
	default:
		select {
		case c := <-l.backlog:
			return c, nil
		case <-l.closed:
		}
	}
	return nil, &net.OpError{Op: "accept", Net: "mem", Addr: l.addr, Err: net.ErrClosed}
}

func (l *memListener) Addr() net.Addr { return l.addr }

func (l *memListener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		delete(l.network.listeners, string(l.addr))
		l.network.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.backlog:
				c.Reset()
			default:
				return
			}
		}
	})
	return nil
}
