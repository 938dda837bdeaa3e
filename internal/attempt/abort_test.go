package attempt_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/outcome"
)

// aborted is an attempt that counts how often it was aborted.
type aborted struct {
	attempt.Attempt
	ends
	seat  *attempt.Seat
	times int
	now   chan struct{}
}

func (a *aborted) Seat() *attempt.Seat { return a.seat }

func (a *aborted) Abort() { a.times++; close(a.now) }

func abortable(ctx context.Context, l attempt.Limits) *aborted {
	a := &aborted{now: make(chan struct{})}
	a.Start(ctx, time.Time{}, &l)
	a.Abortable(a)
	return a
}

func TestAbortableAttemptHasTheCallersContextAndIsAbortedAtItsBound(t *testing.T) {
	for _, watch := range []*attempt.Watch{nil, new(attempt.Watch)} {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			a := abortable(t.Context(), attempt.Limits{Attempt: time.Second, Watch: watch})
			require.Equal(t, t.Context(), a.Context())
			<-a.now
			require.Equal(t, time.Second, time.Since(begin))
			require.NoError(t, a.Context().Err())
			requireTimeout(t, a.Headers(), outcome.ErrAttemptTimeout, time.Second)
			requireTimeout(t, a.Error(errBoom), outcome.ErrAttemptTimeout, time.Second)
			a.End()
			time.Sleep(time.Hour)
			require.Equal(t, 1, a.times)
		})
	}
}

func TestAbortableAttemptThatIsOverIsNotAborted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w attempt.Watch
		over := abortable(t.Context(), attempt.Limits{Attempt: time.Second, Watch: &w})
		over.End()
		answered := abortable(t.Context(), attempt.Limits{Attempt: time.Second, Watch: &w})
		require.NoError(t, answered.Headers())
		unbounded := abortable(t.Context(), attempt.Limits{Watch: &w})
		time.Sleep(time.Hour)
		for _, a := range []*aborted{over, answered, unbounded} {
			require.Equal(t, errBoom, a.Error(errBoom))
			require.Zero(t, a.times)
			a.End()
		}
	})
}

func TestAbortableBodyIsCutByTheLaterBounds(t *testing.T) {
	for name, test := range map[string]struct {
		limits attempt.Limits
		kind   error
	}{
		"call's deadline": {attempt.Limits{Attempt: time.Second, Deadline: time.Now().Add(time.Minute), Call: time.Minute}, outcome.ErrCallTimeout},
		"idle":            {attempt.Limits{Attempt: time.Second, BodyIdle: time.Minute}, outcome.ErrBodyIdle},
		"idle alone":      {attempt.Limits{BodyIdle: time.Minute}, outcome.ErrBodyIdle},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := test.limits
				if !l.Deadline.IsZero() {
					l.Deadline = time.Now().Add(time.Minute)
				}
				a := abortable(t.Context(), l)
				require.NoError(t, a.Headers())
				pr, pw := io.Pipe()
				go func() {
					<-a.now // as a transport does
					_ = pw.CloseWithError(errBoom)
				}()
				begin := time.Now()
				body := a.Wrap(pr, a)
				_, err := io.ReadAll(body)
				require.InDelta(t, time.Minute, time.Since(begin), 1)
				requireTimeout(t, err, test.kind, time.Minute)
				require.Len(t, a.all(), 1)
				require.Equal(t, 1, a.times)
			})
		})
	}
	a := abortable(t.Context(), attempt.Limits{Attempt: time.Hour})
	require.NoError(t, a.Headers())
	text, err := io.ReadAll(a.Wrap(io.NopCloser(strings.NewReader("x")), a))
	require.NoError(t, err)
	require.Equal(t, "x", string(text))
	require.Equal(t, []error{nil}, a.all())
}
