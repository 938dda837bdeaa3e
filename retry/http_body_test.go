package retry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

func TestGetBodyIsUsedOncePerFurtherAttempt(t *testing.T) {
	original := newBody("text")
	req := newRequest(t, t.Context(), "PUT", original)
	made := 0
	req.GetBody = func() (io.ReadCloser, error) { made++; return newBody("text"), nil }
	s, _ := answers(503, 503, 200)
	resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, 2, made)
	require.Positive(t, original.reads.Load(), "the first attempt streams the original")
	require.EqualValues(t, 1, original.closes.Load())
	require.Equal(t, []string{"text", "text", "text"}, s.bodies)
	for _, sent := range s.reqs {
		require.NotNil(t, sent.GetBody, "net/http's own retry needs it")
	}
	_ = resp.Body.Close()
}

func TestBodyWithoutGetBodyIsKeptWhileItStreams(t *testing.T) {
	for _, size := range []int{0, 1, 5000, 64 << 10} {
		for _, length := range []int64{-1, int64(size)} {
			text := strings.Repeat("x", size)
			src := newBody(text)
			req := newRequest(t, t.Context(), "PUT", src)
			req.ContentLength = length
			s, _ := answers(503, 503, 200)
			resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(req)
			require.NoError(t, err)
			require.Equal(t, []string{text, text, text}, s.bodies)
			require.EqualValues(t, 1, src.closes.Load())
			for _, sent := range s.reqs {
				require.Equal(t, length, sent.ContentLength)
			}
			_ = resp.Body.Close()
		}
	}
}

func TestBodyBeyondTheLimitIsStreamedIntactAndNotRepeated(t *testing.T) {
	for name, length := range map[string]int64{"announced": 64<<10 + 1, "not announced": -1} {
		t.Run(name, func(t *testing.T) {
			text := strings.Repeat("x", 64<<10+1)
			src := newBody(text)
			req := newRequest(t, t.Context(), "PUT", src)
			req.ContentLength = length
			rec := new(recorder)
			s, _ := answers(503, 200)
			resp, err := newRetrier(t, eager(func(c *retry.Config) { c.Observer = rec })).Layer(s).RoundTrip(req)
			require.NoError(t, err)
			require.Equal(t, 503, resp.StatusCode)
			require.Equal(t, "answer 1", readAll(t, resp))
			require.Equal(t, []string{text}, s.bodies)
			require.EqualValues(t, 1, src.closes.Load())
			require.Equal(t, []retry.Reason{retry.ReasonBody}, rec.reasons())
		})
	}
}

func TestNothingIsKeptOfABodyThatCannotBeRepeated(t *testing.T) {
	text := strings.Repeat("x", 60<<10)
	for name, test := range map[string]struct {
		method string
		cfg    *retry.Config
		in     *call.Inbound
	}{
		"retries off":    {"PUT", eager(func(c *retry.Config) { c.MaxAttempts = -1 }), nil},
		"not idempotent": {"POST", eager(), nil},
		"limit off":      {"PUT", eager(func(c *retry.Config) { c.BodyLimit = -1 }), nil},
		"for a request that must not be repeated": {"PUT", eager(), &call.Inbound{NoRetry: true}},
	} {
		t.Run(name, func(t *testing.T) {
			status, buf := 200, make([]byte, 4096)
			next := roundTripper(func(req *http.Request) (*http.Response, error) {
				_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, req.Body, buf)
				_ = req.Body.Close()
				return response(status, http.NoBody), nil
			})
			layer := newRetrier(t, test.cfg).Layer(next)
			perCall := func(method string) uint64 {
				const calls = 20
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for range calls {
					runtime.GC() // twice: what is kept is not to come out of the pool
					runtime.GC()
					ctx := call.WithInbound(context.Background(), test.in)
					_, err := layer.RoundTrip(newRequest(t, ctx, method, io.MultiReader(strings.NewReader(text))))
					require.NoError(t, err)
				}
				runtime.ReadMemStats(&after)
				return (after.TotalAlloc - before.TotalAlloc) / calls
			}
			require.Less(t, perCall(test.method), uint64(20<<10))
			if name == "not idempotent" {
				status = 503 // what was sent again is never used again
				require.Greater(t, perCall("PUT"), uint64(60<<10), "the measure measures")
			}
		})
	}
}

