package breaker_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// answer is a transport that always answers the same, with a body.
func answer(status int, header ...string) tripper {
	return func(req *http.Request) (*http.Response, error) {
		if req.Body != nil {
			req.Body.Close()
		}
		resp := &http.Response{
			StatusCode: status, Header: http.Header{}, Request: req,
			Body: io.NopCloser(strings.NewReader("body")),
		}
		for i := 0; i+1 < len(header); i += 2 {
			resp.Header.Set(header[i], header[i+1])
		}
		return resp, nil
	}
}

func get(t testing.TB, ctx context.Context) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/v1/items", nil)
	require.NoError(t, err)
	return req
}

// do sends a request and reads the answer to its end.
func do(rt http.RoundTripper, req *http.Request) (status int, err error) {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode, err
}

// closing notes whether and how often it was closed.
type closing struct {
	io.Reader
	closed atomic.Int64
}

func (c *closing) Close() error { c.closed.Add(1); return nil }

func TestLayerCountsStatusesByTheTable(t *testing.T) {
	tests := []struct {
		name            string
		rt              tripper
		calls, failures int64
	}{
		{"200", answer(200), 1, 0},
		{"301", answer(301), 1, 0},
		{"400", answer(400), 1, 0},
		{"404", answer(404), 1, 0},
		{"408", answer(408), 1, 1},
		{"429", answer(429), 0, 0},
		{"500", answer(500), 1, 1},
		{"501", answer(501), 1, 0},
		{"503", answer(503), 1, 1},
		{"503 with Retry-After", answer(503, "Retry-After", "1"), 0, 0},
		{"reset", func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }, 1, 1},
		{"refused dial", func(*http.Request) (*http.Response, error) { return nil, &net.OpError{Op: "dial", Err: errDown} }, 1, 1},
		{"caller's cancel", func(*http.Request) (*http.Response, error) { return nil, context.Canceled }, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t, nil)
			_, _ = do(b.Layer(test.rt), get(t, t.Context()))
			s := b.Snapshot(time.Time{})
			require.Equal(t, []int64{test.calls, test.failures}, []int64{s.Calls, s.Failures})
		})
	}
}

func TestLayerRefusesAndClosesTheRequestsBody(t *testing.T) {
	b := newBench(t, nil)
	b.ForceOpen()
	rt := b.Layer(tripper(func(*http.Request) (*http.Response, error) { panic("not called") }))
	body := &closing{Reader: strings.NewReader("hello")}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://orders/", body)
	require.NoError(t, err)
	resp, err := rt.RoundTrip(req)
	require.Nil(t, resp)
	require.ErrorIs(t, err, breaker.ErrOpen)
	require.EqualValues(t, 1, body.closed.Load())
	require.Same(t, body, req.Body, "the request is as it was")

	_, err = (&http.Client{Transport: rt}).Get("http://orders/")
	require.ErrorIs(t, err, breaker.ErrOpen, "through http.Client's own error")
	var refusal *breaker.OpenError
	require.ErrorAs(t, err, &refusal)
	require.True(t, outcome.Refused(err))
}

func TestLayerHandsTheCallersRequestOnUntouched(t *testing.T) {
	b := newBench(t, nil)
	req := get(t, t.Context())
	_, err := do(b.Layer(tripper(func(got *http.Request) (*http.Response, error) {
		require.Same(t, req, got)
		return answer(200)(got)
	})), req)
	require.NoError(t, err)
}

func TestAProbeIsNotHeldByALongBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, exact(breaker.Config{Probes: 1}))
		b.call(20, failure)
		time.Sleep(5 * time.Second)
		resp, err := b.Layer(answer(200)).RoundTrip(get(t, t.Context()))
		require.NoError(t, err)
		require.Equal(t, breaker.Closed, b.State())
		require.NoError(t, resp.Body.Close())
	})
}

