package retry_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/retry"
)

func TestHedgeConfigsThatAreValid(t *testing.T) {
	for _, cfg := range []retry.HedgeConfig{
		{Delay: time.Millisecond},
		{Percentile: 0.95},
		{Delay: -1, Percentile: -1, MaxExtra: -1},
		{Delay: time.Second, Percentile: 0.5, MinSamples: 1, MinDelay: 1, MaxHedges: 3, MaxExtra: 1, SameNode: retry.On},
	} {
		_, err := retry.New(&retry.Config{Hedge: cfg, Timeout: time.Minute})
		require.NoError(t, err)
	}
}

func TestInvalidHedgeConfigsNameFieldValueAndConstraint(t *testing.T) {
	for _, test := range []struct {
		cfg  retry.HedgeConfig
		want string
	}{
		{retry.HedgeConfig{Percentile: 1}, "retry: Hedge.Percentile is 1, want between 0 and 1"},
		{retry.HedgeConfig{Percentile: 95}, "retry: Hedge.Percentile is 95, want between 0 and 1"},
		{retry.HedgeConfig{Percentile: math.NaN()}, "retry: Hedge.Percentile is NaN, want between 0 and 1"},
		{retry.HedgeConfig{Percentile: math.Inf(1)}, "retry: Hedge.Percentile is +Inf, want between 0 and 1"},
		{retry.HedgeConfig{MinSamples: -1}, "retry: Hedge.MinSamples is -1, want >= 1, or 0 for the default"},
		{retry.HedgeConfig{MinDelay: -1}, "retry: Hedge.MinDelay is -1ns, want > 0, or 0 for the default"},
		{retry.HedgeConfig{MaxHedges: -1}, "retry: Hedge.MaxHedges is -1, want >= 1, or 0 for the default"},
		{retry.HedgeConfig{MaxExtra: math.NaN()}, "retry: Hedge.MaxExtra is NaN, want <= 1"},
		{retry.HedgeConfig{MaxExtra: 5}, "retry: Hedge.MaxExtra is 5, want <= 1"},
		{retry.HedgeConfig{MaxExtra: 1e-9}, "retry: Hedge.MaxExtra is 1e-09, want >= 1e-06, or negative for no limit"},
		{retry.HedgeConfig{SameNode: 3}, "retry: Hedge.SameNode is 3, want On or Off"},
		{
			retry.HedgeConfig{Delay: 30 * time.Second, MaxHedges: 2},
			"retry: Hedge.Delay is 30s, want less than Timeout (1m0s) with all 2 hedges together",
		},
		{
			retry.HedgeConfig{Percentile: 0.9, MinDelay: time.Minute},
			"retry: Hedge.MinDelay is 1m0s, want less than Timeout (1m0s) with all 1 hedges together",
		},
	} {
		_, err := retry.New(&retry.Config{Hedge: test.cfg, Timeout: time.Minute})
		require.EqualError(t, err, test.want)
	}
}

func TestHedgeConfigHasJSONNames(t *testing.T) {
	var cfg retry.Config
	require.NoError(t, json.Unmarshal([]byte(`{"hedge":{"delay":7,"percentile":0.95,"minSamples":1,"minDelay":2,
		"maxHedges":3,"maxExtra":0.1,"sameNode":true}}`), &cfg))
	require.Equal(t, retry.Config{Hedge: retry.HedgeConfig{
		Delay: 7, Percentile: 0.95, MinSamples: 1, MinDelay: 2, MaxHedges: 3, MaxExtra: 0.1, SameNode: retry.On,
	}}, cfg)
}
