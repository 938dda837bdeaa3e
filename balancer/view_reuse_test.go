package balancer_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// A lease taken into one that was another's is as good as a new one, and a time that is
// handed in is as good as none: the same calls leave the same traces.
func TestLeasesMayBeUsedAgain(t *testing.T) {
	quick := breaker.Config{MinCalls: 5, OpenTime: time.Second, MaxOpenTime: 2 * time.Second, Jitter: -1}
	slow := quick
	slow.SlowTime = 700 * time.Millisecond
	for name, cfg := range map[string]balancer.Config{
		"plain": {Breaker: quick}, "full": {Breaker: quick, MaxConcurrency: 1}, "asked": {Breaker: slow},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(2) {
				want := traceOfLeases(t, seed, cfg, false, false)
				require.Equal(t, want, traceOfLeases(t, seed, cfg, true, false), "used again")
				require.Equal(t, want, traceOfLeases(t, seed, cfg, true, true), "with times")
			}
		})
	}
}

// traceOfLeases makes random calls to one node, each in one of a few leases.
func traceOfLeases(t *testing.T, seed uint64, cfg balancer.Config, again, timed bool) (trace []string) {
	note := func(what ...any) { trace = append(trace, fmt.Sprint(what...)) }
	outcomes := []outcome.Outcome{success, success, cancelled, deadline, throttled(time.Second), failure, failure, failure}
	inBubble(t, &cfg, endpoints(1), func(t *testing.T, r *rig) {
		random := rand.New(rand.NewPCG(seed, 1))
		n, v := r.node(addr(0)), r.View(nil)
		leases, busy, failing := make([]*balancer.Lease, 6), make([]bool, 6), 0
		for i := range leases {
			leases[i] = new(balancer.Lease)
		}
		for i := range 2000 {
			if i%400 == 0 {
				failing = 3 * random.IntN(2)
			}
			var now time.Time
			if timed {
				now = time.Now()
			}
			k, o := random.IntN(len(leases)), outcomes[random.IntN(len(outcomes)-3+failing)]
			switch op := random.IntN(5); {
			case op == 4:
				time.Sleep(time.Duration(random.IntN(500)) * time.Millisecond)
				synctest.Wait()
				s := n.Breaker().Snapshot(time.Time{})
				note(s.State, s.Calls, s.Failures, s.Opens, n.InFlight(), n.Awaiting(), n.FailureRate(time.Time{}))
			case !busy[k]:
				if !again {
					leases[k] = new(balancer.Lease)
				}
				err := v.TryAcquire(&balancer.Call{Now: now, LatencyNeutral: random.IntN(8) == 0}, leases[k])
				busy[k] = err == nil
				note(i, leases[k].Node(), err)
			case op == 0:
				note(i, leases[k].Answered(now, o))
			default:
				leases[k].Done(now, o)
				busy[k] = false
			}
		}
		for _, l := range leases {
			l.Done(time.Time{}, success)
		}
		idle(t, r.Nodes())
	})
	return trace
}

func TestTimesOfABalancerFromOutsideABubble(t *testing.T) {
	var told time.Time
	policy := balancer.PolicyFunc(func(nodes []*balancer.Node) balancer.Picker {
		return pickerFunc(func(c balancer.Call) *balancer.Node {
			told = c.Now
			return nodes[0]
		})
	})
	b := newStatic(t, 1, exact(balancer.Config{Policy: policy, Breaker: breaker.Config{SlowTime: time.Second}}))
	v := b.View(nil)
	latency := func() time.Duration {
		l, _ := b.Nodes()[0].Latency(time.Now())
		return l.Round(time.Millisecond)
	}
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour)
		l, err := tryAcquire(v, balancer.Call{})
		require.NoError(t, err)
		require.True(t, told.Equal(time.Now()), "%v", told)
		time.Sleep(time.Second / 2)
		l.Answered(time.Time{}, success)
		l.Done(time.Now(), success)
		require.Equal(t, time.Second/2, latency())

		l, err = tryAcquire(v, balancer.Call{Now: time.Now().Round(0)}) // without a monotonic reading
		require.NoError(t, err)
		time.Sleep(2 * time.Second)
		l.Answered(time.Now().Round(0), success)
		l.Done(time.Time{}, success)
		require.Equal(t, 2*time.Second, latency())
	})
}

func TestARewrittenRequestGoesToThePortOfItsURL(t *testing.T) {
	b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{Addr: "10.0.0.1"}), nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	require.NoError(t, b.Ready(t.Context()))
	rt := b.Layer(roundTrip(func(req *http.Request) (*http.Response, error) {
		return answer(req, http.StatusOK, text(req.URL.Host+" "+req.Host)), nil
	}))
	for range 3 { // whatever was asked for before
		for host, port := range map[string]string{
			"orders": "80", "orders:": "80", "orders:80": "80", "orders:8080": "8080", "Orders:8080": "8080", "[::1]:81": "81",
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/x", nil)
			require.NoError(t, err)
			want := "10.0.0.1:" + port + " " + req.Host
			resp, err := rt.RoundTrip(req)
			require.NoError(t, err)
			got, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, want, string(got))
		}
	}
}
