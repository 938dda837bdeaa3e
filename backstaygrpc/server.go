package backstaygrpc

import (
	"context"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/backstay/backstay/outcome"
)

// ServerInterceptor is what a server does around each call: [ServerLoad],
// [ServerPropagate] and [ServerLimit] make such. Each may be used alone. Calls of
// gRPC's health service and of ORCA's load reports pass as if there were none: a server
// that is full must still be able to say so.
type ServerInterceptor struct {
	// Unary is for grpc.ChainUnaryInterceptor.
	Unary grpc.UnaryServerInterceptor
	// Stream is for grpc.ChainStreamInterceptor.
	Stream grpc.StreamServerInterceptor
}

// ServerOptions returns the options of a server with these interceptors, the first the
// outermost:
//
//	server := grpc.NewServer(backstaygrpc.ServerOptions(
//		backstaygrpc.ServerLoad(load), backstaygrpc.ServerPropagate(nil), limits)...)
func ServerOptions(interceptors ...ServerInterceptor) []grpc.ServerOption {
	var opts []grpc.ServerOption
	for _, i := range interceptors {
		opts = append(opts, grpc.ChainUnaryInterceptor(i.Unary), grpc.ChainStreamInterceptor(i.Stream))
	}
	return opts
}

// around makes an interceptor of one function for both kinds of calls. What it hands to
// next is the call's context, and what it returns the call's error.
func around(do func(c *serverCall, next func(context.Context) error) error) ServerInterceptor {
	return ServerInterceptor{
		Unary: func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
			if exempt(info.FullMethod) {
				return handler(ctx, req)
			}
			c := &serverCall{ctx: ctx, method: info.FullMethod}
			c.setTrailer = func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) } // fails where there is no transport
			err = do(c, func(ctx context.Context) error {
				resp, err = handler(ctx, req)
				return err
			})
			if err != nil {
				resp = nil // as generated servers have it
			}
			return resp, err
		},
		Stream: func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if exempt(info.FullMethod) {
				return handler(srv, ss)
			}
			c := &serverCall{ctx: ss.Context(), method: info.FullMethod, setTrailer: ss.SetTrailer}
			return do(c, func(ctx context.Context) error {
				return handler(srv, &serverStream{ServerStream: ss, ctx: ctx, answer: c.answer})
			})
		},
	}
}

// exempt reports whether a method is the infrastructure's.
func exempt(method string) bool {
	return strings.HasPrefix(method, "/grpc.health.v1.Health/") || strings.HasPrefix(method, "/xds.service.orca.v3.OpenRcaService/")
}

// serverCall is a call that is being served.
type serverCall struct {
	ctx        context.Context //nolint:containedctx // the call's
	method     string
	setTrailer func(metadata.MD)
	answer     func() // called at a stream's first message or headers; may be nil
}

// incoming returns the values of a key of the caller's metadata.
func (c *serverCall) incoming(key string) []string {
	return metadata.ValueFromIncomingContext(c.ctx, key)
}

// failed reports whether an error that a handler returns counts against its server.
func failed(err error) bool { return Classify(err, nil).Class == outcome.Failure }

// serverStream is a stream with another context, that tells of its answer.
type serverStream struct {
	grpc.ServerStream
	ctx    context.Context //nolint:containedctx // what Context returns
	answer func()
	once   sync.Once
}

// Context returns the handler's context.
func (s *serverStream) Context() context.Context { return s.ctx }

func (s *serverStream) answered() {
	if s.answer != nil {
		s.once.Do(s.answer)
	}
}

// SendHeader sends the headers.
func (s *serverStream) SendHeader(md metadata.MD) error {
	s.answered()
	return s.ServerStream.SendHeader(md)
}

// SendMsg sends a message, and the headers before the first.
func (s *serverStream) SendMsg(m any) error {
	s.answered()
	return s.ServerStream.SendMsg(m)
}
