package discovery

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

func records(rs ...dnsmessage.Resource) *dnsName { return &dnsName{records: rs} }

func TestSRVGivesPriorityWeightPortAndAStableID(t *testing.T) {
	s := newDNSServer(t)
	s.set("_http._tcp.orders.test.", records(
		srv(20, 5, "c.test.", 8083, 60), srv(10, 30, "b.test.", 8082, 60), srv(10, 10, "a.test.", 8081, 60)))
	s.set("a.test.", records(a("10.0.0.1", 60)))
	s.set("b.test.", records(a("10.0.0.2", 60)))
	s.set("c.test.", records(a("10.0.0.3", 12), a("10.0.0.4", 60)))
	set, err := askOnce(t, SRV(&SRVConfig{DNS: DNSConfig{Server: s.addr}}), "_http._tcp.orders.test.")
	require.NoError(t, err)
	target := func(name string) map[string]string { return map[string]string{"target": name} }
	require.Equal(t, []Endpoint{
		{ID: "a.test:8081", Addr: "10.0.0.1:8081", Priority: 0, Weight: 10, Metadata: target("a.test")},
		{ID: "b.test:8082", Addr: "10.0.0.2:8082", Priority: 0, Weight: 30, Metadata: target("b.test")},
		{Addr: "10.0.0.3:8083", Priority: 1, Weight: 2.5, Metadata: target("c.test")},
		{Addr: "10.0.0.4:8083", Priority: 1, Weight: 2.5, Metadata: target("c.test")},
	}, set.Endpoints)
	require.Equal(t, 12*time.Second, set.TTL, "the least of records and addresses")
	for _, e := range set.Endpoints {
		require.NoError(t, e.Validate())
	}
}

func TestSRVWeights(t *testing.T) {
	targets := map[string]found{}
	for i, name := range []string{"a.", "b.", "c.", "d."} {
		targets[name] = found{addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}}
	}
	targets["gone."] = found{}
	for name, test := range map[string]struct {
		records []*net.SRV
		want    []float64 // of a, b, c, d, as far as there are
		prio    []int
	}{
		"all zero are the same": {
			[]*net.SRV{{Target: "a."}, {Target: "b."}}, []float64{1, 1}, []int{0, 0},
		},
		"zero is tiny beside others": {
			[]*net.SRV{{Target: "a."}, {Target: "b.", Weight: 10}, {Target: "c.", Weight: 50}}, []float64{0.1, 10, 50}, []int{0, 0, 0},
		},
		"each priority by itself": {
			[]*net.SRV{
				{Target: "a.", Priority: 7},
				{Target: "b.", Priority: 7, Weight: 100},
				{Target: "c.", Priority: 9},
				{Target: "d.", Priority: 9},
			},
			[]float64{1, 100, 1, 1},
			[]int{0, 0, 1, 1},
		},
		"a priority without addresses leaves no gap": {
			[]*net.SRV{{Target: "gone.", Priority: 1, Weight: 1}, {Target: "a.", Priority: 2}, {Target: "b.", Priority: 65535}},
			[]float64{1, 1},
			[]int{0, 1},
		},
		"a target without addresses does not count as weighted": {
			[]*net.SRV{{Target: "gone.", Weight: 65535}, {Target: "a."}},
			[]float64{1},
			[]int{0},
		},
		"an address named twice counts at the better priority": {
			[]*net.SRV{{Target: "a.", Priority: 1, Weight: 3}, {Target: "a.", Priority: 2, Weight: 5}, {Target: "b.", Priority: 3, Weight: 7}},
			[]float64{3, 7},
			[]int{0, 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			forward := srvEndpoints(test.records, targets)
			slices.Reverse(test.records)
			require.Equal(t, forward, srvEndpoints(test.records, targets), "the order of the records is irrelevant")
			var weights []float64
			var priorities []int
			for _, e := range forward {
				weights, priorities = append(weights, e.Weight), append(priorities, e.Priority)
			}
			require.Equal(t, test.want, weights)
			require.Equal(t, test.prio, priorities)
		})
	}
}

