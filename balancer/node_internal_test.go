package balancer

import (
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/outcome"
)

// Of ten thousand nodes few are in the processor's caches: a pick and a good answer
// touch one line of them, and what lies apart would double their price.
func TestGoodCallTouchesOneLineOfItsNode(t *testing.T) {
	require.EqualValues(t, 64, unsafe.Sizeof(Node{}))
	b, err := New("orders", discovery.Static(discovery.Endpoint{Addr: "10.0.0.1:80"}), nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	at := (b.since(clock.Now())>>b.tallyShift)<<b.tallyShift + 1<<b.tallyShift/2 // in the midst of a tally
	now := b.at(at)
	nodes := []*Node{{}, {}} // whatever else they have is nil: to touch it panics
	for _, n := range nodes {
		n.tally.Store(uint32(at >> b.tallyShift)) //nolint:gosec // modular
	}
	c := Call{Now: now}
	n := (&p2cPeakEWMA{p2c{nodes: nodes, owner: b}}).pick(&c, at)
	for range 2 {
		var l Lease
		require.NoError(t, n.acquire(b, &c, at, &l))
		l.Answered(now.Add(time.Millisecond), outcome.Outcome{})
		l.Done(time.Time{}, outcome.Outcome{})
		require.NoError(t, n.acquire(b, &c, at, &l))
		l.Done(now.Add(time.Millisecond), outcome.Outcome{})
	}
	require.EqualValues(t, 4, answersOf(n.load.Load()))
}
