package balancer_test

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

func TestSnapshotTellsWhatEachNodeIsLike(t *testing.T) {
	list := endpoints(6)
	list[0].Zone, list[0].Region, list[0].Weight = "a", "eu", 3
	list[2].Draining = true
	list[5].Priority = 1
	cfg := exact(balancer.Config{Outliers: balancer.OutlierConfig{Jitter: -1, Probe: -1}, Overprovisioning: 3})
	inBubble(t, cfg, nil, func(t *testing.T, r *rig) {
		s := r.Snapshot()
		require.False(t, s.Known)
		require.Zero(t, s.Age)
		require.Empty(t, s.Nodes)
		r.update(list...)
		r.answer(5, addr(1), failure)
		for i := 0; r.look(addr(3)).State != balancer.Open; i++ { // never five in a row
			require.Less(t, i, 100)
			o := failure
			if i%3 == 0 {
				o = success
			}
			r.answer(1, addr(3), o)
		}
		r.call(addr(0), 20*time.Millisecond, success)
		held := r.acquire(balancer.Call{Node: addr(0)})
		streaming := r.acquire(balancer.Call{Node: addr(0)})
		streaming.Answered(time.Time{}, success)
		pass(time.Second)
		s = r.Snapshot()
		require.Equal(t, "orders", s.Service)
		require.True(t, s.Known)
		require.Equal(t, 6, s.Total)
		require.Equal(t, 2, s.Eligible)
		require.Greater(t, s.Age, time.Second)

		n := s.Nodes[0]
		require.Equal(t, addr(0), n.Node)
		require.Equal(t, []any{"a", "eu", 3.0}, []any{n.Zone, n.Region, n.Weight})
		require.Equal(t, []any{2, 1, int64(2)}, []any{n.InFlight, n.Awaiting, n.Answered})
		require.Equal(t, balancer.Eligible, n.State)
		require.Equal(t, []any{1.0, true}, []any{n.Share, n.Used})
		require.Greater(t, n.Cost, float64(time.Second/3), "it is silent")
		require.NotZero(t, n.Latency)

		n = s.Nodes[1]
		require.Equal(t, balancer.Ejected, n.State)
		require.Equal(t, "5 failures in a row", n.Reason)
		require.Equal(t, 29*time.Second, n.Until.Sub(s.At).Round(100*time.Millisecond))
		require.Equal(t, 1, n.Ejections)
		require.Equal(t, []any{0.0, false}, []any{n.Share, n.Used})
		require.Equal(t, []any{int64(5), int64(5)}, []any{n.Answered, n.Failed})
		require.Greater(t, n.FailureRate, 0.4)

		require.Equal(t, balancer.Draining, s.Nodes[2].State)
		n = s.Nodes[3]
		require.Equal(t, balancer.Open, n.State)
		require.Equal(t, "breaker", n.Reason)
		require.Equal(t, "open", n.Breaker.State)
		require.Equal(t, 1, n.Breaker.Opens)
		require.Equal(t, balancer.Standby, s.Nodes[5].State)
		require.Equal(t, 1, s.Nodes[5].Priority)

		data, err := json.Marshal(s)
		require.NoError(t, err)
		var read map[string]any
		require.NoError(t, json.Unmarshal(data, &read))
		require.Equal(t, "ejected", read["nodes"].([]any)[1].(map[string]any)["state"])
		require.Equal(t, s.Age.String(), read["age"])
		held.Done(time.Time{}, success)
		streaming.Done(time.Time{}, success)
	})
}

