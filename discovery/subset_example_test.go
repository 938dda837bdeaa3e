package discovery_test

import (
	"fmt"

	"github.com/backstay/backstay/discovery"
)

func ExampleSubset() {
	var all []discovery.Endpoint
	for i := range 100 {
		all = append(all, discovery.Endpoint{ID: fmt.Sprint("orders-", i), Addr: fmt.Sprintf("10.0.0.%d:80", i+1)})
	}
	first(discovery.Subset(discovery.Static(all...), &discovery.SubsetConfig{Client: "checkout-1", Size: 3}), "orders")
	// Output:
	// 10.0.0.42:80
	// 10.0.0.46:80
	// 10.0.0.96:80
}

func ExampleMinEndpoints() {
	registry := discovery.Static(discovery.Addrs("10.0.0.1:80")...) // has lost the other nine
	first(discovery.MinEndpoints(registry, 5), "orders")
	// Output: error: discovery: orders: 1 endpoints, want >= 5
}
