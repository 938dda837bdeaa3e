package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// SRVConfig says how [SRV] asks. The zero value means every default.
type SRVConfig struct {
	// Service and Proto make the name to ask for out of the service's: with
	// "http" and "tcp" it is _http._tcp.orders.example for orders.example. A
	// service's name that begins with an underscore is taken as it is. Default:
	// every name is.
	Service string `json:"service,omitempty"`
	// Proto is "tcp" or "udp". Default: tcp.
	Proto string `json:"proto,omitempty"`
	// DNS says how to ask. Default: as [DNS] does.
	DNS DNSConfig `json:"dns,omitzero"`
}

// Validate returns every problem of c's, joined.
func (c *SRVConfig) Validate() error {
	if c == nil {
		return nil
	}
	var errs []error
	if !label(c.Service) {
		errs = append(errs, fmt.Errorf("discovery: Service is %q, want a single label without underscore, such as http", c.Service))
	}
	if !label(c.Proto) {
		errs = append(errs, fmt.Errorf("discovery: Proto is %q, want tcp or udp", c.Proto))
	}
	if c.Proto != "" && c.Service == "" {
		errs = append(errs, fmt.Errorf("discovery: Proto is %q, want none without Service", c.Proto))
	}
	return errors.Join(append(errs, c.DNS.validate("DNS."))...)
}

// label reports whether s is empty or can follow an underscore in a name.
func label(s string) bool {
	return len(s) < 63 && plain(s) && !strings.HasPrefix(s, "_") && !strings.ContainsAny(s, ".:")
}

// SRV returns a resolver that follows SRV records (RFC 2782), with their ports,
// priorities and weights, and looks up their targets' addresses where they do
// not come with the answer. Services are names such as
// "_http._tcp.orders.example", or as SRVConfig makes them; a port is ignored.
//
// Priorities become 0, 1, 2, … in their order. Weights count within a priority.
// A weight of 0 means "hardly ever" and becomes a hundredth of the least other
// one; where all are 0 they are the same. A target with several addresses shares
// its weight among them; one with a single address gives its endpoint the ID
// target:port, which stays when the address changes. Metadata names the "target".
//
// A target whose look-up fails keeps the addresses it had; one that does not
// exist is left out; a [*Warning] says so either way. The target "." means that
// there is decidedly nobody: an empty, authoritative set. Everything else is as
// [DNS] does it.
func SRV(cfg *SRVConfig) Resolver {
	if cfg == nil {
		cfg = new(SRVConfig)
	}
	if err := cfg.Validate(); err != nil {
		return broken{err}
	}
	r := &srvResolver{dns: dnsResolver{cfg.DNS.withDefaults()}}
	if cfg.Service != "" {
		r.prefix = "_" + cfg.Service + "._" + cmp.Or(cfg.Proto, "tcp") + "."
	}
	return r
}

type srvResolver struct {
	dns    dnsResolver
	prefix string
}

// Watch looks the records up again and again, on the caller's goroutine.
func (s *srvResolver) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	name, err := s.name(service)
	return func(yield func(Set, error) bool) {
		known := make(map[string]found)
		poll(ctx, service, s.dns.schedule(), func(ctx context.Context) (Set, error) {
			if err != nil {
				return Set{}, err
			}
			return s.look(ctx, service, name, known)
		})(yield)
	}
}

// name returns the name whose records to ask for.
func (s *srvResolver) name(service string) (string, error) {
	host, _, err := splitHostPort(service)
	if err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return "", fmt.Errorf("%s is an IP address, want a name that can have SRV records", host)
	}
	if strings.HasPrefix(host, "_") {
		return host, nil
	}
	return s.prefix + host, nil
}

