package balancer_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/event"
)

func TestEventsTellOfEverySetThatDiffers(t *testing.T) {
	inBubble(t, nil, endpoints(2), func(t *testing.T, r *rig) {
		require.Equal(t, []event.Event{
			balancer.NodesChanged{Service: "orders", Added: []string{addr(0), addr(1)}, Total: 2},
		}, r.rec.Events())
		r.rec.Clear()
		list := endpoints(2)
		slices.Reverse(list)
		r.update(list...)
		require.Empty(t, r.rec.Events(), "the order is nothing")

		r.update(discovery.Endpoint{Addr: addr(9)}, discovery.Endpoint{Addr: addr(0), Zone: "b"}, discovery.Endpoint{Addr: addr(8)})
		changed := backstaytest.EventsOf[balancer.NodesChanged](r.rec)
		require.Equal(t, []balancer.NodesChanged{{
			Service: "orders", Added: []string{addr(9), addr(8)}, Removed: []string{addr(1)}, Changed: 1, Total: 3,
		}}, changed)
		require.Equal(t, []balancer.NodeChanged{
			{Service: "orders", Node: addr(1), From: balancer.Eligible, To: balancer.Removed},
		}, backstaytest.EventsOf[balancer.NodeChanged](r.rec))
		r.update(endpoints(9)...)
		r.rec.Clear()
		r.update()
		var keys, gone []string
		for i := range 9 {
			keys = append(keys, addr(i))
		}
		require.Equal(t, []balancer.NodesChanged{{Service: "orders", Removed: keys}},
			backstaytest.EventsOf[balancer.NodesChanged](r.rec))
		for _, e := range backstaytest.EventsOf[balancer.NodeChanged](r.rec) {
			gone = append(gone, e.Node)
		}
		require.Equal(t, keys, gone, "in the same order each time")
	})
}

func TestFirstSetIsToldEvenIfItIsEmpty(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, r *rig) {
		r.update()
		require.Equal(t, []event.Event{balancer.NodesChanged{Service: "orders"}}, r.rec.Events())
	})
}

// Nothing but time passes: no call is needed for the changes that it brings.
func TestChangesByTimeHappenWithoutACall(t *testing.T) {
	inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
		start := time.Now()
		r.open(addr(0))
		time.Sleep(time.Second)
		require.NoError(t, r.Eject(addr(1), 10*time.Second))
		require.NoError(t, r.Eject(addr(2), 2*time.Second)) // so few are left that it is not heeded
		r.rec.Clear()
		var at []time.Duration
		seen := 0
		for range 120 {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			events := r.rec.Events()
			for range events[seen:] {
				at = append(at, time.Since(start))
			}
			seen = len(events)
		}
		node := func(key string, from, to balancer.NodeState) event.Event {
			return balancer.NodeChanged{Service: "orders", Node: key, From: from, To: to}
		}
		require.Equal(t, []event.Event{
			node(addr(2), balancer.Ejected, balancer.Eligible),
			node(addr(0), balancer.Open, balancer.HalfOpen),
			balancer.PanicChanged{Service: "orders", Total: 3, Eligible: 1},
			node(addr(1), balancer.Ejected, balancer.Eligible),
		}, r.rec.Events())
		require.Equal(t, []time.Duration{3 * time.Second, 5 * time.Second, 5 * time.Second, 11 * time.Second}, at)
	})
}

func TestEventsTellHowLongANodeIsLeftAlone(t *testing.T) {
	inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
		now := time.Now()
		r.open(addr(0))
		require.NoError(t, r.Eject(addr(1), 20*time.Second))
		r.node(addr(2)).Breaker().ForceOpen()
		events := backstaytest.EventsOf[balancer.NodeChanged](r.rec)
		require.Len(t, events, 3)
		require.Equal(t, balancer.Open, events[0].To)
		require.Equal(t, 5*time.Second, events[0].Until.Sub(now))
		require.Equal(t, slog.LevelWarn, events[0].Level())
		require.Equal(t, balancer.Ejected, events[1].To)
		require.Equal(t, 20*time.Second, events[1].Until.Sub(now))
		require.Equal(t, slog.LevelWarn, events[1].Level())
		require.Equal(t, balancer.Open, events[2].To)
		require.True(t, events[2].Until.IsZero(), "nobody knows")
	})
}

func TestEventsFollowANodeThroughItsStates(t *testing.T) {
	list := endpoints(3)
	list[1].Priority = 1
	list[2].Draining = true
	inBubble(t, nil, list, func(t *testing.T, r *rig) {
		r.open(addr(0))
		time.Sleep(5 * time.Second)
		for r.node(addr(0)).Breaker().State() != breaker.Closed {
			r.counts(1)
		}
		list[2].Draining = false
		r.update(slices.Clone(list)...)
		r.update()
		path := make(map[string][]balancer.NodeState)
		for _, e := range backstaytest.EventsOf[balancer.NodeChanged](r.rec) {
			if states := path[e.Node]; len(states) > 0 {
				require.Equal(t, states[len(states)-1], e.From, "each begins where the last one ended")
			} else {
				require.Equal(t, balancer.Eligible, e.From)
			}
			path[e.Node] = append(path[e.Node], e.To)
		}
		require.Equal(t, map[string][]balancer.NodeState{
			addr(0): {balancer.Open, balancer.HalfOpen, balancer.Eligible, balancer.Removed},
			addr(1): {balancer.Standby, balancer.Eligible, balancer.Standby, balancer.Removed},
			addr(2): {balancer.Draining, balancer.Eligible, balancer.Removed},
		}, path)
	})
}

