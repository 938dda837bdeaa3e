package main

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
)

// played plays the overload at full length, in virtual time.
func played(t *testing.T, name string) (phases []phase, results []result) {
	t.Helper()
	phases = script(30 * time.Second)
	for _, k := range kinds() {
		if k.name != name {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			memory := backstaytest.NewNetwork()
			servers := 0
			on := network{
				listen: func() (net.Listener, error) {
					servers++
					return memory.Listen(fmt.Sprintf("10.0.0.%d:80", servers))
				},
				base: memory.Transport(),
			}
			var err error
			results, err = play(t.Context(), on, k, phases)
			require.NoError(t, err)
		})
	}
	require.Len(t, results, len(phases))
	for i, p := range phases {
		t.Logf("%-14s %4.0f calls/s, %4.0f answered, %4.0f attempts", p.name, p.load*capacity,
			perSecond(results[i].good, p), perSecond(results[i].attempts, p))
	}
	require.GreaterOrEqual(t, results[0].good, results[0].calls*99/100, "all is well before")
	return phases, results
}

// The script's phases, by their places in it.
const (
	during = 1
	after  = 2 // the first five seconds of it
)

// Callers who insist get nothing, and still do when the overload is over.
func TestNaiveCallersKeepTheOverloadUp(t *testing.T) {
	if testing.Short() || underRace {
		t.Skip("they make 30,000 attempts")
	}
	phases, results := played(t, "naive")
	for i, r := range results[during:] {
		require.Less(t, perSecond(r.good, phases[during+i]), 0.1*capacity, phases[during+i].name)
	}
	require.Greater(t, results[during].attempts, 2*results[during].calls)
}

func TestDefaultsSpareTheServersAndComeBack(t *testing.T) {
	_, results := played(t, "defaults")
	for _, r := range results {
		require.LessOrEqual(t, float64(r.attempts), 1.25*float64(r.calls))
	}
	for _, r := range results[after+1:] {
		require.GreaterOrEqual(t, r.good, r.calls*99/100)
	}
}

func TestBoundKeepsTheServersAtWorkOnWhatIsStillWanted(t *testing.T) {
	phases, results := played(t, "bounded")
	require.GreaterOrEqual(t, perSecond(results[during].good, phases[during]), 0.9*capacity)
	for _, r := range results[after+1:] {
		require.GreaterOrEqual(t, r.good, r.calls*99/100)
	}
}
