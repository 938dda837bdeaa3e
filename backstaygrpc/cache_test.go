package backstaygrpc_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/backstay/backstay/backstaygrpc"
)

// below is what a cache has below itself: it answers with the number of the call.
type below struct {
	calls atomic.Int64
	do    func(ctx context.Context, method string, req, reply any) error // after the count; may be nil
}

func (b *below) invoke(ctx context.Context, method string, req, reply any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
	n := b.calls.Add(1)
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.HeaderCallOption:
			*opt.HeaderAddr = metadata.Pairs("at", "header")
		case grpc.TrailerCallOption:
			*opt.TrailerAddr = metadata.Pairs("at", "trailer")
		}
	}
	if b.do != nil {
		if err := b.do(ctx, method, req, reply); err != nil {
			return err
		}
	}
	if out, ok := reply.(*text); ok && out.GetValue() == "" {
		out.Value = fmt.Sprintf("%s %d", req.(*text).GetValue(), n)
	}
	return nil
}

// cached makes a call by way of the cache.
func (b *below) cached(ctx context.Context, c *backstaygrpc.Cache, method, in string, opts ...grpc.CallOption) (string, error) {
	out := new(text)
	err := c.Unary(ctx, method, wrapperspb.String(in), out, nil, b.invoke, opts...)
	return out.GetValue(), err
}

