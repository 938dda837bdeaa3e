package retry_test

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/retry"
)

// Many goroutines, one retrier, a server that does everything badly at random:
// no race, no answer that is not the request's own, no goroutine left.
func TestLayerUnderStress(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch rand.IntN(8) {
		case 0:
			w.WriteHeader(503) // before the body
		case 1:
			_, _ = io.ReadFull(r.Body, make([]byte, 100))
			w.WriteHeader(502)
			_, _ = io.WriteString(w, strings.Repeat("x", 2000))
		case 2:
			panic(http.ErrAbortHandler)
		case 3:
			_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice the client's end
			<-r.Context().Done()
		default:
			text, err := io.ReadAll(r.Body)
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			_, _ = w.Write(text)
		}
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.Start()
	base := server.Client().Transport.(*http.Transport)
	r := newRetrier(t, &retry.Config{
		Budget: unlimited(t), AttemptTimeout: 20 * time.Millisecond, Timeout: 500 * time.Millisecond,
		MaxAttempts: 5, Backoff: retry.Backoff{Base: time.Millisecond},
	})
	layer := r.Layer(base)
	var (
		wg       sync.WaitGroup
		answered atomic.Int32
		open     atomic.Int32
	)
	for g := range 16 {
		wg.Go(func() {
			for i := range 25 {
				text := strings.Repeat(string(rune('a'+g)), i*300)
				src := newBody(text)
				open.Add(1)
				src.onClose = func() { open.Add(-1) }
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+rand.IntN(200))*time.Millisecond)
				req, err := http.NewRequestWithContext(ctx, "PUT", server.URL, src)
				if err != nil {
					panic(err)
				}
				if i%2 == 0 {
					req.ContentLength = int64(len(text))
				}
				resp, err := layer.RoundTrip(req)
				if err == nil {
					got, err := io.ReadAll(resp.Body)
					if err == nil && resp.StatusCode == 200 {
						answered.Add(1)
						if string(got) != text {
							t.Errorf("got %d bytes, want %d", len(got), len(text))
						}
					}
					_ = resp.Body.Close()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	require.Positive(t, answered.Load())
	// Transports close bodies when they are done with them, which may be later.
	require.Eventually(t, func() bool { return open.Load() == 0 }, 5*time.Second, time.Millisecond)
	server.CloseClientConnections()
	server.Close()
	base.CloseIdleConnections()
}
