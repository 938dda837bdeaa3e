package backstaygrpc_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

// quickly has connections that fail tried again at once.
func quickly() grpc.DialOption {
	return grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond},
		MinConnectTimeout: 5 * time.Second,
	})
}

// idle waits until no node has a lease.
func idle(t *testing.T, b *balancer.Balancer) {
	t.Helper()
	soon(t, func() bool { return b.InFlight() == 0 }, "leases are given back")
}

// allReady waits until each of the servers has been called.
func allReady(t *testing.T, f *backends, conn grpc.ClientConnInterface) {
	t.Helper()
	soon(t, func() bool {
		require.NoError(t, ask(within(t), conn))
		return !slices.Contains(f.calls(), 0)
	}, "all are connected to")
}

// evenly makes rounds of as many calls as the servers' shares add up to, each of which
// must be met: ten times in a row, for once is what chance would do, too. Not at once:
// the last picker that the connections were news for, and which begins anew, may come
// a moment after the one that all of them were ready for.
func evenly(t *testing.T, f *backends, conn grpc.ClientConnInterface, shares ...int64) {
	t.Helper()
	soon(t, func() bool {
		for range 10 {
			before := f.calls()
			for i, share := range shares {
				before[i] += share
				for range share {
					require.NoError(t, ask(within(t), conn))
				}
			}
			if !slices.Equal(before, f.calls()) {
				return false
			}
		}
		return true
	}, "each server has its share")
}

func TestBridgeSpreadsCallsAndTellsTheBalancer(t *testing.T) {
	f := newBackends(t, 3, interopServer)
	b := f.balancer(&balancer.Config{Policy: balancer.RoundRobin{}})
	conn := bridged(t, b, nil)
	allReady(t, f, conn)
	evenly(t, f, conn, 10, 10, 10)
	idle(t, b)
	for _, n := range b.Snapshot().Nodes {
		require.Positive(t, n.Answered)
		require.Positive(t, n.Latency)
		require.Zero(t, n.Failed)
	}
	require.Equal(t, connectivity.Ready, conn.GetState())
}

func TestBridgeJudgesByStatus(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	b := f.balancer(nil)
	conn := bridged(t, b, nil)
	require.NoError(t, ask(within(t), conn))
	failed := func() int64 { return b.Snapshot().Nodes[0].Failed }
	for code, want := range map[codes.Code]int64{codes.NotFound: 0, codes.Internal: 1, codes.ResourceExhausted: 0, codes.Canceled: 0, codes.Unknown: 1} {
		before := failed()
		f.servers[0].code.Store(uint32(code))
		require.Equal(t, code, status.Code(ask(within(t), conn)))
		require.Equal(t, want, failed()-before, code.String())
	}
	idle(t, b)
}

func TestBridgeGoesByTheClassifier(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	b := f.balancer(nil)
	conn := bridged(t, b, &backstaygrpc.BridgeConfig{Classifier: func(err error, trailer metadata.MD) outcome.Outcome {
		if status.Code(err) == codes.NotFound {
			return outcome.Outcome{Class: outcome.Failure, Err: err}
		}
		return backstaygrpc.Classify(err, trailer)
	}})
	f.servers[0].code.Store(uint32(codes.NotFound))
	require.Equal(t, codes.NotFound, status.Code(ask(within(t), conn)))
	require.EqualValues(t, 1, b.Snapshot().Nodes[0].Failed)
}

func TestBridgeTakesACallersCancelForNothing(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	b := f.balancer(nil)
	conn := bridged(t, b, nil)
	ctx, cancel := context.WithCancel(within(t))
	stream, err := testgrpc.NewTestServiceClient(conn).FullDuplexCall(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 1}}}))
	_, err = stream.Recv()
	require.NoError(t, err)
	cancel()
	_, err = stream.Recv()
	require.Equal(t, codes.Canceled, status.Code(err))
	idle(t, b)
	require.Zero(t, b.Snapshot().Nodes[0].Failed)
}

