package retry_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// connections counts the new connections of requests under its context.
func connections(ctx context.Context, n *atomic.Int32) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if !info.Reused {
			n.Add(1)
		}
	}})
}

func TestFailedAttemptsUseOneConnection(t *testing.T) {
	text := strings.Repeat("x", 1<<10)
	overHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(503)
		_, _ = io.WriteString(w, text)
	}, func(t *testing.T, server *httptest.Server, base *http.Transport) {
		r := newRetrier(t, eager(func(c *retry.Config) {
			c.MaxAttempts, c.Budget, c.DrainTime = 20, unlimited(t), time.Minute // however slow the machine is
		}))
		var fresh, attempts atomic.Int32
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			attempts.Add(1)
			return base.RoundTrip(req)
		})
		req, err := http.NewRequestWithContext(connections(t.Context(), &fresh), "GET", server.URL, nil)
		require.NoError(t, err)
		resp, err := r.Layer(next).RoundTrip(req)
		require.NoError(t, err)
		require.Equal(t, text, readAll(t, resp))
		require.EqualValues(t, 20, attempts.Load())
		// net/http gives a connection up whose writer has not said within 50 ms that it is done.
		require.LessOrEqual(t, fresh.Load(), int32(3))
	})
}

func TestLastFailedResponseOfARealServerIsWhole(t *testing.T) {
	overHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(503)
		_, _ = io.WriteString(w, "the service is down")
		w.Header().Set("X-Sum", "42")
	}, func(t *testing.T, server *httptest.Server, base *http.Transport) {
		for name, steps := range map[string]func(n int) error{
			"exhausted": func(int) error { return nil },
			"refused": func(n int) error {
				if n == 2 {
					return refusal{}
				}
				return nil
			},
		} {
			t.Run(name, func(t *testing.T) {
				n := 0
				next := roundTripper(func(req *http.Request) (*http.Response, error) {
					if n++; steps(n) != nil {
						return nil, steps(n)
					}
					return base.RoundTrip(req)
				})
				client := &http.Client{Transport: newRetrier(t, eager()).Layer(next)}
				resp, err := client.Get(server.URL)
				require.NoError(t, err)
				require.Equal(t, 503, resp.StatusCode)
				require.Equal(t, "the service is down", readAll(t, resp))
				require.Equal(t, "42", resp.Trailer.Get("X-Sum"))
			})
		}
	})
}

func TestSlowDownloadIsNotCutByTheAttemptTimeout(t *testing.T) {
	want := make([]byte, 512<<10)
	_, _ = rand.Read(want)
	overHTTP(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(want) },
		func(t *testing.T, server *httptest.Server, base *http.Transport) {
			r := newRetrier(t, &retry.Config{AttemptTimeout: 200 * time.Millisecond})
			resp, err := (&http.Client{Transport: r.Layer(base)}).Get(server.URL)
			require.NoError(t, err)
			<-time.After(300 * time.Millisecond)
			var got []byte
			buf := make([]byte, 4<<10)
			for err == nil {
				var n int
				n, err = resp.Body.Read(buf)
				got = append(got, buf[:n]...)
			}
			require.Equal(t, io.EOF, err)
			require.Equal(t, want, got)
			require.NoError(t, resp.Body.Close())
		})
}

func TestStalledAttemptOfARealServerIsTriedAgain(t *testing.T) {
	var n atomic.Int32
	overHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, "ok")
	}, func(t *testing.T, server *httptest.Server, base *http.Transport) {
		n.Store(0)
		r := newRetrier(t, eager(func(c *retry.Config) {
			// A machine that stands still for that long costs an attempt, too.
			c.AttemptTimeout, c.MaxAttempts = 200*time.Millisecond, 20
		}))
		resp, err := (&http.Client{Transport: r.Layer(base)}).Get(server.URL)
		require.NoError(t, err)
		require.Equal(t, "ok", readAll(t, resp))
		require.Greater(t, n.Load(), int32(1))
	})
}

