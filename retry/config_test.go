package retry_test

import (
	"encoding/json"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

func TestEveryDefaultIsValid(t *testing.T) {
	for _, cfg := range []*retry.Config{
		nil,
		{},
		{Timeout: time.Second},      // less than the default attempt timeout
		{Timeout: time.Millisecond}, // and than the default wait
		{Timeout: time.Second, MaxAttempts: -1, Backoff: retry.Backoff{Base: time.Second}},
		{Backoff: retry.Backoff{Max: 100 * time.Millisecond}},            // less than the default throttled base
		{Backoff: retry.Backoff{Base: 50 * time.Millisecond, Max: 50e6}}, // equal
		{MaxAttempts: -1, MaxRetryAfter: -1, AttemptTimeout: -1, Timeout: -1},
		{BodyLimit: -1, DrainLimit: -1, DrainTime: -1, Backoff: retry.Backoff{Base: -1, ThrottledBase: -1}},
		{Statuses: []int{400, 500, 599}},
		{RetryNonIdempotent: retry.Off, BufferBody: retry.On, GenerateKey: retry.On},
		{Backoff: retry.Backoff{Kind: retry.Linear, Base: time.Second, Max: time.Second}},
		{MaxRetryAfter: 1000 * time.Hour},
	} {
		_, err := retry.New(cfg)
		require.NoError(t, err)
	}
	_, err := retry.NewBudget(nil)
	require.NoError(t, err)
}

func TestInvalidConfigurationsNameFieldValueAndConstraint(t *testing.T) {
	for _, test := range []struct {
		cfg  retry.Config
		want string
	}{
		{
			retry.Config{Backoff: retry.Backoff{Max: 10 * time.Millisecond}},
			"retry: Backoff.Max is 10ms, want >= Backoff.Base (50ms)",
		},
		{
			retry.Config{Backoff: retry.Backoff{Base: time.Minute}},
			"retry: Backoff.Max is 2s, want >= Backoff.Base (1m0s)",
		},
		{
			retry.Config{Backoff: retry.Backoff{ThrottledBase: time.Minute}},
			"retry: Backoff.Max is 2s, want >= Backoff.ThrottledBase (1m0s)",
		},
		{retry.Config{Backoff: retry.Backoff{Max: -1}}, "retry: Backoff.Max is -1ns, want > 0"},
		{
			retry.Config{Timeout: time.Second, Backoff: retry.Backoff{Base: time.Second}},
			"retry: Backoff.Base is 1s, want less than Timeout (1s)",
		},
		{
			retry.Config{AttemptTimeout: time.Second, Hedge: retry.HedgeConfig{Delay: time.Second}},
			"retry: Hedge.Delay is 1s, want less than AttemptTimeout (1s), which would be first",
		},
		{
			retry.Config{AttemptTimeout: time.Second, Hedge: retry.HedgeConfig{Percentile: 0.9, MinDelay: time.Minute}},
			"retry: Hedge.MinDelay is 1m0s, want less than AttemptTimeout (1s), which would be first",
		},
		{
			retry.Config{AttemptTimeout: 2 * time.Second, Timeout: time.Second},
			"retry: AttemptTimeout is 2s, want <= Timeout (1s)",
		},
		{retry.Config{RetryNonIdempotent: 7}, "retry: RetryNonIdempotent is 7, want On or Off"},
		{retry.Config{BufferBody: 3}, "retry: BufferBody is 3, want On or Off"},
		{retry.Config{GenerateKey: 3}, "retry: GenerateKey is 3, want On or Off"},
		{
			retry.Config{Backoff: retry.Backoff{Kind: 6}},
			`retry: Backoff.Kind is 6, want "full", "equal", "decorrelated", "constant" or "linear"`,
		},
		{retry.Config{MaxRetryAfter: math.MaxInt64}, "retry: MaxRetryAfter is 2562047h47m16.854775807s, want <= 1000h0m0s"},
		{retry.Config{Statuses: []int{500, 200}}, "retry: Statuses is 200, want from 400 to 599"},
	} {
		r, err := retry.New(&test.cfg)
		require.EqualError(t, err, test.want)
		require.Nil(t, r)
	}
}

func TestOffSwitchesNothingOn(t *testing.T) {
	r := newRetrier(t, eager(func(c *retry.Config) { c.RetryNonIdempotent, c.BufferBody = retry.Off, retry.Off }))
	s, _ := answers(503, 200)
	resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "POST", nil))
	require.NoError(t, err)
	require.Equal(t, 503, resp.StatusCode)
	require.Equal(t, 1, s.attempts())

	b := newBody("whatever")
	resp, err = r.Layer(roundTripper(func(*http.Request) (*http.Response, error) { return response(200, b), nil })).
		RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Zero(t, b.reads.Load(), "the body is left to the caller")
	require.Equal(t, "whatever", readAll(t, resp))
}

