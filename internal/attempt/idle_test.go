package attempt_test

import (
	"context"
	"io"
	"math"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/attempt"
	"github.com/backstay/backstay/outcome"
)

// dripping is a body whose bytes come when they are due, unless its context ends.
type dripping struct {
	ctx   context.Context
	waits []time.Duration // before each byte; then comes the end
}

func (d *dripping) Read(p []byte) (int, error) {
	if len(d.waits) == 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(d.waits[0]):
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
	d.waits = d.waits[1:]
	p[0] = 'x'
	return 1, nil
}

func (d *dripping) Close() error { return nil }

// drip reads a body of an attempt with the limits, pausing after each byte.
func drip(t *testing.T, l attempt.Limits, pause time.Duration, waits ...time.Duration) (string, *ends, error) {
	t.Helper()
	a, end := start(t.Context(), l), new(ends)
	ctx := a.Context()
	ctx.Done() // as a transport does
	require.NoError(t, a.Headers())
	body := a.Wrap(&dripping{ctx: ctx, waits: waits}, end)
	var text []byte
	p := make([]byte, 8)
	for {
		n, err := body.Read(p)
		text = append(text, p[:n]...)
		if err == io.EOF {
			err = nil
		} else if err == nil {
			time.Sleep(pause) // in a bubble
			continue
		}
		_ = body.Close()
		return string(text), end, err
	}
}

func TestBodyThatStopsComingEndsAfterTheIdleTimeout(t *testing.T) {
	for name, l := range map[string]attempt.Limits{
		"alone":                    {BodyIdle: time.Second},
		"with an attempt timeout":  {BodyIdle: time.Second, Attempt: time.Minute},
		"with a call's deadline":   {BodyIdle: time.Second, Deadline: time.Now().AddDate(100, 0, 0)},
		"shorter attempt timeouts": {BodyIdle: time.Second, Attempt: time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				text, end, err := drip(t, l, 0, 900*time.Millisecond, 900*time.Millisecond, time.Hour)
				require.Equal(t, "xx", text)
				requireTimeout(t, err, outcome.ErrBodyIdle, time.Second)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Equal(t, 2800*time.Millisecond, time.Since(begin))
				require.Equal(t, []error{err}, end.all())
			})
		})
	}
}

func TestBodyThatKeepsComingIsNotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		waits := make([]time.Duration, 1000)
		for i := range waits {
			waits[i] = 999 * time.Millisecond
		}
		text, _, err := drip(t, attempt.Limits{BodyIdle: time.Second}, 0, waits...)
		require.NoError(t, err)
		require.Len(t, text, 1000)
	})
}

func TestIdleTimeoutCountsOnlyWhileSomebodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text, _, err := drip(t, attempt.Limits{BodyIdle: time.Second}, time.Minute, 900*time.Millisecond, 0, 900*time.Millisecond)
		require.NoError(t, err)
		require.Equal(t, "xxx", text)

		_, _, err = drip(t, attempt.Limits{BodyIdle: time.Second}, 61500*time.Millisecond, 0, time.Hour)
		requireTimeout(t, err, outcome.ErrBodyIdle, time.Second)
	})
}

func TestCallsDeadlineNearerThanTheIdleTimeoutIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, err := drip(t, attempt.Limits{BodyIdle: time.Second, Call: 100 * time.Millisecond, Deadline: time.Now().Add(100 * time.Millisecond)},
			0, time.Hour)
		requireTimeout(t, err, outcome.ErrCallTimeout, 100*time.Millisecond)
	})
}

// A server that sees us go may end its body as if it were whole, and the end be
// here before the transport has closed the connection.
func TestBodyIsNotWholeIfItEndsBecauseOurBoundHasPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, end := start(t.Context(), attempt.Limits{BodyIdle: time.Second}), new(ends)
		ctx := a.Context()
		ctx.Done() // as a transport does
		require.NoError(t, a.Headers())
		body := a.Wrap(io.NopCloser(readFunc(func([]byte) (int, error) {
			<-ctx.Done()
			return 0, io.EOF
		})), end)
		_, err := io.ReadAll(body)
		requireTimeout(t, err, outcome.ErrBodyIdle, time.Second)
		require.Equal(t, []error{err}, end.all())
	})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestIdleTimeoutOverHTTP(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	overHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begun")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-stop:
		}
	}, func(t *testing.T, client *http.Client, l *layer, url string) {
		l.limits = func() attempt.Limits { return attempt.Limits{BodyIdle: time.Second} } // a busy machine needs some of it
		resp, err := client.Get(url)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.Equal(t, "begun", string(text))
		requireTimeout(t, err, outcome.ErrBodyIdle, time.Second)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, []error{err}, l.ends.all())
	})
}

func TestIdleTimeoutAllocatesNothingOfItsOwn(t *testing.T) {
	body := &dripping{}
	run := func(l attempt.Limits) float64 {
		return testing.AllocsPerRun(100, func() {
			a := new(attempt.Attempt)
			a.Start(context.Background(), time.Time{}, &l)
			_ = a.Context().Done()
			_ = a.Headers()
			_, _ = a.Wrap(body, nil).Read(nil)
		})
	}
	require.Equal(t, run(attempt.Limits{Attempt: time.Hour}), run(attempt.Limits{Attempt: time.Hour, BodyIdle: time.Hour}))
}

func TestLeftIsTheNearestOfOurBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		require.Equal(t, time.Duration(math.MaxInt64), attempt.Left(t.Context()))
		a := start(t.Context(), attempt.Limits{Attempt: 2 * time.Second, Deadline: time.Now().Add(3 * time.Second)})
		defer a.End()
		child, cancel := context.WithCancel(a.Context())
		defer cancel()
		time.Sleep(time.Second) // in the bubble
		require.Equal(t, time.Second, attempt.Left(a.Context()))
		require.Equal(t, time.Second, attempt.Left(child))
		require.NoError(t, a.Headers())
		require.Equal(t, 2*time.Second, attempt.Left(child))
	})
}
