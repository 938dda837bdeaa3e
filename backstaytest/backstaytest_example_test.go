package backstaytest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"testing"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/event"
)

// t stands for the *testing.T of a test.
var t = new(exampleT)

type exampleT struct{ testing.TB }

func (*exampleT) Helper()        {}
func (*exampleT) Cleanup(func()) {}

func status(resp *http.Response, err error) any {
	if err != nil {
		return errors.Unwrap(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

func ExampleNewServer() {
	server := backstaytest.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	}), &backstaytest.ServerConfig{Addr: "greeter.test"})
	defer server.Close()

	resp, err := server.Client().Get("http://greeter.test/")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	text, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(text))
	// Output: 200 hello
}

func ExampleNewFleet() {
	fleet := backstaytest.NewFleet(t, 3, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
	client := &http.Client{Transport: fleet.Transport()}

	fleet.Server(0).Kill()
	fleet.Server(1).FailNext(1, http.StatusServiceUnavailable)
	for range 2 {
		for _, s := range fleet.Servers() {
			resp, err := client.Get(s.URL())
			if errors.Is(err, syscall.ECONNREFUSED) {
				fmt.Println(s.ID, "refused")
				continue
			}
			fmt.Println(s.ID, status(resp, err))
		}
	}
	fmt.Println(fleet.Stats().Requests, "requests")

	for _, s := range fleet.Servers() {
		s.Close()
	}
	// Output:
	// s0 refused
	// s1 503
	// s2 200
	// s0 refused
	// s1 200
	// s2 200
	// 4 requests
}

func ExampleFleet_Resolver() {
	fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
	for set := range fleet.Resolver().Watch(context.Background(), "orders") {
		for _, e := range set.Endpoints {
			fmt.Println(e.ID, "at", e.Addr)
		}
		fmt.Println("--")
		if len(set.Endpoints) == 2 {
			break
		}
		fleet.Join()
	}
	for _, s := range fleet.Servers() {
		s.Close()
	}
	// Output:
	// s0 at 10.0.0.1:80
	// --
	// s0 at 10.0.0.1:80
	// s1 at 10.0.0.2:80
	// --
}

func ExampleNewNetwork() {
	network := backstaytest.NewNetwork()
	orders := backstaytest.NewServer(t, nil, &backstaytest.ServerConfig{Network: network, Addr: "orders.test:8080"})
	stock := backstaytest.NewServer(t, nil, &backstaytest.ServerConfig{Network: network, Addr: "stock.test:8080"})
	defer orders.Close()
	defer stock.Close()

	tr := network.Transport()
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	fmt.Println(status(client.Get("http://orders.test:8080/")))
	fmt.Println(status(client.Get("http://stock.test:8080/")))
	// Output:
	// 200
	// 200
}

func ExampleNewFaults() {
	server := backstaytest.NewServer(t, nil, nil)
	defer server.Close()
	faults, err := backstaytest.NewFaults(&backstaytest.FaultsConfig{
		Script: func(n int, _ *http.Request) backstaytest.Fault {
			if n == 1 {
				return backstaytest.Fault{Status: http.StatusBadGateway}
			}
			return backstaytest.Fault{}
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: faults.Layer(server.Transport())}
	for range 3 {
		fmt.Println(status(client.Get(server.URL())))
	}
	// Output:
	// 200
	// 502
	// 200
}

func ExampleRecorder() {
	rec := new(backstaytest.Recorder)
	var observer event.Observer = rec // hand it to what is tested

	observer.Observe(context.Background(), opened{Key: "orders"})
	observer.Observe(context.Background(), retried{Attempt: 2})

	fmt.Print(rec)
	fmt.Println(backstaytest.EventsOf[opened](rec)[0].Key)
	// Output:
	// breaker.opened key=orders
	// retry.retried attempt=2
	// orders
}

func ExampleNewAuthority() {
	authority := backstaytest.NewAuthority(t)
	certificate := authority.Certificate("orders.test", "10.0.0.1")
	fmt.Println(certificate.Leaf.DNSNames, certificate.Leaf.IPAddresses)
	// Output: [orders.test] [10.0.0.1]
}
