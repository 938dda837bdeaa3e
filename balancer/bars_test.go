package balancer_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/outcome"
)

// The bars that decide about the default policy, in virtual time and with fixed
// seeds. The default must pass each of them, and policies that know less must
// not: if they passed too, the bar would prove nothing.

type contender struct {
	name   string
	policy func(rand.Source) balancer.Policy
	passes bool
	cfg    balancer.Config
}

func contenders() []contender {
	return []contender{
		{"peak EWMA", byDefault, true, balancer.Config{}},
		// Slow start is a part of what the bar for cold nodes is about, so these do without.
		{"in flight", func(r rand.Source) balancer.Policy { return balancer.P2C{Cost: balancer.InFlight{}, Rand: r} }, false, balancer.Config{SlowStart: -1}},
		{"round robin", func(r rand.Source) balancer.Policy { return balancer.RoundRobin{Rand: r} }, false, balancer.Config{SlowStart: -1}},
	}
}

func byDefault(r rand.Source) balancer.Policy { return balancer.P2C{Rand: r} }

func seeds() []uint64 {
	if underRace {
		return []uint64{1}
	}
	return []uint64{1, 2, 3}
}

// eachContender plays the run with every contender and every seed. The run
// returns whether the bar was passed, and the figures.
func eachContender(t *testing.T, run func(s *sim, c contender) (passed bool, figures string)) {
	t.Parallel()
	list := contenders()
	if underRace {
		list = list[:1]
	}
	for _, c := range list {
		for _, seed := range seeds() {
			t.Run(fmt.Sprintf("%s/seed %d", c.name, seed), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					passed, figures := run(newSim(t, seed), c)
					t.Log(figures)
					require.Equal(t, c.passes, passed, figures)
				})
			})
		}
	}
}

func onServer0(c simCall) bool { return c.server == 0 }

// fullRate is how many calls per second n servers of four cores can serve.
func fullRate(n float64) float64 { return n * 4 / serviceMean }

// Linkerd's "Beyond round robin": 11 nodes, 1000 calls a second, and one of the
// nodes answers in 2 s for half of the time.
func TestBarSlowNodeGetsFewerThanOneCallInAThousand(t *testing.T) {
	eachContender(t, func(s *sim, c contender) (bool, string) {
		for i := range 11 {
			s.addServer(0, func(now time.Duration) (time.Duration, outcome.Outcome) {
				if i == 0 && now >= 15*time.Second && now < 45*time.Second {
					return 2 * time.Second, success
				}
				return s.normal(167500*time.Microsecond, 8*time.Millisecond, 100*time.Millisecond, 200*time.Millisecond), success
			})
		}
		b, _ := s.client(11, c.policy, c.cfg)
		for i := range 60_000 {
			s.at(time.Duration(i)*time.Millisecond, func() { s.call(b, 0) })
		}
		s.run()
		slow := share(s.calls, func(c simCall) bool { return c.latency > time.Second })
		return slow <= 0.001, fmt.Sprintf("%.3f %% of calls over 1s, want <= 0.1 %%", slow*100)
	})
}

// A node that fails in a millisecond is the fastest of all: it must not draw the
// traffic, and must get its share back soon after it is well again.
func TestBarFastFailingNodeIsLeftAloneAndComesBack(t *testing.T) {
	eachContender(t, func(s *sim, c contender) (bool, string) {
		for i := range 20 {
			s.addServer(4, func(now time.Duration) (time.Duration, outcome.Outcome) {
				if i == 0 && now >= 20*time.Second && now < 50*time.Second {
					return time.Millisecond, failure
				}
				return s.serviceLaw(), success
			})
		}
		for range 10 {
			b, _ := s.client(20, c.policy, c.cfg)
			s.poisson(fullRate(20)*0.6/10, 60*time.Second, func() { s.call(b, 0) })
		}
		s.run()
		failing := share(s.between(20*time.Second, 50*time.Second), onServer0)
		healed := share(s.between(50*time.Second, 60*time.Second), onServer0) * 20
		return failing <= 0.005 && healed >= 0.6,
			fmt.Sprintf("%.3f %% of calls while it fails, want <= 0.5 %%; %.0f %% of its share afterwards, want >= 60 %%", failing*100, healed*100)
	})
}

