package cache_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/cache"
)

func TestLayerIsATransport(t *testing.T) {
	for name, cfg := range map[string]*cache.HTTPConfig{
		"by default": nil,
		"coalescing": {Coalesce: time.Minute},
		"bypassing":  {Skip: func(*http.Request) bool { return true }},
	} {
		t.Run(name, func(t *testing.T) {
			backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
				h, err := cache.NewHTTP(cfg)
				require.NoError(t, err)
				return h.Layer(next)
			}, nil)
		})
	}
	t.Run("only invalidating", func(t *testing.T) {
		backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
			h, err := cache.NewHTTP(nil)
			require.NoError(t, err)
			return h.LayerWith(0)(next)
		}, nil)
	})
}

// storable is a transport whose answers may be stored, as the suite's may not.
type storable struct{ http.RoundTripper }

func (s storable) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := s.RoundTripper.RoundTrip(req)
	if resp != nil {
		resp.Header.Del("Cache-Control")
	}
	return resp, err
}

func (s storable) CloseIdleConnections() {
	s.RoundTripper.(interface{ CloseIdleConnections() }).CloseIdleConnections()
}

// Bodies are recorded here on their way to the caller, but for a lifetime that
// is over before they are stored: each request is sent, as the suite expects.
func TestLayerThatRecordsIsATransport(t *testing.T) {
	for name, wait := range map[string]time.Duration{"alone": 0, "coalescing": 50 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			backstaytest.TestTransport(t, func(next http.RoundTripper) http.RoundTripper {
				h, err := cache.NewHTTP(&cache.HTTPConfig{TTL: time.Nanosecond, Coalesce: wait})
				require.NoError(t, err)
				return h.Layer(storable{next})
			}, nil)
		})
	}
}
