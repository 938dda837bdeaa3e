package main

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
)

// server is a gRPC server on loopback.
type server struct {
	pb.UnimplementedTestServiceServer
	name, addr string
	srv        *grpc.Server
	serving    sync.WaitGroup
}

func startServer(ctx context.Context, name string) (*server, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{name: name, addr: l.Addr().String(), srv: grpc.NewServer()}
	pb.RegisterTestServiceServer(s.srv, s)
	s.serving.Go(func() { _ = s.srv.Serve(l) })
	return s, nil
}

// kill closes the listener and all connections.
func (s *server) kill() {
	s.srv.Stop()
	s.serving.Wait()
}

// UnaryCall says who has answered.
func (s *server) UnaryCall(context.Context, *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	return &pb.SimpleResponse{ServerId: s.name}, nil
}

// EmptyCall says in its header who has answered.
func (s *server) EmptyCall(ctx context.Context, _ *pb.Empty) (*pb.Empty, error) {
	return &pb.Empty{}, grpc.SetHeader(ctx, metadata.Pairs("served-by", s.name))
}

// StreamingOutputCall sends some messages.
func (s *server) StreamingOutputCall(_ *pb.StreamingOutputCallRequest, stream grpc.ServerStreamingServer[pb.StreamingOutputCallResponse]) error {
	for range length {
		if err := stream.Send(&pb.StreamingOutputCallResponse{}); err != nil {
			return err
		}
	}
	return nil
}