func TestSnapshotTellsOfSubsets(t *testing.T) {
	inBubble(t, anyOf(balancer.Config{Subsets: canarySubsets()}), versions(6, 4), func(t *testing.T, r *rig) {
		for i := range 3 {
			require.NoError(t, r.Eject(addr(i), time.Minute))
		}
		s := r.Snapshot()
		require.Equal(t, []balancer.SubsetSnapshot{
			{Subset: "canary", Total: 4, Eligible: 4, Panicking: true},
			{Subset: "only", Total: 4, Eligible: 4, Panicking: true},
			{Subset: "stable", Total: 2, Eligible: 2},
		}, s.Subsets)
		require.False(t, s.Panicking)
		require.Equal(t, []string{"canary", "only"}, s.Nodes[0].Subsets)
		require.Equal(t, []string{"stable"}, s.Nodes[5].Subsets)
		for i := range 3 {
			require.NoError(t, r.Restore(addr(i)))
		}
		require.NoError(t, r.Eject(addr(0), time.Minute))
		require.Equal(t, balancer.SubsetSnapshot{Subset: "canary", Total: 4, Eligible: 3}, r.Snapshot().Subsets[0])
		r.update(versions(6, 0)...)
		require.Equal(t, balancer.SubsetSnapshot{Subset: "canary"}, r.Snapshot().Subsets[0])
		require.NoError(t, r.Close())
		require.Len(t, r.Snapshot().Subsets, 3)
	})
}

func TestSnapshotTellsThatTheSetIsStale(t *testing.T) {
	inBubble(t, nil, endpoints(2), func(t *testing.T, r *rig) {
		pass(time.Minute)
		require.Equal(t, time.Minute, r.Snapshot().Age)
		require.Empty(t, r.Snapshot().Error)
		r.feed.yields <- yield{err: errDown}
		pass(time.Second)
		require.Contains(t, r.Snapshot().Error, "down")
		r.update(endpoints(2)...)
		require.Empty(t, r.Snapshot().Error)
		require.Less(t, r.Snapshot().Age, time.Second)
		require.NoError(t, r.Close())
		require.Len(t, r.Snapshot().Nodes, 2)
	})
}

func TestSnapshotWhileEverythingChanges(t *testing.T) {
	backstaytest.CheckLeaks(t)
	f := newFeed(endpoints(20)...)
	cfg := balancer.Config{
		Outliers: balancer.OutlierConfig{
			Interval: 100 * time.Millisecond, BaseEjection: time.Millisecond, Probe: time.Millisecond, MaxPercent: 50,
			SuccessRate: balancer.SuccessRate{Enforcement: 100, RequestVolume: 5},
		},
		Health: balancer.HealthConfig{Interval: 10 * time.Millisecond, Check: func(_ context.Context, _ *balancer.Node) error {
			if rand.IntN(3) == 0 {
				return errDown
			}
			return nil
		}},
	}
	b, err := balancer.New("orders", f, &cfg)
	require.NoError(t, err)
	require.NoError(t, b.Ready(t.Context()))
	stop := time.After(300 * time.Millisecond)
	done := make(chan struct{})
	var work sync.WaitGroup
	loop := func(do func()) {
		work.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					do()
				}
			}
		})
	}
	for range 3 {
		loop(func() {
			l, err := b.Acquire(t.Context(), balancer.Call{})
			if err != nil {
				return
			}
			o := success
			if rand.IntN(2) == 0 {
				o = failure
			}
			l.Done(time.Time{}, o)
		})
	}
	loop(func() { _ = b.Eject(addr(rand.IntN(20)), time.Millisecond) })
	loop(func() {
		select {
		case f.yields <- yield{set: discovery.Set{Endpoints: endpoints(15 + rand.IntN(10))}}:
		case <-done:
		}
	})
	loop(func() {
		s := b.Snapshot()
		if s.Total != len(s.Nodes) || s.Total < 15 {
			panic("a snapshot of two moments")
		}
		if _, err := json.Marshal(s); err != nil {
			panic(err)
		}
	})
	<-stop
	close(done)
	work.Wait()
	require.NoError(t, b.Close())
	idle(t, b.Nodes())
}

func BenchmarkSnapshotOfTenThousandNodes(b *testing.B) {
	lb := newStatic(b, 10_000, nil)
	b.ReportAllocs()
	for b.Loop() {
		if s := lb.Snapshot(); len(s.Nodes) != 10_000 {
			b.Fatal(len(s.Nodes))
		}
	}
}