func TestBridgeCountsAStreamAsAnsweredAtItsFirstMessage(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	b := f.balancer(nil)
	conn := bridged(t, b, nil)
	stream, err := testgrpc.NewTestServiceClient(conn).FullDuplexCall(within(t))
	require.NoError(t, err)
	n := b.Nodes()[0]
	require.Equal(t, 1, n.Awaiting())
	require.NoError(t, stream.Send(&testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 1}}}))
	_, err = stream.Recv()
	require.NoError(t, err)
	require.Zero(t, n.Awaiting())
	require.Equal(t, 1, n.InFlight())
	require.EqualValues(t, 1, b.Snapshot().Nodes[0].Answered)

	// It breaks later, which counts once.
	require.NoError(t, stream.Send(&testgrpc.StreamingOutputCallRequest{ResponseStatus: &testgrpc.EchoStatus{Code: int32(codes.Internal)}}))
	_, err = stream.Recv()
	require.Equal(t, codes.Internal, status.Code(err))
	idle(t, b)
	node := b.Snapshot().Nodes[0]
	require.EqualValues(t, 1, node.Answered)
	require.EqualValues(t, 1, node.Failed)
}

func TestBridgeCountsAStreamAsAnsweredAtItsHeadersIfSomebodyAsks(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	b := f.balancer(nil)
	conn := bridged(t, b, nil)
	ctx := metadata.AppendToOutgoingContext(within(t), "x-grpc-test-echo-initial", "here")
	stream, err := testgrpc.NewTestServiceClient(conn).FullDuplexCall(ctx)
	require.NoError(t, err)
	_, err = stream.Header()
	require.NoError(t, err)
	require.Zero(t, b.Nodes()[0].Awaiting())
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF)
	idle(t, b)
}

func TestBridgeLeavesTheLatencyOfNeutralMethodsAlone(t *testing.T) {
	for _, method := range []string{"/grpc.testing.TestService/FullDuplexCall", "/grpc.testing.TestService/*"} {
		f := newBackends(t, 1, interopServer)
		b := f.balancer(nil)
		conn := bridged(t, b, &backstaygrpc.BridgeConfig{LatencyNeutral: []string{method}})
		stream, err := testgrpc.NewTestServiceClient(conn).FullDuplexCall(within(t))
		require.NoError(t, err)
		n := b.Nodes()[0]
		require.Zero(t, n.Awaiting())
		require.Equal(t, 1, n.InFlight())
		require.NoError(t, stream.CloseSend())
		_, err = stream.Recv()
		require.ErrorIs(t, err, io.EOF)
		idle(t, b)
		_, measured := n.Latency(time.Now())
		require.False(t, measured)
	}
}

func TestBridgeWaitsForConnectionsAndThenFailsButThoseThatWaitForReady(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	f.servers[0].server.Stop()
	b := f.balancer(nil)
	conn := bridged(t, b, nil, quickly())
	err := ask(within(t), conn)
	require.Equal(t, codes.Unavailable, status.Code(err), "it waits for the connection that is made, and then there is no other")
	require.ErrorContains(t, err, "service orders")
	require.ErrorContains(t, err, "1 nodes")
	require.Zero(t, b.InFlight())

	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.Equal(t, codes.DeadlineExceeded, status.Code(ask(short, conn, grpc.WaitForReady(true))), "waiting respects the deadline")

	waiting := make(chan error, 1)
	go func() { waiting <- ask(within(t), conn, grpc.WaitForReady(true)) }()
	f.servers[0].start(t)
	require.NoError(t, <-waiting)
	soon(t, func() bool { return f.hints.Load() > 0 }, "the resolver has been told")
}

func TestBridgeFailsWhereNothingCanBeFound(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	listed := f.listed
	f.listed, f.err = nil, errors.New("no such name")
	b := f.balancer(nil)
	conn := bridged(t, b, nil)
	err := ask(within(t), conn)
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, "no such name")
	require.ErrorContains(t, err, "service orders")

	waiting := make(chan error, 1)
	go func() { waiting <- ask(within(t), conn, grpc.WaitForReady(true)) }()
	f.list(nil, listed...)
	require.NoError(t, <-waiting)

	f.list(nil)
	soon(t, func() bool { return len(b.Nodes()) == 0 }, "there are none")
	soon(t, func() bool { return status.Code(ask(within(t), conn)) == codes.Unavailable }, "and calls fail")
	require.ErrorContains(t, ask(within(t), conn), balancer.ErrNoNodes.Error())
}

