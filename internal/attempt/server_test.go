package attempt_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/outcome"
)

// layer is the smallest use of an attempt: what the package's comment shows.
type layer struct {
	next   http.RoundTripper
	limits func() attempt.Limits
	ends   *ends
}

func (l *layer) RoundTrip(req *http.Request) (*http.Response, error) {
	a := new(attempt.Attempt)
	limits := l.limits()
	a.Start(req.Context(), time.Now(), &limits)
	handedOn := false
	defer func() {
		if !handedOn {
			a.End()
		}
	}()
	resp, err := l.next.RoundTrip(a.Request(new(http.Request), req))
	if err != nil {
		return nil, a.Error(err)
	}
	if err := a.Headers(); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	resp.Body = a.Wrap(resp.Body, l.ends)
	handedOn = true
	return resp, nil
}

// overHTTP runs the test against a real server over HTTP/1.1 and HTTP/2.
func overHTTP(t *testing.T, handler http.HandlerFunc, test func(t *testing.T, client *http.Client, l *layer, url string)) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(proto, func(t *testing.T) {
			server := httptest.NewUnstartedServer(handler)
			server.EnableHTTP2 = proto == "HTTP/2"
			server.StartTLS()
			defer server.Close()
			client := server.Client()
			l := &layer{
				next:   client.Transport,
				limits: func() attempt.Limits { return attempt.Limits{Attempt: time.Minute} },
				ends:   new(ends),
			}
			client.Transport = l
			test(t, client, l, server.URL)
		})
	}
}

func TestBodyIsReadableLongAfterTheRoundTrip(t *testing.T) {
	want := make([]byte, 512<<10)
	_, _ = rand.Read(want)
	overHTTP(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(want) },
		func(t *testing.T, client *http.Client, l *layer, url string) {
			l.limits = func() attempt.Limits { return attempt.Limits{Attempt: time.Second} }
			resp, err := client.Get(url)
			require.NoError(t, err)
			<-time.After(1200 * time.Millisecond) // longer than the attempt's timeout
			var got []byte
			buf := make([]byte, 8<<10)
			for err = nil; err == nil; {
				var n int
				n, err = resp.Body.Read(buf)
				got = append(got, buf[:n]...)
			}
			require.Equal(t, io.EOF, err)
			require.Equal(t, want, got)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, []error{nil}, l.ends.all())
		})
}

func TestContextReleasedAtEOFLeavesTheConnectionForReuse(t *testing.T) {
	overHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "hello")
	}, func(t *testing.T, client *http.Client, _ *layer, url string) {
		fresh := 0
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GotConn: func(info httptrace.GotConnInfo) {
				if !info.Reused {
					fresh++
				}
			},
		})
		for range 30 {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("ping"))
			require.NoError(t, err)
			resp, err := client.Do(req)
			require.NoError(t, err)
			_, err = io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
		}
		// net/http gives a connection up whose writer has not said within 50 ms that it is done.
		require.LessOrEqual(t, fresh, 3)
	})
}

func TestStalledServerEndsInTheAttemptTimeout(t *testing.T) {
	overHTTP(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		func(t *testing.T, client *http.Client, l *layer, url string) {
			l.limits = func() attempt.Limits { return attempt.Limits{Attempt: time.Second} }
			_, err := client.Get(url)
			requireTimeout(t, err, outcome.ErrAttemptTimeout, time.Second)
			require.NotErrorIs(t, err, context.Canceled)
		})
}

func TestStalledBodyEndsInTheCallTimeout(t *testing.T) {
	release := make(chan struct{})
	overHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "he")
		_ = http.NewResponseController(w).Flush()
		<-release
	}, func(t *testing.T, client *http.Client, l *layer, url string) {
		l.limits = func() attempt.Limits {
			return attempt.Limits{Deadline: time.Now().Add(time.Second), Call: time.Second}
		}
		resp, err := client.Get(url)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.Equal(t, "he", string(text))
		requireTimeout(t, err, outcome.ErrCallTimeout, time.Second)
		require.NoError(t, resp.Body.Close())
		require.Len(t, l.ends.all(), 1)
		release <- struct{}{}
	})
}

