package main

import (
	"context"
	"fmt"
	"net"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/failsafegrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/discovery"
)

// grpcMethod is a method that sends back what it gets.
const grpcMethod = "/bench.Echo/Echo"

func grpcContests() []contest {
	over := func(name, module string, connect func(*stage, []string) (grpc.ClientConnInterface, error)) peer {
		return peer{name: name, module: module, setup: func(s *stage) (job, error) {
			addrs, err := startGRPC(s, 4)
			if err != nil {
				return nil, err
			}
			conn, err := connect(s, addrs)
			return grpcJob(conn), err
		}}
	}
	return []contest{{
		name:  "GRPCLoopback/unary-1KiB/servers=4",
		modes: []mode{serial(), {name: "64-callers", goroutines: 64}},
		peers: []peer{
			over(ours, "", ourConn),
			over("pick_first", moduleGRPC, func(s *stage, addrs []string) (grpc.ClientConnInterface, error) {
				return grpcClient(s, addrs, "pick_first")
			}),
			over("round_robin", moduleGRPC, func(s *stage, addrs []string) (grpc.ClientConnInterface, error) {
				return grpcClient(s, addrs, "round_robin")
			}),
			over("round_robin+failsafegrpc", moduleFailsafe, func(s *stage, addrs []string) (grpc.ClientConnInterface, error) {
				policies := []failsafe.Policy[any]{
					failsafegrpc.NewRetryPolicyBuilder[any]().Build(),
					circuitbreaker.NewBuilder[any]().WithFailureRateThreshold(breakerRate, breakerCalls, breakerWindow).Build(),
				}
				return grpcClient(s, addrs, "round_robin", grpc.WithUnaryInterceptor(failsafegrpc.NewUnaryClientInterceptor(policies...)))
			}),
		},
	}}
}

func grpcJob(conn grpc.ClientConnInterface) job {
	payload := wrapperspb.Bytes(make([]byte, loopbackSize))
	ctx := context.Background()
	return func(calls *loop) error {
		reply := new(wrapperspb.BytesValue)
		for calls.next() {
			if err := conn.Invoke(ctx, grpcMethod, payload, reply); err != nil {
				return err
			}
			if len(reply.GetValue()) != loopbackSize {
				return fmt.Errorf("the answer has %d bytes, want %d", len(reply.GetValue()), loopbackSize)
			}
		}
		return nil
	}
}

func ourConn(s *stage, addrs []string) (grpc.ClientConnInterface, error) {
	client, err := backstay.New(&backstay.Config{Default: backstay.Service{Endpoints: discovery.Addrs(addrs...)}})
	if err != nil {
		return nil, err
	}
	s.cleanup(func() { _ = client.Close() })
	conn, err := backstaygrpc.NewClient("orders", client, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	s.cleanup(func() { _ = conn.Close() })
	return conn, nil
}

// grpcClient returns grpc's own connection to all servers.
func grpcClient(s *stage, addrs []string, policy string, opts ...grpc.DialOption) (grpc.ClientConnInterface, error) {
	var state resolver.State
	for _, addr := range addrs {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}})
	}
	r := manual.NewBuilderWithScheme("servers")
	r.InitialState(state)
	conn, err := grpc.NewClient("servers:///orders", append(opts, grpc.WithResolvers(r),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(fmt.Sprintf(`{"loadBalancingConfig":[{%q:{}}]}`, policy)))...)
	if err != nil {
		return nil, err
	}
	s.cleanup(func() { _ = conn.Close() })
	return conn, nil
}

// startGRPC starts servers and returns their addresses.
func startGRPC(s *stage, n int) ([]string, error) {
	echo := func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.BytesValue)
		return in, decode(in)
	}
	desc := &grpc.ServiceDesc{
		ServiceName: "bench.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: echo}},
	}
	addrs := make([]string, n)
	for i := range addrs {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		server := grpc.NewServer()
		server.RegisterService(desc, nil)
		go func() { _ = server.Serve(listener) }()
		s.cleanup(server.Stop)
		addrs[i] = listener.Addr().String()
	}
	return addrs, nil
}