func TestPanicIsToldWhenItBeginsAndEnds(t *testing.T) {
	inBubble(t, nil, endpoints(4), func(t *testing.T, r *rig) {
		for i := range 4 {
			require.NoError(t, r.Eject(addr(i), time.Minute))
		}
		for i := range 4 {
			require.NoError(t, r.Restore(addr(i)))
		}
		require.Equal(t, []balancer.PanicChanged{
			{Service: "orders", On: true, Eligible: 4, Total: 4},
			{Service: "orders", On: false, Eligible: 2, Total: 4},
		}, backstaytest.EventsOf[balancer.PanicChanged](r.rec))
	})
}

func TestOpenBreakersAreNoPanic(t *testing.T) {
	inBubble(t, nil, endpoints(3), func(t *testing.T, r *rig) {
		r.open(addr(0), addr(1), addr(2))
		require.Empty(t, backstaytest.EventsOf[balancer.PanicChanged](r.rec), "no judgment is being ignored")
	})
}

func TestResolveFailuresAreToldWithTheSetsAge(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, r *rig) {
		r.feed.yields <- yield{err: errDown}
		synctest.Wait()
		time.Sleep(time.Second)
		r.update(endpoints(1)...)
		time.Sleep(time.Minute)
		r.feed.yields <- yield{err: errDown}
		synctest.Wait()
		r.feed.yields <- yield{err: &discovery.Warning{Service: "orders", Err: errDown}}
		synctest.Wait()
		failed := backstaytest.EventsOf[balancer.ResolveFailed](r.rec)
		require.Len(t, failed, 3)
		for i, stale := range []time.Duration{0, time.Minute + mergeWindow, 0} {
			require.Equal(t, "orders", failed[i].Service)
			require.ErrorIs(t, failed[i].Err, errDown)
			require.Equal(t, stale, failed[i].Stale)
		}
		r.counts(1)
	})
}

// Observers are called outside of all locks, so they may look around.
func TestObserverMayCallBack(t *testing.T) {
	var b *balancer.Balancer
	seen := 0
	observer := event.ObserverFunc(func(_ context.Context, e event.Event) {
		seen++
		if b == nil {
			return
		}
		for _, n := range b.Nodes() {
			n.Breaker().Snapshot(time.Time{})
			n.FailureRate(time.Time{})
		}
		if l, err := b.Acquire(context.Background(), balancer.Call{}); err == nil {
			l.Done(time.Time{}, failure)
		}
		if e, ok := e.(balancer.NodeChanged); ok && e.To == balancer.Open {
			_ = b.Restore(e.Node)
		}
		panic("and then it panics")
	})
	slog.SetDefault(slog.New(slog.DiscardHandler))
	inBubble(t, exact(balancer.Config{Observer: observer}), endpoints(3), func(t *testing.T, r *rig) {
		b = r.Balancer
		r.open(addr(0))
		require.NoError(t, r.Eject(addr(1), time.Second))
		time.Sleep(10 * time.Second)
		r.counts(100)
		r.update(endpoints(2)...)
		require.Greater(t, seen, 5)
		idle(t, r.Nodes())
	})
}

func TestEventsAsLogLines(t *testing.T) {
	for want, e := range map[string]event.Event{
		`balancer.nodes_changed service=orders added=[a] removed=[] changed=1 total=3`: balancer.NodesChanged{
			Service: "orders", Added: []string{"a"}, Changed: 1, Total: 3,
		},
		`balancer.node_changed service=orders node=a from=eligible to=half-open`: balancer.NodeChanged{
			Service: "orders", Node: "a", From: balancer.Eligible, To: balancer.HalfOpen,
		},
		`balancer.node_changed service=orders node=a from=open to=ejected until=2000-01-01T00:00:00.000Z`: balancer.NodeChanged{
			Service: "orders", Node: "a", From: balancer.Open, To: balancer.Ejected, Until: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		},
		`balancer.node_changed service=orders node=a from=draining to=standby`: balancer.NodeChanged{
			Service: "orders", Node: "a", From: balancer.Draining, To: balancer.Standby,
		},
		`balancer.panic_changed service=orders on=true eligible=1 total=3`: balancer.PanicChanged{
			Service: "orders", On: true, Eligible: 1, Total: 3,
		},
		`balancer.resolve_failed service=orders error="no such host" stale=1m0s`: balancer.ResolveFailed{
			Service: "orders", Err: errors.New("no such host"), Stale: time.Minute,
		},
	} {
		rec := new(backstaytest.Recorder)
		rec.Observe(t.Context(), e)
		require.Equal(t, want, strings.TrimSpace(rec.String()))
		require.True(t, strings.HasPrefix(want, e.EventName()+" "))
	}
	for _, e := range []event.Leveler{
		balancer.PanicChanged{On: true}, balancer.ResolveFailed{}, balancer.NodeChanged{To: balancer.Open},
	} {
		require.Equal(t, slog.LevelWarn, e.Level())
	}
	for _, e := range []event.Leveler{balancer.PanicChanged{}, balancer.NodeChanged{From: balancer.Open}} {
		require.Equal(t, slog.LevelInfo, e.Level())
	}
	require.Equal(t, "removed", balancer.Removed.String())
}
