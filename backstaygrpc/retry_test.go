package backstaygrpc_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/retry"
)

// quick is a retry without long waits.
func quick() *backstay.Config {
	return &backstay.Config{Services: map[string]backstay.Service{"orders": {
		Retry: retry.Config{Backoff: retry.Backoff{Base: time.Millisecond, Max: 2 * time.Millisecond}},
	}}}
}

func failing(code codes.Code) handlers {
	return handlers{unary: func(ctx context.Context, _ string) (string, error) {
		_ = grpc.SetHeader(ctx, metadata.Pairs("from", "bad"))
		return "", status.Error(code, "not now")
	}}
}

func TestUnavailableIsTriedElsewhereIfTheCallIsIdempotent(t *testing.T) {
	bad, good := startServer(t, failing(codes.Unavailable)), startServer(t, handlers{})
	conn := dial(t, newClient(t, quick(), bad, good))
	failed := 0
	for range 20 {
		if _, err := invoke(t.Context(), conn, "a"); err != nil {
			require.Equal(t, codes.Unavailable, status.Code(err))
			require.Equal(t, "not now", status.Convert(err).Message())
			failed++
		}
	}
	require.Positive(t, failed, "nobody says that it is")
	before := bad.seen.Load()
	for i := 0; bad.seen.Load() == before && i < 1000; i++ {
		ctx, log := call.WithLog(t.Context())
		addr, err := invoke(ctx, conn, "a", backstaygrpc.Idempotent(true))
		require.NoError(t, err, log)
		require.Equal(t, good.addr, addr)
	}
}

func TestConnectionThatCannotBeMadeIsTriedElsewhereWhateverTheCall(t *testing.T) {
	dead, good := startServer(t, handlers{}), startServer(t, handlers{})
	dead.kill()
	conn := dial(t, newClient(t, quick(), dead, good))
	for range 50 {
		_, err := invoke(t.Context(), conn, "a")
		require.NoError(t, err)
	}
}

// Trap 140.
func TestHeaderTrailerAndPeerAreThoseOfTheAttemptReturned(t *testing.T) {
	bad := startServer(t, failing(codes.Unavailable))
	good := startServer(t, handlers{unary: func(ctx context.Context, _ string) (string, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		_ = grpc.SetHeader(ctx, metadata.Pairs("from", "good"))
		_ = grpc.SetTrailer(ctx, metadata.Pairs("attempt", md.Get("grpc-previous-rpc-attempts")[0], "own", md.Get("own")[0]))
		return "good", nil
	}})
	client := newClient(t, quick(), bad, good)
	conn := dial(t, client)
	seen := false
	for !seen {
		ctx, log := call.WithLog(metadata.AppendToOutgoingContext(t.Context(), "own", "mine", "grpc-previous-rpc-attempts", "0"))
		var (
			header, trailer metadata.MD
			from            peer.Peer
			finished        int
		)
		_, err := invoke(ctx, conn, "a", backstaygrpc.Idempotent(true), grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&from), grpc.OnFinish(func(err error) {
			require.NoError(t, err)
			finished++
		}))
		require.NoError(t, err)
		require.Equal(t, 1, finished)
		require.Equal(t, []string{"good"}, header["from"])
		require.Equal(t, good.addr, from.Addr.String())
		require.Equal(t, []string{"mine"}, trailer["own"])
		if seen = len(log.Calls()[0].Attempts) == 2; seen {
			require.Equal(t, []string{"1"}, trailer["attempt"], "set and not appended") // trap 141
		}
	}
}