// A transport may read a body after it has answered. The memory of one that was
// sent again must not become another's.
func TestMemoryOfABodyThatATransportMayStillReadIsNotUsedAgain(t *testing.T) {
	var (
		late  []io.ReadCloser // bodies of second attempts, read when all calls are over
		texts []string
	)
	n := 0
	layer := newRetrier(t, eager(func(c *retry.Config) { c.Budget = unlimited(t) })).Layer(roundTripper(func(req *http.Request) (*http.Response, error) {
		if n++; n%2 == 1 {
			_, _ = io.Copy(io.Discard, req.Body)
			_ = req.Body.Close()
			return response(503, newBody("")), nil
		}
		late = append(late, req.Body)
		return response(200, newBody("")), nil
	}))
	for i := range 100 {
		text := strings.Repeat(fmt.Sprint(i%10), 1000)
		texts = append(texts, text)
		resp, err := layer.RoundTrip(newRequest(t, t.Context(), "PUT", io.MultiReader(strings.NewReader(text))))
		require.NoError(t, err)
		_ = resp.Body.Close()
	}
	for i, body := range late {
		got, err := io.ReadAll(body)
		require.NoError(t, err)
		require.Equal(t, texts[i], string(got))
	}
}

// And what was not is used again, also while its first reader still reads.
func TestCopyOfABodyThatIsStillBeingSentWhenTheCallIsOverIsGivenUp(t *testing.T) {
	text := strings.Repeat("x", 10_000)
	var open []io.ReadCloser
	layer := newRetrier(t, nil).Layer(roundTripper(func(req *http.Request) (*http.Response, error) {
		_, _ = io.ReadFull(req.Body, make([]byte, 1000))
		open = append(open, req.Body)
		return response(200, newBody("")), nil
	}))
	for range 10 {
		resp, err := layer.RoundTrip(newRequest(t, t.Context(), "PUT", io.MultiReader(strings.NewReader(text))))
		require.NoError(t, err)
		_ = resp.Body.Close()
	}
	for _, body := range open {
		rest, err := io.ReadAll(body)
		require.NoError(t, err)
		require.Equal(t, text[1000:], string(rest))
		require.NoError(t, body.Close())
	}
}

// Not every transport looks for the end behind the announced length.
func TestBodyIsCompleteAtItsAnnouncedLength(t *testing.T) {
	for length, want := range map[int64]int{4: 200, -1: 503} {
		var seen []string
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			text := make([]byte, 4)
			_, err := io.ReadFull(req.Body, text)
			require.NoError(t, err)
			_ = req.Body.Close()
			if seen = append(seen, string(text)); len(seen) > 1 {
				return response(200, http.NoBody), nil
			}
			return response(503, http.NoBody), nil
		})
		req := newRequest(t, t.Context(), "PUT", newBody("text"))
		req.ContentLength = length
		resp, err := newRetrier(t, eager()).Layer(next).RoundTrip(req)
		require.NoError(t, err)
		require.Equal(t, want, resp.StatusCode)
		require.Subset(t, []string{"text"}, seen)
	}
}

// A response that comes while the body is still being sent ends the call: the
// rest of the body goes to the one attempt that reads it.
func TestBodyThatWasNotFullyReadIsNotRepeated(t *testing.T) {
	text := strings.Repeat("0123456789", 10)
	src := newBody(text)
	var kept io.ReadCloser
	attempts := 0
	next := roundTripper(func(req *http.Request) (*http.Response, error) {
		attempts++
		kept = req.Body
		_, err := io.ReadFull(req.Body, make([]byte, 10))
		require.NoError(t, err)
		return response(503, newBody("busy")), nil
	})
	resp, err := newRetrier(t, eager()).Layer(next).RoundTrip(newRequest(t, t.Context(), "PUT", src))
	require.NoError(t, err)
	require.Equal(t, 1, attempts)
	require.Equal(t, "busy", readAll(t, resp))
	rest, err := io.ReadAll(kept)
	require.NoError(t, err)
	require.Equal(t, text[10:], string(rest), "streamed intact")
	require.NoError(t, kept.Close())
	require.EqualValues(t, 1, src.closes.Load())
}

