package backstaygrpc

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// AwaitHeaders is the stream interceptor that tells the bridge when a stream has been
// answered: at its first message, or at its headers if somebody asks for Header. gRPC's
// balancers are not told, and would take a stream that is open for an hour for a node
// that has been silent for so long. [DialOptions] has it; where the bridge is named by a
// service config alone, use grpc.WithChainStreamInterceptor.
func AwaitHeaders(
	ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	a := new(awaited)
	cs, err := streamer(&awaitedContext{ctx, a}, desc, cc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &awaitedStream{ClientStream: cs, awaited: a}, nil
}

// awaited is the attempt whose answer a stream waits for.
type awaited struct {
	current atomic.Pointer[attempt] // set by the picker, for each attempt anew
	told    atomic.Bool
}

// awaitedContext carries it to the picker.
type awaitedContext struct {
	context.Context //nolint:containedctx // it is a context
	awaited         *awaited
}

type awaitedKey struct{}

func (c *awaitedContext) Value(key any) any {
	if key == (awaitedKey{}) {
		return c.awaited
	}
	return c.Context.Value(key)
}

func awaitedOf(ctx context.Context) *awaited {
	a, _ := ctx.Value(awaitedKey{}).(*awaited)
	return a
}

// tell tells that the answer is there.
func (a *awaited) tell() {
	if a.told.Load() || a.told.Swap(true) {
		return
	}
	if attempt := a.current.Load(); attempt != nil {
		attempt.answered()
	}
}

type awaitedStream struct {
	grpc.ClientStream
	awaited *awaited
}

// Header waits for the headers.
func (s *awaitedStream) Header() (metadata.MD, error) {
	md, err := s.ClientStream.Header()
	if err == nil && md != nil {
		s.awaited.tell()
	}
	return md, err
}

// RecvMsg waits for a message.
func (s *awaitedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		s.awaited.tell()
	}
	return err
}
