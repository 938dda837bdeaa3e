package backstaygrpc_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay/backstaygrpc"
)

// inBridge runs the test over gRPC's side of the bridge, in a bubble, with connections
// that do what the test says.
func inBridge(t *testing.T, nodes int, test func(t *testing.T, conn *fakeConn, lb grpcbalancer.Balancer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		conn := &fakeConn{connect: func(*fakeSub) {}}
		lb := grpcbalancer.Get(backstaygrpc.Name).Build(conn, grpcbalancer.BuildOptions{Target: ordersTarget()})
		defer lb.Close()
		require.NoError(t, lb.UpdateClientConnState(stateOfNodes(nodes, nil)))
		synctest.Wait()
		require.Len(t, conn.subs, nodes)
		test(t, conn, lb)
	})
}

// pick picks once.
func (c *fakeConn) pick() (grpcbalancer.PickResult, error) {
	return c.last().Picker.Pick(grpcbalancer.PickInfo{Ctx: context.Background(), FullMethodName: get})
}

func TestBridgeStatesAreThoseOfItsConnections(t *testing.T) {
	inBridge(t, 2, func(t *testing.T, conn *fakeConn, _ grpcbalancer.Balancer) {
		a, b := conn.subs[0], conn.subs[1]
		is := func(want connectivity.State, pickErr string) {
			t.Helper()
			synctest.Wait()
			require.Equal(t, want, conn.last().ConnectivityState)
			picked, err := conn.pick()
			if pickErr == "" {
				require.NoError(t, err)
				picked.Done(grpcbalancer.DoneInfo{})
				return
			}
			require.ErrorContains(t, err, pickErr)
			_, bears := status.FromError(err)
			require.False(t, bears, "those that wait for ready can wait")
		}
		wait := grpcbalancer.ErrNoSubConnAvailable.Error()
		is(connectivity.Connecting, wait)
		a.to(connectivity.Connecting, nil)
		a.to(connectivity.TransientFailure, errors.New("refused"))
		is(connectivity.Connecting, wait)
		b.to(connectivity.TransientFailure, errors.New("unreachable"))
		is(connectivity.TransientFailure, "no connection to any of 2 nodes, the last error: unreachable")
		a.to(connectivity.Idle, nil)
		a.to(connectivity.Connecting, nil)
		is(connectivity.TransientFailure, "unreachable") // until it is ready
		require.Equal(t, 2, a.connects)
		a.to(connectivity.Ready, nil)
		is(connectivity.Ready, "")
		a.to(connectivity.Idle, nil)
		is(connectivity.Connecting, wait)
		require.Equal(t, 3, a.connects, "it is made again")
		require.Positive(t, conn.resolved, "the resolver has been told")
		a.to(connectivity.Shutdown, nil)
	})
}

func TestBridgePicksOnlyWhatIsReady(t *testing.T) {
	inBridge(t, 3, func(t *testing.T, conn *fakeConn, lb grpcbalancer.Balancer) {
		conn.subs[1].to(connectivity.Ready, nil)
		conn.subs[2].to(connectivity.Ready, nil)
		conn.subs[0].to(connectivity.TransientFailure, errors.New("refused"))
		synctest.Wait()
		for range 50 {
			picked, err := conn.pick()
			require.NoError(t, err)
			require.NotSame(t, conn.subs[0], picked.SubConn)
			picked.Done(grpcbalancer.DoneInfo{BytesSent: true, BytesReceived: true})
		}
		// One leaves.
		state := stateOfNodes(3, nil)
		state.ResolverState.Endpoints = state.ResolverState.Endpoints[:2]
		require.NoError(t, lb.UpdateClientConnState(state))
		time.Sleep(time.Second) // in the bubble, until what has changed is merged
		synctest.Wait()
		for range 20 {
			picked, err := conn.pick()
			require.NoError(t, err)
			require.Same(t, conn.subs[1], picked.SubConn)
			picked.Done(grpcbalancer.DoneInfo{BytesSent: true, BytesReceived: true})
		}
		connects := conn.subs[2].connects
		conn.subs[2].to(connectivity.Idle, nil)
		time.Sleep(time.Second) // for calls that had been given it
		synctest.Wait()
		require.True(t, conn.subs[2].shut)
		require.Equal(t, connects, conn.subs[2].connects)
		require.Error(t, lb.UpdateClientConnState(stateOfNodes(0, nil)), "so that gRPC's resolver is asked again")
	})
}

func TestBridgeTakesAConnectionThatWasGoneForNothing(t *testing.T) {
	inBridge(t, 1, func(t *testing.T, conn *fakeConn, _ grpcbalancer.Balancer) {
		conn.subs[0].to(connectivity.Ready, nil)
		synctest.Wait()
		done := func(info grpcbalancer.DoneInfo) error {
			picked, err := conn.pick()
			if err == nil {
				picked.Done(info)
			}
			return err
		}
		for range 50 { // as many failures open the breaker
			require.NoError(t, done(grpcbalancer.DoneInfo{}))
		}
		var err error
		for range 50 {
			if err = done(grpcbalancer.DoneInfo{Err: status.Error(codes.Unavailable, "the transport is closing"), BytesSent: true}); err != nil {
				break
			}
		}
		requireReason(t, err, backstaygrpc.ReasonBreaker)
	})
}

func TestBridgeOfManyNodesDoesNotMakeAPickerForEachConnection(t *testing.T) {
	const n = 2000
	conn := new(fakeConn)
	lb := build(t, backstaygrpc.Name, conn)
	require.NoError(t, lb.UpdateClientConnState(stateOfNodes(n, nil)))
	seen := make(map[grpcbalancer.SubConn]bool)
	soon(t, func() bool {
		if conn.last().Picker == nil {
			return false
		}
		for range n {
			picked, err := conn.pick()
			if err != nil {
				return false
			}
			picked.Done(grpcbalancer.DoneInfo{BytesSent: true, BytesReceived: true})
			seen[picked.SubConn] = true
		}
		return len(seen) > n*9/10
	}, "they come to be used")
	conn.mu.Lock()
	defer conn.mu.Unlock()
	require.Less(t, conn.states, n)
}
