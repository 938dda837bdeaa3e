// Command grpc calls three gRPC servers by a Backstay client: one of them is killed
// while unary calls and streams go on, and then one is a canary that gets a tenth.
//
//	cd examples/grpc && go run .
//
// It ends with status 1 if a call was lost. main.go has the client, server.go what it
// calls; the service is gRPC's own for tests, so that there is nothing to generate.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaygrpc"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/retry"
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const (
	callers = 8
	calls   = 800
	length  = 5 // messages of a stream
)

func run(ctx context.Context, out io.Writer) error {
	var servers []*server
	defer func() {
		for _, s := range servers {
			s.kill()
		}
	}()
	var endpoints []discovery.Endpoint
	for _, of := range []struct{ name, version string }{{"A", "1"}, {"B", "1"}, {"C", "2"}} {
		s, err := startServer(ctx, of.name)
		if err != nil {
			return err
		}
		servers = append(servers, s)
		endpoints = append(endpoints, discovery.Endpoint{
			ID: of.name, Addr: s.addr, Metadata: map[string]string{"version": of.version},
		})
	}
	client, err := newClient(endpoints)
	if err != nil {
		return err
	}
	defer client.Close()
	conn, err := backstaygrpc.NewClient("numbers", client, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	numbers := pb.NewTestServiceClient(conn) // a generated client

	for i, scene := range []struct {
		title string
		begin func()
	}{
		{"all are well", func() {}},
		{"A is killed", servers[0].kill},
	} {
		var (
			mu   sync.Mutex
			all  sync.WaitGroup
			lost int
			cut  int
		)
		from := make(map[string]int)
		for caller := range callers {
			all.Go(func() {
				for n := range calls / callers {
					if caller == 0 && n == calls/callers/3 {
						scene.begin()
					}
					name, err := unary(ctx, numbers)
					begun, broken := stream(ctx, numbers)
					mu.Lock()
					from[name]++
					if begun && broken != nil {
						cut++ // what it has told cannot be told again
					} else {
						err = errors.Join(err, broken)
					}
					if err != nil {
						lost++
						fmt.Fprintln(out, "lost:", err)
					}
					mu.Unlock()
				}
			})
		}
		all.Wait()
		fmt.Fprintf(out, "%-13s %d calls from A, %d from B, %d from C, and as many streams, %d cut short; %d lost\n",
			scene.title, from["A"], from["B"], from["C"], cut, lost)
		if lost > 0 {
			return fmt.Errorf("scene %d lost %d calls", i, lost)
		}
	}

	from := make(map[string]int)
	for range calls { // a route of its own, that divides the calls
		var header metadata.MD // of the attempt that counts
		if _, err := numbers.EmptyCall(ctx, &pb.Empty{}, grpc.Header(&header)); err != nil {
			return err
		}
		from[header.Get("served-by")[0]]++
	}
	fmt.Fprintf(out, "%-13s %d calls from C, the canary, which is to get a tenth of %d\n", "a canary", from["C"], calls)
	return nil
}

// newClient returns a client of the service "numbers".
func newClient(endpoints []discovery.Endpoint) (*backstay.Client, error) {
	return backstay.New(&backstay.Config{
		Services: map[string]backstay.Service{"numbers": {
			Endpoints: endpoints,
			Timeout:   10 * time.Second,
			Subsets: map[string]balancer.Subset{
				"stable": {Match: map[string]string{"version": "1"}},
				"canary": {Match: map[string]string{"version": "2"}},
			},
		}},
		Routes: map[string]backstay.Route{
			// All of its methods only read, which nobody but us can know.
			"numbers/grpc.testing.TestService/*": {Retry: retry.Config{RetryNonIdempotent: retry.On}},
			"numbers/grpc.testing.TestService/EmptyCall": {
				Retry: retry.Config{RetryNonIdempotent: retry.On},
				Split: balancer.Split{{Subset: "stable", Weight: 90}, {Subset: "canary", Weight: 10}},
			},
		},
	})
}

// unary makes a unary call and returns who has answered.
func unary(ctx context.Context, numbers pb.TestServiceClient) (string, error) {
	reply, err := numbers.UnaryCall(ctx, &pb.SimpleRequest{})
	return reply.GetServerId(), err
}

// stream reads a stream of the server to its end, and returns whether there was a
// message: until then it can begin again on another server.
func stream(ctx context.Context, numbers pb.TestServiceClient) (begun bool, err error) {
	s, err := numbers.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{})
	if err != nil {
		return false, err
	}
	for n := 0; ; n++ {
		_, err := s.Recv()
		switch {
		case errors.Is(err, io.EOF) && n == length:
			return true, nil
		case err != nil:
			return n > 0, fmt.Errorf("after %d messages: %w", n, err)
		}
	}
}