func TestBridgeLosesNoCallWhileAServerIsDraining(t *testing.T) {
	f := newBackends(t, 3, interopServer)
	b := f.balancer(&balancer.Config{Policy: balancer.RoundRobin{}})
	conn := bridged(t, b, nil, quickly())
	allReady(t, f, conn)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		f.servers[1].server.GracefulStop() // GOAWAY
	}()
	for range 200 {
		require.NoError(t, ask(within(t), conn))
	}
	<-stopped
	last := f.servers[1].calls.Load()
	for range 30 {
		require.NoError(t, ask(within(t), conn))
	}
	require.Equal(t, last, f.servers[1].calls.Load())

	f.servers[1].start(t)
	soon(t, func() bool {
		require.NoError(t, ask(within(t), conn))
		return f.servers[1].calls.Load() > last
	}, "it is back")
	idle(t, b)
}

func TestBridgeFollowsTheSet(t *testing.T) {
	f := newBackends(t, 3, interopServer)
	addrs := []string{f.servers[0].addr, f.servers[1].addr, f.servers[2].addr}
	f.listed = []discovery.Endpoint{{ID: "a", Addr: addrs[0]}, {ID: "b", Addr: addrs[1]}}
	b := f.balancer(&balancer.Config{Policy: balancer.RoundRobin{}, Override: true})
	conn := bridged(t, b, nil)
	ctx := balancer.WithNode(within(t), "b")
	stream, err := testgrpc.NewTestServiceClient(conn).FullDuplexCall(ctx, grpc.WaitForReady(true))
	require.NoError(t, err)

	f.list(nil, discovery.Endpoint{ID: "a", Addr: addrs[2]}) // a moves, b leaves
	soon(t, func() bool {
		require.NoError(t, ask(within(t), conn, grpc.WaitForReady(true)))
		return f.servers[2].calls.Load() > 0
	}, "calls go where it is now")
	before := f.calls()
	for range 20 {
		require.NoError(t, ask(within(t), conn))
	}
	require.Equal(t, []int64{before[0], before[1], before[2] + 20}, f.calls())

	require.NoError(t, stream.Send(&testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 1}}}))
	_, err = stream.Recv()
	require.NoError(t, err, "what the node has goes on")
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF)
	idle(t, b)
}

// pausing has a call wait on its way from the pick to its stream.
type pausing struct{ reached, onward chan struct{} }

func (p pausing) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	close(p.reached)
	<-p.onward
	return nil, nil
}

func (pausing) RequireTransportSecurity() bool { return false }

func TestBridgeHasNoCallWaitForANodeThatHasJustLeft(t *testing.T) {
	f := newBackends(t, 2, interopServer)
	second := f.listed[1]
	f.listed = f.listed[:1]
	conn := bridged(t, f.balancer(nil), nil)
	_, err := newStream(t, conn) // keeps the connection from ending at once
	require.NoError(t, err)
	paused := pausing{reached: make(chan struct{}), onward: make(chan struct{})}
	answer := make(chan error, 1)
	go func() { answer <- ask(within(t), conn, grpc.PerRPCCredentials(paused)) }()
	<-paused.reached

	f.list(nil, second)
	soon(t, func() bool {
		require.NoError(t, ask(within(t), conn))
		return f.servers[1].calls.Load() > 0
	}, "the set is another")
	close(paused.onward)
	select {
	case err := <-answer:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		require.Fail(t, "the call waits for the stream's end")
	}
}

func TestBridgeUsesAnotherAddressOfANode(t *testing.T) {
	f := newBackends(t, 2, interopServer)
	f.servers[0].server.Stop()
	f.listed = []discovery.Endpoint{{ID: "a", Addr: f.servers[0].addr, Fallback: []string{f.servers[1].addr}}}
	conn := bridged(t, f.balancer(nil), nil)
	require.NoError(t, ask(within(t), conn))
	require.Equal(t, []int64{0, 1}, f.calls())
}

