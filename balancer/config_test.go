package balancer_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
)

func TestNewJoinsAllProblems(t *testing.T) {
	_, err := balancer.New("", nil, &balancer.Config{
		PanicThreshold: 1.5,
		Breaker:        breaker.Config{FailureRate: 2, Probes: -1},
	})
	require.EqualError(t, err, `balancer: service is "", want a name
balancer: resolver is nil, want one, such as discovery.DNS(nil)
balancer: PanicThreshold is 1.5, want <= 1
balancer: Breaker: breaker: FailureRate is 2, want <= 1
breaker: Probes is -1, want >= 1`)
	require.Error(t, balancer.Config{PanicThreshold: math.NaN()}.Validate())
	require.NoError(t, balancer.Config{}.Validate())
	require.NoError(t, balancer.Config{
		MaxConcurrency: -1, SlowStart: -1, PanicThreshold: -1, DrainTimeout: -1, ConnectTimeout: -1, AttemptTimeout: -1,
	}.Validate())
}

func TestNewCopiesTheConfig(t *testing.T) {
	cfg := &balancer.Config{MaxConcurrency: 1}
	before := *cfg
	b := newStatic(t, 1, cfg)
	require.Equal(t, before, *cfg, "it is not written to")
	cfg.MaxConcurrency = 100
	held, err := b.Acquire(t.Context(), balancer.Call{})
	require.NoError(t, err)
	_, err = b.Acquire(t.Context(), balancer.Call{})
	require.Error(t, err)
	held.Done(time.Time{}, success)
}

func TestConfigAsJSON(t *testing.T) {
	cfg := balancer.Config{MaxConcurrency: 7, PanicThreshold: 0.3, H2C: true, Policy: balancer.P2C{}, Breaker: breaker.Config{Probes: 2}}
	data, err := json.Marshal(cfg)
	require.NoError(t, err)
	require.JSONEq(t, `{"maxConcurrency":7,"panicThreshold":0.3,"h2c":true,"breaker":{"probes":2}}`, string(data))
	data, err = json.Marshal(balancer.Config{})
	require.NoError(t, err)
	require.JSONEq(t, `{}`, string(data))
}

func TestNegativeMaxConcurrencyIsNoLimit(t *testing.T) {
	b := newStatic(t, 1, &balancer.Config{MaxConcurrency: -1})
	for range 10_000 {
		_, err := b.Acquire(t.Context(), balancer.Call{})
		require.NoError(t, err)
	}
	require.Equal(t, 10_000, b.Nodes()[0].InFlight())
}

func TestNilConfigIsEveryDefault(t *testing.T) {
	b, err := balancer.New("orders", discovery.Static(endpoints(2)...), nil)
	require.NoError(t, err)
	defer b.Close()
	require.Equal(t, "orders", b.Service())
	require.NoError(t, b.Ready(t.Context()))
	require.Len(t, b.Nodes(), 2)
}
