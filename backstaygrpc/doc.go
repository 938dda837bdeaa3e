// Package backstaygrpc has gRPC calls made by the engine of a *backstay.Client:
// the same endpoints, nodes, breakers, limits and budgets that serve its HTTP
// calls.
package backstaygrpc

import (
	_ "github.com/backstay/backstay"
)
