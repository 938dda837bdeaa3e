package balancer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// atOnce is a feed whose sets are taken without a merge window.
func atOnce(f *feed) discovery.Resolver {
	return discovery.Supervise(f, &discovery.SuperviseConfig{MergeWindow: -1})
}

// crowd runs n goroutines, each until stop is closed.
func crowd(wg *sync.WaitGroup, n int, stop <-chan struct{}, do func(random *rand.Rand)) {
	for i := range n {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 11))
			for {
				select {
				case <-stop:
					return
				default:
					do(random)
				}
			}
		})
	}
}

// Everything at once: what is wrong shows as a race, a deadlock, or a lease that
// is never given back.
func TestStressCallsWhileEverythingChanges(t *testing.T) {
	backstaytest.CheckLeaks(t)
	for name, policy := range policies(1) {
		if name == "P2C own cost" || name == "first of all" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			const most = 12
			f := newFeed(endpoints(most)...)
			var told atomic.Int64
			b, err := balancer.New("orders", atOnce(f), &balancer.Config{
				Policy:         concurrent(policy),
				MaxConcurrency: 8,
				Breaker:        breaker.Config{OpenTime: time.Millisecond, Window: 50 * time.Millisecond, RampUp: -1},
				SlowStart:      10 * time.Millisecond,
				Observer:       new(backstaytest.Recorder),
			})
			require.NoError(t, err)
			require.NoError(t, b.Ready(t.Context()))
			b.Subscribe(t.Context(), func() { told.Add(1) })

			var mu sync.Mutex
			every := make(map[*balancer.Node]bool)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			end := sync.OnceFunc(func() { close(stop); wg.Wait() })
			defer end()
			keys := []string{"", "a", "b"}
			outcomes := []outcome.Outcome{success, success, success, success, failure, failure, throttled(time.Microsecond), cancelled, deadline}
			crowd(&wg, 6, stop, func(random *rand.Rand) {
				var l balancer.Lease
				var err error
				if call := (balancer.Call{LatencyNeutral: random.IntN(5) == 0, Key: keys[random.IntN(len(keys))]}); random.IntN(4) == 0 {
					l, err = tryAcquire(b.View(func(n *balancer.Node) bool { return random.IntN(3) > 0 }), call)
				} else {
					l, err = b.Acquire(context.Background(), call)
				}
				if err != nil {
					if !outcome.Refused(err) && !errors.Is(err, balancer.ErrNoNodes) {
						t.Error(err)
					}
					return
				}
				o := outcomes[random.IntN(len(outcomes))]
				if random.IntN(2) == 0 {
					l.Answered(time.Time{}, o)
				}
				l.Done(time.Time{}, outcomes[random.IntN(len(outcomes))])
			})
			crowd(&wg, 1, stop, func(random *rand.Rand) {
				list := endpoints(most)[:1+random.IntN(most)]
				list[0].Weight = 1 + random.Float64()
				list[len(list)-1].Draining = random.IntN(2) == 0
				list[len(list)/2].Priority = random.IntN(2)
				f.yield(list...)
			})
			crowd(&wg, 1, stop, func(random *rand.Rand) {
				for _, n := range b.Nodes() {
					mu.Lock()
					every[n] = true
					mu.Unlock()
					now := time.Now()
					if rate := n.FailureRate(now); rate < 0 || rate > 1 {
						t.Errorf("failure rate %v", rate)
					}
					n.Latency(now)
					if in, waiting := n.InFlight(), n.Awaiting(); in > 8+6 || waiting > 8+6 {
						t.Errorf("%d in flight, %d awaiting", in, waiting)
					}
					switch random.IntN(20) {
					case 0:
						_ = b.Eject(n.Key(), time.Millisecond)
					case 1:
						_ = b.Restore(n.Key())
					case 2:
						n.Breaker().ForceOpen()
						n.Breaker().Release()
					}
				}
			})
			<-time.After(100 * time.Millisecond)
			eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(every) > 2*most }, "nodes do not come and go")
			end()
			for _, n := range b.Nodes() {
				every[n] = true
			}
			require.NoError(t, b.Close())
			require.Positive(t, told.Load())
			for n := range every {
				require.Zero(t, n.InFlight())
				require.Zero(t, n.Awaiting())
			}
		})
	}
}

// concurrent makes a policy of the table safe for concurrent use: its source of
// the test's own is not.
func concurrent(p balancer.Policy) balancer.Policy {
	switch p := p.(type) {
	case balancer.P2C:
		p.Rand = nil
		return p
	case balancer.Random:
		p.Rand = nil
		return p
	case balancer.RoundRobin:
		p.Rand = nil
		return p
	case balancer.WeightedRoundRobin:
		p.Rand = nil
		return p
	case balancer.Rendezvous:
		p.Rand = nil
		return p
	case balancer.Maglev:
		p.Rand = nil
		return p
	case balancer.LeastRequest:
		p.Rand = nil
		return p
	}
	return p
}

func TestStressFullNodesTakeNoMoreThanTheyMay(t *testing.T) {
	const most = 3
	b := newStatic(t, 4, &balancer.Config{MaxConcurrency: most, Breaker: breaker.Config{FailureRate: -1}})
	under := make(map[*balancer.Node]*atomic.Int32)
	for _, n := range b.Nodes() {
		under[n] = new(atomic.Int32)
	}
	var refused, given atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 500 {
				l, err := b.Acquire(context.Background(), balancer.Call{})
				if err != nil {
					refused.Add(1)
					continue
				}
				given.Add(1)
				if n := under[l.Node()].Add(1); n > most {
					t.Errorf("%d under way", n)
				}
				if given.Load()%3 == 0 {
					<-time.After(10 * time.Microsecond)
				}
				under[l.Node()].Add(-1)
				l.Done(time.Time{}, success)
			}
		})
	}
	wg.Wait()
	idle(t, b.Nodes())
	require.Positive(t, refused.Load(), "or else there was no contention")
}

