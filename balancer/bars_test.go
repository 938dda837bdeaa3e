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
		{"the default", byDefault, true, balancer.Config{Outliers: balancer.OutlierConfig{Consecutive: 5}}},
		{"peak EWMA", byDefault, true, balancer.Config{}},
		{"load report", byReports, true, balancer.Config{}},
		// Slow start is a part of what the bar for cold nodes is about, so these do without.
		{"in flight", func(r rand.Source) balancer.Policy { return balancer.P2C{Cost: balancer.InFlight{}, Rand: r} }, false, balancer.Config{SlowStart: -1}},
		{"round robin", func(r rand.Source) balancer.Policy { return balancer.RoundRobin{Rand: r} }, false, balancer.Config{SlowStart: -1}},
	}
}

func byDefault(r rand.Source) balancer.Policy { return balancer.P2C{Rand: r} }

func byReports(r rand.Source) balancer.Policy {
	return balancer.P2C{Cost: balancer.LoadReport{}, Rand: r}
}

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
		list = list[:2]
	}
	for _, c := range list {
		if c.cfg.Outliers.Consecutive == 0 {
			c.cfg.Outliers.Consecutive = -1 // the policy is to pass by itself
		}
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

// A service grows from two nodes to six, while it is called as much as two of them
// can bear. Within 30 s the new nodes carry what is theirs, and nobody waits longer
// than before.
func TestBarNewNodesSoonCarryTheirShare(t *testing.T) {
	for _, seed := range seeds() {
		synctest.Test(t, func(t *testing.T) {
			s := newSim(t, seed)
			for range 6 {
				s.addServer(4, func(time.Duration) (time.Duration, outcome.Outcome) { return s.serviceLaw(), success })
			}
			var feeds []*feed
			for range 10 {
				b, f := s.client(2, byDefault, balancer.Config{})
				feeds = append(feeds, f)
				s.poisson(fullRate(2)*0.6/10, 120*time.Second, func() { s.call(b, 0) })
			}
			s.at(60*time.Second, func() {
				for _, f := range feeds {
					f.yield(s.last(6)...)
				}
			})
			s.run()
			steady := percentile(s.between(10*time.Second, 60*time.Second), .999)
			grown := percentile(s.between(60*time.Second, 90*time.Second), .999)
			require.Less(t, grown, 2*steady)
			later := s.between(90*time.Second, 120*time.Second)
			for i := range 4 { // the last two were there before
				got := share(later, func(c simCall) bool { return c.server == i })
				require.InDelta(t, 1.0/6, got, 0.04, "server %d", i)
			}
			t.Logf("p99.9 is %v before and %v while it grows", steady, grown)
		})
	}
}

// unequalFleet plays a fleet half of which is half as fast, at nine tenths of what
// it can do, with as many clients as servers: each sees but a small part of what the
// servers are doing. All servers fail so many of the calls.
func unequalFleet(s *sim, c contender, servers int, failing float64, length time.Duration) []simCall {
	for i := range servers {
		s.addServer(4, func(time.Duration) (time.Duration, outcome.Outcome) {
			took := s.serviceLaw()
			if i%2 == 0 {
				took *= 2
			}
			if s.rand.Float64() < failing {
				return took, failure
			}
			return took, success
		})
	}
	rate := fullRate(float64(servers)*3/4) * 0.9 / float64(servers)
	for range servers {
		b, _ := s.client(servers, c.policy, c.cfg)
		s.poisson(rate, length, func() { s.call(b, 5*time.Second) })
	}
	s.run()
	return s.between(10*time.Second, length)
}

func TestBarUnequalFleetUnderManyClients(t *testing.T) {
	eachContender(t, func(s *sim, c contender) (bool, string) {
		p99 := percentile(unequalFleet(s, c, 20, 0, 50*time.Second), .99)
		return p99 <= 380*time.Millisecond, fmt.Sprintf("p99 is %v, want <= 380ms", p99)
	})
}

// With what the servers report, a client hardly need see anything by itself.
func TestBarReportsMakeUpForWhatAClientDoesNotSee(t *testing.T) {
	t.Parallel()
	most := func(t *testing.T, servers int, policy func(rand.Source) balancer.Policy, failing float64, length, most time.Duration) {
		t.Helper()
		t.Parallel()
		if underRace && servers > 20 {
			t.Skip("takes too long under the race detector, and has one goroutine")
		}
		for _, seed := range seeds()[:1] {
			synctest.Test(t, func(t *testing.T) {
				p99 := percentile(unequalFleet(newSim(t, seed), contender{policy: policy}, servers, failing, length), .99)
				t.Logf("p99 is %v", p99)
				require.LessOrEqual(t, p99, most)
			})
		}
	}
	for _, failing := range []float64{0, 0.01} {
		t.Run(fmt.Sprintf("20 by 20, %v fail", failing), func(t *testing.T) {
			most(t, 20, byReports, failing, 50*time.Second, 290*time.Millisecond)
		})
		t.Run(fmt.Sprintf("100 by 100, %v fail", failing), func(t *testing.T) {
			most(t, 100, byReports, failing, 20*time.Second, 300*time.Millisecond)
		})
		t.Run(fmt.Sprintf("100 by 100 by default, %v fail", failing), func(t *testing.T) {
			most(t, 100, byDefault, failing, 20*time.Second, 600*time.Millisecond)
		})
	}
}
