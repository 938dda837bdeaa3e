package backstaygrpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/backstay/backstay/cache"
)

// Cache keeps the replies of unary calls. Which, CacheConfig says: of methods that are
// listed, or declared to have no side effects. Replies and requests are protobuf
// messages; calls of any others go through.
//
//	c, err := backstaygrpc.NewCache(&backstaygrpc.CacheConfig{Methods: map[string]time.Duration{"/orders.v1.Orders/Get": time.Minute}})
//	orders := ordersv1.NewOrdersClient(c.Over(conn))
//
// The key is the method, the request and the metadata of KeyMetadata. (The request as
// proto's deterministic form, which is good for as long as a process lives.) Credentials
// that a connection adds to its calls by itself cannot be seen: have one Cache for each
// identity, as for each service.
//
// Calls with the same key at the same time are one, each caller with its own context: it
// goes on until the last has left. What is made of it – wait for ready, sizes – is the
// first caller's. All get messages of their own, which they may change, and the header
// and trailer where they ask for them. Errors are not kept, but for CacheConfig's
// NegativeTTL.
//
// All methods may be called concurrently.
type Cache struct {
	cfg   CacheConfig
	cache *cache.Cache[string, *kept]
}

// kept is a reply, or a status. Nobody changes it.
type kept struct {
	reply   proto.Message
	status  *status.Status // if there is no reply
	header  metadata.MD
	trailer metadata.MD
	size    int64
}