func TestABodyThatBreaksIsRecordedOnce(t *testing.T) {
	b := newBench(t, nil)
	reads := 0
	rt := b.Layer(tripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(readerFunc(func([]byte) (int, error) {
			reads++
			return 0, io.ErrUnexpectedEOF
		}))}, nil
	}))
	resp, err := rt.RoundTrip(get(t, t.Context()))
	require.NoError(t, err)
	require.Zero(t, b.Snapshot(time.Time{}).Failures)
	for range 3 {
		_, err = resp.Body.Read(nil)
		require.Equal(t, io.ErrUnexpectedEOF, err)
	}
	require.NoError(t, resp.Body.Close())
	s := b.Snapshot(time.Time{})
	require.Equal(t, []int64{1, 1}, []int64{s.Calls, s.Failures})
	require.Equal(t, 3, reads)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestABodyThatIsGivenUpIsNoFailure(t *testing.T) {
	t.Run("closed early", func(t *testing.T) {
		b := newBench(t, nil)
		resp, err := b.Layer(answer(200)).RoundTrip(get(t, t.Context()))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.NoError(t, resp.Body.Close())
		s := b.Snapshot(time.Time{})
		require.Equal(t, []int64{1, 0}, []int64{s.Calls, s.Failures})
	})
	t.Run("cancelled", func(t *testing.T) {
		b := newBench(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		resp, err := b.Layer(tripper(func(req *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(readerFunc(func([]byte) (int, error) {
				return 0, req.Context().Err()
			}))}, nil
		})).RoundTrip(get(t, ctx))
		require.NoError(t, err)
		cancel()
		_, err = io.ReadAll(resp.Body)
		require.ErrorIs(t, err, context.Canceled)
		require.Zero(t, b.Snapshot(time.Time{}).Failures)
	})
}

func TestACancelWhileTheAnswerIsAwaitedIsNeutral(t *testing.T) {
	b := newBench(t, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := b.Layer(tripper(func(req *http.Request) (*http.Response, error) {
		cancel(errDown)
		<-req.Context().Done()
		return nil, context.Cause(req.Context())
	})).RoundTrip(get(t, ctx))
	require.Equal(t, errDown, err)
	require.Zero(t, b.Snapshot(time.Time{}).Calls)
}

func TestA500ForACallerThatHasGoneIsAFailure(t *testing.T) {
	b := newBench(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := do(b.Layer(tripper(func(req *http.Request) (*http.Response, error) {
		cancel()
		return answer(500)(req)
	})), get(t, ctx))
	require.NoError(t, err)
	require.EqualValues(t, 1, b.Snapshot(time.Time{}).Failures)
}

func TestLayerLeavesAnUpgradedConnectionAlone(t *testing.T) {
	b := newBench(t, nil)
	client, server := net.Pipe()
	defer server.Close()
	resp, err := b.Layer(tripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: client}, nil
	})).RoundTrip(get(t, t.Context()))
	require.NoError(t, err)
	require.Implements(t, (*io.ReadWriteCloser)(nil), resp.Body)
	require.NoError(t, resp.Body.Close())
	s := b.Snapshot(time.Time{})
	require.Equal(t, []int64{1, 0}, []int64{s.Calls, s.Failures})
}

func TestLayerTakesResponsesWithoutABody(t *testing.T) {
	for name, body := range map[string]io.ReadCloser{"nil": nil, "none": http.NoBody} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			resp, err := b.Layer(tripper(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 204, Body: body}, nil
			})).RoundTrip(get(t, t.Context()))
			require.NoError(t, err)
			require.Equal(t, body, resp.Body)
			require.EqualValues(t, 1, b.Snapshot(time.Time{}).Calls)
		})
	}
	t.Run("no response at all", func(t *testing.T) {
		b := newBench(t, nil)
		resp, err := b.Layer(tripper(func(*http.Request) (*http.Response, error) { return nil, nil })).RoundTrip(get(t, t.Context()))
		require.Nil(t, resp)
		require.NoError(t, err)
		require.EqualValues(t, 1, b.Snapshot(time.Time{}).Failures)
	})
}

func TestLayerReturnsTheLeaseOfAPanicAndAGoexit(t *testing.T) {
	atProbe(t, func(t *testing.T, b *bench) {
		rt := b.Layer(tripper(func(*http.Request) (*http.Response, error) { panic(errDown) }))
		require.PanicsWithValue(t, errDown, func() { _, _ = rt.RoundTrip(get(t, t.Context())) })
		require.Equal(t, breaker.Open, b.State())
	})
	atProbe(t, func(t *testing.T, b *bench) {
		rt := b.Layer(tripper(func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil }))
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = rt.RoundTrip(get(t, t.Context())) })
		wg.Wait()
		require.Equal(t, breaker.HalfOpen, b.State())
	})
}

