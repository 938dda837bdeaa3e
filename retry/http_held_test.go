package retry_test

import (
	"bytes"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

func TestDiscardedResponsesAreClosedExactlyOnce(t *testing.T) {
	s, bodies := answers(503, 503, 200)
	resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.EqualValues(t, 1, bodies[0].closes.Load())
	require.EqualValues(t, 1, bodies[1].closes.Load())
	require.Zero(t, bodies[2].closes.Load())
	require.Equal(t, "answer 3", readAll(t, resp))
	require.EqualValues(t, 1, bodies[2].closes.Load())
}

func TestLastResponseIsReturnedReadableWithoutAnError(t *testing.T) {
	for _, cfg := range []*retry.Config{eager(), eager(func(c *retry.Config) { c.AttemptTimeout = -1 })} {
		s, bodies := answers(503, 502, 504)
		resp, err := newRetrier(t, cfg).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, 504, resp.StatusCode)
		require.Equal(t, "answer 3", readAll(t, resp))
		require.EqualValues(t, 1, bodies[2].closes.Load())
	}
}

func TestBodilessResponsesDoNotPanic(t *testing.T) {
	for _, none := range []io.ReadCloser{nil, http.NoBody} {
		for _, cfg := range []*retry.Config{eager(), eager(func(c *retry.Config) { c.BufferBody, c.AttemptTimeout = retry.On, -1 })} {
			s := &script{steps: []func(*http.Request) (*http.Response, error){
				func(*http.Request) (*http.Response, error) { return response(503, none), nil },
			}}
			resp, err := newRetrier(t, cfg).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
			require.NoError(t, err)
			require.Equal(t, none, resp.Body)
			require.Equal(t, 3, s.attempts())

			s.steps = append(s.steps[:0], s.steps[0], fails(refusal{}))
			s.reqs = nil
			resp, err = newRetrier(t, cfg).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
			require.NoError(t, err)
			require.Equal(t, none, resp.Body)
		}
	}
}

func TestRefusalAfterAFailedResponseGivesThatBackWhole(t *testing.T) {
	for name, limit := range map[string]int{"read ahead": 0, "longer than the limit": 4, "not read ahead": -1} {
		t.Run(name, func(t *testing.T) {
			b := newBody("the service is down")
			s := &script{steps: []func(*http.Request) (*http.Response, error){
				func(*http.Request) (*http.Response, error) { return response(503, b, "X-Why", "down"), nil },
				fails(refusal{}),
			}}
			rec := new(recorder)
			r := newRetrier(t, eager(func(c *retry.Config) { c.DrainLimit, c.Observer = limit, rec }))
			resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
			require.NoError(t, err)
			require.Equal(t, 503, resp.StatusCode)
			require.Equal(t, "down", resp.Header.Get("X-Why"))
			require.Zero(t, b.closes.Load())
			require.Equal(t, "the service is down", readAll(t, resp))
			require.EqualValues(t, 1, b.closes.Load())
			require.Equal(t, []retry.Reason{retry.ReasonRefused}, rec.reasons())
		})
	}
}