func TestUpgradedConnectionStaysWritable(t *testing.T) {
	var n atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) == 1 {
			w.WriteHeader(503)
			return
		}
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
	req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL, nil)
	require.NoError(t, err)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	client := &http.Client{Transport: newRetrier(t, eager(func(c *retry.Config) { c.BufferBody = retry.On })).Layer(server.Client().Transport)}
	resp, err := client.Do(req)
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
}

func TestBodiesReachARealServerWholeInEachAttempt(t *testing.T) {
	var (
		mu   sync.Mutex
		seen []string
	)
	overHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			seen = append(seen, string(text))
		}
		if len(seen)%3 != 0 {
			w.WriteHeader(503)
		}
	}, func(t *testing.T, server *httptest.Server, base *http.Transport) {
		text := strings.Repeat("0123456789", 3000)
		client := &http.Client{Transport: newRetrier(t, eager()).Layer(base)}
		for name, src := range map[string]func() io.Reader{
			"with GetBody": func() io.Reader { return strings.NewReader(text) },
			"without":      func() io.Reader { return io.MultiReader(strings.NewReader(text)) },
		} {
			t.Run(name, func(t *testing.T) {
				seen = nil
				req, err := http.NewRequestWithContext(t.Context(), "PUT", server.URL, src())
				require.NoError(t, err)
				resp, err := client.Do(req)
				require.NoError(t, err)
				require.Equal(t, 200, resp.StatusCode)
				_ = resp.Body.Close()
				require.Equal(t, []string{text, text, text}, seen)
			})
		}
	})
}

// The server answers 503 after a tenth of a body too long to be kept. Nothing of
// it is lost, nothing is sent twice, and the race detector has nothing to say.
func TestEarlyAnswerWhileTheBodyIsStillBeingSent(t *testing.T) {
	overHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadFull(r.Body, make([]byte, 10<<10))
		w.WriteHeader(503)
		_, _ = io.WriteString(w, "busy")
	}, func(t *testing.T, server *httptest.Server, base *http.Transport) {
		text, answered := strings.Repeat("x", 100<<10), 0
		defer func() { require.Positive(t, answered) }()
		for range 20 {
			src := newBody("")
			src.Reader = &oneReader{t: t, Reader: strings.NewReader(text)}
			req, err := http.NewRequestWithContext(t.Context(), "PUT", server.URL, src)
			require.NoError(t, err)
			resp, err := newRetrier(t, eager()).Layer(base).RoundTrip(req)
			if err == nil { // else the connection was reset under the rest of the upload
				answered++
				require.Equal(t, 503, resp.StatusCode)
				require.Equal(t, "busy", readAll(t, resp))
			}
			require.Eventually(t, func() bool { return src.closes.Load() == 1 }, 5*time.Second, time.Millisecond)
		}
	})
}

// With a GetBody an early answer is no obstacle.
func TestEarlyAnswerIsTriedAgainWithAnotherBody(t *testing.T) {
	var n atomic.Int32
	overHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1)%3 != 0 {
			_, _ = io.ReadFull(r.Body, make([]byte, 10))
			w.WriteHeader(503)
			return
		}
		size, _ := io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Size", time.Duration(size).String())
	}, func(t *testing.T, server *httptest.Server, base *http.Transport) {
		n.Store(0)
		text := strings.Repeat("x", 100<<10)
		req, err := http.NewRequestWithContext(t.Context(), "PUT", server.URL, strings.NewReader(text))
		require.NoError(t, err)
		resp, err := newRetrier(t, eager()).Layer(base).RoundTrip(req)
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, time.Duration(len(text)).String(), resp.Header.Get("X-Size"))
		_ = resp.Body.Close()
	})
}