func TestLayerClosesTheBodyWhenTheClassifierPanics(t *testing.T) {
	for name, end := range map[string]func(){
		"panic":  func() { panic(errDown) },
		"goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			resp := &closing{Reader: strings.NewReader("body")}
			b := newBench(t, exact(breaker.Config{
				Consecutive: 1,
				Classifier: func(*http.Request, *http.Response, error) outcome.Outcome {
					end()
					return success
				},
			}))
			rt := b.Layer(tripper(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Body: resp}, nil
			}))
			var panicked any
			var wg sync.WaitGroup
			wg.Go(func() {
				defer func() { panicked = recover() }()
				_, _ = rt.RoundTrip(get(t, t.Context()))
			})
			wg.Wait()
			require.EqualValues(t, 1, resp.closed.Load())
			if name == "panic" {
				require.Equal(t, errDown, panicked)
				require.Equal(t, breaker.Open, b.State(), "that is a failure")
			}
		})
	}
}

func TestLayerHandsOnTheErrorAloneOfATransportThatReturnsBoth(t *testing.T) {
	body := &closing{Reader: strings.NewReader("body")}
	b := newBench(t, nil)
	resp, err := b.Layer(tripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: body}, errDown
	})).RoundTrip(get(t, t.Context()))
	require.Nil(t, resp)
	require.ErrorIs(t, err, errDown)
	require.EqualValues(t, 1, body.closed.Load())
	s := b.Snapshot(time.Time{})
	require.Equal(t, []int64{1, 1}, []int64{s.Calls, s.Failures})

	_, err = b.Layer(tripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200}, errDown
	})).RoundTrip(get(t, t.Context()))
	require.ErrorIs(t, err, errDown, "nor does one without a body matter")
}

func TestLayerGivesTheProbeOfAnInnerRefusalBack(t *testing.T) {
	atProbe(t, func(t *testing.T, b *bench) {
		inner := newBench(t, nil)
		inner.ForceOpen()
		rt := b.Layer(inner.Layer(answer(200)))
		ctx, log := call.WithLog(t.Context())
		_, err := rt.RoundTrip(get(t, ctx))
		require.ErrorIs(t, err, breaker.ErrOpen)
		require.Equal(t, breaker.HalfOpen, b.State())
		record := log.Calls()[0]
		require.Empty(t, record.Attempts, "nothing was sent")
		require.Len(t, record.Refusals, 1, "one layer refused")
	})
}

func TestTheInnermostLayerClassifiesForAll(t *testing.T) {
	inner := newBench(t, exact(breaker.Config{Classifier: func(*http.Request, *http.Response, error) outcome.Outcome {
		return failure
	}}))
	outer := newBench(t, nil)
	status, err := do(outer.Layer(inner.Layer(answer(200))), get(t, t.Context()))
	require.NoError(t, err)
	require.Equal(t, 200, status)
	require.EqualValues(t, 1, inner.Snapshot(time.Time{}).Failures)
	require.EqualValues(t, 1, outer.Snapshot(time.Time{}).Failures)
}

func TestABreakerAloneLogsItsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		ctx, log := call.WithLog(t.Context())
		rt := b.Layer(tripper(func(req *http.Request) (*http.Response, error) {
			time.Sleep(20 * time.Millisecond)
			return answer(200)(req)
		}))
		resp, err := rt.RoundTrip(get(t, ctx))
		require.NoError(t, err)
		time.Sleep(30 * time.Millisecond)
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		failing := b.Layer(tripper(func(*http.Request) (*http.Response, error) { return nil, errDown }))
		for range 2 {
			_, err = failing.RoundTrip(get(t, ctx))
			require.Equal(t, errDown, err)
		}
		b.ForceOpen()
		_, err = rt.RoundTrip(get(t, ctx))
		require.ErrorIs(t, err, breaker.ErrOpen)

		require.Equal(t, `GET orders /v1/items: 200 in 20ms; sent 200 in 20ms
GET orders /v1/items: failed in 0s: down; sent down in 0s
GET orders /v1/items: failed in 0s: down; sent down in 0s
GET orders /v1/items: failed in 0s: breaker: orders is forced open; refused by breaker`, log.String())
		first := log.Calls()[0].Attempts[0]
		require.Equal(t, 20*time.Millisecond, first.Headers)
		require.Equal(t, 50*time.Millisecond, first.Total)
		require.Equal(t, outcome.Failure, log.Calls()[1].Attempts[0].Outcome.Class)
	})
}