func newCache(t testing.TB, cfg *backstaygrpc.CacheConfig) *backstaygrpc.Cache {
	t.Helper()
	c, err := backstaygrpc.NewCache(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// listed is a cache of everything.
func listed() *backstaygrpc.CacheConfig {
	return &backstaygrpc.CacheConfig{Methods: map[string]time.Duration{"/a.B/*": 0, "/a.B/Put": -1, "/a.B/Long": time.Hour}}
}

// declare registers a service with a method of each level.
var declare = sync.OnceValue(func() error {
	levels := []descriptorpb.MethodOptions_IdempotencyLevel{
		descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN, descriptorpb.MethodOptions_NO_SIDE_EFFECTS, descriptorpb.MethodOptions_IDEMPOTENT,
	}
	s := &descriptorpb.ServiceDescriptorProto{Name: new("Declared")}
	for i, level := range levels {
		s.Method = append(s.Method, &descriptorpb.MethodDescriptorProto{
			Name: new(fmt.Sprintf("M%d", i)), InputType: new(".google.protobuf.StringValue"),
			OutputType: new(".google.protobuf.StringValue"), Options: &descriptorpb.MethodOptions{IdempotencyLevel: level.Enum()},
		})
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: new("backstay/cache_test.proto"), Package: new("backstay.cachetest"), Syntax: new("proto3"),
		Dependency: []string{"google/protobuf/wrappers.proto"}, Service: []*descriptorpb.ServiceDescriptorProto{s},
	}, protoregistry.GlobalFiles)
	if err != nil {
		return err
	}
	return protoregistry.GlobalFiles.RegisterFile(file)
})

func TestCacheKeepsOnlyMethodsThatAreListedOrHaveNoSideEffects(t *testing.T) {
	require.NoError(t, declare())
	for method, want := range map[string]map[bool]bool{ // by OnlyListed
		"/a.B/Get":                        {false: true, true: true},
		"/a.B/Put":                        {false: false, true: false},
		"/c.D/Get":                        {false: false, true: false},
		"/backstay.cachetest.Declared/M0": {false: false, true: false},
		"/backstay.cachetest.Declared/M1": {false: true, true: false},
		"/backstay.cachetest.Declared/M2": {false: false, true: false},
	} {
		for only, kept := range want {
			cfg := listed()
			cfg.OnlyListed = only
			c, b := newCache(t, cfg), new(below)
			for range 3 {
				_, err := b.cached(t.Context(), c, method, "x")
				require.NoError(t, err)
			}
			require.Equal(t, kept, b.calls.Load() == 1, "%s %v", method, only)
		}
	}
}

func TestCacheKeyHasMethodRequestAndChosenMetadata(t *testing.T) {
	cfg := listed()
	cfg.KeyMetadata = []string{"tenant", "language"}
	c, b := newCache(t, cfg), new(below)
	with := func(kv ...string) context.Context { return metadata.AppendToOutgoingContext(t.Context(), kv...) }
	first, err := b.cached(with("tenant", "a", "trace", "1"), c, "/a.B/Get", "x")
	require.NoError(t, err)
	same, err := b.cached(with("trace", "2", "tenant", "a"), c, "/a.B/Get", "x")
	require.NoError(t, err)
	require.Equal(t, first, same)
	for _, other := range []struct {
		ctx        context.Context
		method, in string
	}{
		{with("tenant", "a"), "/a.B/Get", "y"},
		{with("tenant", "a"), "/a.B/Head", "x"},
		{with("tenant", "b"), "/a.B/Get", "x"},
		{with("tenant", "a", "tenant", "a"), "/a.B/Get", "x"},
		{with("language", "a"), "/a.B/Get", "x"},
		{t.Context(), "/a.B/Get", "x"},
	} {
		got, err := b.cached(other.ctx, c, other.method, other.in)
		require.NoError(t, err)
		require.NotEqual(t, first, got)
	}
	require.EqualValues(t, 7, b.calls.Load())
}

func TestCacheKeyDoesNotDependOnTheOrderOfMaps(t *testing.T) {
	c, b := newCache(t, listed()), new(below)
	b.do = func(_ context.Context, _ string, _, reply any) error {
		reply.(*text).Value = "x"
		return nil
	}
	for range 50 {
		fields := make(map[string]any)
		for i := range 20 {
			fields[fmt.Sprint(i)] = i
		}
		req, err := structpb.NewStruct(fields)
		require.NoError(t, err)
		require.NoError(t, c.Unary(t.Context(), "/a.B/Get", req, new(text), nil, b.invoke))
	}
	require.EqualValues(t, 1, b.calls.Load())
}

func TestCacheLeavesCallsWithAnIdentityAloneUnlessItIsPartOfTheKey(t *testing.T) {
	for _, key := range []string{"authorization", "cookie"} {
		c, b := newCache(t, listed()), new(below)
		ctx := metadata.AppendToOutgoingContext(t.Context(), key, "me")
		for range 2 {
			_, err := b.cached(ctx, c, "/a.B/Get", "x")
			require.NoError(t, err)
		}
		require.EqualValues(t, 2, b.calls.Load(), key)

		cfg := listed()
		cfg.KeyMetadata = []string{key}
		c, b = newCache(t, cfg), new(below)
		for _, who := range []string{"me", "me", "you"} {
			_, err := b.cached(metadata.AppendToOutgoingContext(t.Context(), key, who), c, "/a.B/Get", "x")
			require.NoError(t, err)
		}
		require.EqualValues(t, 2, b.calls.Load(), key)
	}
	c, b := newCache(t, listed()), new(below)
	for _, opt := range []grpc.CallOption{
		grpc.PerRPCCredentials(nil), backstaygrpc.NoCache(), grpc.CallContentSubtype("json"),
	} {
		before := b.calls.Load()
		for range 2 {
			_, err := b.cached(t.Context(), c, "/a.B/Get", "x", opt)
			require.NoError(t, err)
		}
		require.EqualValues(t, before+2, b.calls.Load(), "%T", opt)
	}
	cfg := listed()
	cfg.Skip = func(_ context.Context, method string, req any) bool { return req.(*text).GetValue() == "skip" }
	c, b = newCache(t, cfg), new(below)
	for range 2 {
		_, err := b.cached(t.Context(), c, "/a.B/Get", "skip")
		require.NoError(t, err)
	}
	require.EqualValues(t, 2, b.calls.Load())
}

func TestCacheIsBounded(t *testing.T) {
	cfg := listed()
	cfg.MaxEntries = 10
	c, b := newCache(t, cfg), new(below)
	for i := range 100 {
		_, err := b.cached(t.Context(), c, "/a.B/Get", fmt.Sprint(i))
		require.NoError(t, err)
	}
	require.LessOrEqual(t, c.Len(), 10)

	cfg = listed()
	cfg.MaxBytes, cfg.MaxReply = 10_000, 2000
	c, b = newCache(t, cfg), new(below)
	b.do = func(_ context.Context, _ string, req, reply any) error {
		reply.(*text).Value = strings.Repeat("x", 1000)
		if req.(*text).GetValue() == "large" {
			reply.(*text).Value = strings.Repeat("x", 2001)
		}
		return nil
	}
	for i := range 100 {
		out, err := b.cached(t.Context(), c, "/a.B/Get", fmt.Sprint(i))
		require.NoError(t, err)
		require.Len(t, out, 1000)
	}
	require.LessOrEqual(t, c.Len(), 9)
	require.Positive(t, c.Len())
	before := b.calls.Load()
	for range 2 {
		out, err := b.cached(t.Context(), c, "/a.B/Get", "large")
		require.NoError(t, err)
		require.Len(t, out, 2001, "it is given out, and not kept")
	}
	require.EqualValues(t, before+2, b.calls.Load())
}

func TestCacheCallersGetMessagesOfTheirOwn(t *testing.T) {
	c, b := newCache(t, listed()), new(below)
	want, err := b.cached(t.Context(), c, "/a.B/Get", "x")
	require.NoError(t, err)
	for range 3 {
		out := wrapperspb.String("what was there before")
		require.NoError(t, c.Unary(t.Context(), "/a.B/Get", wrapperspb.String("x"), out, nil, b.invoke))
		require.Equal(t, want, out.GetValue())
		out.Value = "changed"
	}

	// A caller that leaves may change its request while the call goes on.
	entered, release, seen := make(chan struct{}), make(chan struct{}), make(chan string, 1)
	b.do = func(_ context.Context, _ string, req, _ any) error {
		close(entered)
		<-release
		seen <- req.(*text).GetValue()
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	req := wrapperspb.String("mine")
	done := make(chan error, 1)
	go func() { done <- c.Unary(ctx, "/a.B/Get", req, new(text), nil, b.invoke) }()
	<-entered
	cancel()
	require.Equal(t, codes.Canceled, status.Code(<-done))
	req.Value = "changed"
	close(release)
	require.Equal(t, "mine", <-seen)
}

func TestCacheKeepsNoErrorsButOfChosenCodes(t *testing.T) {
	code := codes.NotFound
	fails := func(context.Context, string, any, any) error { return status.Error(code, "as the test wants it") }
	c, b := newCache(t, listed()), &below{do: fails}
	for range 2 {
		_, err := b.cached(t.Context(), c, "/a.B/Get", "x")
		require.Equal(t, codes.NotFound, status.Code(err))
	}
	require.EqualValues(t, 2, b.calls.Load(), "none by default")

	cfg := listed()
	cfg.NegativeTTL = time.Minute
	c, b = newCache(t, cfg), &below{do: fails}
	for range 3 {
		var trailer metadata.MD
		_, err := b.cached(t.Context(), c, "/a.B/Get", "x", grpc.Trailer(&trailer))
		require.Equal(t, codes.NotFound, status.Code(err))
		require.ErrorContains(t, err, "as the test wants it")
		require.Equal(t, []string{"trailer"}, trailer["at"])
	}
	require.EqualValues(t, 1, b.calls.Load())
	code = codes.Unavailable
	for range 2 {
		var trailer metadata.MD
		_, err := b.cached(t.Context(), c, "/a.B/Get", "y", grpc.Trailer(&trailer))
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.Equal(t, []string{"trailer"}, trailer["at"], "an error has one, too")
	}
	require.EqualValues(t, 3, b.calls.Load())
}

func TestCacheFillsInHeaderTrailerAndTheEnd(t *testing.T) {
	c, b := newCache(t, listed()), new(below)
	for range 3 {
		var header, trailer metadata.MD
		var p peer.Peer
		ends := 0
		_, err := b.cached(t.Context(), c, "/a.B/Get", "x", grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&p),
			grpc.OnFinish(func(err error) {
				require.NoError(t, err)
				ends++
			}))
		require.NoError(t, err)
		require.Equal(t, []string{"header"}, header["at"])
		require.Equal(t, []string{"trailer"}, trailer["at"])
		require.Equal(t, 1, ends)
		header["at"][0] = "changed"
	}
	require.EqualValues(t, 1, b.calls.Load())
}

func TestCacheForgetsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := listed()
		cfg.Jitter = -1
		c, b := newCache(t, cfg), new(below)
		calls := func(method string, want int64) {
			t.Helper()
			before := b.calls.Load()
			_, err := b.cached(t.Context(), c, method, "x")
			require.NoError(t, err)
			require.Equal(t, want, b.calls.Load()-before)
		}
		calls("/a.B/Get", 1)
		calls("/a.B/Long", 1)
		time.Sleep(9 * time.Second)
		calls("/a.B/Get", 0)
		time.Sleep(2 * time.Second)
		calls("/a.B/Get", 1)
		time.Sleep(time.Hour - 12*time.Second)
		calls("/a.B/Long", 0)
		time.Sleep(2 * time.Second)
		calls("/a.B/Long", 1)
		c.Clear()
		calls("/a.B/Long", 1)
	})
}

func TestCacheCallsOnceForAllWhoAskAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var ended error
		c, b := newCache(t, listed()), &below{do: func(ctx context.Context, _ string, _, _ any) error {
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				ended = ctx.Err()
				return status.FromContextError(ctx.Err()).Err()
			}
		}}
		results := make(chan error, 10)
		ask := func(ctx context.Context, in string) {
			_, err := b.cached(ctx, c, "/a.B/Get", in)
			results <- err
		}
		first, leave := context.WithCancel(t.Context())
		go ask(first, "x")
		synctest.Wait()
		for range 3 {
			go ask(t.Context(), "x")
		}
		late, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go ask(late, "x")
		synctest.Wait()
		leave() // the first one, whose call it is
		require.Equal(t, codes.Canceled, status.Code(<-results))
		require.Equal(t, codes.DeadlineExceeded, status.Code(<-results), "each has its own context")
		require.NoError(t, ended)
		close(release)
		for range 3 {
			require.NoError(t, <-results)
		}
		require.EqualValues(t, 1, b.calls.Load())

		// When the last has left, the call is cancelled.
		release = make(chan struct{})
		only, leave := context.WithCancel(t.Context())
		go ask(only, "y")
		synctest.Wait()
		leave()
		require.Equal(t, codes.Canceled, status.Code(<-results))
		synctest.Wait()
		require.ErrorIs(t, ended, context.Canceled)
	})
}

