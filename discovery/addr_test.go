package discovery

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDialAddr(t *testing.T) {
	for addr, want := range map[string][2]string{
		"10.0.0.1":             {"tcp", "10.0.0.1:443"},
		"10.0.0.1:80":          {"tcp", "10.0.0.1:80"},
		"orders":               {"tcp", "orders:443"},
		"orders.example.:080":  {"tcp", "orders.example.:80"},
		"a_b-c.example:65535":  {"tcp", "a_b-c.example:65535"},
		"::1":                  {"tcp", "[::1]:443"},
		"[::1]":                {"tcp", "[::1]:443"},
		"[::1]:80":             {"tcp", "[::1]:80"},
		"fe80::1%eth0":         {"tcp", "[fe80::1%eth0]:443"},
		"[fe80::1%eth0]:80":    {"tcp", "[fe80::1%eth0]:80"},
		"unix:/run/x.sock":     {"unix", "/run/x.sock"},
		"unix:@abstract":       {"unix", "@abstract"},
		"unix:relative/x.sock": {"unix", "relative/x.sock"},
	} {
		network, address, err := DialAddr(addr, "443")
		require.NoError(t, err, addr)
		require.Equal(t, want, [2]string{network, address}, addr)
		require.NoError(t, Endpoint{Addr: addr}.Validate())
	}
	for _, addr := range []string{
		"", ":", ":80", "a:", "a:b", "a:0", "a:65536", "a:-1", "a:+1", "a:1:2", "a b", "a\n:1", "http://a", "a/b", "user@a",
		"[", "[]", "[]:80", "[::1", "[::1]80", "[::1]:", "[a]:80", "[10.0.0.1]:80", "::1]:80", "fe80::1%", "fe80::1%a/b", "[fe80::1%a b]:1",
		"unix:", "unix:a\x00b", "a%b:1",
	} {
		_, _, err := DialAddr(addr, "443")
		require.ErrorContains(t, err, "is not host:port, host or unix:/path", "%q", addr)
		require.Error(t, Endpoint{Addr: addr}.Validate())
	}
	_, _, err := DialAddr("orders", "")
	require.EqualError(t, err, `address "orders" has no port`)
}

func TestEndpointValidateNamesEveryProblem(t *testing.T) {
	require.NoError(t, Endpoint{Addr: "a:1", Weight: 0.01, Priority: 3, Fallback: []string{"[::1]:1"}}.Validate())
	e := Endpoint{ID: "pod-1", Addr: "", Weight: math.Inf(-1), Priority: -2, Fallback: []string{"b:1", "?"}}
	require.EqualError(t, e.Validate(), `discovery: endpoint "pod-1": Addr is "", want host:port, host or unix:/path
discovery: endpoint "pod-1": Fallback[1] is "?", want host:port, host or unix:/path
discovery: endpoint "pod-1": Weight is -Inf, want a finite number >= 0
discovery: endpoint "pod-1": Priority is -2, want a number >= 0`)
}

func TestEndpointAndSetEquality(t *testing.T) {
	full := func() Endpoint {
		return Endpoint{
			ID: "i", Addr: "a:1", Fallback: []string{"b:1"}, ServerName: "s", Weight: 1, Draining: true,
			Priority: 1, Region: "r", Zone: "z", Metadata: map[string]string{"k": "v"},
		}
	}
	require.True(t, full().Equal(full()))
	for name, change := range map[string]func(*Endpoint){
		"ID":         func(e *Endpoint) { e.ID = "" },
		"Addr":       func(e *Endpoint) { e.Addr = "" },
		"Fallback":   func(e *Endpoint) { e.Fallback = nil },
		"ServerName": func(e *Endpoint) { e.ServerName = "" },
		"Weight":     func(e *Endpoint) { e.Weight = 2 },
		"Draining":   func(e *Endpoint) { e.Draining = false },
		"Priority":   func(e *Endpoint) { e.Priority = 0 },
		"Region":     func(e *Endpoint) { e.Region = "" },
		"Zone":       func(e *Endpoint) { e.Zone = "" },
		"Metadata":   func(e *Endpoint) { e.Metadata = map[string]string{"k": "w"} },
	} {
		e := full()
		change(&e)
		require.False(t, e.Equal(full()), name)
		require.False(t, Set{Endpoints: []Endpoint{e}}.Equal(Set{Endpoints: []Endpoint{full()}}), name)
	}
	require.Equal(t, "i", full().Key())
	require.Equal(t, "a:1", Endpoint{Addr: "a:1"}.Key())
	require.True(t, Set{TTL: 1, Authoritative: true}.Equal(Set{}))
}

func TestHintsOfAContextWithoutThemBlock(t *testing.T) {
	select {
	case <-Hints(t.Context()):
		t.Error("received a hint")
	default:
	}
	hints := make(chan struct{}, 1)
	hints <- struct{}{}
	<-Hints(WithHints(t.Context(), hints))
}