func TestFailingRequestBodyIsToldFromTheServersFailure(t *testing.T) {
	overHTTP(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) },
		func(t *testing.T, client *http.Client, _ *layer, url string) {
			body := io.MultiReader(strings.NewReader("some"), &scripted{read: func([]byte) (int, error) { return 0, errBoom }})
			_, err := client.Post(url, "text/plain", body)
			var bodyErr *outcome.BodyError
			require.ErrorAs(t, err, &bodyErr)
			require.ErrorIs(t, err, errBoom)
		})
}

func TestTrailersArriveThroughTheWrappedBody(t *testing.T) {
	overHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "hello")
		w.Header().Set("X-Sum", "42")
	}, func(t *testing.T, client *http.Client, _ *layer, url string) {
		resp, err := client.Get(url)
		require.NoError(t, err)
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "42", resp.Trailer.Get("X-Sum"))
	})
}

func TestUpgradeWorksThroughTheWrappedBody(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, _ := rw.ReadString('\n')
		_, _ = io.WriteString(c, line)
	}))
	defer server.Close()
	l := &layer{
		next:   server.Client().Transport,
		limits: func() attempt.Limits { return attempt.Limits{Attempt: time.Minute} },
		ends:   new(ends),
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
	require.NoError(t, err)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := (&http.Client{Transport: l}).Do(req)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	rw, ok := resp.Body.(io.ReadWriteCloser)
	require.True(t, ok)
	_, err = io.WriteString(rw, "ping\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(rw).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ping\n", line)
	require.NoError(t, rw.Close())
	require.Equal(t, []error{attempt.ErrClosed}, l.ends.all())
}

func TestContextsOfRealRequestsAreReleased(t *testing.T) {
	overHTTP(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") },
		func(t *testing.T, client *http.Client, l *layer, url string) {
			p := &parent{Context: t.Context(), done: make(chan struct{})}
			for i := range 50 {
				req, err := http.NewRequestWithContext(p, http.MethodGet, url, nil)
				require.NoError(t, err)
				resp, err := client.Do(req)
				require.NoError(t, err)
				require.Positive(t, p.children.Load())
				if i%2 == 0 {
					_, _ = io.ReadAll(resp.Body)
				}
				require.NoError(t, resp.Body.Close())
			}
			// net/http's own children go a moment later, on its goroutines.
			require.Eventually(t, func() bool { return p.children.Load() == 0 }, 5*time.Second, time.Millisecond)
			require.Len(t, l.ends.all(), 50)
		})
}

// net/http sends a request again on a new connection when a kept one dies
// before the first byte of an answer; it takes GetBody for that.
func TestTransparentRetryOfNetHTTPSendsTheBodyAgain(t *testing.T) {
	var (
		mu    sync.Mutex
		seen  []string
		conns = map[string]int{}
	)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		mu.Lock()
		conns[r.RemoteAddr]++
		again := conns[r.RemoteAddr] > 1
		seen = append(seen, string(text))
		mu.Unlock()
		if again { // a kept connection: it dies
			c, _, _ := http.NewResponseController(w).Hijack()
			_ = c.Close()
			return
		}
		_, _ = io.WriteString(w, "ok")
	}))
	defer server.Close()
	l := &layer{
		next:   server.Client().Transport,
		limits: func() attempt.Limits { return attempt.Limits{Attempt: time.Minute} },
		ends:   new(ends),
	}
	client := &http.Client{Transport: l}
	for _, text := range []string{"one", "two"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, server.URL, strings.NewReader(text))
		require.NoError(t, err)
		req.Header.Set("Idempotency-Key", text) // net/http does not repeat a plain PUT
		resp, err := client.Do(req)
		require.NoError(t, err)
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, errors.Join(err, resp.Body.Close()))
	}
	require.Equal(t, []string{"one", "two", "two"}, seen)
}