// look asks for the records of name and the addresses of their targets. known
// holds those of the last look-up and is brought up to date.
func (s *srvResolver) look(ctx context.Context, service, name string, known map[string]found) (Set, error) {
	var w wire
	records, err := s.records(ctx, name, &w)
	if len(records) == 0 {
		return Set{}, lookupError(cmp.Or(err, ErrNotFound))
	}
	set := Set{TTL: w.least()}
	present := slices.DeleteFunc(records, func(r *net.SRV) bool { return strings.Trim(r.Target, ".") == "" })
	if len(present) == 0 {
		set.Authoritative = true
		return set, nil
	}
	targets := make(map[string]found, len(present))
	for _, r := range present {
		targets[r.Target] = w.addresses(r.Target)
	}
	failed := s.resolve(ctx, targets)
	var problems []error
	if err != nil { // some records are malformed
		problems = append(problems, err)
	}
	for target, err := range failed {
		problems = append(problems, err)
		if !errors.Is(err, ErrNotFound) {
			targets[target] = known[target]
		}
	}
	slices.SortFunc(problems, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	clear(known)
	for target, f := range targets {
		known[target] = f
		if len(f.addrs) > 0 && f.ttl < set.TTL {
			set.TTL = f.ttl
		}
	}
	err = errors.Join(problems...)
	if set.Endpoints = srvEndpoints(present, targets); len(set.Endpoints) == 0 {
		return Set{}, err
	}
	if err != nil {
		err = &Warning{Service: service, Err: err}
	}
	return set, err
}

func (s *srvResolver) records(ctx context.Context, name string, w *wire) ([]*net.SRV, error) {
	ctx, cancel := s.dns.bounded(ctx)
	defer cancel()
	_, records, err := s.dns.resolver(w).LookupSRV(ctx, "", "", name)
	return records, err
}

// lookupsAtOnce bounds the look-ups of one answer's targets under way.
const lookupsAtOnce = 8

// resolve fills in the targets' addresses, looking up those of which there are
// none, and returns what failed.
func (s *srvResolver) resolve(ctx context.Context, targets map[string]found) map[string]error {
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		slots  = make(chan struct{}, lookupsAtOnce)
		failed = make(map[string]error)
	)
	var missing []string
	for target, f := range targets {
		if f.addrs = s.ofFamily(f.addrs); len(f.addrs) == 0 {
			missing = append(missing, target)
		} else {
			targets[target] = f
		}
	}
	for _, target := range missing {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f, err := s.dns.addresses(ctx, target)
			mu.Lock()
			defer mu.Unlock()
			targets[target] = f
			if err != nil {
				failed[target] = err
			}
		})
	}
	wg.Wait()
	return failed
}

// ofFamily returns the addresses of the family to use, sorted.
func (s *srvResolver) ofFamily(addrs []netip.Addr) []netip.Addr {
	for _, network := range s.dns.networks() {
		var kept []netip.Addr
		for _, a := range addrs {
			if a.Is4() == (network == "ip4") {
				kept = append(kept, a)
			}
		}
		if len(kept) > 0 {
			slices.SortFunc(kept, netip.Addr.Compare)
			return slices.Compact(kept)
		}
	}
	return nil
}

// srvZeroWeight is a weight of 0 as a share of the least other one.
const srvZeroWeight = 0.01

// srvEndpoints returns the endpoints of records whose targets have the given
// addresses, in an order that does not depend on the records'.
func srvEndpoints(records []*net.SRV, targets map[string]found) []Endpoint {
	records = slices.DeleteFunc(slices.Clone(records), func(r *net.SRV) bool { return len(targets[r.Target].addrs) == 0 })
	slices.SortFunc(records, func(a, b *net.SRV) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Target, b.Target),
			cmp.Compare(a.Port, b.Port), cmp.Compare(b.Weight, a.Weight))
	})
	var endpoints []Endpoint
	seen := make(map[string]bool)
	priority := 0
	for len(records) > 0 {
		n := slices.IndexFunc(records, func(r *net.SRV) bool { return r.Priority != records[0].Priority })
		if n < 0 {
			n = len(records)
		}
		group := len(endpoints)
		least := leastWeight(records[:n])
		for _, r := range records[:n] {
			weight := cmp.Or(float64(r.Weight), least*srvZeroWeight, 1)
			for _, e := range targetEndpoints(r, targets[r.Target].addrs) {
				if seen[e.Addr] {
					continue // named twice: the better priority counts
				}
				seen[e.Addr] = true
				e.Priority, e.Weight = priority, weight/float64(len(targets[r.Target].addrs))
				endpoints = append(endpoints, e)
			}
		}
		if len(endpoints) > group {
			priority++
		}
		records = records[n:]
	}
	return endpoints
}

// leastWeight is the least weight above 0; 0 if there is none.
func leastWeight(records []*net.SRV) float64 {
	least := uint16(0)
	for _, r := range records {
		if r.Weight > 0 && (least == 0 || r.Weight < least) {
			least = r.Weight
		}
	}
	return float64(least)
}

// targetEndpoints returns the endpoints of one record, without priority and
// weight.
func targetEndpoints(r *net.SRV, addrs []netip.Addr) []Endpoint {
	port := strconv.Itoa(int(r.Port))
	target := strings.TrimSuffix(r.Target, ".")
	endpoints := make([]Endpoint, len(addrs))
	for i, a := range addrs {
		endpoints[i] = Endpoint{Addr: net.JoinHostPort(a.String(), port), Metadata: map[string]string{"target": target}}
	}
	if len(addrs) == 1 {
		endpoints[0].ID = net.JoinHostPort(target, port)
	}
	return endpoints
}