func TestSRVTargetDotMeansDecidedlyNobody(t *testing.T) {
	s := newDNSServer(t)
	s.set("_http._tcp.orders.test.", records(srv(0, 0, ".", 0, 33)))
	r := SRV(&SRVConfig{DNS: DNSConfig{Server: s.addr}})
	set, err := askOnce(t, Supervise(r, nil), "_http._tcp.orders.test.") // no grace
	require.NoError(t, err)
	require.Equal(t, Set{Authoritative: true, TTL: 33 * time.Second}, set)

	s.set("_http._tcp.orders.test.", records(srv(0, 0, ".", 0, 33), srv(1, 0, "a.test.", 80, 33)))
	s.set("a.test.", records(a("10.0.0.1", 60)))
	set, err = askOnce(t, r, "_http._tcp.orders.test.")
	require.NoError(t, err)
	require.Equal(t, []string{"10.0.0.1:80"}, addrsOf(set), "beside others it counts for nothing")
}

func TestSRVUsesTheAddressesThatComeWithTheAnswer(t *testing.T) {
	s := newDNSServer(t)
	name := records(srv(0, 1, "A.test.", 80, 60), srv(0, 1, "six.test.", 80, 60), srv(0, 1, "alone.test.", 80, 60))
	name.extra = []dnsmessage.Resource{
		aOf("a.test.", "10.0.0.2", 50), aOf("a.test.", "10.0.0.1", 40), aOf("a.test.", "fd00::1", 1),
		alias("x.test.", "a.test.", 1), aOf("six.test.", "fd00::6", 30),
	}
	s.set("_http._tcp.orders.test.", name)
	s.set("alone.test.", records(a("10.0.0.3", 60)))
	set, err := askOnce(t, SRV(&SRVConfig{DNS: DNSConfig{Server: s.addr}}), "_http._tcp.orders.test.")
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"10.0.0.1:80", "10.0.0.2:80", "[fd00::6]:80", "10.0.0.3:80"}, addrsOf(set))
	require.Zero(t, s.questions("a.test.", "A", "udp"))
	require.Zero(t, s.questions("six.test.", "A", "udp"))
	require.Equal(t, 1, s.questions("alone.test.", "A", "udp"))
	require.Equal(t, 5*time.Second, set.TTL, "that of the addresses, at the floor")
}

func TestSRVLooksManyTargetsUpAFewAtATime(t *testing.T) {
	s := newDNSServer(t)
	name := &dnsName{}
	for i := range 20 {
		target := string(rune('a'+i)) + ".test."
		name.records = append(name.records, srv(0, 1, target, 80, 60))
		s.set(target, records(a(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String(), 60)))
	}
	s.set("_http._tcp.orders.test.", name)
	set, err := askOnce(t, SRV(&SRVConfig{DNS: DNSConfig{Server: s.addr}}), "_http._tcp.orders.test.")
	require.NoError(t, err)
	require.Len(t, set.Endpoints, 20)
}

func TestSRVTargetThatFailsKeepsItsAddressesAndOneThatIsGoneDoesNot(t *testing.T) {
	s := newDNSServer(t)
	s.set("orders.test.", records(srv(0, 1, "a.test.", 80, 60), srv(0, 1, "b.test.", 80, 60), srv(0, 1, "c.test.", 80, 60)))
	for i, name := range []string{"a.test.", "b.test.", "c.test."} {
		s.set(name, records(a(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String(), 60)))
	}
	r := SRV(&SRVConfig{DNS: DNSConfig{Server: s.addr}}).(*srvResolver)
	known := map[string]found{}
	set, err := r.look(t.Context(), "orders", "orders.test.", known)
	require.NoError(t, err)
	require.Len(t, set.Endpoints, 3)

	s.set("b.test.", &dnsName{rcode: dnsmessage.RCodeServerFailure})
	s.set("c.test.", nil)
	for range 2 { // for as long as it fails
		set, err = r.look(t.Context(), "orders", "orders.test.", known)
		require.Equal(t, []string{"10.0.0.0:80", "10.0.0.1:80"}, addrsOf(set))
		var w *Warning
		require.ErrorAs(t, err, &w)
		require.ErrorContains(t, w, "b.test.")
		require.ErrorContains(t, w, "c.test.")
	}

	s.set("orders.test.", records(srv(0, 1, "a.test.", 80, 60), srv(0, 1, "b.test.", 80, 60)))
	_, err = r.look(t.Context(), "orders", "orders.test.", known)
	require.Error(t, err)
	require.Len(t, known, 2, "what is no longer named is forgotten")

	s.set("a.test.", nil)
	s.set("b.test.", nil)
	set, err = r.look(t.Context(), "orders", "orders.test.", known)
	require.Empty(t, set.Endpoints)
	require.ErrorIs(t, err, ErrNotFound)
	require.False(t, isWarning(err), "without any address it is a failure, and no empty set")
}

