package balancer

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// If this fails, net/http has given CancelRequest up: then attempts over HTTP/1.1 have
// contexts again, and canCancel and what asks it can go.
func TestNetHTTPCanCancelARequest(t *testing.T) {
	require.True(t, canCancel())
}
