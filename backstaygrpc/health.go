package backstaygrpc

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/backstay/backstay/balancer"
)

// HealthCheck returns an active check by gRPC's health service, grpc.health.v1.Health,
// for Check of [balancer.HealthConfig]:
//
//	backstay.Service{Health: balancer.HealthConfig{Check: backstaygrpc.HealthCheck("orders.v1.Orders", creds)}}
//
// The service is the name that the server is asked about; "" is the server as a whole.
// SERVING is well, and so is a server that does not have the health service at all
// (gRFC A17); anything else is not. Each check has a connection of its own, made with
// opts, which are those of grpc.NewClient: at least transport credentials are wanted.
// The name for TLS is the endpoint's ServerName, or what grpc.WithAuthority says.
func HealthCheck(service string, opts ...grpc.DialOption) func(context.Context, *balancer.Node) error {
	return func(ctx context.Context, n *balancer.Node) (err error) {
		endpoint := n.Endpoint()
		addrs, err := addressesOf(endpoint)
		if err != nil {
			return err
		}
		all := []grpc.DialOption{grpc.WithDisableServiceConfig(), grpc.WithDisableRetry()}
		if endpoint.ServerName != "" {
			all = append(all, grpc.WithAuthority(endpoint.ServerName))
		}
		conn, err := grpc.NewClient(directly(addrs[0].Addr), append(all, opts...)...)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		return checkHealth(ctx, conn, service)
	}
}

// directly is the target for an address as it is.
func directly(addr string) string { return "passthrough:///" + addr }

// checkHealth asks the server at the other end of cc how it is.
func checkHealth(ctx context.Context, cc grpc.ClientConnInterface, service string) error {
	answer, err := grpc_health_v1.NewHealthClient(cc).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return nil
	case err != nil:
		return fmt.Errorf("backstaygrpc: health check: %w", err)
	case answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return fmt.Errorf("backstaygrpc: health check: the server is %v", answer.GetStatus())
	}
	return nil
}
