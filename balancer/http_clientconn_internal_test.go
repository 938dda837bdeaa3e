package balancer

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// If this fails, net/http has changed, and requests that a server has declined by
// GOAWAY are not known as such any more.
func TestNetHTTPSaysWhatWasNotSent(t *testing.T) {
	unusable, goAway := hearPhrases()
	require.NotEqual(t, errUnheard, unusable)
	require.NotEqual(t, errUnheard, goAway)
	require.NotSame(t, unusable, goAway)
	again, goAwayAgain := hearPhrases()
	require.Same(t, unusable, again)
	require.Same(t, goAway, goAwayAgain)
	var p phrases
	require.True(t, p.sayUnsent(goAway))
	require.True(t, p.sayUnsent(unusable))
	require.False(t, p.sayUnsent(errors.New(goAway.Error())), "it is not the text that counts")
	require.False(t, p.sayUnsent(errUnheard))
}
