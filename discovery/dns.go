package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Family says which addresses of a name to use.
type Family string

// Families.
const (
	// IPv4First uses the IPv4 addresses; of a name that has none, the IPv6 ones.
	IPv4First Family = "ipv4First"
	// IPv6First uses the IPv6 addresses; of a name that has none, the IPv4 ones.
	IPv6First Family = "ipv6First"
	// IPv4Only and IPv6Only use one kind and ask for no other.
	IPv4Only Family = "ipv4Only"
	IPv6Only Family = "ipv6Only"
)

// DNSConfig says how [DNS] and [SRV] ask. The zero value means every default.
type DNSConfig struct {
	// Family says which addresses to use. Default: IPv4First.
	Family Family `json:"family,omitempty"`
	// MinRefresh is the least time between two look-ups that go well, whatever
	// the TTL and however many hints come. Default: 5s.
	MinRefresh time.Duration `json:"minRefresh,omitempty"`
	// MaxRefresh is the greatest, so that a change is seen however long the TTL.
	// Negative: no limit. Default: 30s, or MinRefresh if that is more.
	MaxRefresh time.Duration `json:"maxRefresh,omitempty"`
	// Timeout bounds one question, with all name servers and search domains it
	// has to try. Negative: no limit. Default: 10s, enough for a first name
	// server that is down.
	Timeout time.Duration `json:"timeout,omitempty"`
	// System asks through the operating system where that knows more than DNS
	// and the hosts file: nsswitch.conf, mDNS, a VPN's split DNS. TTLs are not
	// known then and MinRefresh stands for them. Default: false, but where Go
	// itself prefers the system (macOS, iOS, Windows, Android, Plan 9) true,
	// unless Server or Dial is set.
	System bool `json:"system,omitempty"`
	// Server is the name server to ask, host:port or host, instead of those in
	// resolv.conf. The hosts file and the search domains still count. Default:
	// those in resolv.conf.
	Server string `json:"server,omitempty"`
	// Dial connects to a name server. A connection that is not a net.PacketConn
	// is taken for a stream. Default: net.Dialer's DialContext.
	Dial func(ctx context.Context, network, address string) (net.Conn, error) `json:"-"`
}

// Validate returns every problem of c's, joined.
func (c *DNSConfig) Validate() error {
	if c == nil {
		return nil
	}
	return c.validate("")
}

// validate names the fields with a prefix.
func (c DNSConfig) validate(in string) error {
	var errs []error
	problem := func(field, value, want string) {
		errs = append(errs, fmt.Errorf("discovery: %s%s is %s, want %s", in, field, value, want))
	}
	switch c.Family {
	case "", IPv4First, IPv6First, IPv4Only, IPv6Only:
	default:
		problem("Family", strconv.Quote(string(c.Family)),
			fmt.Sprintf("%s, %s, %s or %s", IPv4First, IPv6First, IPv4Only, IPv6Only))
	}
	if c.MinRefresh < 0 {
		problem("MinRefresh", c.MinRefresh.String(), "> 0")
	}
	if d := c.withDefaults(); d.MaxRefresh > 0 && d.MaxRefresh < d.MinRefresh {
		problem("MaxRefresh", d.MaxRefresh.String(), fmt.Sprintf(">= %sMinRefresh (%v)", in, d.MinRefresh))
	}
	if c.Server != "" {
		if _, _, err := splitHostPort(c.Server); err != nil {
			problem("Server", strconv.Quote(c.Server), "host:port or host")
		}
	}
	if c.System && (c.Server != "" || c.Dial != nil) {
		problem("System", "true", "false where "+in+"Server or Dial is set")
	}
	return errors.Join(errs...)
}

func (c DNSConfig) withDefaults() DNSConfig {
	c.Family = cmp.Or(c.Family, IPv4First)
	c.MinRefresh = cmp.Or(c.MinRefresh, 5*time.Second)
	c.MaxRefresh = cmp.Or(c.MaxRefresh, max(30*time.Second, c.MinRefresh))
	c.Timeout = cmp.Or(c.Timeout, 10*time.Second)
	if c.Dial == nil {
		if c.Server == "" && goPrefersSystem() {
			c.System = true
		}
		c.Dial = new(net.Dialer).DialContext
	}
	return c
}

// goPrefersSystem reports whether Go's net package leaves name look-ups to the
// operating system here.
func goPrefersSystem() bool {
	switch runtime.GOOS {
	case "darwin", "ios", "windows", "android", "plan9":
		return true
	}
	return false
}

