package balancer_test

import (
	"context"
	"encoding/json"
	"math"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// patient is a Check whose answers the test sets, by node.
type patient struct {
	mu     sync.Mutex
	ill    map[string]error
	took   map[string]time.Duration
	checks map[string][]time.Time
	under  int
	most   int
}

func newPatient() *patient {
	return &patient{ill: map[string]error{}, took: map[string]time.Duration{}, checks: map[string][]time.Time{}}
}

func (p *patient) check(ctx context.Context, n *balancer.Node) error {
	p.mu.Lock()
	took, err := p.took[n.Key()], p.ill[n.Key()]
	p.checks[n.Key()] = append(p.checks[n.Key()], time.Now())
	p.under++
	p.most = max(p.most, p.under)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.under--
		p.mu.Unlock()
	}()
	if took == 0 {
		return err
	}
	select {
	case <-time.After(took):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *patient) set(key string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ill[key] = err
}

func (p *patient) slow(key string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took[key] = d
}

func (p *patient) count(key string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.checks[key])
}

// checking is a configuration with health checks by p, at exact times.
func checking(p *patient, h balancer.HealthConfig) *balancer.Config {
	h.Check = p.check
	if h.Jitter == 0 {
		h.Jitter = -1
	}
	cfg := ejecting(balancer.OutlierConfig{})
	cfg.Health = h
	return cfg
}

func (r *rig) states() (list []balancer.NodeState) {
	for _, n := range r.Snapshot().Nodes {
		list = append(list, n.State)
	}
	return list
}

const (
	well = balancer.Eligible
	ill  = balancer.Unhealthy
)

func TestHealthChecksMakeNodesUnhealthyAndHealthyByThresholds(t *testing.T) {
	p := newPatient()
	inBubble(t, checking(p, balancer.HealthConfig{}), endpoints(3), func(t *testing.T, r *rig) {
		pass(0)
		for i := range 3 {
			require.Equal(t, 1, p.count(addr(i)), "the first check is made at once")
		}
		r.rec.Clear()
		p.set(addr(1), errDown)
		pass(10 * time.Second)
		pass(10 * time.Second)
		require.Equal(t, []balancer.NodeState{well, well, well}, r.states(), "two failures are not enough")
		pass(10 * time.Second)
		require.Equal(t, []balancer.NodeState{well, ill, well}, r.states())
		require.Zero(t, r.counts(100)[addr(1)])
		p.set(addr(1), nil)
		pass(5 * time.Second)
		require.Equal(t, []balancer.NodeState{well, ill, well}, r.states(), "one success is not enough")
		pass(5 * time.Second)
		require.Equal(t, []balancer.NodeState{well, well, well}, r.states())
		require.Equal(t, 6, p.count(addr(1)))
		require.Equal(t, 5, p.count(addr(0)))
		require.Equal(t, []balancer.NodeChanged{
			{Service: "orders", Node: addr(1), To: balancer.Unhealthy, Reason: "health check: down"},
			{Service: "orders", Node: addr(1), From: balancer.Unhealthy},
		}, backstaytest.EventsOf[balancer.NodeChanged](r.rec), "nothing but the changes is told")
		idle(t, r.Nodes())
		n := r.look(addr(1))
		require.Zero(t, n.Failed, "checks are no calls")
		require.Zero(t, n.Breaker.Calls-n.Answered)
	})
}

func TestASingleFailureBetweenSuccessesIsForgiven(t *testing.T) {
	p := newPatient()
	inBubble(t, checking(p, balancer.HealthConfig{Unhealthy: 2}), endpoints(2), func(t *testing.T, r *rig) {
		for i := range 20 {
			p.set(addr(0), map[bool]error{true: errDown}[i%2 == 0])
			pass(10 * time.Second)
			require.Equal(t, []balancer.NodeState{well, well}, r.states())
		}
	})
}

// A breaker is about calls. Were checks refused by it, too, nobody would find the
// node well.
func TestOpenBreakersLetChecksThrough(t *testing.T) {
	p := newPatient()
	inBubble(t, checking(p, balancer.HealthConfig{}), endpoints(2), func(t *testing.T, r *rig) {
		r.node(addr(0)).Breaker().ForceOpen()
		p.mu.Lock()
		before := len(p.checks[addr(0)])
		p.mu.Unlock()
		pass(time.Minute)
		p.mu.Lock()
		defer p.mu.Unlock()
		require.Greater(t, len(p.checks[addr(0)]), before+3)
	})
}