// A penalty for every failure would make nodes shun each other in turn as soon
// as all of them fail now and then.
func TestBarOneFailureInAHundredCostsNoLatency(t *testing.T) {
	t.Parallel()
	p99 := func(t *testing.T, seed uint64, clients int, failing float64) (p99 time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			s := newSim(t, seed)
			for range 20 {
				s.addServer(4, func(time.Duration) (time.Duration, outcome.Outcome) {
					took := s.serviceLaw()
					if s.rand.Float64() < failing {
						return took, failure
					}
					return took, success
				})
			}
			for range clients {
				b, _ := s.client(20, byDefault, balancer.Config{})
				s.poisson(fullRate(20)*0.9/float64(clients), 30*time.Second, func() { s.call(b, 5*time.Second) })
			}
			s.run()
			p99 = percentile(s.between(10*time.Second, 30*time.Second), .99)
		})
		return p99
	}
	for _, clients := range []int{1, 20} {
		for _, seed := range seeds() {
			t.Run(fmt.Sprintf("%d clients/seed %d", clients, seed), func(t *testing.T) {
				t.Parallel()
				without, with := p99(t, seed, clients, 0), p99(t, seed, clients, 0.01)
				t.Logf("p99 is %v without failures, %v with", without, with)
				require.LessOrEqual(t, with.Seconds(), without.Seconds()*1.1)
			})
		}
	}
}

// A node joins at a fifth of its speed and is warm after 10 s. It should be of
// use meanwhile, and nobody should suffer for it.
func TestBarColdNodeIsUsedAndHurtsNobody(t *testing.T) {
	eachContender(t, func(s *sim, c contender) (bool, string) {
		for i := range 20 {
			s.addServer(4, func(now time.Duration) (time.Duration, outcome.Outcome) {
				took := s.serviceLaw()
				if i == 0 {
					warmth := min(1, 0.2+0.8*(now-20*time.Second).Seconds()/10)
					took = time.Duration(float64(took) / warmth)
				}
				return took, success
			})
		}
		var feeds []*feed
		for range 10 {
			b, f := s.client(19, c.policy, c.cfg)
			feeds = append(feeds, f)
			s.poisson(fullRate(20)*0.6/10, 50*time.Second, func() { s.call(b, 0) })
		}
		s.at(20*time.Second, func() {
			for _, f := range feeds {
				f.yield(s.last(20)...)
			}
		})
		s.run()
		calls := s.between(20*time.Second, 50*time.Second)
		got, p999 := share(calls, onServer0), percentile(calls, .999)
		return got >= 0.03 && p999 <= 200*time.Millisecond,
			fmt.Sprintf("%.2f %% of calls, want >= 3 %%; p99.9 of all %v, want <= 200ms", got*100, p999)
	})
}

// Half of the nodes are half as fast, and each client sees only a twentieth of
// what the nodes are doing.
func TestBarUnequalFleetUnderManyClients(t *testing.T) {
	eachContender(t, func(s *sim, c contender) (bool, string) {
		for i := range 20 {
			s.addServer(4, func(time.Duration) (time.Duration, outcome.Outcome) {
				took := s.serviceLaw()
				if i%2 == 0 {
					took *= 2
				}
				return took, success
			})
		}
		for range 20 {
			b, _ := s.client(20, c.policy, c.cfg)
			s.poisson(fullRate(15)*0.9/20, 50*time.Second, func() { s.call(b, 5*time.Second) })
		}
		s.run()
		p99 := percentile(s.between(10*time.Second, 50*time.Second), .99)
		return p99 <= 380*time.Millisecond, fmt.Sprintf("p99 is %v, want <= 380ms", p99)
	})
}
