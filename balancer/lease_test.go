package balancer_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/outcome"
)

// Whatever takes time here is in a bubble: see inBubble.

func TestLeaseIsGivenBackOnceHoweverOftenItIsTold(t *testing.T) {
	inBubble(t, exact(balancer.Config{MaxConcurrency: 2}), endpoints(1), func(t *testing.T, r *rig) {
		node := r.node(addr(0))
		other := r.acquire(balancer.Call{})
		l := r.acquire(balancer.Call{})
		require.Equal(t, 2, node.Awaiting())
		for range 3 {
			l.Answered(time.Time{}, success)
			require.Equal(t, 1, node.Awaiting())
			require.Equal(t, 2, node.InFlight())
		}
		for range 3 {
			l.Done(time.Time{}, success)
			require.Equal(t, 1, node.InFlight())
		}
		l.Answered(time.Time{}, failure)
		l.Done(time.Time{}, failure)
		require.Equal(t, 1, node.InFlight())
		require.Same(t, node, l.Node())
		other.Done(time.Time{}, failure)
		idle(t, r.Nodes())
		s := node.Breaker().Snapshot(time.Now())
		require.EqualValues(t, 2, s.Calls)
		require.EqualValues(t, 1, s.Failures)
	})
}

func TestZeroLeaseDoesNothing(t *testing.T) {
	var l balancer.Lease
	require.Nil(t, l.Node())
	require.Equal(t, failure, l.Answered(time.Time{}, failure))
	l.Done(time.Time{}, failure)
}

func TestRefusedLeaseIsTheZeroLease(t *testing.T) {
	inBubble(t, exact(balancer.Config{MaxConcurrency: 1}), endpoints(1), func(t *testing.T, r *rig) {
		held := r.acquire(balancer.Call{})
		l, err := r.Acquire(t.Context(), balancer.Call{})
		require.Error(t, err)
		require.Zero(t, l)
		l.Done(time.Time{}, failure)
		require.Equal(t, 1, r.node(addr(0)).InFlight())
		held.Done(time.Time{}, success)
		r.open(addr(0))
		l, err = r.Acquire(t.Context(), balancer.Call{})
		require.Error(t, err)
		require.Zero(t, l)
	})
}

func TestBodyThatBreaksIsOneFailure(t *testing.T) {
	for name, wait := range map[string]time.Duration{"at once": 0, "later": 3 * time.Second} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
				node := r.node(addr(0))
				l := r.on(addr(0))
				l.Answered(time.Time{}, success)
				time.Sleep(wait)
				before, known := node.Latency(time.Now())
				require.True(t, known)
				l.Done(time.Time{}, failure)
				after, _ := node.Latency(time.Now())
				require.Equal(t, before, after, "the answer came as fast as it did")
				s := node.Breaker().Snapshot(time.Now())
				require.EqualValues(t, 1, s.Failures)
				require.EqualValues(t, 1, s.Calls)
				require.InDelta(t, 1.0/6, node.FailureRate(time.Now()), 0.01)
			})
		})
	}
}

func TestBodyOfAFailedAnswerCountsNoMore(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		l := r.on(addr(0))
		l.Answered(time.Time{}, failure)
		l.Done(time.Time{}, failure)
		s := r.node(addr(0)).Breaker().Snapshot(time.Now())
		require.EqualValues(t, 1, s.Failures)
		require.EqualValues(t, 1, s.Calls)
	})
}

func TestProbeWhoseBodyBreaksOpensAgain(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		r.open(addr(0))
		time.Sleep(5 * time.Second)
		l := r.acquire(balancer.Call{})
		l.Answered(time.Time{}, success)
		require.Equal(t, breaker.HalfOpen, r.node(addr(0)).Breaker().State())
		l.Done(time.Time{}, failure)
		require.Equal(t, breaker.Open, r.node(addr(0)).Breaker().State())
		idle(t, r.Nodes())
	})
}