func TestFirstCheckOfANodeDecidesAlone(t *testing.T) {
	p := newPatient()
	inBubble(t, checking(p, balancer.HealthConfig{}), endpoints(2), func(t *testing.T, r *rig) {
		pass(time.Second)
		p.set(addr(2), errDown)
		r.update(endpoints(4)...)
		require.Equal(t, []balancer.NodeState{well, well, ill, well}, r.states())
	})
	t.Run("until then it is not healthy, if so configured", func(t *testing.T) {
		inBubble(t, checking(p, balancer.HealthConfig{InitialUnhealthy: balancer.On}), endpoints(2), func(t *testing.T, r *rig) {
			pass(time.Second)
			p.slow(addr(3), 900*time.Millisecond)
			r.update(endpoints(4)...)
			require.Equal(t, []balancer.NodeState{well, well, ill, ill}, r.states())
			require.Equal(t, "health check: none yet", r.look(addr(3)).Reason)
			pass(time.Second)
			require.Equal(t, []balancer.NodeState{well, well, ill, well}, r.states())
		})
	})
}

func TestANodeThatIsHealthyAgainHasASlowStart(t *testing.T) {
	p := newPatient()
	cfg := checking(p, balancer.HealthConfig{})
	cfg.SlowStart = 10 * time.Second
	inBubble(t, cfg, endpoints(3), func(t *testing.T, r *rig) {
		pass(time.Second)
		p.set(addr(0), errDown)
		pass(30 * time.Second)
		require.Equal(t, ill, r.look(addr(0)).State)
		p.set(addr(0), nil)
		pass(10 * time.Second)
		require.Equal(t, well, r.look(addr(0)).State)
		require.True(t, r.look(addr(0)).Warming)
		pass(10 * time.Second)
		require.False(t, r.look(addr(0)).Warming)
	})
}

func TestNodesThatAreAllUnhealthyAreServedOrRefused(t *testing.T) {
	p := newPatient()
	for i := range 3 {
		p.set(addr(i), errDown)
	}
	cfg := checking(p, balancer.HealthConfig{})
	cfg.PanicThreshold = 0.5
	inBubble(t, cfg, endpoints(3), func(t *testing.T, r *rig) {
		pass(time.Second)
		require.Equal(t, []balancer.NodeState{ill, ill, ill}, r.states())
		require.Len(t, r.counts(300), 3)
		s := r.Snapshot()
		require.True(t, s.Panicking)
		require.True(t, s.Nodes[0].Used)
	})
	cfg.FailClosed = true
	inBubble(t, cfg, endpoints(3), func(t *testing.T, r *rig) {
		pass(time.Second)
		_, err := r.Acquire(t.Context(), balancer.Call{})
		require.ErrorIs(t, err, balancer.ErrPanic)
		require.True(t, r.Snapshot().Closed)
		p.set(addr(0), nil)
		p.set(addr(1), nil)
		pass(10 * time.Second)
		require.Len(t, r.counts(300), 2)
	})
	cfg.FailClosed, cfg.PanicThreshold = false, -1
	for i := range 3 {
		p.set(addr(i), errDown)
	}
	inBubble(t, cfg, endpoints(3), func(t *testing.T, r *rig) {
		pass(time.Second)
		_, err := r.Acquire(t.Context(), balancer.Call{})
		require.ErrorIs(t, err, balancer.ErrNoNodes)
	})
}

func TestHealthyAnswerEndsAnEjectionButNotOneByHand(t *testing.T) {
	p := newPatient()
	cfg := checking(p, balancer.HealthConfig{})
	cfg.Outliers.Probe = -1
	inBubble(t, cfg, endpoints(4), func(t *testing.T, r *rig) {
		pass(time.Second)
		p.slow(addr(0), 500*time.Millisecond)
		pass(9*time.Second + 100*time.Millisecond) // a check is under way
		r.answer(5, addr(0), failure)
		require.NoError(t, r.Eject(addr(1), time.Minute))
		pass(time.Second)
		require.Equal(t, []string{addr(0), addr(1)}, r.ejected(), "it began before the ejection")
		pass(10 * time.Second)
		require.Equal(t, []string{addr(1)}, r.ejected())
	})
}