func TestStressHalfOpenAdmitsExactlyItsProbesUnderHundredCallers(t *testing.T) {
	for range 20 {
		b := newStatic(t, 1, exact(balancer.Config{Breaker: breaker.Config{OpenTime: time.Millisecond, Jitter: -1}}))
		node := b.Nodes()[0]
		for node.Breaker().State() == breaker.Closed {
			l, err := b.Acquire(t.Context(), balancer.Call{})
			require.NoError(t, err)
			l.Done(time.Time{}, failure)
		}
		<-time.After(2 * time.Millisecond)
		var held sync.Map
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if l, err := b.Acquire(context.Background(), balancer.Call{}); err == nil {
					held.Store(i, &l)
				}
			})
		}
		wg.Wait()
		require.Equal(t, 3, node.InFlight())
		held.Range(func(_, l any) bool { l.(*balancer.Lease).Done(time.Time{}, success); return true })
		require.Equal(t, breaker.Closed, node.Breaker().State())
		idle(t, b.Nodes())
	}
}

// Endpoints come and go while calls are made. The servers stay up, so no call has
// a reason to fail.
func TestStressNoCallIsLostWhileNodesComeAndGo(t *testing.T) {
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.HTTP2} {
		t.Run(p.String(), func(t *testing.T) {
			backstaytest.CheckLeaks(t)
			fleet := backstaytest.NewFleet(t, 4, &backstaytest.FleetConfig{Protocol: p})
			list := fleet.Endpoints()
			f := newFeed(list...)
			b, err := balancer.New(fleet.Service, atOnce(f), unhurried(balancer.Config{}))
			require.NoError(t, err)
			defer b.Close()
			require.NoError(t, b.Ready(t.Context()))
			layers := []http.RoundTripper{b.Layer(fleet.Transport()), b.Layer(fleet.Transport())}
			stop := make(chan struct{})
			var wg sync.WaitGroup
			var calls atomic.Int64
			crowd(&wg, 8, stop, func(random *rand.Rand) {
				resp, err := getFrom(t, layers[random.IntN(2)], fleet.URL())
				if err != nil {
					t.Error(err)
					return
				}
				calls.Add(1)
				if random.IntN(10) > 0 {
					if _, err := io.Copy(io.Discard, resp.Body); err != nil {
						t.Error(err)
					}
				}
				_ = resp.Body.Close()
			})
			for changes := 0; changes < 200 || calls.Load() < 500; changes++ {
				perm := rand.Perm(len(list))[:1+rand.IntN(len(list)-1)]
				var some []discovery.Endpoint
				for _, i := range perm {
					some = append(some, list[i])
				}
				f.yield(some...)
				<-time.After(time.Millisecond)
			}
			close(stop)
			wg.Wait()
			for _, n := range b.Nodes() {
				eventually(t, func() bool { return n.InFlight() == 0 }, "in flight")
			}
		})
	}
}

func TestStressCloseWhileEverythingIsGoingOn(t *testing.T) {
	backstaytest.CheckLeaks(t)
	fleet := backstaytest.NewFleet(t, 3, nil)
	list := fleet.Endpoints()
	for i := range 40 {
		f := newFeed()
		b, err := balancer.New(fleet.Service, atOnce(f), &balancer.Config{OnDemand: i%2 == 0, Breaker: breaker.Config{MinCalls: 2, OpenTime: time.Millisecond}})
		require.NoError(t, err)
		rt := b.Layer(fleet.Transport())
		stop := make(chan struct{})
		var wg sync.WaitGroup
		crowd(&wg, 4, stop, func(*rand.Rand) {
			if resp, err := getFrom(t, rt, fleet.URL()); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
		crowd(&wg, 2, stop, func(random *rand.Rand) {
			if l, err := b.Acquire(context.Background(), balancer.Call{}); err == nil {
				l.Done(time.Time{}, []outcome.Outcome{success, failure}[random.IntN(2)])
			} else if random.IntN(2) == 0 {
				_ = b.Ready(context.Background())
			}
		})
		crowd(&wg, 1, stop, func(random *rand.Rand) {
			select {
			case f.yields <- yield{set: discovery.Set{Endpoints: list[:1+random.IntN(3)]}}:
			default:
			}
			for _, n := range b.Nodes() {
				_ = b.Eject(n.Key(), time.Microsecond)
			}
			_ = b.Layer(fleet.Transport())
			<-time.After(100 * time.Microsecond)
		})
		<-time.After(time.Duration(1+rand.IntN(5000)) * time.Microsecond)
		var closers sync.WaitGroup
		for range 3 {
			closers.Go(func() { require.NoError(t, b.Close()) })
		}
		closers.Wait()
		_, err = b.Acquire(t.Context(), balancer.Call{})
		require.ErrorIs(t, err, balancer.ErrClosed)
		close(stop)
		wg.Wait()
		require.Zero(t, f.under.Load(), fmt.Sprint("round ", i))
	}
	eventually(t, func() bool { return fleet.Stats().OpenConnections == 0 }, "connections are left")
}
