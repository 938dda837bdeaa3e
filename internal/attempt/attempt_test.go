package attempt_test

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/outcome"
)

var errBoom = errors.New("boom")

func start(ctx context.Context, l attempt.Limits) *attempt.Attempt {
	a := new(attempt.Attempt)
	a.Start(ctx, time.Time{}, &l)
	return a
}

type startFunc func(context.Context, attempt.Limits) *attempt.Attempt

// kinds runs a test with either kind of context.
func kinds(t *testing.T, test func(*testing.T, startFunc)) {
	t.Helper()
	t.Run("for anybody", func(t *testing.T) { test(t, start) })
	t.Run("for an http.Transport", func(t *testing.T) {
		test(t, func(ctx context.Context, l attempt.Limits) *attempt.Attempt {
			a := start(ctx, l)
			a.Direct()
			return a
		})
	})
}

// requireTimeout checks that err is our timeout of that kind and length.
func requireTimeout(t *testing.T, err, kind error, after time.Duration) {
	t.Helper()
	var timeout *outcome.TimeoutError
	require.ErrorAs(t, err, &timeout)
	require.ErrorIs(t, err, kind)
	require.Equal(t, after, timeout.After)
}

func TestWithoutLimitsTheContextIsTheCallersOwn(t *testing.T) {
	ctx := context.WithValue(t.Context(), new(int), 1)
	a := start(ctx, attempt.Limits{})
	require.Equal(t, ctx, a.Context())
	body := io.NopCloser(strings.NewReader("x"))
	require.Equal(t, body, a.Wrap(body, nil))
}

func TestAttemptTimeoutEndsTheContextWithItsCause(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			a := start(t.Context(), attempt.Limits{Attempt: time.Second})
			defer a.End()
			ctx := a.Context()
			require.NoError(t, ctx.Err())
			<-ctx.Done()
			require.Equal(t, time.Second, time.Since(begin))
			require.ErrorIs(t, ctx.Err(), context.Canceled)
			requireTimeout(t, context.Cause(ctx), outcome.ErrAttemptTimeout, time.Second)
			requireTimeout(t, a.Error(errBoom), outcome.ErrAttemptTimeout, time.Second)
			require.NoError(t, a.Error(nil))
			requireTimeout(t, a.Headers(), outcome.ErrAttemptTimeout, time.Second)
		})
	})
}

func TestCallDeadlineNearerThanTheAttemptTimeoutIsNamed(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		for _, test := range []struct {
			name  string
			call  time.Duration
			after time.Duration
		}{
			{"with the call's timeout given", 5 * time.Second, 5 * time.Second},
			{"without, what was left", 0, 300 * time.Millisecond},
		} {
			t.Run(test.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					begin := time.Now()
					a := start(t.Context(), attempt.Limits{
						Attempt: time.Second, Call: test.call, Deadline: begin.Add(300 * time.Millisecond),
					})
					defer a.End()
					<-a.Context().Done()
					require.Equal(t, 300*time.Millisecond, time.Since(begin))
					requireTimeout(t, a.Error(context.Canceled), outcome.ErrCallTimeout, test.after)
				})
			})
		}
	})
}

func TestContextThatNobodyWaitsForComparesTheClock(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			a := start(t.Context(), attempt.Limits{Attempt: time.Second})
			ctx := a.Context()
			time.Sleep(time.Second - 1)
			require.NoError(t, ctx.Err())
			time.Sleep(1)
			require.ErrorIs(t, ctx.Err(), context.Canceled)
			requireTimeout(t, context.Cause(ctx), outcome.ErrAttemptTimeout, time.Second)
			<-ctx.Done()
			a.End()
			requireTimeout(t, context.Cause(ctx), outcome.ErrAttemptTimeout, time.Second)
		})
	})
}

func TestContextReportsTheCallersDeadlineNotOurs(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			l := attempt.Limits{Attempt: time.Second, Deadline: time.Now().Add(2 * time.Second)}
			a := start(t.Context(), l)
			_, ok := a.Context().Deadline()
			require.False(t, ok)

			parent, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			a = start(parent, l)
			defer a.End()
			want, _ := parent.Deadline()
			got, ok := a.Context().Deadline()
			require.True(t, ok)
			require.Equal(t, want, got)
			child, cancelChild := context.WithCancel(a.Context())
			defer cancelChild()
			got, _ = child.Deadline()
			require.Equal(t, want, got)
		})
	})
}

