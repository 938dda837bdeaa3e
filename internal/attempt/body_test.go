package attempt_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/outcome"
)

// scripted is a body whose Read and Close are functions.
type scripted struct {
	read  func(p []byte) (int, error)
	close func() error
}

func (s *scripted) Read(p []byte) (int, error) { return s.read(p) }
func (s *scripted) Close() error {
	if s.close == nil {
		return nil
	}
	return s.close()
}

func TestUploadInProgressRearmsTheAttemptTimeout(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			a := start(t.Context(), attempt.Limits{Attempt: time.Second})
			defer a.End()
			up := a.Body(io.NopCloser(strings.NewReader(strings.Repeat("x", 10))))
			ctx := a.Context()
			done := ctx.Done()
			for range 10 {
				time.Sleep(900 * time.Millisecond) // a slow peer takes a byte at a time
				_, err := up.Read(make([]byte, 1))
				require.NoError(t, err)
				require.NoError(t, ctx.Err())
			}
			<-done
			require.Equal(t, 10*time.Second, time.Since(begin), "the timeout runs from the last byte read")
		})
	})
}

func TestPeerThatTakesNothingOfTheUploadTimesOut(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			a := start(t.Context(), attempt.Limits{Attempt: time.Second})
			defer a.End()
			a.Body(io.NopCloser(strings.NewReader("x")))
			<-a.Context().Done()
			require.Equal(t, time.Second, time.Since(begin))
		})
	})
}

// While the caller's own reader blocks, it is not the peer that is slow.
func TestSlowBodyOfTheCallerDoesNotTimeOut(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			a := start(t.Context(), attempt.Limits{Attempt: time.Second})
			defer a.End()
			ctx := a.Context()
			ctx.Done()
			up := a.Body(&scripted{read: func([]byte) (int, error) {
				time.Sleep(time.Minute)
				return 0, io.EOF
			}})
			_, _ = up.Read(nil)
			require.NoError(t, ctx.Err())
			begin := time.Now()
			<-ctx.Done()
			require.LessOrEqual(t, time.Since(begin), time.Second)
			requireTimeout(t, a.Error(errBoom), outcome.ErrAttemptTimeout, time.Second)
		})
	})
}

func TestCallDeadlineDoesNotWaitForTheCallersBody(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			a := start(t.Context(), attempt.Limits{Attempt: time.Hour, Deadline: begin.Add(time.Second)})
			defer a.End()
			up := a.Body(&scripted{read: func([]byte) (int, error) {
				time.Sleep(time.Minute)
				return 0, io.EOF
			}})
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = up.Read(nil) })
			<-a.Context().Done()
			require.Equal(t, time.Second, time.Since(begin))
			wg.Wait()
		})
	})
}

func TestErrorOfTheCallersBodyIsNamed(t *testing.T) {
	failing := func(err error) io.ReadCloser {
		return &scripted{read: func([]byte) (int, error) { return 0, err }}
	}
	t.Run("in place of the transport's", func(t *testing.T) {
		a := start(t.Context(), attempt.Limits{})
		_, _ = a.Body(failing(errBoom)).Read(nil)
		err := a.Error(errors.New("net/http: something else"))
		var body *outcome.BodyError
		require.ErrorAs(t, err, &body)
		require.ErrorIs(t, err, errBoom)
		require.Equal(t, outcome.Neutral, outcome.Of(err).Class)
		require.NoError(t, a.Error(nil), "an answer is an answer")
	})
	t.Run("one that was named before is kept", func(t *testing.T) {
		a := start(t.Context(), attempt.Limits{})
		_, _ = a.Body(failing(errBoom)).Read(nil)
		inner := fmt.Errorf("layer: %w", &outcome.BodyError{Err: errBoom})
		require.Equal(t, inner, a.Error(inner))
	})
	t.Run("its end is none", func(t *testing.T) {
		a := start(t.Context(), attempt.Limits{})
		_, _ = a.Body(failing(io.EOF)).Read(nil)
		require.Equal(t, errBoom, a.Error(errBoom))
	})
	t.Run("nor is what the transport brought about by closing it", func(t *testing.T) {
		a := start(t.Context(), attempt.Limits{})
		up := a.Body(failing(io.ErrClosedPipe))
		_ = up.Close()
		_, _ = up.Read(nil)
		require.Equal(t, errBoom, a.Error(errBoom))
	})
	t.Run("nor one after the attempt", func(t *testing.T) {
		a := start(t.Context(), attempt.Limits{})
		up := a.Body(failing(errBoom))
		a.End()
		_, _ = up.Read(nil)
		require.Equal(t, io.ErrUnexpectedEOF, a.Error(io.ErrUnexpectedEOF))
	})
}