// NewCache returns an empty cache. The error says what is wrong with cfg; a nil one is
// every default.
func NewCache(cfg *CacheConfig) (*Cache, error) {
	set, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	// A shard keeps what fits into its share: it should have room for some of the
	// largest.
	const each = 4
	c := &Cache{cfg: set}
	c.cache, err = cache.New(&cache.Config[string, *kept]{
		MaxEntries: set.MaxEntries, MaxWeight: set.MaxBytes, TTL: set.TTL, Jitter: set.Jitter,
		Weigh:  func(key string, k *kept) int64 { return int64(len(key)) + k.size },
		Shards: int(min(max(set.MaxBytes/each/set.MaxReply, 1), 16)),
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// NoCache returns an option of one call that has it bypass any [Cache]: the call is
// made, and its reply not kept.
func NoCache() grpc.CallOption { return noCache{} }

type noCache struct{ grpc.EmptyCallOption }

// Clear forgets all replies.
func (c *Cache) Clear() { c.cache.Clear() }

// Len returns the number of replies that are kept, some of which may have expired.
func (c *Cache) Len() int { return c.cache.Len() }

// Stats returns what the cache has done so far.
func (c *Cache) Stats() cache.Stats { return c.cache.Stats() }

// Close empties the cache, cancels the calls that it makes and waits for their end; those
// who wait for them get an error, and later calls go through. See [cache.Cache.Close].
func (c *Cache) Close() error { return c.cache.Close() }

// Over returns a connection whose unary calls are looked up first. Streams go through.
func (c *Cache) Over(cc grpc.ClientConnInterface) grpc.ClientConnInterface { return &cacheConn{cc, c} }

type cacheConn struct {
	grpc.ClientConnInterface
	cache *Cache
}

// Invoke makes a unary call.
func (c *cacheConn) Invoke(ctx context.Context, method string, req, reply any, opts ...grpc.CallOption) error {
	return c.cache.Unary(ctx, method, req, reply, nil,
		func(ctx context.Context, method string, req, reply any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
			return c.ClientConnInterface.Invoke(ctx, method, req, reply, opts...)
		}, opts...)
}

// Unary is the interceptor for grpc.WithChainUnaryInterceptor. It belongs outside of
// whatever makes attempts; where that is a [Conn], use Over.
func (c *Cache) Unary(
	ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	request, isMessage := req.(proto.Message)
	target, hasReply := reply.(proto.Message)
	ttl, wanted := c.ttl(method)
	if !wanted || !isMessage || !hasReply || c.bypass(ctx, method, req, opts) {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	key, ok := c.key(ctx, method, cc, request)
	if !ok {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	k, found := c.cache.GetIfPresent(key)
	if !found {
		var err error
		if k, err = c.load(ctx, key, ttl, &unaryCall{method, proto.Clone(request), target.ProtoReflect().New().Interface(), cc, invoker, opts}); err != nil {
			if errors.Is(err, cache.ErrClosed) && ctx.Err() == nil {
				return invoker(ctx, method, req, reply, cc, opts...)
			}
			finish(opts, err)
			return err
		}
	}
	return k.give(target, opts)
}

// unaryCall is a call that a cache makes for whoever waits for it.
type unaryCall struct {
	method  string
	request proto.Message // its own: callers may leave, and change theirs
	reply   proto.Message
	cc      *grpc.ClientConn
	invoker grpc.UnaryInvoker
	opts    []grpc.CallOption
}

// notKept is the error of a call, with what else came of it.
type notKept struct {
	error
	*kept
}

// load makes the call, or waits for one that is under way.
func (c *Cache) load(ctx context.Context, key string, ttl time.Duration, u *unaryCall) (*kept, error) {
	k, err := c.cache.Get(ctx, key, func(ctx context.Context, _ string) (*kept, error) {
		k := &kept{reply: u.reply}
		opts := append(withoutResults(u.opts), grpc.Header(&k.header), grpc.Trailer(&k.trailer))
		err := u.invoker(ctx, u.method, u.request, u.reply, u.cc, opts...)
		k.size = metadataSize(k.header) + metadataSize(k.trailer)
		switch {
		case err == nil:
			k.size += int64(proto.Size(k.reply))
			if k.size > c.cfg.MaxReply {
				return nil, &notKept{nil, k}
			}
			cache.SetTTL(ctx, ttl)
			return k, nil
		case c.cfg.NegativeTTL > 0 && slices.Contains(c.cfg.NegativeCodes, status.Code(err)):
			cache.SetTTL(ctx, c.cfg.NegativeTTL)
			k.reply, k.status = nil, status.Convert(err)
			k.size += int64(proto.Size(k.status.Proto()))
			return k, nil
		}
		return nil, &notKept{err, k}
	})
	var other *notKept
	switch {
	case errors.As(err, &other) && other.error == nil:
		return other.kept, nil
	case other != nil:
		other.tell(u.opts)
		return nil, other.error
	case err != nil && ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if panicked, ok := errors.AsType[*cache.PanicError](err); ok {
		// As it would have been without a cache, and with the stack of where it was.
		panic(fmt.Errorf("%w\n\n%s", panicked, panicked.Stack)) //nolint:forbidigo // somebody else's
	}
	return k, err
}

// give gives the caller what is his.
func (k *kept) give(reply proto.Message, opts []grpc.CallOption) error {
	k.tell(opts)
	if k.status != nil {
		err := k.status.Err()
		finish(opts, err)
		return err
	}
	proto.Reset(reply)
	var err error
	if reply.ProtoReflect().Descriptor() == k.reply.ProtoReflect().Descriptor() {
		proto.Merge(reply, k.reply)
	} else { // another program's idea of the same message
		var data []byte
		if data, err = proto.Marshal(k.reply); err == nil {
			err = proto.Unmarshal(data, reply)
		}
	}
	finish(opts, err)
	return err
}

// tell fills in the header and trailer that the options ask for, with copies.
func (k *kept) tell(opts []grpc.CallOption) {
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.HeaderCallOption:
			*opt.HeaderAddr = k.header.Copy()
		case grpc.TrailerCallOption:
			*opt.TrailerAddr = k.trailer.Copy()
		}
	}
}

// finish tells the options of the end.
func finish(opts []grpc.CallOption, err error) {
	for _, opt := range opts {
		if opt, ok := opt.(grpc.OnFinishCallOption); ok {
			opt.OnFinish(err)
		}
	}
}

// withoutResults leaves out the options that write into the caller's memory, which may
// be somebody else's when the call ends.
func withoutResults(opts []grpc.CallOption) []grpc.CallOption {
	return slices.DeleteFunc(slices.Clone(opts), func(opt grpc.CallOption) bool {
		switch opt.(type) {
		case grpc.HeaderCallOption, grpc.TrailerCallOption, grpc.PeerCallOption, grpc.OnFinishCallOption:
			return true
		}
		return false
	})
}

// ttl returns for how long a method's replies are kept, if they are; 0 is the config's.
func (c *Cache) ttl(method string) (time.Duration, bool) {
	ttl, listed := c.cfg.Methods[method]
	if !listed && len(c.cfg.Methods) > 0 {
		ttl, listed = c.cfg.Methods[method[:strings.LastIndexByte(method, '/')+1]+"*"]
	}
	if listed || c.cfg.OnlyListed {
		return ttl, listed && ttl >= 0
	}
	return 0, idempotencyOf(method) == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
}

// bypass reports whether a call is none for the cache: it says so, it may bear an
// identity of its own, or its messages are not written as usual.
func (c *Cache) bypass(ctx context.Context, method string, req any, opts []grpc.CallOption) bool {
	for _, opt := range opts {
		switch opt.(type) {
		case noCache, grpc.PerRPCCredsCallOption, grpc.ForceCodecCallOption, grpc.ForceCodecV2CallOption,
			grpc.CustomCodecCallOption, grpc.ContentSubtypeCallOption:
			return true
		}
	}
	return c.cfg.Skip != nil && c.cfg.Skip(ctx, method, req)
}

// key returns the key of a call. It is false for one that must not be looked up.
func (c *Cache) key(ctx context.Context, method string, cc *grpc.ClientConn, req proto.Message) (string, bool) {
	md, _ := metadata.FromOutgoingContext(ctx)
	for _, secret := range secrets() {
		if len(md[secret]) > 0 && !slices.Contains(c.cfg.KeyMetadata, secret) {
			return "", false
		}
	}
	b := appendPart(make([]byte, 0, 256), method)
	if cc != nil {
		b = appendPart(b, cc.Target())
	}
	for _, name := range c.cfg.KeyMetadata {
		values := md[name]
		b = binary.AppendUvarint(b, uint64(len(values)))
		for _, v := range values {
			b = appendPart(b, v)
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, req)
	return string(b), err == nil
}

// appendPart appends a part so that no other parts come to the same key.
func appendPart(b []byte, part string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(part))), part...)
}

func metadataSize(md metadata.MD) (size int64) {
	for key, values := range md {
		for _, v := range values {
			size += int64(len(key) + len(v) + 32)
		}
	}
	return size
}
