package discovery

import (
	"fmt"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// NameServer is a name server on loopback for the tests that are not of this
// package.
type NameServer struct {
	Addr   string
	server *dnsServer
}

// NewNameServer starts one that knows no names.
func NewNameServer(t testing.TB) *NameServer {
	s := newDNSServer(t)
	return &NameServer{Addr: s.addr, server: s}
}

// SetAddrs gives the name n addresses: 10.0.0.1, 10.0.0.2 and so on. Like all
// of its records they may be kept for no time at all.
func (s *NameServer) SetAddrs(name string, n int) {
	var records []dnsmessage.Resource
	for i := range n {
		records = append(records, a(fmt.Sprintf("10.0.0.%d", i+1), 0))
	}
	s.server.set(name, &dnsName{records: records})
}

// SetTargets gives the name n targets, each with its port and an address.
func (s *NameServer) SetTargets(name string, n int) {
	var records []dnsmessage.Resource
	for i := range n {
		target := fmt.Sprintf("t%d.test.", i+1)
		s.server.set(target, &dnsName{records: []dnsmessage.Resource{a(fmt.Sprintf("10.0.1.%d", i+1), 0)}})
		records = append(records, srv(uint16(i), 1, target, 8080, 0))
	}
	s.server.set(name, &dnsName{records: records})
}
