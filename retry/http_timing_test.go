package retry_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

func TestRetryAfterIsUnderstoodInAllItsForms(t *testing.T) {
	date := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	in := func(d time.Duration, layout string) string { return date.Add(d).Format(layout) }
	gmt := "Mon, 02 Jan 2006 15:04:05 GMT"
	for _, test := range []struct {
		value    string
		least    time.Duration // of the wait before the second attempt
		most     time.Duration
		attempts int
	}{
		{"2", 2 * time.Second, 3 * time.Second, 2},
		{in(2*time.Second, gmt), 2 * time.Second, 3 * time.Second, 2},
		{in(2*time.Second, "Monday, 02-Jan-06 15:04:05 GMT"), 2 * time.Second, 3 * time.Second, 2},
		{in(2*time.Second, time.ANSIC), 2 * time.Second, 3 * time.Second, 2},
		{in(-time.Hour, gmt), 0, time.Second, 2}, // past: the throttled backoff
		{"0", 0, time.Second, 2},
		{"-5", 0, time.Second, 2},
		{"1.5", 0, time.Second, 2},
		{"soon", 0, time.Second, 2},
		{"", 0, time.Second, 2},
		{"120", 0, 0, 1},
		{"99999999999999999999", 0, 0, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			// The server's clock is years off: its own Date cancels that.
			s := &script{steps: []func(*http.Request) (*http.Response, error){
				replies(429, "x", "Retry-After", test.value, "Date", date.Format(gmt)), replies(200, "ok"),
			}}
			begin := time.Now()
			resp, err := newRetrier(t, nil).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
			require.NoError(t, err)
			require.Equal(t, test.attempts, s.attempts(), test.value)
			require.GreaterOrEqual(t, time.Since(begin), test.least, test.value)
			require.LessOrEqual(t, time.Since(begin), test.most, test.value)
			_ = resp.Body.Close()
		})
	}
}

func TestRetryAfterBeyondTheDeadlineReturnsTheResponseAtOnce(t *testing.T) {
	for name, cfg := range map[string]*retry.Config{"the caller's": nil, "the call's": {Timeout: 3 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				if cfg != nil {
					ctx = t.Context()
				}
				defer cancel()
				s := &script{steps: []func(*http.Request) (*http.Response, error){replies(503, "busy", "Retry-After", "4")}}
				begin := time.Now()
				resp, err := newRetrier(t, cfg).Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
				require.NoError(t, err)
				require.Zero(t, time.Since(begin))
				require.Equal(t, 503, resp.StatusCode)
				require.Equal(t, "busy", readAll(t, resp))
			})
		})
	}
}

func TestThrottledAnswersWaitFromAHigherBase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRetrier(t, &retry.Config{MaxAttempts: 2, Budget: unlimited(t)})
		longest := func(status int) (most time.Duration) {
			for range 300 {
				s := &script{steps: []func(*http.Request) (*http.Response, error){replies(status, "x")}}
				begin := time.Now()
				resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
				require.NoError(t, err)
				_ = resp.Body.Close()
				most = max(most, time.Since(begin))
			}
			return most
		}
		plain, throttled := longest(503), longest(429)
		require.LessOrEqual(t, plain, 50*time.Millisecond)
		require.Greater(t, throttled, 800*time.Millisecond)
		require.LessOrEqual(t, throttled, time.Second)
	})
}

func TestPreCancelledRequestIsNotSent(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errBoom)
	b := newBudget(t, &retry.BudgetConfig{Ratio: 10, PerSecond: -1})
	s, _ := answers(200)
	_, err := newRetrier(t, &retry.Config{Budget: b}).Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
	require.Equal(t, errBoom, err)
	require.Zero(t, s.attempts())
	require.Zero(t, b.Balance(time.Time{}))
}

func TestCancelWhileWaitingReturnsAtOnce(t *testing.T) {
	for _, how := range []string{"context", "Request.Cancel"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				errCause := errors.New("enough")
				stop := make(chan struct{})
				time.AfterFunc(300*time.Millisecond, func() {
					if how == "context" {
						cancel(errCause)
					} else {
						close(stop)
					}
				})
				s, bodies := answers(503)
				req := newRequest(t, ctx, "GET", nil)
				req.Cancel = stop //nolint:staticcheck // honoured as long as net/http does
				rec := new(recorder)
				begin := time.Now()
				resp, err := newRetrier(t, &retry.Config{
					Backoff: retry.Backoff{New: constant(time.Second)}, Observer: rec,
				}).Layer(s).RoundTrip(req)
				require.Nil(t, resp)
				require.Equal(t, 300*time.Millisecond, time.Since(begin))
				require.ErrorIs(t, err, outcome.StatusError(503), "what the last attempt ended with")
				if how == "context" {
					require.ErrorIs(t, err, errCause)
				} else {
					require.ErrorIs(t, err, context.Canceled)
				}
				require.EqualValues(t, 1, bodies[0].closes.Load())
				require.Equal(t, []retry.Reason{retry.ReasonCanceled}, rec.reasons())
			})
		})
	}
}

