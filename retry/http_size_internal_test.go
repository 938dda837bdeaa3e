package retry

import (
	"math/bits"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
)

// Bytes are most of what bounding an attempt costs: one field too many, and each is of
// the next size class of the runtime's.
func TestFlightsFitTheirSizeClass(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("the sizes are those of 64 bits")
	}
	require.LessOrEqual(t, int(reflect.TypeFor[flight]().Size()), 480)
}
