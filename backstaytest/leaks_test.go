package backstaytest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func leakyWait(stop chan struct{}) { <-stop }

func TestCheckLeaksNamesTheGoroutineThatStays(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	failures := verdictOf(t, func(t testing.TB) {
		checkLeaks(t, 20*time.Millisecond)
		go leakyWait(stop)
	})
	require.Len(t, failures, 1)
	require.Contains(t, failures[0], "1 goroutines leaked")
	require.Contains(t, failures[0], "leakyWait")
}

func TestCheckLeaksWaitsForWhatIsOnItsWayOut(t *testing.T) {
	older := make(chan struct{})
	defer close(older)
	go leakyWait(older)
	require.Empty(t, verdictOf(t, func(t testing.TB) {
		CheckLeaks(t)
		for range 10 {
			stop := make(chan struct{})
			go leakyWait(stop)
			time.AfterFunc(20*time.Millisecond, func() { close(stop) })
		}
	}))
}
