package balancer

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The answer to a request was there before the write that sent it had been counted,
// and that was taken for one of the next call.
func TestWriteThatIsCountedLateIsNotOfTheNextCall(t *testing.T) {
	var w writes
	last := w.begin()
	mark := w.mark() // of the next call
	w.end(last, 100)
	require.True(t, w.noneSince(mark))
	require.True(t, w.quiet())

	failed := w.begin()
	require.False(t, w.quiet())
	w.end(failed, 0)
	require.True(t, w.noneSince(mark))

	late := w.begin()
	w.end(w.begin(), 1)
	require.False(t, w.noneSince(mark), "some of it has come through")
	w.end(late, 1)
	require.False(t, w.noneSince(mark))
	require.True(t, w.noneSince(w.mark()))
}
