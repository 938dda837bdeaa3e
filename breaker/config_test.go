package breaker_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
)

func TestWrongConfigsAreRefusedWithAllTheirProblems(t *testing.T) {
	tests := []struct {
		name string
		cfg  breaker.Config
		want string
	}{
		{"failure rate", breaker.Config{FailureRate: 50}, "breaker: FailureRate is 50, want <= 1"},
		{"not a number", breaker.Config{FailureRate: math.NaN()}, "breaker: FailureRate is NaN, want <= 1"},
		{"slow rate", breaker.Config{SlowTime: 1, SlowRate: 1.1}, "breaker: SlowRate is 1.1, want <= 1"},
		{"slow rate alone", breaker.Config{SlowRate: 0.5}, "breaker: SlowTime is 0s, want > 0 where SlowRate is set"},
		{"window", breaker.Config{Window: 9}, "breaker: Window is 9ns, want >= 10ns and < 36 years"},
		{"negative window", breaker.Config{Window: -1}, "breaker: Window is -1ns, want >= 10ns and < 36 years"},
		{"open time", breaker.Config{OpenTime: -1}, "breaker: OpenTime is -1ns, want > 0"},
		{
			"maximum",
			breaker.Config{OpenTime: time.Minute, MaxOpenTime: time.Second},
			"breaker: MaxOpenTime is 1s, want >= OpenTime (1m0s) and < 36 years",
		},
		{"jitter", breaker.Config{Jitter: 1}, "breaker: Jitter is 1, want < 1"},
		{"probes", breaker.Config{Probes: -1}, "breaker: Probes is -1, want >= 1"},
		{"probe timeout", breaker.Config{ProbeTimeout: -1}, "breaker: ProbeTimeout is -1ns, want > 0 and < 36 years"},
		{"all at once", breaker.Config{FailureRate: 2, Probes: -2}, "breaker: FailureRate is 2, want <= 1\nbreaker: Probes is -2, want >= 1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b, err := breaker.New("orders", &test.cfg)
			require.EqualError(t, err, test.want)
			require.Nil(t, b)
		})
	}
}

func TestALongOpenTimeNeedsNoMaximum(t *testing.T) {
	b := newBench(t, exact(breaker.Config{OpenTime: time.Hour}))
	b.open()
	require.Equal(t, time.Hour, b.refused().RetryAfter)
}

func TestTheCallersConfigIsCopiedAndNotWrittenTo(t *testing.T) {
	cfg := breaker.Config{Jitter: -1}
	b := newBench(t, &cfg)
	require.Zero(t, cfg.FailureRate)
	require.Nil(t, cfg.Classify)
	cfg.FailureRate, cfg.MinCalls = -1, 1
	b.open()
}

func TestNegativeMinCallsIsOne(t *testing.T) {
	b := newBench(t, exact(breaker.Config{MinCalls: -1}))
	b.call(1, failure)
	require.Equal(t, breaker.Open, b.State())
}

func TestConfigHasJSONNames(t *testing.T) {
	var cfg breaker.GroupConfig
	require.NoError(t, json.Unmarshal([]byte(`{"failureRate":0.25,"minCalls":5,"consecutive":3,"probes":2,"maxKeys":7}`), &cfg))
	require.Equal(t, breaker.GroupConfig{
		Config: breaker.Config{FailureRate: 0.25, MinCalls: 5, Consecutive: 3, Probes: 2}, MaxKeys: 7,
	}, cfg)
	out, err := json.Marshal(breaker.Config{})
	require.NoError(t, err)
	require.Equal(t, "{}", string(out))
}
