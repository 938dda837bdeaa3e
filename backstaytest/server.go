package backstaytest

import (
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/backstay/backstay/discovery"
)

// InstanceHeader is a header of every answer of a [Server]: the ID of the
// server that gave it.
const InstanceHeader = "X-Instance"

// ServerConfig configures [NewServer].
type ServerConfig struct {
	// Network is where the server listens. Default: a network of its own.
	Network *Network
	// Addr is the address to listen on, "host:port"; a missing port is 80, or
	// 443 with TLS. Default: "server.test".
	Addr string
	// Protocol is what it speaks. Default: HTTP1.
	Protocol Protocol
	// Authority issues the certificate, which is good for Addr's host.
	// Default: a new one, if Protocol asks for TLS.
	Authority *Authority
}

// Server is an HTTP server of net/http's under the test's thumb: it can be
// killed, stalled, slowed and made to fail while it runs. [NewServer] makes one
// in memory, [NewFleet] many on loopback or in memory.
//
// All methods may be called concurrently. The server is closed, and waited for,
// when its test ends.
type Server struct {
	// ID names the server; it is its endpoint's ID.
	ID string
	// Addr is the host:port it listens on, or did before it was killed.
	Addr string
	// Authority issued its certificate; nil without TLS.
	Authority *Authority

	t        testing.TB
	protocol Protocol
	names    []string // of the certificate
	network  *Network // nil: loopback
	handler  http.Handler
	keyOf    func(*http.Request) string
	changed  func() // the endpoint differs; nil for a server without a fleet

	mu       sync.Mutex
	endpoint discovery.Endpoint
	process  *process      // nil: dead
	past     []*process    // lives that have ended
	left     bool          // for good: its fleet, or the test
	listener net.Listener  // nil: refusing
	release  func()        // gives back the port that is held; may be nil
	faults   scripted      // what to do to requests
	frozen   chan struct{} // closed at the thaw; nil: not frozen
	stats    Stats
	keys     map[string]int
	bodies   map[uint64]int
}

// NewServer starts a server in memory. A nil handler answers 200 "ok". It works
// inside a synctest bubble. Its [Server.Client] and [Server.Transport] reach it,
// and so does a DialContext of its network, by the name in its address.
func NewServer(t testing.TB, h http.Handler, cfg *ServerConfig) *Server {
	t.Helper()
	var c ServerConfig
	if cfg != nil {
		c = *cfg
	}
	if c.Network == nil {
		c.Network = NewNetwork()
	}
	if c.Addr == "" {
		c.Addr = "server.test"
	}
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		c.Addr = net.JoinHostPort(strings.Trim(c.Addr, "[]"), defaultPort(c.Protocol))
	}
	if c.Authority == nil && c.Protocol.secure() {
		c.Authority = NewAuthority(t)
	}
	host, _, _ := net.SplitHostPort(c.Addr)
	s := &Server{
		ID: c.Addr, Addr: c.Addr, Authority: c.Authority,
		t: t, protocol: c.Protocol, names: []string{host}, network: c.Network, handler: h,
	}
	s.start()
	return s
}

func defaultPort(p Protocol) string {
	if p.secure() {
		return "443"
	}
	return "80"
}

// start completes a server whose fixed fields are set, and registers its end.
func (s *Server) start() {
	s.t.Helper()
	if s.handler == nil {
		s.handler = http.HandlerFunc(answerOK)
	}
	if s.keyOf == nil {
		s.keyOf = requestKey
	}
	s.t.Cleanup(s.Close)
	s.Restart()
	s.endpoint.ID, s.endpoint.Addr = s.ID, s.Addr
}

func answerOK(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	_, _ = io.WriteString(w, "ok\n")
}

// URL returns the server's address as a URL without a path.
func (s *Server) URL() string {
	if s.protocol.secure() {
		return "https://" + s.Addr
	}
	return "http://" + s.Addr
}

// Transport returns a new transport that reaches the server, speaks its
// protocol and trusts its certificate. Its idle connections are closed when the
// test ends.
func (s *Server) Transport() *http.Transport {
	tr := newTransport(s.t, s.network, s.protocol, s.Authority)
	if tr.TLSClientConfig != nil {
		tr.TLSClientConfig.ServerName = s.names[0] // a fleet's servers have that of their service
	}
	return tr
}

func newTransport(t testing.TB, network *Network, p Protocol, ca *Authority) *http.Transport {
	tr := &http.Transport{MaxIdleConnsPerHost: 100}
	if network != nil {
		tr.DialContext = network.DialContext
	}
	p.configure(tr, ca)
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// Client returns a new client over a new [Server.Transport].
func (s *Server) Client() *http.Client { return &http.Client{Transport: s.Transport()} }

// Endpoint returns what resolvers list for the server.
func (s *Server) Endpoint() discovery.Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endpoint
}

// SetEndpoint changes what resolvers list for the server, such as its weight,
// its zone, or that it is draining. The change gets a copy of the endpoint, so
// that the sets that were given stay as they are; it must not call the server.
func (s *Server) SetEndpoint(change func(*discovery.Endpoint)) {
	s.mu.Lock()
	e := s.endpoint
	e.Fallback, e.Metadata = slices.Clone(e.Fallback), maps.Clone(e.Metadata)
	change(&e)
	s.endpoint = e
	s.mu.Unlock()
	if s.changed != nil {
		s.changed()
	}
}