// The caller's own deadline is not our timeout, even if it clips the attempt.
func TestCallersEndIsPassedOnAsItIs(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			parent, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			a := start(parent, attempt.Limits{Attempt: time.Second})
			defer a.End()
			ctx := a.Context()
			<-ctx.Done()
			time.Sleep(time.Minute)
			require.Equal(t, context.DeadlineExceeded, ctx.Err())
			require.Equal(t, errBoom, a.Error(errBoom))

			parent2, cancel2 := context.WithCancelCause(t.Context())
			a2 := start(parent2, attempt.Limits{Attempt: time.Second})
			defer a2.End()
			cancel2(errBoom)
			require.Equal(t, context.Canceled, a2.Context().Err())
			require.Equal(t, errBoom, context.Cause(a2.Context()))
			time.Sleep(time.Minute)
			require.Equal(t, errBoom, a2.Error(errBoom))
		})
	})
}

func TestRestartBeginsTheTimeoutAnew(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			a := start(t.Context(), attempt.Limits{Attempt: time.Second})
			defer a.End()
			done := a.Context().Done()
			time.Sleep(900 * time.Millisecond)
			a.Restart(time.Time{})
			<-done
			require.Equal(t, 1900*time.Millisecond, time.Since(begin))
		})
	})
}

func TestHeadersEndTheAttemptTimeoutButNotTheCalls(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			a := start(t.Context(), attempt.Limits{Attempt: time.Second, Deadline: begin.Add(time.Minute)})
			defer a.End()
			done := a.Context().Done()
			time.Sleep(900 * time.Millisecond)
			require.NoError(t, a.Headers())
			<-done
			require.Equal(t, time.Minute, time.Since(begin))

			a = start(t.Context(), attempt.Limits{Attempt: time.Second})
			ctx := a.Context()
			done = ctx.Done()
			require.NoError(t, a.Headers())
			time.Sleep(time.Hour)
			require.NoError(t, ctx.Err())
			a.End()
			<-done
		})
	})
}

func TestEndReleasesOnceAndForGood(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			for _, waited := range []bool{false, true} {
				a := start(t.Context(), attempt.Limits{Attempt: time.Second})
				ctx := a.Context()
				if waited {
					ctx.Done()
				}
				a.End()
				a.End()
				require.Equal(t, context.Canceled, ctx.Err())
				<-ctx.Done()
				time.Sleep(time.Minute)
				require.Equal(t, context.Canceled, context.Cause(ctx))
				require.Equal(t, errBoom, a.Error(errBoom), "an attempt that was over cannot time out")
			}
		})
	})
}

// parent counts what hangs on it; package context registers with it by
// AfterFunc, as with any context that is not its own.
type parent struct {
	context.Context
	done     chan struct{}
	children atomic.Int64
}

func (p *parent) Done() <-chan struct{} { return p.done }
func (p *parent) Value(any) any         { return nil }
func (p *parent) AfterFunc(func()) func() bool {
	p.children.Add(1)
	var once sync.Once
	return func() (stopped bool) {
		once.Do(func() { p.children.Add(-1); stopped = true })
		return stopped
	}
}

func TestDerivedContextsAreReleasedFromALongLivedParent(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		ends := map[string]func(a *attempt.Attempt){
			"error": func(a *attempt.Attempt) { a.End() },
			"EOF": func(a *attempt.Attempt) {
				_, err := io.ReadAll(a.Wrap(io.NopCloser(strings.NewReader("x")), nil))
				require.NoError(t, err)
			},
			"close": func(a *attempt.Attempt) {
				require.NoError(t, a.Wrap(io.NopCloser(strings.NewReader("x")), nil).Close())
			},
			"no body": func(a *attempt.Attempt) { a.Wrap(nil, nil) },
			"panic": func(a *attempt.Attempt) {
				defer func() { require.NotNil(t, recover()) }()
				defer a.End()
				panic("transport")
			},
			"goexit": func(a *attempt.Attempt) {
				done := make(chan struct{})
				go func() {
					defer close(done)
					defer a.End()
					runtime.Goexit()
				}()
				<-done
			},
		}
		for name, end := range ends {
			t.Run(name, func(t *testing.T) {
				p := &parent{Context: context.Background(), done: make(chan struct{})}
				for range 1000 {
					a := start(p, attempt.Limits{Attempt: time.Hour})
					a.Context().Done()
					require.EqualValues(t, 1, p.children.Load())
					end(a)
					require.Zero(t, p.children.Load())
				}
			})
		}
	})
}

