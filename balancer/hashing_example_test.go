package balancer_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// Requests of one user go to one node, which has that user's data in its cache.
func ExampleRendezvous() {
	b, err := balancer.New("profiles", discovery.Static(discovery.Addrs("a:80", "b:80", "c:80")...), &balancer.Config{
		Policy:  balancer.Rendezvous{},
		HashKey: balancer.HashKey{Header: "X-User"}, // for HTTP; without, say it by Call.Key
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()
	nodeOf := func(user string) string {
		lease, err := b.Acquire(context.Background(), balancer.Call{Key: user})
		if err != nil {
			return err.Error()
		}
		defer lease.Done(time.Time{}, outcome.Outcome{})
		return lease.Node().Key()
	}
	for _, user := range []string{"ann", "bob", "eve"} {
		fmt.Println(user, nodeOf(user), nodeOf(user))
	}
	_ = b.Eject(nodeOf("ann"), time.Minute)
	fmt.Println("without ann's node:")
	for _, user := range []string{"ann", "bob", "eve"} {
		fmt.Println(user, nodeOf(user))
	}
	// Output:
	// ann b:80 b:80
	// bob a:80 a:80
	// eve c:80 c:80
	// without ann's node:
	// ann a:80
	// bob a:80
	// eve c:80
}

// The key need not be in the request, and a name for an identity keeps a node's
// keys with it when it moves to another address.
func ExampleMaglev() {
	var nodes []discovery.Endpoint
	for _, name := range []string{"shard-0", "shard-1", "shard-2"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, name) }))
		defer server.Close()
		nodes = append(nodes, discovery.Endpoint{ID: name, Addr: server.Listener.Addr().String()})
	}
	b, err := balancer.New("shards", discovery.Static(nodes...), &balancer.Config{Policy: balancer.Maglev{Bound: 1.5}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()
	client := &http.Client{Transport: b.Layer(http.DefaultTransport)}
	for _, tenant := range []string{"tenant-1", "tenant-2", "tenant-1"} {
		ctx := balancer.WithKey(context.Background(), tenant)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://shards/", http.NoBody)
		if err != nil {
			fmt.Println(err)
			return
		}
		resp, err := client.Do(req)
		if err != nil {
			fmt.Println(err)
			return
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Print(tenant, " ", string(body))
	}
	// Output:
	// tenant-1 shard-0
	// tenant-2 shard-2
	// tenant-1 shard-0
}
