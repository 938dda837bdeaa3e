package discovery

import (
	"context"
	"errors"
	"iter"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// Whoever follows a source may notice the end before the source's context does.
func TestSourcesHearTheCauseOfTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errOver := errors.New("over")
		var heard error
		source := ResolverFunc(func(ctx context.Context, _ string) iter.Seq2[Set, error] {
			return func(func(Set, error) bool) {
				<-ctx.Done()
				heard = context.Cause(ctx)
			}
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := &late{ctx} // which tells of its end to nobody but those who ask
		w := follow(ended, "orders", 1, 1, source)
		synctest.Wait()
		cancel(errOver)
		w.stop()
		require.Equal(t, errOver, heard)
	})
}

// late is a context that contexts made of it do not hear of.
type late struct{ context.Context }

func (*late) Done() <-chan struct{} { return nil }
