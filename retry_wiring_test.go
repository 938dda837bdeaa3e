package backstay_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/retry"
)

// What the retries of a service are like is inherited field by field, by name in
// JSON.
func TestRetrySettingsByNameAreInheritedFieldByField(t *testing.T) {
	var cfg backstay.Config
	require.NoError(t, json.Unmarshal([]byte(`{
		"default": {
			"retry": {"generateKey": true, "backoff": {"kind": "constant", "base": "1ms"}},
			"budget": {"kind": "tokens", "maxTokens": 100}
		},
		"services": {
			"orders": {"endpoints": ["10.0.0.1:80"], "breaker": {"failureRate": -1}, "budget": {"maxTokens": 12}}
		},
		"routes": {"POST orders/pay": {"retry": {"generateKey": false}}}
	}`), &cfg))
	require.Equal(t, retry.BudgetConfig{Kind: retry.TokenBudget, MaxTokens: 100}, cfg.Default.Budget)
	require.Equal(t, retry.Constant, cfg.Default.Retry.Backoff.Kind)
	base := &recording{next: always(503)}
	cfg.Base = base
	c := newClient(t, &cfg)
	post := func(url string) []*http.Request {
		before := len(base.requests())
		resp, err := c.Post(url, "text/plain", strings.NewReader("100 EUR"))
		require.NoError(t, err)
		read(t, resp)
		return base.requests()[before:]
	}

	sent := post("http://orders/items")
	require.Len(t, sent, 3)
	for _, req := range sent {
		require.Len(t, req.Header.Get("Idempotency-Key"), 36)
		require.Equal(t, sent[0].Header["Idempotency-Key"], req.Header["Idempotency-Key"])
	}
	sent = post("http://orders/pay")
	require.Len(t, sent, 1, "the route switches it off")
	require.Empty(t, sent[0].Header["Idempotency-Key"])

	// Four of twelve tokens are spent; the second failure from here leaves half.
	require.Len(t, post("http://orders/items"), 2)
	require.Len(t, post("http://orders/items"), 1)
}

func TestUnknownKindsAreRefusedWithTheirPlaceInTheConfig(t *testing.T) {
	var cfg backstay.Config
	err := json.Unmarshal([]byte(`{"services": {"orders": {
		"retry": {"backoff": {"kind": "exponential"}}, "budget": {"kind": "leaky"}
	}}}`), &cfg)
	require.ErrorContains(t, err, `services.orders.retry.backoff.kind`)
	require.ErrorContains(t, err, `"exponential", want "full", "equal", "decorrelated", "constant" or "linear"`)
	require.ErrorContains(t, err, `services.orders.budget.kind`)
	require.ErrorContains(t, err, `"leaky", want "window", "concurrency" or "tokens"`)

	_, err = backstay.New(&backstay.Config{Services: map[string]backstay.Service{"orders": {
		Budget: retry.BudgetConfig{Kind: 8}, Retry: retry.Config{Backoff: retry.Backoff{Kind: 9}},
	}}})
	require.ErrorContains(t, err, "BudgetConfig.Kind is 8")
	require.ErrorContains(t, err, "Backoff.Kind is 9")
}

func TestObservedServiceSendsNoKeys(t *testing.T) {
	base := &recording{next: always(503)}
	c := newClient(t, &backstay.Config{Base: base, Services: map[string]backstay.Service{
		"10.0.0.1": {Observe: backstay.On, Retry: retry.Config{GenerateKey: backstay.On}},
	}})
	resp, err := c.Post("http://10.0.0.1/pay", "text/plain", strings.NewReader("100 EUR"))
	require.NoError(t, err)
	read(t, resp)
	require.Len(t, base.requests(), 1)
	require.Empty(t, base.requests()[0].Header["Idempotency-Key"])
}