func TestBrokenFailedResponseIsGivenBackBroken(t *testing.T) {
	s := &script{steps: []func(*http.Request) (*http.Response, error){
		func(*http.Request) (*http.Response, error) {
			return response(503, io.NopCloser(io.MultiReader(strings.NewReader("half"), failingReader{}))), nil
		},
		fails(refusal{}),
	}}
	resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	require.Equal(t, "half", string(text))
	require.Equal(t, io.ErrUnexpectedEOF, err)
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestRealErrorAfterAFailedResponseIsTheLastResult(t *testing.T) {
	s, bodies := answers(503, 503)
	s.steps[1] = fails(errReset)
	r := newRetrier(t, eager(func(c *retry.Config) { c.MaxAttempts = 2 }))
	_, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.Equal(t, errReset, err)
	require.EqualValues(t, 1, bodies[0].closes.Load())
}

func TestRefusalAfterAnErrorIsJoinedToIt(t *testing.T) {
	s := &script{steps: []func(*http.Request) (*http.Response, error){fails(errReset), fails(refusal{})}}
	_, err := newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.ErrorIs(t, err, errReset)
	require.ErrorIs(t, err, refusal{})
	require.False(t, outcome.Refused(err))
	require.Equal(t, 2, s.attempts())
}

func TestExhaustedBudgetGivesBackTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, nil)
		for b.Withdraw(time.Time{}) {
		}
		r := newRetrier(t, &retry.Config{Budget: b})
		begin := time.Now()
		ctx, log := call.WithLog(t.Context())
		s, _ := answers(503)
		resp, err := r.Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
		require.NoError(t, err)
		require.Equal(t, "answer 1", readAll(t, resp))
		refusals := log.Calls()[0].Refusals
		require.Len(t, refusals, 1)
		require.Equal(t, retry.ErrBudget, refusals[0].Err)

		s = &script{steps: []func(*http.Request) (*http.Response, error){fails(errReset)}}
		_, err = r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.ErrorIs(t, err, errReset)
		require.ErrorIs(t, err, retry.ErrBudget)
		require.Zero(t, time.Since(begin), "before any sleep")
	})
}

func TestDrainIsBoundedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stalled, w := io.Pipe()
		defer w.Close()
		b := &body{Reader: stalled, onClose: func() { _ = stalled.Close() }}
		s := &script{steps: []func(*http.Request) (*http.Response, error){
			func(*http.Request) (*http.Response, error) { return response(503, b), nil },
			replies(200, "ok"),
		}}
		begin := time.Now()
		resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, 50*time.Millisecond, time.Since(begin))
		require.EqualValues(t, 1, b.closes.Load())
		_ = resp.Body.Close()
	})
}

func TestWaitForTheDrainRunsBesideTheBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stalled, w := io.Pipe()
		defer w.Close()
		s := &script{steps: []func(*http.Request) (*http.Response, error){
			func(*http.Request) (*http.Response, error) { return response(503, stalled), nil },
			replies(200, "ok"),
		}}
		begin := time.Now()
		cfg := &retry.Config{Backoff: retry.Backoff{New: constant(40 * time.Millisecond)}}
		resp, err := newRetrier(t, cfg).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, 50*time.Millisecond, time.Since(begin))
		_ = resp.Body.Close()
	})
}

type endless struct{ n int }

func (e *endless) Read(p []byte) (int, error) { e.n += len(p); return len(p), nil }
func (e *endless) Close() error               { return nil }

func TestDrainIsBoundedInBytes(t *testing.T) {
	e := new(endless)
	s := &script{steps: []func(*http.Request) (*http.Response, error){
		func(*http.Request) (*http.Response, error) { return response(503, e), nil },
		replies(200, "ok"),
	}}
	resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.LessOrEqual(t, e.n, 68<<10)
	require.Greater(t, e.n, 64<<10)
	_ = resp.Body.Close()

	s.reqs, e.n = nil, 0
	s.steps[0] = func(*http.Request) (*http.Response, error) {
		resp := response(503, e)
		resp.ContentLength = 1 << 20
		return resp, nil
	}
	resp, err = newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Zero(t, e.n, "what is certainly too long is not begun")
	_ = resp.Body.Close()
}

func TestSlowFailedResponseStreamsOnWhenGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		go func() {
			for i := range 10 {
				_, _ = w.Write([]byte{byte('0' + i)})
				time.Sleep(20 * time.Millisecond)
			}
			_ = w.Close()
		}()
		s := &script{steps: []func(*http.Request) (*http.Response, error){
			func(*http.Request) (*http.Response, error) { return response(503, r), nil },
			fails(refusal{}),
		}}
		resp, err := newRetrier(t, eager(func(c *retry.Config) { c.DrainLimit = 6 })).Layer(s).
			RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		first := make([]byte, 1)
		begin := time.Now()
		_, err = resp.Body.Read(first)
		require.NoError(t, err)
		require.Zero(t, time.Since(begin), "what is here is not withheld")
		next := make([]byte, 3)
		_, err = io.ReadFull(resp.Body, next)
		require.NoError(t, err)
		require.Equal(t, 10*time.Millisecond, time.Since(begin), "nor is what comes while more is being read ahead")
		first = append(first, next...)
		rest, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "0123456789", string(first)+string(rest))
		require.NoError(t, resp.Body.Close())
	})
}

