package discovery_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/backstay/backstay/discovery"
)

// first prints what the first yield of a watch says.
func first(r discovery.Resolver, service string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for set, err := range r.Watch(ctx, service) {
		if err != nil {
			fmt.Println("error:", err)
			return
		}
		for _, e := range set.Endpoints {
			fmt.Println(strings.Join(append([]string{strings.TrimSpace(e.Addr + " " + e.Zone)}, e.Fallback...), ", "))
		}
		return
	}
}

func ExampleStatic() {
	first(discovery.Static(
		discovery.Endpoint{Addr: "10.0.0.1:8080", Zone: "a"},
		discovery.Endpoint{Addr: "10.0.0.2:8080", Zone: "b"},
	), "orders")
	// Output:
	// 10.0.0.1:8080 a
	// 10.0.0.2:8080 b
}

func ExampleAddrs() {
	first(discovery.Static(discovery.Addrs("10.0.0.1:8080", "unix:/run/orders.sock")...), "orders")
	// Output:
	// 10.0.0.1:8080
	// unix:/run/orders.sock
}

func ExampleDNS() {
	r := discovery.DNS(&discovery.DNSConfig{Family: discovery.IPv6First})
	first(r, "localhost:8080")
	// Output: [::1]:8080, 127.0.0.1:8080
}

func ExampleSRV() {
	// _http._tcp.orders.example, with TTLs of less than a minute taken for one.
	r := discovery.SRV(&discovery.SRVConfig{
		Service: "http",
		DNS:     discovery.DNSConfig{MinRefresh: time.Minute},
	})
	first(r, "10.0.0.1")
	// Output: error: discovery: 10.0.0.1: 10.0.0.1 is an IP address, want a name that can have SRV records
}

func ExampleFile() {
	dir, err := os.MkdirTemp("", "endpoints")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "endpoints.json")
	content := `{"orders": ["10.0.0.1:8080", {"addr": "10.0.0.2:8080", "zone": "b"}]}`
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	first(discovery.File(path, nil), "orders")
	// Output:
	// 10.0.0.1:8080
	// 10.0.0.2:8080 b
}

func ExampleSupervise() {
	wrong := discovery.Static(
		discovery.Endpoint{Addr: "10.0.0.1:8080"},
		discovery.Endpoint{Addr: "http://10.0.0.2:8080"},
	)
	for set, err := range discovery.Supervise(wrong, nil).Watch(context.Background(), "orders") {
		if warning, ok := errors.AsType[*discovery.Warning](err); ok {
			fmt.Println(warning)
			break
		}
		fmt.Println(len(set.Endpoints), "endpoint")
	}
	// Output:
	// 1 endpoint
	// discovery: orders: warning: discovery: endpoint "http://10.0.0.2:8080": Addr is "http://10.0.0.2:8080", want host:port, host or unix:/path
}

func ExampleMerge() {
	r := discovery.Merge(
		discovery.Static(discovery.Addrs("10.0.0.1:8080")...),
		discovery.Static(discovery.Addrs("10.0.0.2:8080")...),
	)
	for set := range r.Watch(context.Background(), "orders") {
		if len(set.Endpoints) == 2 { // both have answered
			fmt.Println(set.Endpoints[0].Addr, set.Endpoints[1].Addr)
			break
		}
	}
	// Output:
	// 10.0.0.1:8080 10.0.0.2:8080
}

func ExampleFailover() {
	// DNS, and two fixed addresses should the name fail.
	first(discovery.Failover(
		discovery.DNS(nil),
		discovery.Static(discovery.Addrs("10.0.0.1:8080", "10.0.0.2:8080")...),
	), "not a name")
	// Output:
	// 10.0.0.1:8080
	// 10.0.0.2:8080
}

func ExampleFilter() {
	all := discovery.Static(
		discovery.Endpoint{Addr: "10.0.0.1:8080", Zone: "a"},
		discovery.Endpoint{Addr: "10.0.0.2:8080", Zone: "b"},
	)
	first(discovery.Filter(all, func(e discovery.Endpoint) bool { return e.Zone == "b" }), "orders")
	// Output: 10.0.0.2:8080 b
}

func ExampleMap() {
	all := discovery.Static(discovery.Addrs("10.0.0.1:8080", "10.1.0.1:8080")...)
	first(discovery.Map(all, func(e discovery.Endpoint) discovery.Endpoint {
		if strings.HasPrefix(e.Addr, "10.1.") {
			e.Zone = "b"
		}
		return e
	}), "orders")
	// Output:
	// 10.0.0.1:8080
	// 10.1.0.1:8080 b
}

func ExampleDialAddr() {
	for _, addr := range []string{"10.0.0.1", "[::1]:8443", "unix:/run/orders.sock"} {
		fmt.Println(discovery.DialAddr(addr, "443"))
	}
	// Output:
	// tcp 10.0.0.1:443 <nil>
	// tcp [::1]:8443 <nil>
	// unix /run/orders.sock <nil>
}

func ExampleEndpoint() {
	b, err := json.Marshal(discovery.Endpoint{ID: "orders-0", Addr: "10.0.0.1:8080", Weight: 2})
	fmt.Println(string(b), err)
	// Output: {"id":"orders-0","addr":"10.0.0.1:8080","weight":2} <nil>
}

func ExampleResolverFunc() {
	// Anything that can list addresses can be a resolver. This one asks a
	// function every ten seconds or when it is told to; if that fails, the
	// watch ends, and whoever uses it starts it again with backoff.
	list := func(context.Context, string) ([]string, error) { return []string{"10.0.0.1:8080"}, nil }
	r := discovery.ResolverFunc(func(ctx context.Context, service string) iter.Seq2[discovery.Set, error] {
		return func(yield func(discovery.Set, error) bool) {
			for {
				addrs, err := list(ctx, service)
				if !yield(discovery.Set{Endpoints: discovery.Addrs(addrs...)}, err) || err != nil {
					return
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(10 * time.Second):
				case <-discovery.Hints(ctx):
				}
			}
		}
	})
	first(r, "orders")
	// Output: 10.0.0.1:8080
}