func TestBridgeRefusalsHaveAStatusAndAreFinal(t *testing.T) {
	retried := `{"loadBalancingConfig": [{"backstay": {}}], "methodConfig": [{"name": [{}], "retryPolicy": {
		"maxAttempts": 5, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}`
	f := newBackends(t, 1, interopServer)
	b := f.balancer(&balancer.Config{MaxConcurrency: 1})
	conn := bridged(t, b, nil, grpc.WithDefaultServiceConfig(retried))
	stream, err := testgrpc.NewTestServiceClient(conn).FullDuplexCall(within(t))
	require.NoError(t, err)
	for _, wait := range []bool{false, true} {
		err := ask(within(t), conn, grpc.WaitForReady(wait))
		require.Equal(t, codes.Unavailable, status.Code(err))
		var full *limit.FullError
		require.ErrorAs(t, err, &full, "errors keep their types")
		require.True(t, outcome.Refused(err))
		requireReason(t, err, backstaygrpc.ReasonConcurrency)
	}
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF)
	idle(t, b)

	b.Nodes()[0].Breaker().ForceOpen()
	for _, wait := range []bool{false, true} {
		err := ask(within(t), conn, grpc.WaitForReady(wait))
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.ErrorIs(t, err, breaker.ErrOpen)
		requireReason(t, err, backstaygrpc.ReasonBreaker)
	}
	require.EqualValues(t, 1, f.servers[0].calls.Load(), "nothing was sent, nor tried again")
}

func requireReason(t *testing.T, err error, reason string) {
	t.Helper()
	st, ok := status.FromError(err)
	require.True(t, ok)
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			require.Equal(t, backstaygrpc.Domain, info.GetDomain())
			require.Equal(t, reason, info.GetReason())
			require.Equal(t, "orders", info.GetMetadata()["service"])
			return
		}
	}
	t.Errorf("no ErrorInfo in %v", st)
}

func TestBridgeLeavesRetriesOfTheServiceConfigToTheUser(t *testing.T) {
	retried := `{"loadBalancingConfig": [{"backstay": {}}], "methodConfig": [{"name": [{}], "retryPolicy": {
		"maxAttempts": 4, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}`
	f := newBackends(t, 2, interopServer)
	b := f.balancer(&balancer.Config{Policy: balancer.RoundRobin{}})
	conn := bridged(t, b, nil, grpc.WithDefaultServiceConfig(retried))
	allReady(t, f, conn)
	f.servers[0].code.Store(uint32(codes.Unavailable))
	before := b.Snapshot().Nodes[0]
	for range 3 {
		require.NoError(t, ask(within(t), conn))
	}
	idle(t, b)
	require.Greater(t, b.Snapshot().Nodes[0].Failed, before.Failed, "each attempt has a lease of its own")
}

func TestBridgeSendsCallsWhereTheirContextSays(t *testing.T) {
	f := newBackends(t, 3, interopServer)
	for i, version := range []string{"1", "1", "2"} {
		f.listed[i].Metadata = map[string]string{"version": version}
	}
	b := f.balancer(&balancer.Config{
		Policy: balancer.Rendezvous{}, Override: true,
		Subsets: map[string]balancer.Subset{"canary": {Match: map[string]string{"version": "2"}, Strict: true}},
	})
	conn := bridged(t, b, &backstaygrpc.BridgeConfig{HashMetadata: "x-user"})
	allReady(t, f, conn)
	one := func(ctx context.Context, what string) {
		t.Helper()
		before := f.calls()
		for range 10 {
			require.NoError(t, ask(ctx, conn))
		}
		after := f.calls()
		for i := range after {
			after[i] -= before[i]
		}
		require.Contains(t, after, int64(10), what)
	}
	one(balancer.WithKey(within(t), "a key"), "a key")
	one(metadata.AppendToOutgoingContext(within(t), "X-User", "me"), "metadata")
	one(balancer.WithSubset(within(t), "canary"), "a subset")
	one(balancer.WithNode(within(t), f.servers[1].addr), "a node")
	err := ask(balancer.WithSubset(within(t), "nobody"), conn)
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, `no subset "nobody"`)
	idle(t, b)
}