func TestBufferedBodyThatBreaksIsTriedAgain(t *testing.T) {
	r := newRetrier(t, eager(func(c *retry.Config) { c.BufferBody = retry.On }))
	broken := newBody("")
	broken.Reader = io.MultiReader(strings.NewReader("ha"), failingReader{})
	s := &script{steps: []func(*http.Request) (*http.Response, error){
		func(*http.Request) (*http.Response, error) { return response(200, broken), nil }, replies(200, "whole"),
	}}
	resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Equal(t, "whole", readAll(t, resp))
	require.EqualValues(t, 1, broken.closes.Load())

	s.steps[1], s.reqs = s.steps[0], nil
	_, err = r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.Equal(t, io.ErrUnexpectedEOF, err)
	require.Equal(t, 3, s.attempts())

	s.reqs = nil
	broken.Reader = io.MultiReader(strings.NewReader("ha"), failingReader{})
	resp, err = r.Layer(s).RoundTrip(newRequest(t, t.Context(), "POST", nil))
	require.NoError(t, err, "not for what must not be repeated")
	_, err = io.ReadAll(resp.Body)
	require.Equal(t, io.ErrUnexpectedEOF, err)
}

func TestBufferedBodyBeyondTheLimitIsStreamedIntact(t *testing.T) {
	r := newRetrier(t, eager(func(c *retry.Config) { c.BufferBody = retry.On }))
	for _, size := range []int{0, 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 200 << 10} {
		want := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		b := newBody(string(want))
		s := &script{steps: []func(*http.Request) (*http.Response, error){
			func(*http.Request) (*http.Response, error) { return response(200, b), nil },
		}}
		resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, string(want), readAll(t, resp))
		require.EqualValues(t, 1, b.closes.Load())
	}
	b := newBody("whatever")
	s := &script{steps: []func(*http.Request) (*http.Response, error){
		func(*http.Request) (*http.Response, error) {
			resp := response(200, b)
			resp.ContentLength = 64<<10 + 1
			return resp, nil
		},
	}}
	resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Zero(t, b.reads.Load(), "what is certainly too long is not begun")
	_ = resp.Body.Close()
}

func TestStalledBufferedBodyIsAnAttemptTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			if n++; n > 1 {
				return replies(200, "ok")(req)
			}
			ctx := req.Context()
			return response(200, &body{Reader: readerFunc(func([]byte) (int, error) {
				<-ctx.Done()
				return 0, ctx.Err()
			})}), nil
		})
		begin := time.Now()
		resp, err := newRetrier(t, eager(func(c *retry.Config) { c.BufferBody = retry.On })).Layer(next).
			RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, "ok", readAll(t, resp))
		require.Equal(t, 10*time.Second, time.Since(begin))
	})
}

// The body is read ahead on another goroutine, where a panic would end the process.
func TestPanicInAFailedResponsesBodyIsWhoseReadsIt(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(errBoom) }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reads := 0
				bad := func(*http.Request) (*http.Response, error) {
					return response(503, &body{Reader: readerFunc(func([]byte) (int, error) {
						if reads++; reads == 1 {
							end()
						}
						return 0, io.EOF
					})}), nil
				}
				s := &script{steps: []step{bad, replies(200, "ok")}}
				resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
				require.NoError(t, err)
				require.Equal(t, "ok", readAll(t, resp), "nobody reads it")

				reads = 0
				s = &script{steps: []step{bad, fails(refusal{})}}
				resp, err = newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
				require.NoError(t, err)
				if name == "panic" {
					require.PanicsWithValue(t, errBoom, func() { _, _ = io.ReadAll(resp.Body) })
				} else {
					require.Empty(t, readAll(t, resp))
				}
				_ = resp.Body.Close()
			})
		})
	}
}