func TestRequestIsCopiedAndItsBodiesAreWatched(t *testing.T) {
	closed := 0
	body := func() io.ReadCloser {
		return &scripted{
			read:  func([]byte) (int, error) { return 0, errBoom },
			close: func() error { closed++; return nil },
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://x/", body())
	require.NoError(t, err)
	req.GetBody = func() (io.ReadCloser, error) { return body(), nil }
	was := *req

	a := start(req.Context(), attempt.Limits{Attempt: time.Hour})
	defer a.End()
	r := a.Request(new(http.Request), req)
	require.Equal(t, was.Body, req.Body)
	require.Equal(t, was.Context(), req.Context())
	require.NotSame(t, req, r)
	require.Equal(t, a.Context(), r.Context())
	again, err := r.GetBody()
	require.NoError(t, err)
	require.NotSame(t, r.Body, again)
	require.NoError(t, r.Body.Close())
	_, _ = again.Read(nil)
	require.ErrorIs(t, a.Error(io.ErrUnexpectedEOF), errBoom, "the second body is watched like the first")
	require.NoError(t, again.Close())
	require.Equal(t, 2, closed)

	req.GetBody = func() (io.ReadCloser, error) { return nil, errBoom }
	_, err = a.Request(new(http.Request), req).GetBody()
	require.ErrorIs(t, err, errBoom)

	for _, none := range []io.ReadCloser{nil, http.NoBody} {
		req.Body = none
		require.Equal(t, none, a.Request(new(http.Request), req).Body)
	}
}

func TestBodyEndsExactlyOnce(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		limits := attempt.Limits{Attempt: time.Hour}
		t.Run("at EOF", func(t *testing.T) {
			a, e := start(t.Context(), limits), new(ends)
			down := a.Wrap(io.NopCloser(strings.NewReader("hello")), e)
			text, err := io.ReadAll(down)
			require.NoError(t, err)
			require.Equal(t, "hello", string(text))
			_, err = down.Read(nil)
			require.Equal(t, io.EOF, err)
			require.NoError(t, down.Close())
			require.NoError(t, down.Close())
			require.Equal(t, []error{nil}, e.all())
			require.Error(t, a.Context().Err())
		})
		t.Run("at Close", func(t *testing.T) {
			a, e := start(t.Context(), limits), new(ends)
			live := false
			down := a.Wrap(&scripted{
				read:  func([]byte) (int, error) { return 0, errBoom },
				close: func() error { live = a.Context().Err() == nil; return errBoom },
			}, e)
			require.ErrorIs(t, down.Close(), errBoom)
			require.True(t, live, "the context outlives the transport's Close")
			_, err := down.Read(nil)
			require.ErrorIs(t, err, errBoom)
			require.Equal(t, []error{attempt.ErrClosed}, e.all())
			require.Error(t, a.Context().Err())
		})
		t.Run("at an error", func(t *testing.T) {
			a, e := start(t.Context(), limits), new(ends)
			down := a.Wrap(&scripted{read: func([]byte) (int, error) { return 3, io.ErrUnexpectedEOF }}, e)
			n, err := down.Read(nil)
			require.Equal(t, 3, n)
			require.Equal(t, io.ErrUnexpectedEOF, err)
			require.NoError(t, down.Close())
			require.Equal(t, []error{io.ErrUnexpectedEOF}, e.all())
		})
		t.Run("at once without a body", func(t *testing.T) {
			for _, none := range []io.ReadCloser{nil, http.NoBody} {
				a, e := start(t.Context(), limits), new(ends)
				require.Equal(t, none, a.Wrap(none, e))
				require.Equal(t, []error{nil}, e.all())
				require.Error(t, a.Context().Err())
			}
		})
		t.Run("at a panic of the body's Close", func(t *testing.T) {
			a, e := start(t.Context(), limits), new(ends)
			down := a.Wrap(&scripted{close: func() error { panic("close") }}, e)
			require.Panics(t, func() { _ = down.Close() })
			require.Equal(t, []error{attempt.ErrClosed}, e.all())
			require.Error(t, a.Context().Err())
		})
	})
}

func TestCloseUnderABlockedReadIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, e := start(t.Context(), attempt.Limits{Attempt: time.Hour}), new(ends)
		closing := make(chan struct{})
		down := a.Wrap(&scripted{
			read: func([]byte) (int, error) {
				<-closing
				return 0, io.ErrClosedPipe
			},
			close: func() error {
				close(closing)
				synctest.Wait() // the Read has returned before Close does
				return nil
			},
		}, e)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := down.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.ErrClosedPipe)
		})
		synctest.Wait()
		require.NoError(t, down.Close())
		wg.Wait()
		require.Equal(t, []error{attempt.ErrClosed}, e.all())
	})
}

func TestBodyCutByTheCallDeadlineReadsAsTheTimeout(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			a, e := start(t.Context(), attempt.Limits{Call: time.Second, Deadline: time.Now().Add(time.Second)}), new(ends)
			ctx := a.Context()
			down := a.Wrap(&scripted{read: func([]byte) (int, error) {
				<-ctx.Done()
				return 0, ctx.Err()
			}}, e)
			_, err := down.Read(nil)
			requireTimeout(t, err, outcome.ErrCallTimeout, time.Second)
			require.Equal(t, []error{err}, e.all())
			require.NotErrorIs(t, err, context.Canceled)
		})
	})
}

// conn is what net/http hands out as the body of a 101 response.
type conn struct {
	scripted
	written strings.Builder
	half    bool
}

func (c *conn) Write(p []byte) (int, error) { return c.written.Write(p) }

type halfConn struct{ *conn }

func (c halfConn) CloseWrite() error { c.half = true; return nil }

func TestUpgradedBodyStaysWritableAndIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := new(conn)
		a, e := start(t.Context(), attempt.Limits{Attempt: time.Second, Deadline: time.Now().Add(time.Second)}), new(ends)
		ctx := a.Context()
		ctx.Done()
		require.NoError(t, a.Headers())
		body := a.Wrap(c, e)
		w, ok := body.(io.Writer)
		require.True(t, ok)
		time.Sleep(time.Hour)
		require.NoError(t, ctx.Err())
		_, err := w.Write([]byte("ping"))
		require.NoError(t, err)
		require.Equal(t, "ping", c.written.String())
		require.ErrorIs(t, body.(interface{ CloseWrite() error }).CloseWrite(), http.ErrNotSupported)
		require.NoError(t, body.Close())
		require.Error(t, ctx.Err())
		require.Equal(t, []error{attempt.ErrClosed}, e.all())

		a = start(t.Context(), attempt.Limits{Attempt: time.Second, Deadline: time.Now().Add(time.Second)})
		a.Wrap(new(conn), e)
		time.Sleep(time.Hour)
		require.NoError(t, a.Context().Err(), "nor where nobody has waited yet")
		a.End()

		h := halfConn{new(conn)}
		body = start(t.Context(), attempt.Limits{}).Wrap(h, e)
		require.NoError(t, body.(interface{ CloseWrite() error }).CloseWrite())
		require.True(t, h.half)

		_, ok = start(t.Context(), attempt.Limits{}).Wrap(&plainBody{}, e).(io.Writer)
		require.False(t, ok, "what cannot be written to must not seem so")
	})
}

// Everything that may be called at the same time is, around the very moment of
// the timeout.
func TestAttemptIsSafeUnderConcurrentUse(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		for range 200 {
			a, e := start(t.Context(), attempt.Limits{Attempt: 50 * time.Microsecond}), new(ends)
			ctx, up := a.Context(), a.Body(&plainBody{})
			var wg sync.WaitGroup
			wg.Go(func() { <-ctx.Done() })
			wg.Go(func() { _ = ctx.Err(); _ = context.Cause(ctx) })
			wg.Go(func() { _, _ = up.Read(nil); _ = up.Close() })
			wg.Go(func() {
				child, cancel := context.WithCancel(ctx)
				defer cancel()
				<-child.Done()
			})
			_ = a.Headers()
			down := a.Wrap(&scripted{read: func([]byte) (int, error) { return 0, errBoom }}, e)
			wg.Go(func() { _, _ = down.Read(nil) })
			wg.Go(func() { _ = down.Close() })
			wg.Wait()
			require.Len(t, e.all(), 1)
		}
	})
}

// Whoever asks for what is left without having waited for the end has made no context.
func TestConnectionMayBeTakenOverWhileSomebodyAsksWhatIsLeft(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		for range 100 {
			a := start(t.Context(), attempt.Limits{Attempt: time.Hour})
			ctx := a.Context()
			var wg sync.WaitGroup
			wg.Go(func() { _ = attempt.Left(ctx); _ = ctx.Err() })
			require.NoError(t, a.Headers())
			body := a.Wrap(new(conn), nil)
			wg.Wait()
			require.NoError(t, body.Close())
		}
	})
}
