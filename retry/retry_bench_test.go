package retry_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/retry"
)

// noop is a transport that answers at once, without an allocation. Its response
// is shared, so it is only for callers that wrap the body anew each time.
type noop struct{ resp http.Response }

func newNoop() *noop {
	return &noop{http.Response{StatusCode: 200, Header: http.Header{}, Body: ended{}}}
}

func (n *noop) RoundTrip(*http.Request) (*http.Response, error) {
	n.resp.Body = ended{}
	return &n.resp, nil
}

// ended is a body at its end.
type ended struct{}

func (ended) Read([]byte) (int, error) { return 0, io.EOF }
func (ended) Close() error             { return nil }

func roundTrip(layer http.RoundTripper, req *http.Request) {
	resp, err := layer.RoundTrip(req)
	if err != nil {
		panic(err)
	}
	_, _ = resp.Body.Read(nil)
	_ = resp.Body.Close()
}

func TestSuccessAllocatesNoMoreThanPromised(t *testing.T) {
	ctx := t.Context()
	fn := func(context.Context) (int, error) { return 1, nil }
	r := newRetrier(t, nil)
	require.Zero(t, testing.AllocsPerRun(1000, func() { _, _ = retry.Do(ctx, r, fn) }), "Do without timeouts")
	run := func(context.Context) error { return nil }
	require.Zero(t, testing.AllocsPerRun(1000, func() { _ = r.Run(ctx, run) }), "Run without timeouts")
	bounded := newRetrier(t, &retry.Config{AttemptTimeout: time.Second, Timeout: time.Minute})
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { _, _ = retry.Do(ctx, bounded, fn) }), 1.0, "Do with timeouts")

	push := func(do func(context.Context)) float64 { // a frame serves one call, so each run has its own
		chain := call.NewChain(r)
		return testing.AllocsPerRun(1000, func() {
			ctx, _ := call.Push(ctx, chain, call.Info{Service: "orders"})
			do(ctx)
		})
	}
	require.Equal(t, push(func(context.Context) {}), push(func(ctx context.Context) { _, _ = retry.Do(ctx, r, fn) }), "Do in a frame")

	get := newRequest(t, ctx, "GET", nil)
	plain := newRetrier(t, &retry.Config{AttemptTimeout: -1}).Layer(newNoop())
	require.Zero(t, testing.AllocsPerRun(1000, func() { roundTrip(plain, get) }), "HTTP without timeouts")
	timed := bounded.Layer(newNoop())
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { roundTrip(timed, get) }), 2.0, "HTTP with timeouts")
	byDefault := r.Layer(newNoop())
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { roundTrip(byDefault, get) }), 2.0, "HTTP by default")

	put := newRequest(t, ctx, "PUT", nil)
	put.Body, put.GetBody = ended{}, func() (io.ReadCloser, error) { return ended{}, nil }
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { roundTrip(byDefault, put) }), 4.0, "HTTP with a body")

	// As in a composed client: in a frame, and a layer below keeps the time. A
	// frame serves one call, so each run has its own.
	chain := call.NewChain(plain)
	inFrame := func(rt http.RoundTripper) float64 {
		return testing.AllocsPerRun(1000, func() {
			ctx, _ := call.Push(ctx, chain, call.Info{Service: "orders"})
			roundTrip(rt, get.WithContext(ctx))
		})
	}
	base, layer := inFrame(newNoop()), inFrame(plain)
	require.Equal(t, base, layer, "HTTP in a frame")
}

// reading is a transport that reads bodies as net/http does, and answers at once.
type reading struct {
	noop
	buf [32 << 10]byte
}

func (r *reading) RoundTrip(req *http.Request) (*http.Response, error) {
	for {
		if _, err := req.Body.Read(r.buf[:]); err != nil {
			_ = req.Body.Close()
			return r.noop.RoundTrip(req)
		}
	}
}

func newReading() *reading { return &reading{noop: *newNoop()} }

// streamed has a request's body look like one that comes from somewhere else: of
// unknown length, and only once.
type streamed struct{ io.Reader }

func (streamed) Close() error { return nil }

const bodySize = 64 << 10

// perRun returns how many bytes a run of f allocates.
func perRun(f func()) uint64 {
	const runs = 200
	var before, after runtime.MemStats
	f()
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / runs
}

func TestBodyThatIsSentOnceIsNotCopied(t *testing.T) {
	data := make([]byte, bodySize)
	layer := newRetrier(t, nil).Layer(newReading())
	r := bytes.NewReader(data)
	req := newRequest(t, t.Context(), "POST", r)
	req.Header.Set("Idempotency-Key", "1")
	require.NotNil(t, req.GetBody)
	require.Less(t, perRun(func() {
		r.Reset(data)
		roundTrip(layer, req)
	}), uint64(4<<10), "with GetBody")
	req.Body, req.GetBody, req.ContentLength = streamed{r}, nil, -1
	require.Less(t, perRun(func() {
		r.Reset(data)
		roundTrip(layer, req)
	}), uint64(bodySize*3/4), "without, the copy is made in memory that is used again")
}

func BenchmarkBodyWithoutGetBody(b *testing.B) {
	data := make([]byte, bodySize)
	for name, length := range map[string]int64{"known length": bodySize, "unknown length": -1} {
		b.Run(name, func(b *testing.B) {
			layer := newRetrier(b, nil).Layer(newReading())
			r := bytes.NewReader(data)
			req := newRequest(b, b.Context(), "PUT", nil)
			req.Body, req.ContentLength = streamed{r}, length
			b.ReportAllocs()
			for b.Loop() {
				r.Reset(data)
				roundTrip(layer, req)
			}
		})
	}
}

func BenchmarkDoFirstTry(b *testing.B) {
	ctx := context.Background()
	fn := func(context.Context) (int, error) { return 1, nil }
	for name, cfg := range map[string]*retry.Config{
		"plain": nil, "no budget": {Budget: unlimited(b)},
		"timeouts": {AttemptTimeout: time.Second, Timeout: time.Minute},
	} {
		r := newRetrier(b, cfg)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = retry.Do(ctx, r, fn)
			}
		})
		b.Run(name+" parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_, _ = retry.Do(ctx, r, fn)
				}
			})
		})
	}
}

func BenchmarkLayer(b *testing.B) {
	ctx := context.Background()
	req := newRequest(b, ctx, "GET", nil)
	b.Run("base", func(b *testing.B) {
		base := newNoop()
		b.ReportAllocs()
		for b.Loop() {
			roundTrip(base, req)
		}
	})
	for name, cfg := range map[string]*retry.Config{"plain": {AttemptTimeout: -1}, "timeouts": {Timeout: time.Minute}} {
		r := newRetrier(b, cfg)
		b.Run(name, func(b *testing.B) {
			layer := r.Layer(newNoop())
			b.ReportAllocs()
			for b.Loop() {
				roundTrip(layer, req)
			}
		})
		b.Run(name+" parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				layer := r.Layer(newNoop()) // its response is its own
				for pb.Next() {
					roundTrip(layer, req)
				}
			})
		})
	}
}