func TestTheLogTellsOfABodyThatBroke(t *testing.T) {
	b := newBench(t, nil)
	ctx, log := call.WithLog(t.Context())
	resp, err := b.Layer(tripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(io.MultiReader(strings.NewReader("part"), readerFunc(func([]byte) (int, error) {
			return 0, io.ErrUnexpectedEOF
		})))}, nil
	})).RoundTrip(get(t, ctx))
	require.NoError(t, err)
	_, err = io.ReadAll(resp.Body)
	require.Equal(t, io.ErrUnexpectedEOF, err)
	require.Equal(t, io.ErrUnexpectedEOF, log.Calls()[0].Attempts[0].Outcome.Err)
}

// A retry that is an outer layer sees each attempt of the same error.
func TestEachAttemptOfOneCallIsRecorded(t *testing.T) {
	b := newBench(t, nil)
	rt := b.Layer(tripper(func(*http.Request) (*http.Response, error) { return nil, errDown }))
	outer := new(entry)
	outer.next, outer.chain = rt, call.NewChain(outer, rt)
	ctx, log := call.WithLog(t.Context())
	_, err := outer.RoundTrip(get(t, ctx))
	require.Equal(t, errDown, err)
	require.Len(t, log.Calls(), 1)
	require.Len(t, log.Calls()[0].Attempts, 3)
	require.EqualValues(t, 3, b.Snapshot(time.Time{}).Failures)
}

// The outcome of the attempt before is not that of this one, though they have
// the same error.
func TestEachAttemptOfOneCallIsClassifiedForItself(t *testing.T) {
	b := newBench(t, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	attempts := 0
	rt := b.Layer(tripper(func(*http.Request) (*http.Response, error) {
		if attempts++; attempts == 3 {
			cancel(errDown)
		}
		return nil, errDown
	}))
	outer := new(entry)
	outer.next, outer.chain = rt, call.NewChain(outer, rt)
	_, err := outer.RoundTrip(get(t, ctx))
	require.Equal(t, errDown, err)
	require.EqualValues(t, 2, b.Snapshot(time.Time{}).Failures, "the third was the caller's cancel")
}

// entry is an outer layer that makes three attempts.
type entry struct {
	next  http.RoundTripper
	chain *call.Chain
}

func (e *entry) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	f, _ := call.Enter(req, e, e.chain)
	req = req.WithContext(call.Carry(req.Context(), f))
	for range 3 {
		resp, err = e.next.RoundTrip(req)
	}
	return resp, err
}

func TestSlownessExcludesTheQueueOfALayerOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, exact(breaker.Config{SlowTime: time.Second}))
		inside := b.Layer(answer(200))
		queue := tripper(func(req *http.Request) (*http.Response, error) {
			time.Sleep(time.Minute) // for a permit
			return inside.RoundTrip(req)
		})
		_, err := do(queue, get(t, t.Context()))
		require.NoError(t, err)
		require.Zero(t, b.Snapshot(time.Time{}).Slow)

		slow := b.Layer(tripper(func(req *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return answer(200)(req)
		}))
		_, err = do(slow, get(t, t.Context()))
		require.NoError(t, err)
		require.EqualValues(t, 1, b.Snapshot(time.Time{}).Slow)
	})
}

func TestGroupsLayerKeysByHostInLowerCase(t *testing.T) {
	g, _ := newGroup(t, breaker.Config{MinCalls: 1}, 0)
	rt := g.Layer(tripper(func(req *http.Request) (*http.Response, error) {
		if req.URL != nil && strings.EqualFold(req.URL.Host, "bad:80") {
			return answer(500)(req)
		}
		return answer(200)(req)
	}))
	for _, host := range []string{"bad:80", "Good", "good"} {
		req := get(t, t.Context())
		req.URL.Host = host
		_, err := do(rt, req)
		require.NoError(t, err)
	}
	require.Equal(t, []string{"bad:80", "good"}, keysOf(g))
	req := get(t, t.Context())
	req.URL.Host = "BAD:80"
	_, err := do(rt, req)
	require.ErrorIs(t, err, breaker.ErrOpen)

	req.URL = nil
	_, err = do(rt, req)
	require.NoError(t, err, "what is wrong with it is the transport's to say")
}

