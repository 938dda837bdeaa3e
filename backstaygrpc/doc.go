// Package backstaygrpc has gRPC calls made by the engine of a *backstay.Client:
// the same endpoints, nodes, breakers, limits and budgets that serve its HTTP
// calls.
package backstaygrpc

import (
	_ "google.golang.org/grpc"

	_ "github.com/backstay/backstay"
)
