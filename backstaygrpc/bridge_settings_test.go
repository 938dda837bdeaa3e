package backstaygrpc_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/limit"
)

func parse(settings string) error {
	_, err := grpcbalancer.Get(backstaygrpc.Name).(grpcbalancer.ConfigParser).ParseConfig([]byte(settings))
	return err
}

func TestServiceConfigNamesOurPolicies(t *testing.T) {
	for _, settings := range []string{
		`{}`,
		`{"policy": {"p2c": {}}}`,
		`{"policy": {"p2c": {"cost": "load_report"}}}`,
		`{"policy": {"p2c": {"cost": "in_flight"}}}`,
		`{"policy": {"least_request": {}}}`,
		`{"policy": {"round_robin": {}}}`,
		`{"policy": {"random": {}}}`,
		`{"policy": {"weighted_round_robin": {"reported": true, "blackout": "1s", "expiration": "1m", "update": "2s", "errorPenalty": 2}}}`,
		`{"policy": {"rendezvous": {"seed": 7, "bound": 1.5}}, "hashMetadata": "x-user"}`,
		`{"policy": {"maglev": {"tableSize": 1009}}}`,
		`{"breaker": {"openTime": "10s"}, "outliers": {}, "maxConcurrency": 5, "slowStart": "1m", "loadInterval": "30s", "latencyNeutral": ["/a.B/*"]}`,
	} {
		require.NoError(t, parse(settings), settings)
	}
}

func TestServiceConfigWithMistakesIsRefusedAndNamesThem(t *testing.T) {
	for settings, want := range map[string]string{
		`[]`:                                                  `the settings are [], want an object`,
		`{"policy": "round_robin"}`:                           `policy is "round_robin", want one with its settings, such as {"round_robin": {}}`,
		`{"policy": {}}`:                                      `policy is {}, want one`,
		`{"policy": {"ring_hash": {}}}`:                       `policy "ring_hash" is not known, want one of "least_request", "maglev", "p2c", "random", "rendezvous", "round_robin", "weighted_round_robin"`,
		`{"policy": {"p2c": {"cost": "best"}}}`:               `cost is "best", want one of "in_flight", "load_report", "peak_ewma"`,
		`{"policy": {"p2c": {"choices": 3}}}`:                 `policy "p2c": backstaygrpc: "choices" is not known, want one of "cost"`,
		`{"policy": {"round_robin": {"a": 3}}}`:               `"a" is not known`,
		`{"policy": {"maglev": {"seed": "x"}}}`:               `seed is "x", want a uint64`,
		`{"policy": {"weighted_round_robin": {"update": 5}}}`: `update is 5, want a duration such as "250ms"`,
		`{"loadInterval": "soon"}`:                            `loadInterval is "soon", want a duration`,
		`{"loadInterval": "1ms"}`:                             `LoadInterval is 1ms, want >= 10ms`,
		`{"maxConcurrancy": 5}`:                               `maxConcurrancy`,
		`{"breaker": {"openTime": 5}}`:                        `breaker.openTime is 5, want a duration`,
		`{"panicThreshold": 3}`:                               `PanicThreshold is 3, want <= 1`,
		`{"h2c": true, "attemptTimeout": "1s", "hashKey": {"header": "x"}, "health": {"path": "/"}}`: `backstaygrpc: attemptTimeout is set, want none: it is for HTTP
backstaygrpc: h2c is set, want none: it is for HTTP
backstaygrpc: hashKey is set, want none: it is for HTTP
backstaygrpc: health.path is set, want none: it is for HTTP`,
	} {
		require.ErrorContains(t, parse(settings), want, settings)
	}

	_, err := grpc.NewClient("dns:///orders", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"backstay": {"policy": {"best": {}}}}]}`))
	require.ErrorContains(t, err, `policy "best" is not known`)
}

// own is a connection over one of gRPC's resolvers, with a balancer of its own.
func own(t *testing.T, settings string, addrs ...string) (*grpc.ClientConn, *manual.Resolver) {
	t.Helper()
	r := manual.NewBuilderWithScheme("manual")
	r.InitialState(stateOf(addrs...))
	conn := connect(t, "manual:///orders", grpc.WithResolvers(r), quickly(),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"backstay": `+settings+`}]}`),
		grpc.WithChainStreamInterceptor(backstaygrpc.AwaitHeaders))
	return conn, r
}

func stateOf(addrs ...string) resolver.State {
	var state resolver.State
	for _, addr := range addrs {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}})
	}
	return state
}

func TestBridgeOverOneOfGRPCsResolvers(t *testing.T) {
	backstaytest.CheckLeaks(t)
	f := newBackends(t, 3, interopServer)
	conn, r := own(t, `{"policy": {"round_robin": {}}}`, f.servers[0].addr, f.servers[1].addr)
	soon(t, func() bool {
		require.NoError(t, ask(within(t), conn))
		calls := f.calls()
		return calls[0] > 0 && calls[1] > 0
	}, "both are used")
	evenly(t, f, conn, 5, 5, 0)

	r.UpdateState(stateOf(f.servers[2].addr))
	soon(t, func() bool {
		require.NoError(t, ask(within(t), conn))
		return f.servers[2].calls.Load() > 0
	}, "it follows")
	r.CC().ReportError(fmt.Errorf("no such name"))
	require.NoError(t, ask(within(t), conn), "a failure keeps what is known")
}

func TestBridgeOverDNS(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	conn := connect(t, "dns:///"+f.servers[0].addr, grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"backstay": {}}]}`))
	require.NoError(t, ask(within(t), conn))
}

func TestBridgeOverAResolverThatFails(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	r := manual.NewBuilderWithScheme("manual")
	conn := connect(t, "manual:///orders", grpc.WithResolvers(r),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"backstay": {}}]}`))
	conn.Connect()
	soon(t, func() bool { return r.CC() != nil }, "it is built")
	r.CC().ReportError(fmt.Errorf("no such name"))
	err := ask(within(t), conn)
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, "no such name")
	r.UpdateState(stateOf(f.servers[0].addr))
	require.NoError(t, ask(within(t), conn, grpc.WaitForReady(true)))
}

func TestBridgeGoesByTheSettings(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	conn, r := own(t, `{"maxConcurrency": 1, "breaker": {"consecutive": 1, "openTime": "1h"}}`, f.servers[0].addr)
	f.servers[0].code.Store(uint32(codes.Internal))
	require.Equal(t, codes.Internal, status.Code(ask(within(t), conn)))
	require.ErrorIs(t, ask(within(t), conn), breaker.ErrOpen)

	// Other settings are another balancer, over the same connections.
	f.servers[0].code.Store(uint32(codes.OK))
	state := stateOf(f.servers[0].addr)
	state.ServiceConfig = r.CC().ParseServiceConfig(`{"loadBalancingConfig": [{"backstay": {"maxConcurrency": 1}}]}`)
	r.UpdateState(state)
	soon(t, func() bool { return ask(within(t), conn) == nil }, "its breaker is another")
	stream, err := newStream(t, conn)
	require.NoError(t, err)
	require.ErrorIs(t, ask(within(t), conn), limit.ErrFull)
	require.NoError(t, stream.CloseSend())
}
