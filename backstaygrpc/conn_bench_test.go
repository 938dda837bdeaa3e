package backstaygrpc_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/backstay/backstay"
)

// roundRobin is grpc's own connection to the servers.
func roundRobin(tb testing.TB, servers ...*server) *grpc.ClientConn {
	tb.Helper()
	r := manual.NewBuilderWithScheme("servers")
	var state resolver.State
	for _, s := range servers {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: s.addr}}})
	}
	r.InitialState(state)
	conn, err := grpc.NewClient("servers:///orders", grpc.WithResolvers(r), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close() })
	return conn
}

func contenders(tb testing.TB) map[string]grpc.ClientConnInterface {
	tb.Helper()
	var servers []*server
	for range 4 {
		servers = append(servers, startServer(tb, handlers{unary: func(_ context.Context, in string) (string, error) { return in, nil }}))
	}
	return map[string]grpc.ClientConnInterface{
		"round_robin": roundRobin(tb, servers...),
		"Conn":        dial(tb, newClient(tb, &backstay.Config{}, servers...)),
	}
}

// A call of a Conn allocates hardly more than one of grpc's own.
func TestUnaryCallAllocatesLittleMoreThanGRPCsOwn(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	allocs := make(map[string]float64)
	for name, conn := range contenders(t) {
		in, out := wrapperspb.String("hello"), new(text)
		one := func() {
			if err := conn.Invoke(context.Background(), get, in, out); err != nil {
				t.Error(err)
			}
		}
		for range 100 {
			one()
		}
		allocs[name] = testing.AllocsPerRun(500, one)
	}
	t.Log(allocs)
	require.LessOrEqual(t, allocs["Conn"], allocs["round_robin"]+10)
}

func BenchmarkUnary(b *testing.B) {
	for name, conn := range contenders(b) {
		in, out := wrapperspb.String("hello"), new(text)
		one := func(out *text) {
			if err := conn.Invoke(context.Background(), get, in, out); err != nil {
				b.Error(err)
			}
		}
		for range 100 {
			one(out)
		}
		b.Run("serial/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				one(out)
			}
		})
		b.Run("64 callers/"+name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				out := new(text)
				for pb.Next() {
					one(out)
				}
			})
		})
	}
}