// oneReader fails the test when two goroutines read it, or one that was told to
// stop.
type oneReader struct {
	t  *testing.T
	mu sync.Mutex
	io.Reader
}

func (r *oneReader) Read(p []byte) (int, error) {
	if !r.mu.TryLock() {
		r.t.Error("two readers of the request's body")
		return 0, io.EOF
	}
	defer r.mu.Unlock()
	return r.Reader.Read(p)
}

// The transport goes on reading the body of an attempt that has been answered,
// while the next attempt is under way.
func TestNeverTwoReadersOfTheBody(t *testing.T) {
	for range 300 {
		text := strings.Repeat("x", 2000)
		src := &oneReader{t: t, Reader: strings.NewReader(text)}
		var wg sync.WaitGroup
		attempts := 0
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			attempts++
			if attempts > 1 {
				got, err := io.ReadAll(req.Body)
				if err == nil && string(got) != text {
					t.Errorf("%d bytes in attempt %d", len(got), attempts)
				}
				_ = req.Body.Close()
				return response(200, http.NoBody), nil
			}
			wg.Go(func() {
				buf := make([]byte, 100)
				for {
					if _, err := req.Body.Read(buf); err != nil {
						break
					}
				}
				_ = req.Body.Close()
			})
			return response(503, http.NoBody), nil
		})
		resp, err := newRetrier(t, eager()).Layer(next).RoundTrip(newRequest(t, t.Context(), "PUT", io.NopCloser(src)))
		require.NoError(t, err)
		_ = resp.Body.Close()
		wg.Wait()
	}
}

func TestUnreadBodyOfAPostIsReusedIfNothingWasSent(t *testing.T) {
	src := newBody("text")
	attempts := 0
	var stale io.ReadCloser
	next := roundTripper(func(req *http.Request) (*http.Response, error) {
		if attempts++; attempts < 3 {
			if attempts == 1 {
				stale = req.Body
			}
			_ = req.Body.Close()
			require.Zero(t, src.closes.Load(), "it is still needed")
			return nil, unsent{}
		}
		n, err := stale.Read(make([]byte, 1))
		require.Zero(t, n)
		require.Error(t, err, "the first attempt has lost its claim")
		text, err := io.ReadAll(req.Body)
		require.NoError(t, err)
		require.Equal(t, "text", string(text))
		_ = req.Body.Close()
		return response(200, newBody("ok")), nil
	})
	resp, err := newRetrier(t, eager()).Layer(next).RoundTrip(newRequest(t, t.Context(), "POST", src))
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.Equal(t, 3, attempts)
	require.EqualValues(t, 1, src.closes.Load())
	_ = resp.Body.Close()
}

func TestReadBodyOfAPostIsNotReused(t *testing.T) {
	src := newBody("text")
	s := &script{steps: []func(*http.Request) (*http.Response, error){fails(unsent{})}}
	_, err := newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "POST", src))
	require.Equal(t, unsent{}, err)
	require.Equal(t, 1, s.attempts())
	require.EqualValues(t, 1, src.closes.Load())
}

// The transport begins to read just as the next attempt is about to claim the
// body: the failed answer stands, and the body streams on.
func TestBodyTakenUpLateStaysWithItsAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newBody("text")
		var kept io.ReadCloser
		attempts := 0
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			attempts++
			kept = req.Body
			return response(503, newBody("busy")), nil
		})
		cfg := &retry.Config{Observer: observeRetried(func() {
			text, err := io.ReadAll(kept)
			require.NoError(t, err)
			require.Equal(t, "text", string(text[:4]))
		})}
		// Not all is kept, so there is nothing to send again.
		cfg.BodyLimit = 2
		resp, err := newRetrier(t, cfg).Layer(next).RoundTrip(newRequest(t, t.Context(), "PUT", src))
		require.NoError(t, err)
		require.Equal(t, 1, attempts)
		require.Equal(t, "busy", readAll(t, resp))
		require.NoError(t, kept.Close())
		require.EqualValues(t, 1, src.closes.Load())
	})
}