func TestRedirectsThatKeepTheBodyWork(t *testing.T) {
	for _, status := range []int{307, 308} {
		var n atomic.Int32
		overHTTP(t, func(w http.ResponseWriter, r *http.Request) {
			text, _ := io.ReadAll(r.Body)
			switch {
			case r.URL.Path == "/":
				http.Redirect(w, r, "/there", status)
			case n.Add(1)%2 == 1:
				w.WriteHeader(503)
			default:
				_, _ = w.Write(text)
			}
		}, func(t *testing.T, server *httptest.Server, base *http.Transport) {
			client := &http.Client{Transport: newRetrier(t, eager()).Layer(base)}
			req, err := http.NewRequestWithContext(t.Context(), "PUT", server.URL+"/", strings.NewReader("text"))
			require.NoError(t, err)
			resp, err := client.Do(req)
			require.NoError(t, err)
			require.Equal(t, "text", readAll(t, resp))
		})
	}
}

// killing answers the first request of each connection, and cuts it in the
// second.
func killing(t *testing.T) (*httptest.Server, *atomic.Int32) {
	var (
		requests atomic.Int32
		mu       sync.Mutex
		seen     = map[string]bool{}
	)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		again := seen[r.RemoteAddr]
		seen[r.RemoteAddr] = true
		mu.Unlock()
		if again {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = c.Close()
			}
			return
		}
		_, _ = io.WriteString(w, "ok")
	}))
	t.Cleanup(server.Close)
	return server, &requests
}

// net/http repeats by itself what it sent on a kept connection that died. That
// is one attempt, and no budget of ours is spent on it.
func TestTransparentRetryOfNetHTTPIsPartOfAnAttempt(t *testing.T) {
	server, requests := killing(t)
	b := newBudget(t, nil)
	r := newRetrier(t, eager(func(c *retry.Config) { c.Budget = b }))
	client := &http.Client{Transport: r.Layer(server.Client().Transport)}
	for range 2 {
		resp, err := client.Get(server.URL)
		require.NoError(t, err)
		require.Equal(t, "ok", readAll(t, resp))
	}
	require.EqualValues(t, 3, requests.Load())
	require.Equal(t, 100, b.Balance(time.Time{}))

	// What net/http does not repeat, we do, if it may be repeated.
	for _, method := range []string{"PUT", "POST"} {
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL, strings.NewReader("text"))
		require.NoError(t, err)
		resp, err := client.Do(req)
		if method == "POST" {
			require.ErrorIs(t, err, io.EOF)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, "ok", readAll(t, resp))
		require.Equal(t, 99, b.Balance(time.Time{}))
	}
	require.EqualValues(t, 6, requests.Load())
}

func TestPostIsTriedAgainAfterADialFailure(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	defer server.Close()
	for name, src := range map[string]func() io.Reader{
		"with GetBody": func() io.Reader { return strings.NewReader("text") },
		"without":      func() io.Reader { return io.MultiReader(strings.NewReader("text")) },
	} {
		t.Run(name, func(t *testing.T) {
			dials := 0
			base := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if dials++; dials < 3 {
					return nil, &net.OpError{Op: "dial", Net: network, Err: errReset}
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			}}
			defer base.CloseIdleConnections()
			resp, err := (&http.Client{Transport: newRetrier(t, eager()).Layer(base)}).Post(server.URL, "text/plain", src())
			require.NoError(t, err)
			require.Equal(t, "text", readAll(t, resp))
			require.Equal(t, 3, dials)
		})
	}
}

