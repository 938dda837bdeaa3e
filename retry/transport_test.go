package retry_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/retry"
)

func TestLayerIsATransport(t *testing.T) {
	// What the suite asks for comes with no pause between attempts.
	atOnce := retry.Backoff{Base: -1, ThrottledBase: -1}
	for name, c := range map[string]struct {
		cfg      retry.Config
		attempts int
	}{
		"by default":     {retry.Config{}, 3},
		"five attempts":  {retry.Config{MaxAttempts: 5}, 5},
		"off":            {retry.Config{MaxAttempts: -1}, 1},
		"with timeouts":  {retry.Config{Timeout: time.Minute, AttemptTimeout: 30 * time.Second}, 3},
		"without bounds": {retry.Config{AttemptTimeout: -1}, 3},
		"armed to hedge": {retry.Config{Hedge: retry.HedgeConfig{Delay: time.Minute, Percentile: 0.95}}, 3},
		"with a grace":   {retry.Config{Hedge: retry.HedgeConfig{Delay: time.Minute, LoserGrace: time.Second}}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.Backoff = atOnce
			backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
				r, err := retry.New(&c.cfg)
				require.NoError(t, err)
				return r.Layer(next)
			}, &backstaytest.TransportOptions{Attempts: c.attempts})
		})
	}
}
