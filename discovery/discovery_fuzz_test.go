package discovery

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

func FuzzDialAddr(f *testing.F) {
	for _, s := range []string{"a:1", "[::1]:80", "::1", "fe80::1%eth0", "unix:/x", "a", "[", "a:b:c", "[::1%]]:1", "unix"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, addr string) {
		network, address, err := DialAddr(addr, "80")
		if err != nil {
			require.Empty(t, address)
			return
		}
		if network == "unix" {
			require.Equal(t, addr, "unix:"+address)
			return
		}
		host, port, err := net.SplitHostPort(address)
		require.NoError(t, err)
		require.NotEmpty(t, host)
		_, err = net.DefaultResolver.LookupPort(t.Context(), "tcp", port)
		require.NoError(t, err)
		if host == "unix" {
			return // with a port it is a path
		}
		// What came out goes in again.
		_, again, err := DialAddr(address, "81")
		require.NoError(t, err)
		require.Equal(t, address, again)
	})
}

// FuzzWire feeds an answer to the listener on the wire, at once and byte by byte.
func FuzzWire(f *testing.F) {
	question := func(kind dnsmessage.Type) dnsmessage.Question {
		return dnsmessage.Question{Name: dnsmessage.MustNewName("orders.test."), Type: kind, Class: dnsmessage.ClassINET}
	}
	ask := func(kind dnsmessage.Type) []byte {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{question(kind)}}
		b, err := m.Pack()
		if err != nil {
			panic(err)
		}
		return b
	}
	answerA := records(aOf("orders.test.", "10.0.0.1", 60))
	answerSRV := records(srv(1, 1, "a.test.", 80, 60))
	answerSRV.records[0].Header.Name = dnsmessage.MustNewName("orders.test.")
	answerSRV.extra = []dnsmessage.Resource{aOf("a.test.", "10.0.0.1", 5), aOf("a.test.", "fd00::1", 6)}
	f.Add(false, pack(7, question(dnsmessage.TypeA), answerA, false))
	f.Add(false, pack(7, question(dnsmessage.TypeA), answerA, true))
	f.Add(true, pack(7, question(dnsmessage.TypeSRV), answerSRV, false))
	f.Add(true, []byte{0, 7, 0x80})
	f.Fuzz(func(t *testing.T, service bool, answer []byte) {
		kind := dnsmessage.TypeA
		if service {
			kind = dnsmessage.TypeSRV
		}
		query := ask(kind)
		var once wire
		if !once.hear(query, answer) {
			require.Zero(t, once.ttl)
		}
		require.GreaterOrEqual(t, once.ttl, time.Duration(0))
		for name, found := range once.extra {
			require.Equal(t, strings.ToLower(name), name)
			require.NotEmpty(t, found.addrs)
		}

		// The same by stream, in pieces.
		if len(answer) > 65535 {
			return
		}
		var pieces wire
		near, far := net.Pipe()
		conn := pieces.listen(t.Context(), near)
		go func() {
			defer far.Close()
			_, _ = far.Read(make([]byte, 2+len(query)))
			_, _ = far.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
		}()
		_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...))
		for buf := make([]byte, 3); ; {
			if _, err := conn.Read(buf); err != nil {
				break
			}
		}
		_ = conn.Close()
		require.Equal(t, once.ttl, pieces.ttl)
		require.Equal(t, once.extra, pieces.extra)
	})
}

func FuzzDecodeFile(f *testing.F) {
	for _, s := range []string{
		`{"orders": ["a:1", {"addr": "b:1", "weight": 2}]}`, `{"a": [], "a": []}`, `{"a": [ null ]}`, `{`, `{"a": [ {"addr"`,
		"{\"\": [\t\"x\"]}\n", `{"a": null}`, `null`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		services, err := decodeFile(content)
		if err != nil {
			require.Nil(t, services)
			return
		}
		for _, endpoints := range services {
			for _, e := range endpoints {
				_ = e.Validate()
			}
		}
		// A file that breaks off anywhere is refused.
		whole := strings.TrimRight(string(content), " \t\r\n")
		for i := range whole {
			_, err := decodeFile([]byte(whole[:i]))
			require.Error(t, err)
		}
	})
}

func FuzzSRVName(f *testing.F) {
	f.Add("_http._tcp.orders.example", "http")
	f.Add("orders:80", "")
	f.Add("[::1]:80", "x")
	f.Fuzz(func(t *testing.T, service, label string) {
		cfg := &SRVConfig{Service: label}
		if cfg.Validate() != nil {
			return
		}
		r := SRV(cfg).(*srvResolver)
		name, err := r.name(service)
		if err != nil {
			require.Empty(t, name)
			return
		}
		require.NotContains(t, name, ":")
		_, err = netip.ParseAddr(name)
		require.Error(t, err)
		if !strings.HasPrefix(service, "_") && label != "" {
			require.True(t, strings.HasPrefix(name, "_"+label+"._tcp."))
		}
	})
}