func TestChildrenNeedNoGoroutine(t *testing.T) {
	a := start(t.Context(), attempt.Limits{Attempt: time.Hour})
	ctx := a.Context()
	before := runtime.NumGoroutine()
	children := make([]context.Context, 1000)
	for i := range children {
		child, cancel := context.WithCancel(context.WithValue(ctx, new(int), i))
		defer cancel()
		children[i] = child
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before+10, "but for what else goes on in the process")
	a.End()
	for _, child := range children {
		require.Equal(t, context.Canceled, child.Err(), "ended at once, not by a goroutine some time later")
	}
}

func TestChildrenSeeTheTimeoutAsTheirCause(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			a := start(t.Context(), attempt.Limits{Attempt: time.Second})
			defer a.End()
			child, cancel := context.WithTimeout(a.Context(), time.Minute)
			defer cancel()
			<-child.Done()
			requireTimeout(t, context.Cause(child), outcome.ErrAttemptTimeout, time.Second)
		})
	})
}

func TestValuesAreTheCallers(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		key := new(int)
		a := start(context.WithValue(t.Context(), key, "v"), attempt.Limits{Attempt: time.Hour})
		defer a.End()
		require.Equal(t, "v", a.Context().Value(key))
		a.Context().Done()
		require.Equal(t, "v", a.Context().Value(key))
	})
}

func TestUnwatchedAttemptIsOneAllocation(t *testing.T) {
	ctx := t.Context()
	body := &plainBody{}
	end := new(ends)
	require.EqualValues(t, 1, testing.AllocsPerRun(100, func() {
		a := new(attempt.Attempt)
		a.Start(ctx, time.Time{}, &attempt.Limits{Attempt: time.Hour, Deadline: time.Now().Add(time.Hour)})
		ctx := a.Context()

		if ctx.Err() != nil || a.Headers() != nil {
			panic("over")
		}
		down := a.Wrap(body, end)
		_, _ = down.Read(nil)
		_ = down.Close()
	}))
}

// plainBody is a body at its end, without a WriterTo or a buffer.
type plainBody struct{}

func (*plainBody) Read([]byte) (int, error) { return 0, io.EOF }
func (*plainBody) Close() error             { return nil }

// ends counts the ends of bodies.
type ends struct {
	mu   sync.Mutex
	errs []error
}

func (e *ends) Ended(err error) {
	e.mu.Lock()
	e.errs = append(e.errs[:0:cap(e.errs)], append(e.errs, err)...)
	e.mu.Unlock()
}

func (e *ends) all() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.errs
}

func BenchmarkAttempt(b *testing.B) {
	run := func(b *testing.B, watched bool) {
		b.ReportAllocs()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		body := &plainBody{}
		for b.Loop() {
			a := new(attempt.Attempt)
			a.Start(ctx, time.Time{}, &attempt.Limits{Attempt: time.Hour})
			if watched {
				a.Context().Done()
			}
			_ = a.Headers()
			_, _ = a.Wrap(body, nil).Read(nil)
		}
	}
	b.Run("nobody waits", func(b *testing.B) { run(b, false) })
	b.Run("done channel used", func(b *testing.B) { run(b, true) })
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		body := &plainBody{}
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				a := new(attempt.Attempt)
				a.Start(context.Background(), time.Time{}, &attempt.Limits{Attempt: time.Hour})
				_ = a.Headers()
				_, _ = a.Wrap(body, nil).Read(nil)
			}
		})
	})
}