func TestAllConfigurationErrorsAreJoined(t *testing.T) {
	_, err := retry.New(&retry.Config{
		Backoff: retry.Backoff{Max: time.Millisecond}, AttemptTimeout: 3, Timeout: 2, Statuses: []int{1, 2},
	})
	require.Len(t, err.(interface{ Unwrap() []error }).Unwrap(), 4)
	_, err = retry.NewBudget(&retry.BudgetConfig{Ratio: math.NaN(), PerSecond: 1e7, Window: 1})
	require.Len(t, err.(interface{ Unwrap() []error }).Unwrap(), 3)
	require.ErrorContains(t, err, "retry: BudgetConfig.Ratio is NaN, want <= 10")
	require.ErrorContains(t, err, "retry: BudgetConfig.Window is 1ns, want from 10ns to 1000h0m0s")
}

func TestConstructorCopiesTheConfiguration(t *testing.T) {
	cfg := &retry.Config{Statuses: []int{500}, MaxAttempts: 2, Backoff: retry.Backoff{Base: -1}}
	was := *cfg
	r := newRetrier(t, cfg)
	require.Equal(t, was, *cfg)
	cfg.Statuses[0], cfg.MaxAttempts = 404, 7
	s, _ := answers(500, 500, 500)
	resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Equal(t, 500, resp.StatusCode)
	require.Equal(t, 2, s.attempts())
}

func TestDeclarativeFieldsHaveJSONNames(t *testing.T) {
	var cfg retry.Config
	require.NoError(t, json.Unmarshal([]byte(`{"maxAttempts":5,"statuses":[500],"backoff":{"base":7},"bufferBody":false}`), &cfg))
	require.Equal(t, retry.Config{BufferBody: retry.Off, MaxAttempts: 5, Statuses: []int{500}, Backoff: retry.Backoff{Base: 7}}, cfg)
	text, err := json.Marshal(retry.Config{})
	require.NoError(t, err)
	require.JSONEq(t, `{}`, string(text))
	require.NoError(t, json.Unmarshal([]byte(`{"backoff":{"kind":"equal"},"generateKey":true}`), &cfg))
	require.Equal(t, retry.EqualJitter, cfg.Backoff.Kind)
	require.Equal(t, retry.On, cfg.GenerateKey)
	text, err = json.Marshal(retry.BudgetConfig{Ratio: 0.5, PerSecond: 3})
	require.NoError(t, err)
	require.JSONEq(t, `{"ratio":0.5,"perSecond":3}`, string(text))
}