func TestTerminalErrorsAreNotTriedAgain(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	server.Config.ErrorLog = nil
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for name, change := range map[string]func(req *http.Request){
		"unknown authority":    func(*http.Request) {},
		"unsupported scheme":   func(req *http.Request) { req.URL.Scheme = "gopher" },
		"no host":              func(req *http.Request) { req.URL.Host = "" },
		"invalid header":       func(req *http.Request) { req.Header.Set("X", "a\nb") },
		"invalid header name":  func(req *http.Request) { req.Header["a b"] = []string{"x"} },
		"invalid method":       func(req *http.Request) { req.Method = "a b" },
		"HTTP on an HTTPS URL": func(req *http.Request) { req.URL.Host = plain.Listener.Addr().String() },
	} {
		t.Run(name, func(t *testing.T) {
			base := &http.Transport{}
			defer base.CloseIdleConnections()
			attempts := 0
			next := roundTripper(func(req *http.Request) (*http.Response, error) {
				attempts++
				return base.RoundTrip(req)
			})
			req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL, nil)
			require.NoError(t, err)
			change(req)
			resp, err := newRetrier(t, eager(func(c *retry.Config) { c.RetryNonIdempotent = retry.On })).Layer(next).RoundTrip(req)
			require.Error(t, err)
			require.Nil(t, resp)
			require.Equal(t, 1, attempts, "%v", err)
		})
	}
}

func TestOuterClientTimeoutIsHonouredAndDetectable(t *testing.T) {
	overHTTP(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) },
		func(t *testing.T, server *httptest.Server, base *http.Transport) {
			r := newRetrier(t, &retry.Config{MaxAttempts: 100, Backoff: retry.Backoff{New: constant(time.Minute), Max: time.Minute}})
			client := &http.Client{Transport: r.Layer(base), Timeout: 50 * time.Second}
			begin := time.Now()
			resp, err := client.Get(server.URL)
			require.NoError(t, err, "the wait would not fit: the response is returned at once")
			require.Equal(t, 503, resp.StatusCode)
			require.Less(t, time.Since(begin), 40*time.Second)
			_ = resp.Body.Close()
		})
	overHTTP(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		func(t *testing.T, server *httptest.Server, base *http.Transport) {
			client := &http.Client{Transport: newRetrier(t, nil).Layer(base), Timeout: 100 * time.Millisecond}
			_, err := client.Get(server.URL)
			var netErr net.Error
			require.ErrorAs(t, err, &netErr)
			require.True(t, netErr.Timeout())
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.False(t, errors.Is(err, outcome.ErrAttemptTimeout))
		})
}

func TestBrokenDownloadReachesTheCallerOnce(t *testing.T) {
	var n atomic.Int32
	overHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}, func(t *testing.T, server *httptest.Server, base *http.Transport) {
		n.Store(0)
		resp, err := (&http.Client{Transport: newRetrier(t, eager()).Layer(base)}).Get(server.URL)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.Error(t, err)
		require.Equal(t, "half", string(text))
		_ = resp.Body.Close()
		require.EqualValues(t, 1, n.Load(), "a call is over when its headers are handed on")

		n.Store(0)
		buffering := newRetrier(t, eager(func(c *retry.Config) { c.BufferBody = retry.On }))
		_, err = (&http.Client{Transport: buffering.Layer(base)}).Get(server.URL)
		require.Error(t, err)
		require.EqualValues(t, 3, n.Load())
	})
}

func TestExpectContinueWorksAcrossAttempts(t *testing.T) {
	var n atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			w.WriteHeader(503) // without having asked for the body
			return
		}
		_, _ = io.Copy(w, r.Body)
	}))
	defer server.Close()
	base := &http.Transport{ExpectContinueTimeout: 5 * time.Second}
	defer base.CloseIdleConnections()
	for name, src := range map[string]func() io.Reader{
		"with GetBody": func() io.Reader { return strings.NewReader("text") },
		"without":      func() io.Reader { return io.MultiReader(strings.NewReader("text")) },
	} {
		t.Run(name, func(t *testing.T) {
			n.Store(0)
			req, err := http.NewRequestWithContext(t.Context(), "PUT", server.URL, src())
			require.NoError(t, err)
			req.Header.Set("Expect", "100-continue")
			resp, err := newRetrier(t, eager()).Layer(base).RoundTrip(req)
			require.NoError(t, err)
			require.Equal(t, 200, resp.StatusCode)
			require.Equal(t, "text", readAll(t, resp))
		})
	}
}