func TestFailureOfTheCallersBodyIsReturnedOnce(t *testing.T) {
	for name, getBody := range map[string]func() (io.ReadCloser, error){
		"without GetBody": nil,
		"with GetBody":    func() (io.ReadCloser, error) { return nil, errors.New("must not be asked") },
	} {
		t.Run(name, func(t *testing.T) {
			src := newBody("")
			src.Reader = io.MultiReader(strings.NewReader("some"), readerFunc(func([]byte) (int, error) { return 0, errBoom }))
			req := newRequest(t, t.Context(), "PUT", src)
			req.GetBody = getBody
			s, _ := answers(200)
			_, err := newRetrier(t, eager()).Layer(s).RoundTrip(req)
			require.ErrorIs(t, err, errBoom)
			require.Equal(t, 1, s.attempts())
			var bodyErr *outcome.BodyError
			require.ErrorAs(t, err, &bodyErr)
			require.Equal(t, outcome.Neutral, outcome.HTTP(req, nil, err).Class, "not the endpoint's failure")
		})
	}
}

func TestGetBodyThatFailsGivesBackWhatMadeUsRetry(t *testing.T) {
	failingGet := func(*http.Request) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { return nil, errBoom }
	}
	req := newRequest(t, t.Context(), "PUT", strings.NewReader("text"))
	req.GetBody = failingGet(req)
	s := &script{steps: []func(*http.Request) (*http.Response, error){fails(errReset)}}
	_, err := newRetrier(t, eager()).Layer(s).RoundTrip(req)
	require.ErrorIs(t, err, errReset)
	require.ErrorIs(t, err, errBoom)
	require.Equal(t, 1, s.attempts())

	req = newRequest(t, t.Context(), "PUT", strings.NewReader("text"))
	req.GetBody = failingGet(req)
	s, bodies := answers(503)
	resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, 503, resp.StatusCode)
	require.Equal(t, "answer 1", readAll(t, resp))
	require.EqualValues(t, 1, bodies[0].closes.Load())
}

func TestLengthEncodingAndTrailerAreTheSameInAllAttempts(t *testing.T) {
	req := newRequest(t, t.Context(), "PUT", strings.NewReader("text"))
	req.ContentLength = -1
	req.TransferEncoding = []string{"chunked"}
	req.Trailer = http.Header{"X-Sum": {"1"}}
	s, _ := answers(503, 200)
	resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(req)
	require.NoError(t, err)
	require.Len(t, s.reqs, 2, "GetBody vouches for the trailer too")
	for _, sent := range s.reqs {
		require.EqualValues(t, -1, sent.ContentLength)
		require.Equal(t, req.TransferEncoding, sent.TransferEncoding)
		require.Equal(t, req.Trailer, sent.Trailer)
	}
	_ = resp.Body.Close()

	req.Body, req.GetBody = newBody("text"), nil
	s, _ = answers(503, 200)
	resp, err = newRetrier(t, eager()).Layer(s).RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, 503, resp.StatusCode)
	require.Len(t, s.reqs, 1)
	_ = resp.Body.Close()
}

// signer is a layer below that replaces the body it is given, as compression or
// signing do. It must get a fresh one each time, with a GetBody that agrees.
type signer struct{ next http.RoundTripper }

func (s signer) RoundTrip(req *http.Request) (*http.Response, error) {
	text, err := io.ReadAll(req.Body)
	_ = req.Body.Close()
	if err != nil {
		return nil, err
	}
	if req.GetBody != nil {
		again, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		copied, _ := io.ReadAll(again)
		_ = again.Close()
		if !bytes.Equal(text, copied) {
			return nil, errors.New("GetBody and Body differ")
		}
	}
	r := req.Clone(req.Context())
	r.Body, r.GetBody = io.NopCloser(strings.NewReader("signed "+string(text))), nil
	r.ContentLength = -1
	return s.next.RoundTrip(r)
}

func TestLayerBelowThatEditsTheBodySeesAFreshOneEachTime(t *testing.T) {
	for name, src := range map[string]io.Reader{
		"with GetBody": strings.NewReader("text"), "without": io.MultiReader(strings.NewReader("text")),
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := answers(503, 503, 200)
			resp, err := newRetrier(t, eager()).Layer(signer{s}).RoundTrip(newRequest(t, t.Context(), "PUT", src))
			require.NoError(t, err)
			require.Equal(t, []string{"signed text", "signed text", "signed text"}, s.bodies)
			_ = resp.Body.Close()
		})
	}
}