func TestCacheHandsPanicsOn(t *testing.T) {
	c, b := newCache(t, listed()), &below{do: func(context.Context, string, any, any) error { panic("as the test wants it") }}
	require.Panics(t, func() { _, _ = b.cached(t.Context(), c, "/a.B/Get", "x") })
}

func TestCacheThatIsClosedLetsCallsThrough(t *testing.T) {
	c, b := newCache(t, listed()), new(below)
	require.NoError(t, c.Close())
	for range 2 {
		_, err := b.cached(t.Context(), c, "/a.B/Get", "x")
		require.NoError(t, err)
	}
	require.EqualValues(t, 2, b.calls.Load())
}

func TestCacheLetsOtherThanMessagesThrough(t *testing.T) {
	c := newCache(t, listed())
	calls := 0
	for range 2 {
		require.NoError(t, c.Unary(t.Context(), "/a.B/Get", "request", new(string), nil,
			func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
				calls++
				return nil
			}))
	}
	require.Equal(t, 2, calls)
}

func TestCacheOverConnections(t *testing.T) {
	s := startServer(t, handlers{})
	cfg := &backstaygrpc.CacheConfig{Methods: map[string]time.Duration{get: 0}}
	plain := connect(t, s.addr)
	for name, conn := range map[string]grpc.ClientConnInterface{
		"as an interceptor": connect(t, s.addr, grpc.WithChainUnaryInterceptor(newCache(t, cfg).Unary)),
		"over a ClientConn": newCache(t, cfg).Over(plain),
		"over a Conn":       newCache(t, cfg).Over(dial(t, newClient(t, nil, s), grpc.WithTransportCredentials(insecure.NewCredentials()))),
	} {
		before := s.seen.Load()
		for range 3 {
			out, err := invoke(within(t), conn, "x")
			require.NoError(t, err, name)
			require.Equal(t, s.addr, out)
		}
		require.EqualValues(t, before+1, s.seen.Load(), name)
	}
}

func TestCacheConfigWithMistakes(t *testing.T) {
	_, err := backstaygrpc.NewCache(&backstaygrpc.CacheConfig{
		Methods: map[string]time.Duration{"Get": 0}, TTL: -1, Jitter: 1, NegativeTTL: -1, NegativeCodes: []codes.Code{codes.OK},
		KeyMetadata: []string{"Tenant"}, MaxEntries: -1, MaxBytes: 10, MaxReply: 20,
	})
	require.EqualError(t, err, `backstaygrpc: CacheConfig.Jitter is 1, want < 1
backstaygrpc: CacheConfig.KeyMetadata is "Tenant", want keys of metadata in lower case
backstaygrpc: CacheConfig.MaxEntries is -1, want >= 1, or 0 for the default: a cache is bounded
backstaygrpc: CacheConfig.MaxReply is 20, want <= MaxBytes (10)
backstaygrpc: CacheConfig.Methods has "Get", want /service/method or /service/*
backstaygrpc: CacheConfig.NegativeCodes is OK, want errors
backstaygrpc: CacheConfig.NegativeTTL is -1ns, want >= 0
backstaygrpc: CacheConfig.TTL is -1ns, want > 0`)
	_, err = backstaygrpc.NewCache(nil)
	require.NoError(t, err)
}
