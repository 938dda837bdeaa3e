package discovery

import (
	"context"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

// askOnce returns the first yield of a watch.
func askOnce(t *testing.T, r Resolver, service string) (Set, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for set, err := range r.Watch(ctx, service) {
		return set, err
	}
	require.Fail(t, "the watch has yielded nothing")
	return Set{}, nil
}

func TestDNSGivesEachAddressInOrderWithThePortAndTheTTL(t *testing.T) {
	s := newDNSServer(t)
	s.set("orders.test.", &dnsName{records: []dnsmessage.Resource{a("10.0.0.2", 77), a("10.0.0.1", 66), a("10.0.0.2", 88)}})
	r := DNS(&DNSConfig{Server: s.addr})
	set, err := askOnce(t, r, "orders.test.:8080")
	require.NoError(t, err)
	require.Equal(t, []string{"10.0.0.1:8080", "10.0.0.2:8080"}, addrsOf(set))
	require.Equal(t, 66*time.Second, set.TTL)
	set, err = askOnce(t, r, "ORDERS.test")
	require.NoError(t, err)
	require.Equal(t, []string{"10.0.0.1", "10.0.0.2"}, addrsOf(set))
	require.Zero(t, s.questions("orders.test.", "AAAA", "udp"), "the other family is not asked for")
}

func TestDNSTTLIsTheLeastOfTheAnswerAndItsAliasesButTheFloor(t *testing.T) {
	s := newDNSServer(t)
	r := DNS(&DNSConfig{Server: s.addr})
	for name, test := range map[string]struct {
		records []dnsmessage.Resource
		want    time.Duration
	}{
		"alias":    {[]dnsmessage.Resource{alias("", "real.test.", 20), aOf("real.test.", "10.0.0.1", 600)}, 20 * time.Second},
		"zero":     {[]dnsmessage.Resource{a("10.0.0.1", 0)}, 5 * time.Second},
		"low":      {[]dnsmessage.Resource{a("10.0.0.1", 1)}, 5 * time.Second},
		"negative": {[]dnsmessage.Resource{alias("", "real.test.", 20), aOf("real.test.", "10.0.0.1", 1<<31)}, 5 * time.Second},
		"long":     {[]dnsmessage.Resource{a("10.0.0.1", 86400)}, 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			s.set("orders.test.", &dnsName{records: test.records})
			set, err := askOnce(t, r, "orders.test.")
			require.NoError(t, err)
			require.Equal(t, []string{"10.0.0.1"}, addrsOf(set))
			require.Equal(t, test.want, set.TTL)
		})
	}
}

func TestDNSFamilies(t *testing.T) {
	s := newDNSServer(t)
	s.set("both.test.", &dnsName{records: []dnsmessage.Resource{a("10.0.0.1", 60), a("fd00::1", 50)}})
	s.set("six.test.", &dnsName{records: []dnsmessage.Resource{a("fd00::6", 40)}})
	s.set("four.test.", &dnsName{records: []dnsmessage.Resource{a("10.0.0.4", 30)}})
	for _, test := range []struct {
		family             Family
		both, six, four    string
		sixFails, fourFail bool
	}{
		{"", "10.0.0.1:80", "[fd00::6]:80", "10.0.0.4:80", false, false},
		{IPv4First, "10.0.0.1:80", "[fd00::6]:80", "10.0.0.4:80", false, false},
		{IPv6First, "[fd00::1]:80", "[fd00::6]:80", "10.0.0.4:80", false, false},
		{IPv4Only, "10.0.0.1:80", "", "10.0.0.4:80", true, false},
		{IPv6Only, "[fd00::1]:80", "[fd00::6]:80", "", false, true},
	} {
		r := DNS(&DNSConfig{Server: s.addr, Family: test.family})
		for name, want := range map[string]string{"both.test.:80": test.both, "six.test.:80": test.six, "four.test.:80": test.four} {
			set, err := askOnce(t, r, name)
			if want == "" {
				require.ErrorIs(t, err, ErrNotFound, "%s %s", test.family, name)
				continue
			}
			require.NoError(t, err, "%s %s", test.family, name)
			require.Equal(t, []string{want}, addrsOf(set), "%s %s", test.family, name)
		}
	}
}