func TestObserveOnlyTellsOfUnhealthyNodesAndUsesThem(t *testing.T) {
	p := newPatient()
	p.set(addr(0), errDown)
	cfg := checking(p, balancer.HealthConfig{})
	cfg.ObserveOnly = true
	inBubble(t, cfg, endpoints(3), func(t *testing.T, r *rig) {
		pass(time.Second)
		require.Len(t, backstaytest.EventsOf[balancer.NodeChanged](r.rec), 1)
		require.NotZero(t, r.counts(300)[addr(0)])
	})
}

func TestCheckThatDoesNotEndIsAFailureAndHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung := make(chan struct{})
		var checks atomic.Int32
		cfg := ejecting(balancer.OutlierConfig{})
		cfg.Health = balancer.HealthConfig{Jitter: -1, Concurrency: 1, Unhealthy: 1, Check: func(_ context.Context, n *balancer.Node) error {
			if n.Key() == addr(0) {
				checks.Add(1)
				<-hung // whatever becomes of the context
			}
			return nil
		}}
		r := newRig(t, cfg, endpoints(3))
		pass(time.Second)
		require.Equal(t, []balancer.NodeState{ill, well, well}, r.states())
		require.Equal(t, "health check: no answer within 1s", r.look(addr(0)).Reason)
		pass(time.Minute)
		require.EqualValues(t, 1, checks.Load(), "there is one at a time")
		close(hung)
		pass(20 * time.Second)
		require.Equal(t, []balancer.NodeState{well, well, well}, r.states())
	})
}

func TestCheckThatHeedsItsContextIsOverAtTheTimeout(t *testing.T) {
	p := newPatient()
	p.slow(addr(0), time.Hour)
	inBubble(t, checking(p, balancer.HealthConfig{Timeout: 300 * time.Millisecond, UnhealthyInterval: time.Second}), endpoints(2), func(t *testing.T, r *rig) {
		pass(300 * time.Millisecond)
		require.Equal(t, "health check: no answer within 300ms", r.look(addr(0)).Reason)
		pass(10 * time.Second)
		require.Equal(t, 8, p.count(addr(0)), "every 1.3 s")
	})
}

func TestCheckThatPanicsOrEndsItsGoroutineIsAFailure(t *testing.T) {
	cfg := ejecting(balancer.OutlierConfig{})
	cfg.Health = balancer.HealthConfig{Check: func(_ context.Context, n *balancer.Node) error {
		switch n.Key() {
		case addr(0):
			panic("no")
		case addr(1):
			runtime.Goexit()
		}
		return nil
	}}
	inBubble(t, cfg, endpoints(3), func(t *testing.T, r *rig) {
		pass(0)
		require.Equal(t, "health check: it panicked: no", r.look(addr(0)).Reason)
		require.Equal(t, "health check: it ended its goroutine", r.look(addr(1)).Reason)
		require.Equal(t, well, r.look(addr(2)).State)
	})
}

func TestChecksAreBoundedAndSpread(t *testing.T) {
	const nodes = 2000
	p := newPatient()
	for i := range nodes {
		p.slow(addr(i), 10*time.Millisecond)
	}
	inBubble(t, checking(p, balancer.HealthConfig{Jitter: 0.2, Concurrency: 32}), endpoints(nodes), func(t *testing.T, r *rig) {
		pass(99 * time.Second) // in 100, one of so many nodes might draw nothing but the least intervals
		p.mu.Lock()
		defer p.mu.Unlock()
		require.Equal(t, 32, p.most)
		bySecond := make(map[time.Duration]int)
		start := time.Now().Add(-20 * time.Second)
		for i := range nodes {
			list := p.checks[addr(i)]
			require.InDelta(t, 10, len(list), 2, "each has its turn")
			for j, at := range list[1:] {
				gap := at.Sub(list[j])
				require.GreaterOrEqual(t, gap, 8*time.Second)
				require.LessOrEqual(t, gap, 12*time.Second+time.Second)
				if at.After(start) {
					bySecond[at.Sub(start)/time.Second]++
				}
			}
		}
		for second, n := range bySecond {
			require.Less(t, n, 2*nodes/10, "in second %d", second)
		}
	})
}

func TestRemovedNodeIsCheckedNoMore(t *testing.T) {
	p := newPatient()
	inBubble(t, checking(p, balancer.HealthConfig{}), endpoints(3), func(t *testing.T, r *rig) {
		pass(time.Second)
		p.slow(addr(2), 900*time.Millisecond)
		pass(9*time.Second + 200*time.Millisecond)
		require.Equal(t, 2, p.count(addr(2)))
		p.set(addr(2), errDown)
		r.update(endpoints(2)...) // a check is under way
		r.rec.Clear()
		pass(time.Minute)
		require.Equal(t, 2, p.count(addr(2)))
		require.Empty(t, r.rec.Events())
		p.slow(addr(2), 0)
		r.update(endpoints(3)...)
		require.Equal(t, ill, r.look(addr(2)).State, "when it is back it is checked again")
	})
}