func TestAttemptTimeoutOverHTTPIsTenSecondsByDefaultAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			if n++; n == 1 {
				<-req.Context().Done()
				return nil, context.Cause(req.Context())
			}
			return replies(200, "ok")(req)
		})
		begin := time.Now()
		resp, err := newRetrier(t, eager()).Layer(next).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, 10*time.Second, time.Since(begin))
		time.Sleep(time.Hour)
		require.Equal(t, "ok", readAll(t, resp), "the body is not cut")

		n, begin = 0, time.Now()
		resp, err = newRetrier(t, eager(func(c *retry.Config) { c.AttemptTimeout = -1 })).Layer(next).
			RoundTrip(newRequest(t, withTimeout(t, time.Hour), "GET", nil))
		require.Nil(t, resp)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Hour, time.Since(begin), "negative is none")

		n, begin = 0, time.Now()
		_, err = newRetrier(t, eager(func(c *retry.Config) { c.Timeout = time.Second })).Layer(next).
			RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
		require.Equal(t, time.Second, time.Since(begin))

		s, _ := answers(503)
		s.steps = append(s.steps, func(req *http.Request) (*http.Response, error) { n = 0; return next(req) })
		_, err = newRetrier(t, eager(func(c *retry.Config) { c.Timeout = time.Second })).Layer(s).
			RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
		require.ErrorIs(t, err, outcome.StatusError(503), "and says what had gone wrong before")
	})
}

func withTimeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestLateResponseIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBody("late")
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			time.Sleep(time.Second)
			return response(200, b), nil
		})
		r := newRetrier(t, &retry.Config{MaxAttempts: -1, AttemptTimeout: time.Second})
		resp, err := r.Layer(next).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.Nil(t, resp)
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.EqualValues(t, 1, b.closes.Load())
	})
}

func TestCallTimeoutBoundsTheBodyToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			ctx := req.Context()
			stalled := &body{Reader: readerFunc(func([]byte) (int, error) {
				<-ctx.Done()
				return 0, ctx.Err()
			})}
			return response(200, stalled), nil
		})
		begin := time.Now()
		resp, err := newRetrier(t, &retry.Config{Timeout: time.Second}).Layer(next).
			RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		_, err = io.ReadAll(resp.Body)
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
		require.Equal(t, time.Second, time.Since(begin))
		_ = resp.Body.Close()
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestDerivedContextsAreReleased(t *testing.T) {
	for name, step := range map[string]func(*http.Request) (*http.Response, error){
		"EOF": replies(200, "ok"), "503": replies(503, "no"), "error": fails(errReset), "refused": fails(refusal{}),
	} {
		t.Run(name, func(t *testing.T) {
			p := &parent{Context: t.Context(), done: make(chan struct{})}
			next := roundTripper(func(req *http.Request) (*http.Response, error) {
				req.Context().Done()
				require.Positive(t, p.children)
				return step(req)
			})
			layer := newRetrier(t, eager()).Layer(next)
			for range 1000 {
				resp, err := layer.RoundTrip(newRequest(t, p, "GET", nil))
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				require.Zero(t, p.children)
			}
		})
	}
}

type parent struct {
	context.Context
	done     chan struct{}
	mu       sync.Mutex
	children int
}

func (p *parent) Done() <-chan struct{} { return p.done }
func (p *parent) Value(any) any         { return nil }
func (p *parent) add(n int)             { p.mu.Lock(); p.children += n; p.mu.Unlock() }
func (p *parent) AfterFunc(func()) func() bool {
	p.add(1)
	return sync.OnceValue(func() bool { p.add(-1); return true })
}

func TestTimeoutsNeedNoGoroutinePerCall(t *testing.T) {
	release := make(chan struct{})
	var wg, started sync.WaitGroup
	started.Add(100)
	next := roundTripper(func(req *http.Request) (*http.Response, error) {
		req.Context().Done()
		started.Done()
		<-release
		return replies(200, "ok")(req)
	})
	layer := newRetrier(t, &retry.Config{Timeout: time.Minute}).Layer(next)
	before := runtime.NumGoroutine()
	for range 100 {
		wg.Go(func() {
			resp, err := layer.RoundTrip(newRequest(t, context.Background(), "GET", nil))
			if err == nil {
				_ = resp.Body.Close()
			}
		})
	}
	started.Wait()
	require.LessOrEqual(t, runtime.NumGoroutine(), before+150, "but for what else goes on in the process")
	close(release)
	wg.Wait()
}

// Nor is there another attempt when the caller goes away while we wait for the
// connection of the last one, after the backoff.
func TestCancelWhileTheLastAnswerIsDrainedReturnsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(10*time.Millisecond, func() { cancel(errBoom) })
		stalled, end := io.Pipe()
		s := &script{steps: []step{func(*http.Request) (*http.Response, error) { return response(503, stalled), nil }}}
		rec := new(recorder)
		begin := time.Now()
		_, err := newRetrier(t, eager(func(c *retry.Config) { c.Observer = rec })).Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
		require.Equal(t, 10*time.Millisecond, time.Since(begin))
		require.ErrorIs(t, err, errBoom)
		require.ErrorIs(t, err, outcome.StatusError(503), "what the last attempt ended with")
		require.Equal(t, 1, s.attempts())
		require.Equal(t, []retry.Reason{retry.ReasonCanceled}, rec.reasons())
		_, err = end.Write([]byte("x"))
		require.ErrorIs(t, err, io.ErrClosedPipe, "the answer was closed")
	})
}