// An hour of download must not hold the place of a half-open node's probe.
func TestProbeEndsAtTheAnswerNotTheBody(t *testing.T) {
	inBubble(t, nil, endpoints(1), func(t *testing.T, r *rig) {
		r.open(addr(0))
		time.Sleep(5 * time.Second)
		var downloads []*balancer.Lease
		for range 3 {
			l := r.acquire(balancer.Call{})
			l.Answered(time.Time{}, success)
			downloads = append(downloads, l)
		}
		require.Equal(t, breaker.Closed, r.node(addr(0)).Breaker().State())
		time.Sleep(time.Hour)
		r.counts(100)
		for _, l := range downloads {
			l.Done(time.Time{}, failure)
		}
		require.Equal(t, breaker.Closed, r.node(addr(0)).Breaker().State())
		require.Zero(t, r.node(addr(0)).Breaker().Snapshot(time.Now()).Failures, "what a probe has to say concerns nobody now")
	})
}

// What was admitted before the breaker opened must not hold it open, nor close
// it, nor count when it is closed again.
func TestAnswerToAnEarlierGenerationCountsNowhere(t *testing.T) {
	for name, cfg := range map[string]breaker.Config{"sums": {}, "every call": {Consecutive: 50}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, exact(balancer.Config{Breaker: cfg}), endpoints(1), func(t *testing.T, r *rig) {
				node := r.node(addr(0))
				var old, reading []*balancer.Lease
				for range 100 {
					old = append(old, r.on(addr(0)))
					l := r.on(addr(0))
					l.Answered(time.Time{}, success)
					reading = append(reading, l)
				}
				r.open(addr(0))
				for _, l := range old[:30] {
					l.Done(time.Time{}, success)
				}
				require.Equal(t, breaker.Open, node.Breaker().State())
				time.Sleep(5 * time.Second)
				for _, l := range old[30:60] {
					l.Done(time.Time{}, failure)
				}
				probes := []*balancer.Lease{r.acquire(balancer.Call{}), r.acquire(balancer.Call{}), r.acquire(balancer.Call{})}
				for _, l := range old[60:80] {
					l.Done(time.Time{}, failure)
				}
				require.Equal(t, breaker.HalfOpen, node.Breaker().State())
				for _, l := range probes {
					l.Done(time.Time{}, success)
				}
				require.Equal(t, breaker.Closed, node.Breaker().State())
				r.counts(10)
				for _, l := range old[80:] {
					l.Done(time.Time{}, failure)
				}
				for _, l := range reading {
					l.Done(time.Time{}, failure)
				}
				require.Equal(t, breaker.Closed, node.Breaker().State())
				r.on(addr(0)).Done(time.Time{}, failure) // and what was summed up is handed on
				s := node.Breaker().Snapshot(time.Now())
				require.EqualValues(t, 1, s.Failures)
				require.EqualValues(t, 11, s.Calls)
				idle(t, r.Nodes())
			})
		})
	}
}

func TestLeasesOfAnyKindInAnyOrderLeaveNothingBehind(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			inBubble(t, exact(balancer.Config{MaxConcurrency: 5}), endpoints(4), func(t *testing.T, r *rig) {
				random := rand.New(rand.NewPCG(seed, 5))
				outcomes := []outcome.Outcome{success, success, failure, throttled(time.Second), cancelled, deadline}
				var held []*balancer.Lease
				nodes := r.Nodes()
				for range 2000 {
					switch {
					case random.IntN(50) == 0:
						time.Sleep(time.Duration(random.Int64N(int64(7 * time.Second))))
					case random.IntN(200) == 0:
						r.update(endpoints(1 + random.IntN(4))...)
						nodes = append(nodes, r.Nodes()...)
					case random.IntN(2) == 0:
						l, err := r.Acquire(t.Context(), balancer.Call{LatencyNeutral: random.IntN(4) == 0})
						if err == nil {
							held = append(held, &l)
						}
					case len(held) > 0:
						i := random.IntN(len(held))
						o := outcomes[random.IntN(len(outcomes))]
						if random.IntN(2) == 0 {
							held[i].Answered(time.Time{}, o)
							continue
						}
						held[i].Done(time.Time{}, o)
						held = append(held[:i], held[i+1:]...)
					}
				}
				for _, l := range held {
					l.Done(time.Time{}, success)
				}
				idle(t, nodes)
				for _, n := range nodes {
					rate := n.FailureRate(time.Now())
					require.GreaterOrEqual(t, rate, 0.0)
					require.LessOrEqual(t, rate, 1.0)
				}
			})
		})
	}
}