func TestCloseEndsTheChecksThatAreUnderWay(t *testing.T) {
	p := newPatient()
	p.slow(addr(0), time.Hour)
	inBubble(t, checking(p, balancer.HealthConfig{Timeout: time.Minute}), endpoints(2), func(t *testing.T, r *rig) {
		pass(time.Second)
		start := time.Now()
		require.NoError(t, r.Close())
		require.Zero(t, time.Since(start))
		require.Zero(t, p.under)
	})
}

func TestTCPCheckConnects(t *testing.T) {
	up, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer up.Close()
	const down = "127.0.0.1:1" // a port that nobody is given by chance
	rec := new(backstaytest.Recorder)
	b, err := balancer.New("orders", discovery.Static(
		discovery.Endpoint{ID: "up", Addr: up.Addr().String()},
		discovery.Endpoint{ID: "down", Addr: down},
		discovery.Endpoint{ID: "fallback", Addr: down, Fallback: []string{up.Addr().String()}},
	), &balancer.Config{Health: balancer.HealthConfig{TCP: balancer.On, Timeout: time.Minute}, ConnectTimeout: time.Minute, Observer: rec})
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, b.Ready(t.Context()))
	require.Eventually(t, func() bool { return len(backstaytest.EventsOf[balancer.NodeChanged](rec)) > 0 }, time.Minute, time.Millisecond)
	e := backstaytest.EventsOf[balancer.NodeChanged](rec)[0]
	require.Equal(t, "down", e.Node)
	require.Equal(t, balancer.Unhealthy, e.To)
	require.True(t, strings.HasPrefix(e.Reason, "health check: balancer: connecting to node down: dial tcp"), e.Reason)
	require.Len(t, backstaytest.EventsOf[balancer.NodeChanged](rec), 1)
}

func TestHealthConfigSaysAllThatIsWrong(t *testing.T) {
	err := balancer.Config{Health: balancer.HealthConfig{
		Path: "healthz", TCP: balancer.On, Scheme: "ftp", Status: []balancer.StatusRange{{299, 200}}, Port: 70000,
		Interval: 1, UnhealthyInterval: -1, Timeout: -1, Unhealthy: -1, Healthy: -1, Jitter: math.NaN(), Concurrency: -1,
	}}.Validate()
	require.EqualError(t, err, `balancer: Health has more than one of Path, TCP and Check, want one
balancer: Health.Path is "healthz", want a path that begins with /
balancer: Health.Scheme is "ftp", want http or https
balancer: Health.Status is 299-200, want a range within 100-599
balancer: Health.Port is 70000, want between 1 and 65535
balancer: Health.Interval is 1ns, want >= 10ms
balancer: Health.UnhealthyInterval is -1ns, want >= 10ms
balancer: Health.Timeout is -1ns, want > 0
balancer: Health.Unhealthy is -1, want >= 1
balancer: Health.Healthy is -1, want >= 1
balancer: Health.Jitter is NaN, want <= 1
balancer: Health.Concurrency is -1, want >= 1`)
	require.EqualError(t, balancer.Config{Health: balancer.HealthConfig{Body: "ok"}}.Validate(),
		"balancer: Health says what an HTTP request is like, want a Path")
	require.NoError(t, balancer.Config{Health: balancer.HealthConfig{Path: "/", Jitter: -1}}.Validate())
}

func TestStatusRangeIsText(t *testing.T) {
	data, err := json.Marshal(balancer.HealthConfig{Path: "/", Status: []balancer.StatusRange{{200, 299}, {404, 404}}})
	require.NoError(t, err)
	require.JSONEq(t, `{"path":"/","status":["200-299","404"]}`, string(data))
	var h balancer.HealthConfig
	require.NoError(t, json.Unmarshal(data, &h))
	require.Equal(t, []balancer.StatusRange{{200, 299}, {404, 404}}, h.Status)
	for _, bad := range []string{"", "x", "200-", "-299", "200-x", "2-3-4"} {
		s := balancer.StatusRange{First: 1}
		require.Error(t, s.UnmarshalText([]byte(bad)), bad)
		require.Equal(t, balancer.StatusRange{First: 1}, s)
	}
}
