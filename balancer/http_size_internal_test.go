package balancer

import (
	"math/bits"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
)

// Bytes are most of what an attempt costs: one field too many, and each is of the next
// size class of the runtime's. Above 512 bytes 8 are the runtime's own.
func TestAttemptsFitTheirSizeClass(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("the sizes are those of 64 bits")
	}
	require.LessOrEqual(t, int(reflect.TypeFor[ridden]().Size()), 288)
	require.LessOrEqual(t, int(reflect.TypeFor[rewritten]().Size()), 704-8)
}