func TestInvalidBudgetsNameFieldValueAndConstraint(t *testing.T) {
	for _, test := range []struct {
		cfg  retry.BudgetConfig
		want string
	}{
		{retry.BudgetConfig{Kind: 9}, `retry: BudgetConfig.Kind is 9, want "window", "concurrency" or "tokens"`},
		{retry.BudgetConfig{Ratio: math.NaN()}, "retry: BudgetConfig.Ratio is NaN, want <= 10"},
		{retry.BudgetConfig{Ratio: math.Inf(1)}, "retry: BudgetConfig.Ratio is +Inf, want <= 10"},
		{retry.BudgetConfig{Ratio: math.Inf(-1)}, "retry: BudgetConfig.Ratio is -Inf, want a number"},
		// What would allow nothing, ever, has to be said.
		{retry.BudgetConfig{Ratio: 1e-7}, "retry: BudgetConfig.Ratio is 1e-07, want >= 1e-06, or negative for no budget"},
		{
			retry.BudgetConfig{Kind: retry.TokenBudget, Ratio: 1e-4},
			"retry: BudgetConfig.Ratio is 0.0001, want >= 0.001, or negative for no budget",
		},
		{retry.BudgetConfig{MaxTokens: 2}, "retry: BudgetConfig.MaxTokens is 2, want from 3 to 1000"},
		{retry.BudgetConfig{MaxTokens: -1}, "retry: BudgetConfig.MaxTokens is -1, want from 3 to 1000"},
		{retry.BudgetConfig{MaxTokens: 1001}, "retry: BudgetConfig.MaxTokens is 1001, want from 3 to 1000"},
		{retry.BudgetConfig{MinConcurrency: 2e6}, "retry: BudgetConfig.MinConcurrency is 2000000, want <= 1000000"},
		{retry.BudgetConfig{PerSecond: 2e6}, "retry: BudgetConfig.PerSecond is 2000000, want <= 1000000"},
		{retry.BudgetConfig{Window: -1}, "retry: BudgetConfig.Window is -1ns, want from 10ns to 1000h0m0s"},
	} {
		b, err := retry.NewBudget(&test.cfg)
		require.EqualError(t, err, test.want)
		require.Nil(t, b)
	}
}

// The least that is accepted does allow an extra attempt.
func TestEveryValidBudgetAllowsAnExtraAttemptSomeTime(t *testing.T) {
	for _, cfg := range []retry.BudgetConfig{
		{Ratio: 1e-6, PerSecond: -1},
		{Kind: retry.ConcurrencyBudget, Ratio: 1e-6, MinConcurrency: -1},
		{Kind: retry.TokenBudget, Ratio: 0.001, MaxTokens: 3},
	} {
		b := newBudget(t, &cfg)
		now := time.Now()
		for range 1_000_000 {
			b.Deposit(now)
		}
		b.Judge(outcome.Outcome{Class: outcome.Failure, Retry: outcome.IfIdempotent})
		require.True(t, b.Withdraw(now), cfg.Kind)
	}
}

func TestContradictionsAreRefusedTogether(t *testing.T) {
	_, err := retry.New(&retry.Config{
		AttemptTimeout: 2 * time.Second, Timeout: time.Second,
		Backoff:     retry.Backoff{Kind: 77, Base: time.Minute, Max: time.Second, ThrottledBase: time.Hour},
		Hedge:       retry.HedgeConfig{Delay: time.Second / 2, MaxHedges: 3},
		GenerateKey: 9,
	})
	require.EqualError(t, err, strings.Join([]string{
		`retry: Backoff.Kind is 77, want "full", "equal", "decorrelated", "constant" or "linear"`,
		"retry: Backoff.Max is 1s, want >= Backoff.Base (1m0s)",
		"retry: Backoff.Max is 1s, want >= Backoff.ThrottledBase (1h0m0s)",
		"retry: AttemptTimeout is 2s, want <= Timeout (1s)",
		"retry: Backoff.Base is 1m0s, want less than Timeout (1s)",
		"retry: Hedge.Delay is 500ms, want less than Timeout (1s) with all 3 hedges together",
		"retry: GenerateKey is 9, want On or Off",
	}, "\n"))
	_, err = retry.NewBudget(&retry.BudgetConfig{Kind: 4, Ratio: math.NaN(), MaxTokens: 1, Window: 1})
	require.Len(t, err.(interface{ Unwrap() []error }).Unwrap(), 4)
}