// DNS returns a resolver whose services are host names, with a port or without:
// "orders.example:8080" gives endpoints with that port, "orders.example" leaves
// it to the caller's scheme. Each address of the name is an endpoint.
//
// It honours the records' TTL, which Go's resolver does not show, by reading it
// off the wire; so resolv.conf, its search domains and options, and the hosts
// file work as everywhere else in Go. It looks again when the TTL has run out,
// with MinRefresh and MaxRefresh as bounds and up to a tenth of jitter. What
// comes without a TTL – from the hosts file, or from the operating system – is
// good for MinRefresh.
//
// An IP address, and localhost, are services of one endpoint that take no
// look-up. A name that does not exist, or has no address, is [ErrNotFound]; that
// and any other failure ends the watch, to be started again with backoff:
// [Supervise] does that, and so does whoever uses a resolver.
//
// A nil cfg means every default; a wrong one ([DNSConfig.Validate]) is the only
// thing that its watches yield.
func DNS(cfg *DNSConfig) Resolver {
	if cfg == nil {
		cfg = new(DNSConfig)
	}
	if err := cfg.Validate(); err != nil {
		return broken{err}
	}
	return &dnsResolver{cfg.withDefaults()}
}

type dnsResolver struct{ cfg DNSConfig }

func (d *dnsResolver) schedule() schedule {
	return schedule{least: d.cfg.MinRefresh, greatest: d.cfg.MaxRefresh}
}

// Watch looks the name up again and again, on the caller's goroutine.
func (d *dnsResolver) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	host, port, err := splitHostPort(service)
	if err == nil {
		if e, ok := d.local(host, port); ok {
			return Static(e).Watch(ctx, service)
		}
	}
	return poll(ctx, service, d.schedule(), func(ctx context.Context) (Set, error) {
		if err != nil {
			return Set{}, err
		}
		found, err := d.addresses(ctx, host)
		if err != nil {
			return Set{}, err
		}
		set := Set{TTL: found.ttl, Endpoints: make([]Endpoint, len(found.addrs))}
		for i, a := range found.addrs {
			set.Endpoints[i].Addr = withPort(a.String(), port)
		}
		return set, nil
	})
}

// local returns the endpoint of a host that takes no look-up.
func (d *dnsResolver) local(host, port string) (Endpoint, bool) {
	if _, err := netip.ParseAddr(host); err == nil {
		return Endpoint{Addr: withPort(host, port)}, true
	}
	if !strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return Endpoint{}, false
	}
	// RFC 6761 §6.3. One instance with two addresses, not two instances.
	v4, v6 := withPort("127.0.0.1", port), withPort("::1", port)
	switch d.cfg.Family {
	case IPv6First:
		return Endpoint{Addr: v6, Fallback: []string{v4}}, true
	case IPv4Only:
		return Endpoint{Addr: v4}, true
	case IPv6Only:
		return Endpoint{Addr: v6}, true
	default:
		return Endpoint{Addr: v4, Fallback: []string{v6}}, true
	}
}

// found is the addresses of a name, sorted, and how long they hold; 0 is unknown.
type found struct {
	addrs []netip.Addr
	ttl   time.Duration
}

// addresses asks for the addresses of a name. The second family is asked for
// only if the first was answered with none: a failure must not turn a service
// that has both into one of the other kind.
func (d *dnsResolver) addresses(ctx context.Context, host string) (f found, err error) {
	for _, network := range d.networks() {
		f, err = d.ask(ctx, network, host)
		if !errors.Is(err, ErrNotFound) {
			break
		}
	}
	return f, err
}

func (d *dnsResolver) networks() []string {
	switch d.cfg.Family {
	case IPv6First:
		return []string{"ip6", "ip4"}
	case IPv4Only:
		return []string{"ip4"}
	case IPv6Only:
		return []string{"ip6"}
	default:
		return []string{"ip4", "ip6"}
	}
}

func (d *dnsResolver) ask(ctx context.Context, network, host string) (found, error) {
	ctx, cancel := d.bounded(ctx)
	defer cancel()
	var w wire
	addrs, err := d.resolver(&w).LookupNetIP(ctx, network, host)
	if err != nil {
		return found{}, lookupError(err)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return found{addrs: slices.Compact(addrs), ttl: w.least()}, nil
}

func (d *dnsResolver) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.cfg.Timeout < 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d.cfg.Timeout)
}

// resolver returns Go's resolver for one look-up, with w listening to its
// connections. It must not be shared: look-ups of the same name share one
// answer, and only one of them would hear the TTL.
func (d *dnsResolver) resolver(w *wire) *net.Resolver {
	if d.cfg.System {
		return net.DefaultResolver
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		// Go's resolver goes on to the next server after a failure, also if the
		// failure was the context's end.
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if d.cfg.Server != "" {
			host, port, _ := splitHostPort(d.cfg.Server)
			address = net.JoinHostPort(host, cmp.Or(port, "53"))
		}
		conn, err := d.cfg.Dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return w.listen(ctx, conn), nil
	}}
}

// lookupError marks what means that the name, or an address of the kind asked
// for, does not exist.
func lookupError(err error) error {
	var (
		dns  *net.DNSError
		addr *net.AddrError // the hosts file has only addresses of the other kind
	)
	if errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &addr) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