func TestDNSFailureOfOneFamilyDoesNotTurnToTheOther(t *testing.T) {
	s := newDNSServer(t)
	s.set("orders.test.", &dnsName{
		records: []dnsmessage.Resource{a("fd00::1", 60)}, rcode: dnsmessage.RCodeServerFailure, failing: dnsmessage.TypeA,
	})
	_, err := askOnce(t, DNS(&DNSConfig{Server: s.addr}), "orders.test.")
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrNotFound)
	require.Zero(t, s.questions("orders.test.", "AAAA", "udp"))
}

func TestDNSFailuresAreTypedAndEndTheWatch(t *testing.T) {
	s := newDNSServer(t)
	s.set("empty.test.", &dnsName{})
	s.set("failing.test.", &dnsName{rcode: dnsmessage.RCodeServerFailure})
	s.set("refused.test.", &dnsName{rcode: dnsmessage.RCodeRefused})
	s.set("silent.test.", &dnsName{silent: true})
	for service, check := range map[string]func(*net.DNSError){
		"missing.test.": func(e *net.DNSError) { require.True(t, e.IsNotFound) },
		"empty.test.":   func(e *net.DNSError) { require.True(t, e.IsNotFound) },
		"failing.test.": func(e *net.DNSError) { require.False(t, e.IsNotFound); require.True(t, e.IsTemporary) },
		"refused.test.": func(e *net.DNSError) { require.False(t, e.IsNotFound) },
		"silent.test.":  func(e *net.DNSError) { require.False(t, e.IsNotFound); require.True(t, e.Timeout()) },
	} {
		t.Run(service, func(t *testing.T) {
			cfg := &DNSConfig{Server: s.addr}
			if service == "silent.test." {
				cfg.Timeout = 50 * time.Millisecond
			}
			r := DNS(cfg)
			var errs []error
			for set, err := range r.Watch(t.Context(), service) {
				require.Empty(t, set.Endpoints)
				errs = append(errs, err)
			}
			require.Len(t, errs, 1)
			var re *ResolveError
			require.ErrorAs(t, errs[0], &re)
			require.Equal(t, service, re.Service)
			var dns *net.DNSError
			require.ErrorAs(t, errs[0], &dns)
			check(dns)
			if dns.IsNotFound {
				require.ErrorIs(t, errs[0], ErrNotFound)
			} else {
				require.NotErrorIs(t, errs[0], ErrNotFound)
			}
		})
	}
}

func TestDNSTruncatedAnswerIsAskedForOverTCPWithItsTTL(t *testing.T) {
	s := newDNSServer(t)
	s.set("orders.test.", &dnsName{records: []dnsmessage.Resource{a("10.0.0.1", 42)}, truncated: true})
	set, err := askOnce(t, DNS(&DNSConfig{Server: s.addr}), "orders.test.")
	require.NoError(t, err)
	require.Equal(t, []string{"10.0.0.1"}, addrsOf(set))
	require.Equal(t, 42*time.Second, set.TTL, "that of the TCP answer")
	require.Equal(t, 1, s.questions("orders.test.", "A", "tcp"))
}

func TestDNSForgedAnswersCountForNothing(t *testing.T) {
	s := newDNSServer(t)
	s.set("orders.test.", &dnsName{records: []dnsmessage.Resource{a("10.0.0.1", 42)}})
	s.mu.Lock()
	s.lying = true
	s.mu.Unlock()
	set, err := askOnce(t, DNS(&DNSConfig{Server: s.addr}), "orders.test.")
	require.NoError(t, err)
	require.Equal(t, []string{"10.0.0.1"}, addrsOf(set))
	require.Equal(t, 42*time.Second, set.TTL)
}