func TestGroupsLayerByTakesAnyKey(t *testing.T) {
	g, _ := newGroup(t, breaker.Config{}, 0)
	rt := g.LayerBy(func(req *http.Request) string { return req.Method + " " + req.URL.Path })(answer(200))
	_, err := do(rt, get(t, t.Context()))
	require.NoError(t, err)
	require.Equal(t, []string{"GET /v1/items"}, keysOf(g))
}

type idle struct {
	tripper
	closed int
}

func (i *idle) CloseIdleConnections() { i.closed++ }

func TestLayerPassesOnWhatItIsNotConcernedWith(t *testing.T) {
	b := newBench(t, nil)
	next := &idle{tripper: answer(200)}
	rt := b.Layer(next)
	(&http.Client{Transport: rt}).CloseIdleConnections()
	require.Equal(t, 1, next.closed)
	require.Same(t, next, rt.(interface{ Unwrap() http.RoundTripper }).Unwrap())

	plain := b.Layer(nil)
	require.Same(t, http.DefaultTransport, plain.(interface{ Unwrap() http.RoundTripper }).Unwrap())
	b.Layer(answer(200)).(interface{ CloseIdleConnections() }).CloseIdleConnections()
}

func TestLayerOverRealConnections(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/trailer":
			w.Header().Set("Trailer", "Sum")
			_, _ = io.WriteString(w, "hello")
			w.Header().Set("Sum", "42")
		case "/broken":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "hello")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			b := newBench(t, nil)
			server := httptest.NewUnstartedServer(handler)
			server.EnableHTTP2 = protocol == "HTTP/2.0"
			server.StartTLS()
			defer server.Close()
			client := &http.Client{Transport: b.Layer(server.Client().Transport)}
			defer client.CloseIdleConnections()

			resp, err := client.Get(server.URL + "/trailer")
			require.NoError(t, err)
			require.Equal(t, protocol, resp.Proto)
			_, err = io.ReadAll(resp.Body)
			require.NoError(t, err)
			resp.Body.Close()
			require.Equal(t, "42", resp.Trailer.Get("Sum"))
			require.Zero(t, b.Snapshot(time.Time{}).Failures)

			resp, err = client.Get(server.URL + "/broken")
			require.NoError(t, err)
			_, err = io.ReadAll(resp.Body)
			require.Error(t, err)
			resp.Body.Close()
			s := b.Snapshot(time.Time{})
			require.Equal(t, []int64{2, 1}, []int64{s.Calls, s.Failures})
		})
	}
}

func TestCloseMayComeWhileReadIsUnderWay(t *testing.T) {
	b := newBench(t, nil)
	for range 100 {
		pr, pw := io.Pipe()
		resp, err := b.Layer(tripper(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: pr}, nil
		})).RoundTrip(get(t, t.Context()))
		require.NoError(t, err)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.ReadAll(resp.Body) })
		wg.Go(func() { resp.Body.Close() })
		wg.Go(func() { pw.CloseWithError(io.EOF) })
		wg.Wait()
	}
	s := b.Snapshot(time.Time{})
	require.Equal(t, []int64{100, 0}, []int64{s.Calls, s.Failures})
}

func TestLayerAllocatesTheBodyOnly(t *testing.T) {
	b := newBench(t, nil)
	resp := &http.Response{StatusCode: 200}
	payload := io.NopCloser(readerFunc(func([]byte) (int, error) { return 0, io.EOF }))
	rt := b.Layer(tripper(func(*http.Request) (*http.Response, error) { resp.Body = payload; return resp, nil }))
	req := get(t, t.Context())
	buf := make([]byte, 1)
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Error(err)
		}
		if _, err := resp.Body.Read(buf); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		resp.Body.Close()
	}), 1.0)
}
