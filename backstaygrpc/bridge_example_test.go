package backstaygrpc_test

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/balancer/loadreport"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
)

// exampleServer serves gRPC's health service on loopback.
func exampleServer(opts ...grpc.ServerOption) (addr string, stop func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer(opts...)
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(listener) }()
	return listener.Addr().String(), server.Stop
}

func ExampleDialOptions() {
	addr, stop := exampleServer()
	defer stop()
	client, err := backstay.New(&backstay.Config{Services: map[string]backstay.Service{
		"orders": {Endpoints: discovery.Addrs(addr)},
	}})
	if err != nil {
		panic(err)
	}
	defer client.Close()
	up, err := client.Upstream("orders")
	if err != nil {
		panic(err)
	}
	defer up.Close()

	opts, err := backstaygrpc.DialOptions(up.Balancer(), nil)
	if err != nil {
		panic(err)
	}
	conn, err := grpc.NewClient("backstay:///orders", append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(context.Background(), new(grpc_health_v1.HealthCheckRequest))
	fmt.Println(answer.GetStatus(), err)
	// Output: SERVING <nil>
}

func ExampleHealthCheck() {
	addr, stop := exampleServer()
	defer stop()
	check := backstaygrpc.HealthCheck("", grpc.WithTransportCredentials(insecure.NewCredentials()))
	b, err := balancer.New("orders", discovery.Static(discovery.Addrs(addr)...), &balancer.Config{
		Health: balancer.HealthConfig{Check: check},
	})
	if err != nil {
		panic(err)
	}
	defer b.Close()
	fmt.Println(b.Ready(context.Background()), check(context.Background(), b.Nodes()[0]))
	// Output: <nil> <nil>
}

func ExampleNewCache() {
	addr, stop := exampleServer()
	defer stop()
	c, err := backstaygrpc.NewCache(&backstaygrpc.CacheConfig{
		Methods: map[string]time.Duration{"/grpc.health.v1.Health/Check": time.Minute},
	})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	client := grpc_health_v1.NewHealthClient(c.Over(conn))
	for range 3 {
		if _, err := client.Check(context.Background(), new(grpc_health_v1.HealthCheckRequest)); err != nil {
			panic(err)
		}
	}
	fmt.Println(c.Stats().Hits, "of 3 from the cache")
	// Output: 2 of 3 from the cache
}

func ExampleServerOptions() {
	concurrency, err := limit.NewConcurrency(&limit.ConcurrencyConfig{Key: "orders", Max: 100})
	if err != nil {
		panic(err)
	}
	limits, err := backstaygrpc.ServerLimit(&backstaygrpc.ServerLimitConfig{Concurrency: concurrency})
	if err != nil {
		panic(err)
	}
	_, stop := exampleServer(backstaygrpc.ServerOptions(
		backstaygrpc.ServerLoad(new(loadreport.Server)), backstaygrpc.ServerPropagate(nil), limits,
	)...)
	defer stop()
	fmt.Println("serving")
	// Output: serving
}
