package backstay_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
)

// gone is how long a server is away in a rolling restart.
const gone = 2 * time.Second

// A fleet of six is restarted under load, one after the other: as a deployment does
// it, that takes an instance out of discovery and lets it finish; as one does it
// that tells nobody; and as a bad day does it.
func TestARollingRestartLosesNoIdempotentCall(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes six times two seconds")
	}
	shutdown := func(s *backstaytest.Server) {
		ctx, cancel := context.WithTimeout(context.Background(), gone)
		defer cancel()
		require.NoError(t, s.Shutdown(ctx))
	}
	l := startLoadOn(t, 6, nil, nil)
	for i, s := range l.fleet.Servers() {
		switch i % 3 {
		case 0:
			l.fleet.Unlist(s)
			shutdown(s)
		case 1:
			shutdown(s)
		case 2:
			s.Kill()
		}
		l.run(gone)
		s.Restart()
		l.fleet.List(s)
	}
	l.end()
}

func TestMoreServersAreUsedAsSoonAsTheyAreKnown(t *testing.T) {
	l := startLoadOn(t, 2, nil, nil)
	l.run(300 * time.Millisecond)
	for range 4 {
		l.fleet.Join()
	}
	joined := time.Now()
	eventually(t, func() bool {
		for _, s := range l.fleet.Servers() {
			if s.Stats().Requests == 0 {
				return false
			}
		}
		return true
	}, "all six have had calls")
	require.Less(t, time.Since(joined), 5*time.Second, "soon")
	l.end()
}
