package discovery

import (
	"cmp"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

// dnsServer is a name server on loopback, UDP and TCP, whose records change and
// which misbehaves on request.
type dnsServer struct {
	addr string

	mu      sync.Mutex
	names   map[string]*dnsName // by lower-case absolute name
	asked   map[string]int      // by "name type network"
	lying   bool                // answer every question over UDP with lies first
	packets net.PacketConn
	stream  net.Listener
	wg      sync.WaitGroup
}

// dnsName is what the server says about a name. One that it does not know is
// NXDOMAIN.
type dnsName struct {
	records   []dnsmessage.Resource
	extra     []dnsmessage.Resource // of the additional section
	rcode     dnsmessage.RCode
	failing   dnsmessage.Type // the rcode is for this type only; 0 is for all
	silent    bool            // no answer at all
	truncated bool            // over UDP: only over TCP is it whole
}

func newDNSServer(t testing.TB) *dnsServer {
	t.Helper()
	s := &dnsServer{names: map[string]*dnsName{}, asked: map[string]int{}}
	for range 20 { // until a port is free for both
		var err error
		s.stream, err = net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		s.addr = s.stream.Addr().String()
		if s.packets, err = net.ListenPacket("udp", s.addr); err == nil {
			break
		}
		_ = s.stream.Close()
	}
	require.NotNil(t, s.packets)
	s.wg.Go(s.servePackets)
	s.wg.Go(s.serveStreams)
	t.Cleanup(func() {
		_ = s.packets.Close()
		_ = s.stream.Close()
		s.wg.Wait()
	})
	return s
}

// set replaces what the server says about a name; nil makes it NXDOMAIN.
func (s *dnsServer) set(name string, n *dnsName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == nil {
		delete(s.names, name)
		return
	}
	s.names[name] = n
}

// questions returns how often a name has been asked for, as "A" or "AAAA" or
// "SRV" over "udp" or "tcp".
func (s *dnsServer) questions(name, kind, network string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[name+" "+kind+" "+network]
}

func (s *dnsServer) servePackets() {
	buf := make([]byte, 4096)
	for {
		n, from, err := s.packets.ReadFrom(buf)
		if err != nil {
			return
		}
		for _, answer := range s.answers(buf[:n], "udp") {
			_, _ = s.packets.WriteTo(answer, from)
		}
	}
}

func (s *dnsServer) serveStreams() {
	for {
		conn, err := s.stream.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() {
			defer conn.Close()
			var size [2]byte
			if _, err := io.ReadFull(conn, size[:]); err != nil {
				return
			}
			query := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(conn, query); err != nil {
				return
			}
			for _, answer := range s.answers(query, "tcp") {
				// In two pieces: the length may arrive alone.
				_, _ = conn.Write(binary.BigEndian.AppendUint16(nil, uint16(len(answer))))
				_, _ = conn.Write(answer)
			}
		})
	}
}

// answers returns the messages to send for a query, in order.
func (s *dnsServer) answers(query []byte, network string) [][]byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.ToLower(q.Name.String())
	s.asked[name+" "+strings.TrimPrefix(q.Type.String(), "Type")+" "+network]++
	n := s.names[name]
	if n == nil {
		return [][]byte{pack(h.ID, q, &dnsName{rcode: dnsmessage.RCodeNameError}, false)}
	}
	if n.silent {
		return nil
	}
	said := *n
	if n.failing != 0 && n.failing != q.Type {
		said.rcode = dnsmessage.RCodeSuccess
	}
	said.records = nil
	for _, r := range n.records {
		if r.Header.Type == q.Type || r.Header.Type == dnsmessage.TypeCNAME {
			r.Header.Name = cmp.Or(r.Header.Name, q.Name)
			said.records = append(said.records, r)
		}
	}
	if said.rcode != dnsmessage.RCodeSuccess {
		said.records = nil
	}
	var out [][]byte
	if s.lying && network == "udp" {
		lie := &dnsName{records: []dnsmessage.Resource{a("6.6.6.6", 6666)}}
		lie.records[0].Header.Name = q.Name
		other := q
		other.Name = dnsmessage.MustNewName("another.test.")
		out = append(out, []byte("garbage"), pack(h.ID+1, q, lie, false), pack(h.ID, other, lie, false))
	}
	return append(out, pack(h.ID, q, &said, n.truncated && network == "udp"))
}

func pack(id uint16, q dnsmessage.Question, n *dnsName, truncated bool) []byte {
	m := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: id, Response: true, RecursionDesired: true, RecursionAvailable: true,
			RCode: n.rcode, Truncated: truncated,
		},
		Questions: []dnsmessage.Question{q}, Answers: n.records, Additionals: n.extra,
	}
	if truncated {
		// What there was room for, and it is not to be relied on.
		m.Answers = []dnsmessage.Resource{a("6.6.6.6", 6666)}
		m.Answers[0].Header.Name = q.Name
		m.Additionals = nil
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// dnsRecord makes a record; one without a name gets the question's.
func dnsRecord(name string, kind dnsmessage.Type, ttl uint32, body dnsmessage.ResourceBody) dnsmessage.Resource {
	r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Type: kind, Class: dnsmessage.ClassINET, TTL: ttl}, Body: body}
	if name != "" {
		r.Header.Name = dnsmessage.MustNewName(name)
	}
	return r
}

func a(ip string, ttl uint32) dnsmessage.Resource { return aOf("", ip, ttl) }

func aOf(name, ip string, ttl uint32) dnsmessage.Resource {
	addr := netip.MustParseAddr(ip)
	if addr.Is4() {
		return dnsRecord(name, dnsmessage.TypeA, ttl, &dnsmessage.AResource{A: addr.As4()})
	}
	return dnsRecord(name, dnsmessage.TypeAAAA, ttl, &dnsmessage.AAAAResource{AAAA: addr.As16()})
}

func alias(name, to string, ttl uint32) dnsmessage.Resource {
	return dnsRecord(name, dnsmessage.TypeCNAME, ttl, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to)})
}

func srv(priority, weight uint16, target string, port uint16, ttl uint32) dnsmessage.Resource {
	return dnsRecord("", dnsmessage.TypeSRV, ttl, &dnsmessage.SRVResource{
		Priority: priority, Weight: weight, Port: port, Target: dnsmessage.MustNewName(target),
	})
}
