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

func ExampleNew() {
	nodes := discovery.Static(discovery.Addrs("10.0.0.1:8080", "10.0.0.2:8080")...)
	b, err := balancer.New("orders", nodes, &balancer.Config{MaxConcurrency: 100})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()
	if err := b.Ready(context.Background()); err != nil {
		fmt.Println(err)
		return
	}
	for _, n := range b.Nodes() {
		fmt.Println(n, n.InFlight(), "in flight")
	}
	// Output:
	// 10.0.0.1:8080 0 in flight
	// 10.0.0.2:8080 0 in flight
}

func ExampleBalancer_Layer() {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello from", r.Host) })
	one, two := httptest.NewServer(handler), httptest.NewServer(handler)
	defer one.Close()
	defer two.Close()

	nodes := discovery.Static(discovery.Addrs(one.Listener.Addr().String(), two.Listener.Addr().String())...)
	b, err := balancer.New("orders", nodes, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()
	client := &http.Client{Transport: b.Layer(http.DefaultTransport)}
	resp, err := client.Get("http://orders/v1/items")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Print(string(body))
	// Output: hello from orders
}

// Without HTTP: take a lease, do the work, say what came of it.
func ExampleBalancer_Acquire() {
	b, err := balancer.New("orders", discovery.Static(discovery.Addrs("10.0.0.1:9000")...), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()

	lease, err := b.Acquire(context.Background(), balancer.Call{})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = send(lease.Node().Endpoint().Addr)
	lease.Done(time.Time{}, outcome.Of(err))
	fmt.Println(err, lease.Node().InFlight())
	// Output:
	// sent to 10.0.0.1:9000
	// <nil> 0
}

func send(addr string) error {
	fmt.Println("sent to", addr)
	return nil
}

// A policy of one's own: the first node that is listed, as long as it is well.
func ExamplePolicyFunc() {
	primary := balancer.PolicyFunc(func(nodes []*balancer.Node) balancer.Picker {
		return balancer.PickerFunc(func(balancer.Call) *balancer.Node { return nodes[0] })
	})
	b, err := balancer.New("orders", discovery.Static(discovery.Addrs("primary:80", "secondary:80")...), &balancer.Config{Policy: primary})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()

	pick := func() {
		lease, err := b.Acquire(context.Background(), balancer.Call{})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(lease.Node())
		lease.Done(time.Time{}, outcome.Outcome{})
	}
	pick()
	_ = b.Eject("primary:80", time.Minute)
	pick()
	// Output:
	// primary:80
	// secondary:80
}

// fewestFailures is a cost of one's own.
type fewestFailures struct{}

func (fewestFailures) Cost(n *balancer.Node, now time.Time) float64 { return n.FailureRate(now) }

func ExampleP2C() {
	b, err := balancer.New("orders", discovery.Static(discovery.Addrs("a:80", "b:80")...), &balancer.Config{
		Policy: balancer.P2C{Cost: fewestFailures{}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()
	lease, err := b.Acquire(context.Background(), balancer.Call{})
	if err != nil {
		fmt.Println(err)
		return
	}
	failed := lease.Node()
	lease.Done(time.Time{}, outcome.Outcome{Class: outcome.Failure})

	lease, err = b.Acquire(context.Background(), balancer.Call{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer lease.Done(time.Time{}, outcome.Outcome{})
	fmt.Println("the same again:", lease.Node() == failed)
	// Output: the same again: false
}