func TestDNSFollowsChangesAndKeepsTheSetThroughFailures(t *testing.T) {
	s := newDNSServer(t)
	s.set("orders.test.", &dnsName{records: []dnsmessage.Resource{a("10.0.0.1", 0)}})
	r := Supervise(DNS(&DNSConfig{Server: s.addr, MinRefresh: 10 * time.Millisecond, MaxRefresh: 20 * time.Millisecond}),
		&SuperviseConfig{BackoffBase: 10 * time.Millisecond, MergeWindow: -1})
	rec := record(t.Context(), t, r, "orders.test.:80")
	next := func() yielded {
		t.Helper()
		var got []yielded
		require.Eventually(t, func() bool { got = append(got, rec.fresh()...); return len(got) > 0 }, 10*time.Second, time.Millisecond)
		return got[len(got)-1]
	}
	require.Equal(t, []string{"10.0.0.1:80"}, addrsOf(next().set))
	s.set("orders.test.", &dnsName{records: []dnsmessage.Resource{a("10.0.0.2", 0), a("10.0.0.1", 0)}})
	require.Equal(t, []string{"10.0.0.1:80", "10.0.0.2:80"}, addrsOf(next().set))
	s.set("orders.test.", nil)
	require.ErrorIs(t, next().err, ErrNotFound)
	s.set("orders.test.", &dnsName{records: []dnsmessage.Resource{a("10.0.0.3", 0)}})
	var last yielded
	require.Eventually(t, func() bool { last = next(); return last.err == nil }, 10*time.Second, time.Millisecond)
	require.Equal(t, []string{"10.0.0.3:80"}, addrsOf(last.set))
	rec.stop()
	for _, y := range rec.all {
		require.True(t, y.err != nil || len(y.set.Endpoints) > 0, "no failure became an empty set")
	}
}

func TestDNSAddressesAndLocalhostTakeNoLookup(t *testing.T) {
	dial := func(context.Context, string, string) (net.Conn, error) {
		t.Error("a name server was asked")
		return nil, errDown
	}
	for service, want := range map[string]Endpoint{
		"10.0.0.1:80":     {Addr: "10.0.0.1:80"},
		"10.0.0.1":        {Addr: "10.0.0.1"},
		"[fd00::1]:80":    {Addr: "[fd00::1]:80"},
		"fd00::1":         {Addr: "fd00::1"},
		"localhost:80":    {Addr: "127.0.0.1:80", Fallback: []string{"[::1]:80"}},
		"LocalHost.:8080": {Addr: "127.0.0.1:8080", Fallback: []string{"[::1]:8080"}},
	} {
		bubble(t, func(t *testing.T) {
			rec := record(t.Context(), t, DNS(&DNSConfig{Dial: dial}), service)
			time.Sleep(time.Hour)
			got := rec.take()
			require.Len(t, got, 1)
			require.Equal(t, []Endpoint{want}, got[0].set.Endpoints)
			require.NoError(t, want.Validate())
		})
	}
	for family, want := range map[Family]Endpoint{
		IPv6First: {Addr: "[::1]:80", Fallback: []string{"127.0.0.1:80"}},
		IPv4Only:  {Addr: "127.0.0.1:80"},
		IPv6Only:  {Addr: "[::1]:80"},
	} {
		set, err := askOnce(t, DNS(&DNSConfig{Dial: dial, Family: family}), "localhost:80")
		require.NoError(t, err)
		require.Equal(t, []Endpoint{want}, set.Endpoints)
	}
}

func TestDNSServiceThatIsNoHostNameIsAnError(t *testing.T) {
	for _, service := range []string{"", "orders:http", "orders:0", "a b", "http://orders"} {
		_, err := askOnce(t, DNS(nil), service)
		require.ErrorContains(t, err, "is not host:port", "%q", service)
	}
}

func TestDNSThroughTheSystemKnowsTheHostsFile(t *testing.T) {
	names, err := net.DefaultResolver.LookupHost(t.Context(), "localhost")
	if err != nil || len(names) == 0 {
		t.Skip("the system does not know localhost")
	}
	d := DNS(&DNSConfig{System: true}).(*dnsResolver)
	require.Same(t, net.DefaultResolver, d.resolver(nil))
	f, err := d.addresses(t.Context(), "localhost")
	require.NoError(t, err)
	require.True(t, f.addrs[0].Is4() || f.addrs[0].Is6())
	require.False(t, f.addrs[0].Is4In6())
	require.True(t, f.addrs[0].IsLoopback())
	require.Zero(t, f.ttl, "the system does not say")
}

func TestDNSWithoutTheSystemKnowsTheHostsFile(t *testing.T) {
	if goPrefersSystem() {
		t.Skip("not the default on " + runtime.GOOS)
	}
	names, err := net.DefaultResolver.LookupHost(t.Context(), "localhost")
	if err != nil || len(names) == 0 {
		t.Skip("the system does not know localhost")
	}
	f, err := DNS(nil).(*dnsResolver).addresses(t.Context(), "localhost")
	require.NoError(t, err)
	require.True(t, f.addrs[0].IsLoopback())
	require.False(t, f.addrs[0].Is4In6())
}

