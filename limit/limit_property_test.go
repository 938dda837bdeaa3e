package limit_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/limit"
)

// In any span of time no more calls begin than the burst and what the limit
// gives in that span, whatever the times that callers bring along; and a call
// is refused only when the bucket is empty by the latest time that was seen.
func TestARateBehavesLikeABucket(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		perSecond := []float64{0.5, 1, 7, 100, 12345.6}[random.IntN(5)]
		burst := 1 + random.IntN(10)
		r := newRate(t, limit.RateConfig{Limit: perSecond, Burst: burst})
		latest, tokens := time.Now(), float64(burst-1)
		require.NoError(t, r.Allow(latest))
		for step := range 2000 {
			now := latest.Add(time.Duration(random.ExpFloat64() / perSecond * 1e9))
			if random.IntN(3) == 0 {
				now = latest.Add(-time.Duration(random.Int64N(1e12)))
			}
			if now.After(latest) {
				tokens = min(float64(burst), tokens+now.Sub(latest).Seconds()*perSecond)
				latest = now
			}
			err := r.Allow(now)
			if tokens > 0.9999 && tokens < 1.0001 {
				if err == nil { // too near to tell: take its word
					tokens = max(0, tokens-1)
				}
				continue
			}
			if (tokens >= 1) != (err == nil) {
				t.Fatalf("seed %d, step %d: %v tokens, got %v", seed, step, tokens, err)
			}
			if err == nil {
				tokens--
			}
		}
	}
}
