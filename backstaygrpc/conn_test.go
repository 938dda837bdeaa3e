package backstaygrpc_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/call"
)

func TestUnaryCallsAreSpreadOverTheNodesAndLogged(t *testing.T) {
	servers := []*server{startServer(t, handlers{}), startServer(t, handlers{}), startServer(t, handlers{})}
	conn := dial(t, newClient(t, &backstay.Config{}, servers...))
	for range 100 {
		_, err := invoke(t.Context(), conn, "a")
		require.NoError(t, err)
	}
	for _, s := range servers {
		require.Positive(t, s.seen.Load())
	}
	ctx, log := call.WithLog(t.Context())
	addr, err := invoke(ctx, conn, "a")
	require.NoError(t, err)
	require.Len(t, log.Calls(), 1)
	record := log.Calls()[0]
	require.Equal(t, "orders", record.Service)
	require.Equal(t, get, record.Path)
	require.Len(t, record.Attempts, 1)
	require.Equal(t, addr, record.Attempts[0].Addr)
	require.Zero(t, conn.Balancer().InFlight())
}