func TestDNSNameWithAddressesOfTheOtherKindOnlyIsNotFound(t *testing.T) {
	// What net says where the hosts file has such ones.
	require.ErrorIs(t, lookupError(&net.AddrError{Err: "no suitable address found", Addr: "orders"}), ErrNotFound)
}

// watchedConn says when it was closed.
type watchedConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *watchedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func TestDNSLookupUnderWayEndsWithItsContext(t *testing.T) {
	// Package net makes channels of its own in the process's first look-up, and
	// a bubble must not be where that happens.
	_, err := askOnce(t, DNS(&DNSConfig{Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errDown
	}}), "orders.test.")
	require.Error(t, err)
	for name, r := range map[string]func(*DNSConfig) Resolver{
		"DNS": DNS,
		"SRV": func(cfg *DNSConfig) Resolver { return SRV(&SRVConfig{DNS: *cfg}) },
	} {
		t.Run(name, func(t *testing.T) {
			// A bubble's end proves that Go's resolver is done with it, too: the
			// name server is an in-memory stream that never answers.
			bubble(t, func(t *testing.T) {
				conns := make(chan *watchedConn, 100)
				cfg := &DNSConfig{Timeout: -1, Dial: func(context.Context, string, string) (net.Conn, error) {
					near, far := net.Pipe()
					t.Cleanup(func() { _ = far.Close() })
					c := &watchedConn{Conn: near, closed: make(chan struct{})}
					conns <- c
					return c, nil
				}}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					for set, err := range r(cfg).Watch(ctx, "orders.test.") {
						t.Error("yielded ", set, err)
					}
				}()
				c := <-conns
				began := time.Now()
				cancel()
				<-done
				<-c.closed
				require.Zero(t, time.Since(began), "Go's resolver would wait for seconds")
				require.Empty(t, conns, "and ask again")
			})
		})
	}
}

func TestDNSDialsTheConfiguredServer(t *testing.T) {
	for server, want := range map[string]string{"10.0.0.53": "10.0.0.53:53", "10.0.0.53:5353": "10.0.0.53:5353", "fd00::53": "[fd00::53]:53"} {
		var dialed []string
		r := DNS(&DNSConfig{Server: server, Dial: func(_ context.Context, network, address string) (net.Conn, error) {
			dialed = append(dialed, network+" "+address)
			return nil, errDown
		}})
		_, err := askOnce(t, r, "orders.test.")
		require.Error(t, err)
		require.Contains(t, dialed, "udp "+want)
	}
}

func TestDNSConfigIsValidated(t *testing.T) {
	require.NoError(t, (*DNSConfig)(nil).Validate())
	require.NoError(t, (&DNSConfig{MinRefresh: time.Minute, MaxRefresh: -1, Timeout: -1}).Validate())
	require.NoError(t, (&DNSConfig{MinRefresh: time.Minute}).Validate())
	cfg := &DNSConfig{Family: "ipx", MinRefresh: -1, Server: "a b", System: true}
	require.EqualError(t, cfg.Validate(), `discovery: Family is "ipx", want ipv4First, ipv6First, ipv4Only or ipv6Only
discovery: MinRefresh is -1ns, want > 0
discovery: Server is "a b", want host:port or host
discovery: System is true, want false where Server or Dial is set`)
	cfg = &DNSConfig{MaxRefresh: time.Second}
	require.EqualError(t, cfg.Validate(), "discovery: MaxRefresh is 1s, want >= MinRefresh (5s)")
	_, err := askOnce(t, DNS(cfg), "orders")
	require.ErrorContains(t, err, "MaxRefresh is 1s")
}

func TestDNSSupervisedAnswersWithinItsDefaults(t *testing.T) {
	cfg := DNSConfig{}.withDefaults()
	require.Equal(t, 5*time.Second, cfg.MinRefresh)
	require.Equal(t, 30*time.Second, cfg.MaxRefresh)
	require.Equal(t, 10*time.Second, cfg.Timeout)
	require.Equal(t, goPrefersSystem(), cfg.System)
}