func TestSRVFailuresAreTyped(t *testing.T) {
	s := newDNSServer(t)
	r := SRV(&SRVConfig{DNS: DNSConfig{Server: s.addr}})
	_, err := askOnce(t, r, "_http._tcp.missing.test.")
	require.ErrorIs(t, err, ErrNotFound)
	var re *ResolveError
	require.ErrorAs(t, err, &re)
	s.set("_http._tcp.orders.test.", &dnsName{rcode: dnsmessage.RCodeServerFailure})
	_, err = askOnce(t, r, "_http._tcp.orders.test.")
	require.ErrorAs(t, err, &re)
	require.NotErrorIs(t, err, ErrNotFound)
}

func TestSRVNames(t *testing.T) {
	plainly, made := SRV(nil).(*srvResolver), SRV(&SRVConfig{Service: "http"}).(*srvResolver)
	udp := SRV(&SRVConfig{Service: "sip", Proto: "udp"}).(*srvResolver)
	for _, test := range []struct {
		r             *srvResolver
		service, want string
	}{
		{plainly, "_http._tcp.orders.example", "_http._tcp.orders.example"},
		{plainly, "orders.service.consul:8080", "orders.service.consul"},
		{made, "orders.example", "_http._tcp.orders.example"},
		{made, "orders.example:8080", "_http._tcp.orders.example"},
		{made, "_grpc._tcp.orders.example", "_grpc._tcp.orders.example"},
		{udp, "example", "_sip._udp.example"},
		{made, "10.0.0.1:80", ""},
		{made, "[::1]", ""},
		{made, "", ""},
		{made, "a b", ""},
	} {
		name, err := test.r.name(test.service)
		require.Equal(t, test.want, name)
		require.Equal(t, test.want == "", err != nil, test.service)
	}
	_, err := askOnce(t, made, "10.0.0.1:80")
	require.EqualError(t, err, "discovery: 10.0.0.1:80: 10.0.0.1 is an IP address, want a name that can have SRV records")
}

func TestSRVWatchRefreshesWithFreshKnowledge(t *testing.T) {
	s := newDNSServer(t)
	s.set("orders.test.", records(srv(0, 1, "a.test.", 80, 0)))
	s.set("a.test.", records(a("10.0.0.1", 0)))
	r := SRV(&SRVConfig{DNS: DNSConfig{Server: s.addr, MinRefresh: 5 * time.Millisecond}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for set, err := range r.Watch(ctx, "orders.test.") {
		require.NoError(t, err)
		if e := set.Endpoints[0]; e.Addr == "10.0.0.2:80" {
			require.Equal(t, "a.test:80", e.ID, "the address changed, the instance did not")
			return
		}
		s.set("a.test.", records(a("10.0.0.2", 0)))
	}
	require.Fail(t, "the change was not seen")
}

func TestSRVConfigIsValidated(t *testing.T) {
	require.NoError(t, (*SRVConfig)(nil).Validate())
	require.NoError(t, (&SRVConfig{Service: "http", Proto: "tcp"}).Validate())
	cfg := &SRVConfig{Service: "_http", Proto: "t.p", DNS: DNSConfig{MinRefresh: -1}}
	require.EqualError(t, cfg.Validate(), `discovery: Service is "_http", want a single label without underscore, such as http
discovery: Proto is "t.p", want tcp or udp
discovery: DNS.MinRefresh is -1ns, want > 0`)
	cfg = &SRVConfig{Proto: "tcp"}
	require.ErrorContains(t, cfg.Validate(), "Proto is \"tcp\", want none without Service")
	_, err := askOnce(t, SRV(cfg), "orders")
	require.ErrorContains(t, err, "want none without Service")
}
