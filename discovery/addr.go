package discovery

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Addrs returns endpoints that have nothing but an address, for [Static]:
//
//	discovery.Static(discovery.Addrs("10.0.0.1:8080", "10.0.0.2:8080")...)
func Addrs(addrs ...string) []Endpoint {
	endpoints := make([]Endpoint, len(addrs))
	for i, addr := range addrs {
		endpoints[i].Addr = addr
	}
	return endpoints
}

// DialAddr returns what to dial for an [Endpoint]'s address: "tcp" and
// host:port, with port filled in where addr has none, or "unix" and a path. An
// IPv6 address may come with or without brackets as long as it has no port.
// The error says what is wrong with addr.
func DialAddr(addr, port string) (network, address string, err error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if path == "" || strings.ContainsRune(path, 0) {
			return "", "", addrError(addr)
		}
		return "unix", path, nil
	}
	host, own, err := splitHostPort(addr)
	if err != nil {
		return "", "", err
	}
	if own == "" {
		own = port
	}
	if own == "" {
		return "", "", fmt.Errorf("address %q has no port", addr)
	}
	return "tcp", net.JoinHostPort(host, own), nil
}

// Validate returns every problem of e's, joined: an address that is not
// host:port, host or unix:/path, a weight that is not a finite number >= 0, a
// negative priority.
func (e Endpoint) Validate() error {
	var errs []error
	problem := func(field string, value any, want string) {
		errs = append(errs, fmt.Errorf("discovery: endpoint %q: %s is %v, want %s", e.Key(), field, value, want))
	}
	const wantAddr = "host:port, host or unix:/path"
	if _, _, err := DialAddr(e.Addr, "1"); err != nil {
		problem("Addr", strconv.Quote(e.Addr), wantAddr)
	}
	for i, addr := range e.Fallback {
		if _, _, err := DialAddr(addr, "1"); err != nil {
			problem(fmt.Sprintf("Fallback[%d]", i), strconv.Quote(addr), wantAddr)
		}
	}
	if math.IsNaN(e.Weight) || math.IsInf(e.Weight, 0) || e.Weight < 0 {
		problem("Weight", e.Weight, "a finite number >= 0")
	}
	if e.Priority < 0 {
		problem("Priority", e.Priority, "a number >= 0")
	}
	return errors.Join(errs...)
}

func addrError(addr string) error {
	return fmt.Errorf("address %q is not host:port, host or unix:/path", addr)
}

// splitHostPort splits host, host:port, [v6]:port, [v6] and v6. The host comes
// without brackets; the port is a number of 1–65535, or empty if there is none.
func splitHostPort(s string) (host, port string, err error) {
	host, rest := s, ""
	ip, err := netip.ParseAddr(s)
	switch {
	case err == nil:
	case strings.HasPrefix(s, "["):
		end := max(strings.IndexByte(s, ']'), 1)
		host, rest = s[1:end], s[end:]
		if ip, err = netip.ParseAddr(host); err != nil || !ip.Is6() {
			return "", "", addrError(s)
		}
		rest = rest[1:]
	default:
		if i := strings.IndexByte(s, ':'); i >= 0 {
			host, rest = s[:i], s[i:]
		}
	}
	if !(ip.IsValid() && plain(ip.Zone()) || host != "" && plain(host)) {
		return "", "", addrError(s)
	}
	if rest == "" {
		return host, "", nil
	}
	digits, ok := strings.CutPrefix(rest, ":")
	n, err := strconv.ParseUint(digits, 10, 16)
	if !ok || err != nil || n == 0 {
		return "", "", addrError(s)
	}
	return host, strconv.FormatUint(n, 10), nil
}

// plain reports whether s lacks what no host or zone has in it, such as the
// slashes of a URL that was taken for an address.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r == 0x7f || strings.ContainsRune("/\\?#@[]%\"'<>^{|}`", r)
	})
}

// withPort is host:port, or just the host where there is no port.
func withPort(host, port string) string {
	if port == "" {
		return host
	}
	return net.JoinHostPort(host, port)
}
