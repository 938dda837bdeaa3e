package balancer_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/hash"
)

// The pick leaves out most logarithms. It must not leave out the winner's.
func TestRendezvousPicksTheHighestScore(t *testing.T) {
	list := endpoints(30)
	for i := range list {
		list[i].Weight = float64(1 + i%5*i%5)
	}
	b := newOver(t, list, nil)
	for _, seed := range []uint64{0, 1, 1 << 50} {
		for key, at := range placement(hashing(seed)["rendezvous"].NewPicker(b.Nodes()), keys(20_000)) {
			best, top := "", 0.0
			for _, e := range list {
				score := hash.Score(hash.Mix(hash.String(seed, key), hash.String(seed, e.Key())), e.Weight)
				if score > top {
					best, top = e.Key(), score
				}
			}
			require.Equal(t, best, at, key)
		}
	}
}
