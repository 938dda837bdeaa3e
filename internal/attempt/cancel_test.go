package attempt_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/attempt"
)

func TestCancelEndsTheContextWithItsCauseWheneverItComes(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		synctest.Test(t, func(t *testing.T) {
			for _, l := range []attempt.Limits{{}, {Attempt: time.Minute}} {
				for _, derived := range []bool{false, true} {
					a := start(t.Context(), l)
					a.Cancelable()
					ctx := a.Context()
					if derived {
						ctx.Done()
					}
					require.NoError(t, ctx.Err())
					a.Cancel(errBoom)
					a.Cancel(context.Canceled)
					<-ctx.Done()
					require.Equal(t, context.Canceled, ctx.Err())
					require.Equal(t, errBoom, context.Cause(ctx))
					require.Equal(t, errBoom, a.Error(errBoom), "it is no timeout")
					a.End()
					require.Equal(t, errBoom, context.Cause(ctx))
				}
			}
		})
	})
}

func TestCancelOfAnAttemptThatIsOverChangesNothing(t *testing.T) {
	kinds(t, func(t *testing.T, start startFunc) {
		a := start(t.Context(), attempt.Limits{})
		a.Cancelable()
		ctx := a.Context()
		done := ctx.Done()
		a.End()
		<-done
		a.Cancel(errBoom)
		require.Equal(t, context.Canceled, context.Cause(ctx))
	})
}