func TestBridgeOverABalancerThatIsClosed(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	b := f.balancer(nil)
	conn := bridged(t, b, nil)
	require.NoError(t, ask(within(t), conn))
	require.NoError(t, b.Close())
	soon(t, func() bool { return ask(within(t), conn) != nil }, "it has heard of it")
	for _, wait := range []bool{false, true} {
		err := ask(within(t), conn, grpc.WaitForReady(wait))
		require.ErrorIs(t, err, balancer.ErrClosed)
		requireReason(t, err, backstaygrpc.ReasonClosed)
	}
}

func TestBridgeConnectionsShareABalancer(t *testing.T) {
	f := newBackends(t, 2, interopServer)
	b := f.balancer(nil)
	opts, err := backstaygrpc.DialOptions(b, nil)
	require.NoError(t, err)
	for range 2 {
		conn := connect(t, "backstay:///orders", opts...)
		require.NoError(t, ask(within(t), conn))
	}
	answered := int64(0)
	for _, n := range b.Snapshot().Nodes {
		answered += n.Answered
	}
	require.EqualValues(t, 2, answered)
}

func TestBridgeRefusesWhatCannotWork(t *testing.T) {
	_, err := backstaygrpc.DialOptions(nil, &backstaygrpc.BridgeConfig{
		HashMetadata: "X-User", LatencyNeutral: []string{"Watch"}, LoadInterval: time.Millisecond,
	})
	require.EqualError(t, err, `backstaygrpc: HashMetadata is "X-User", want a key of metadata in lower case
backstaygrpc: LatencyNeutral[0] is "Watch", want /service/method or /service/*
backstaygrpc: LoadInterval is 1ms, want >= 10ms
backstaygrpc: the balancer is nil, want one, such as that of an Upstream`)

	f := newBackends(t, 1, interopServer)
	b := f.balancer(nil)
	conn := bridged(t, b, nil, grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"backstay": {"maxConcurrency": 5}}]}`))
	err = ask(within(t), conn, grpc.WaitForReady(true))
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, `settings for service "orders"`)

	const timeouts = `"methodConfig": [{"name": [{}], "timeout": "5s"}]`
	conn = bridged(t, b, nil, grpc.WithDefaultServiceConfig(`{`+timeouts+`}`))
	ctx := within(t)
	for said := false; !said; { // gRPC's own words come first
		err = ask(ctx, conn)
		require.Equal(t, codes.Unavailable, status.Code(err))
		said = strings.Contains(err.Error(), `the service config does not name the balancer, want "loadBalancingConfig": [{"backstay": {}}] in it`)
	}
	conn = bridged(t, b, nil, grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"backstay": {}}], `+timeouts+`}`))
	require.NoError(t, ask(within(t), conn))

	opts, err := backstaygrpc.DialOptions(b, nil)
	require.NoError(t, err)
	require.ErrorContains(t, ask(within(t), connect(t, "backstay:///", opts...)), "want backstay:///orders")
}

func TestBridgeSharesAClientsServiceWithHTTP(t *testing.T) {
	f := newBackends(t, 1, interopServer)
	client, err := backstay.New(&backstay.Config{Services: map[string]backstay.Service{"orders": {
		Endpoints: f.listed, Breaker: breaker.Config{Consecutive: 3, OpenTime: time.Hour},
	}}})
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close()) }()
	up, err := client.Upstream("orders")
	require.NoError(t, err)
	defer up.Close()
	conn := bridged(t, up.Balancer(), nil)
	f.servers[0].code.Store(uint32(codes.Internal))
	for range 3 {
		require.Equal(t, codes.Internal, status.Code(ask(within(t), conn)))
	}
	require.ErrorIs(t, ask(within(t), conn), breaker.ErrOpen)
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, "http://orders/", http.NoBody)
	require.NoError(t, err)
	resp, err := client.Do(req)
	if err == nil {
		require.NoError(t, resp.Body.Close())
	}
	require.ErrorIs(t, err, breaker.ErrOpen, "what gRPC has learnt, HTTP knows")
}
