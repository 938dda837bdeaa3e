package retry_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

func TestWhatIsTriedAgainByStatusAndMethod(t *testing.T) {
	for _, test := range []struct {
		method   string
		status   int
		headers  []string
		attempts int
	}{
		{"GET", 200, nil, 1},
		{"GET", 404, nil, 1},
		{"GET", 501, nil, 1},
		{"GET", 500, nil, 1},
		{"GET", 408, nil, 3},
		{"GET", 429, nil, 3},
		{"GET", 502, nil, 3},
		{"GET", 503, nil, 3},
		{"GET", 504, nil, 3},
		{"HEAD", 503, nil, 3},
		{"OPTIONS", 503, nil, 3},
		{"TRACE", 503, nil, 3},
		{"PUT", 503, nil, 3},
		{"DELETE", 503, nil, 3},
		{"POST", 503, nil, 1},
		{"PATCH", 429, nil, 1},
		{"POST", 503, []string{"Idempotency-Key", "k"}, 3},
	} {
		s := &script{steps: []func(*http.Request) (*http.Response, error){replies(test.status, "x")}}
		req := newRequest(t, t.Context(), test.method, nil)
		for i := 0; i < len(test.headers); i += 2 {
			req.Header.Set(test.headers[i], test.headers[i+1])
		}
		resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(req)
		require.NoError(t, err)
		require.Equal(t, test.status, resp.StatusCode)
		require.Equal(t, test.attempts, s.attempts(), "%s %d %v", test.method, test.status, test.headers)
		_ = resp.Body.Close()
	}
}

func TestNonIdempotentRequestsAreRepeatedOnlyWhereAllowed(t *testing.T) {
	s, _ := answers(503, 200)
	r := newRetrier(t, eager(func(c *retry.Config) { c.RetryNonIdempotent = retry.On }))
	resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "POST", strings.NewReader("x")))
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.Equal(t, []string{"x", "x"}, s.bodies)
	_ = resp.Body.Close()
}

func TestFurtherStatusesAreOptIn(t *testing.T) {
	r := newRetrier(t, eager(func(c *retry.Config) { c.Statuses = []int{500, 404} }))
	for _, status := range []int{500, 404} {
		s := &script{steps: []func(*http.Request) (*http.Response, error){replies(status, "x")}}
		resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, 3, s.attempts())
		_ = resp.Body.Close()
		s.reqs = nil
		resp, err = r.Layer(s).RoundTrip(newRequest(t, t.Context(), "POST", nil))
		require.NoError(t, err)
		require.Equal(t, 1, s.attempts(), "still not for what must not be repeated")
		_ = resp.Body.Close()
	}
}

func TestServerThatForbidsRetriesIsObeyed(t *testing.T) {
	r := newRetrier(t, eager(func(c *retry.Config) { c.Statuses = []int{500} }))
	for _, header := range []string{"x-envoy-overloaded", "x-envoy-ratelimited"} {
		for _, status := range []int{429, 500, 503} {
			s := &script{steps: []func(*http.Request) (*http.Response, error){replies(status, "x", header, "true")}}
			resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
			require.NoError(t, err)
			require.Equal(t, 1, s.attempts(), "%s %d", header, status)
			_ = resp.Body.Close()
		}
	}
}

func TestCallersRequestIsNeverMutated(t *testing.T) {
	for name, src := range map[string]func() io.Reader{
		"with GetBody":    func() io.Reader { return strings.NewReader("text") },
		"without GetBody": func() io.Reader { return io.MultiReader(strings.NewReader("text")) },
		"without body":    func() io.Reader { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, _ := call.WithLog(t.Context())
			req := newRequest(t, ctx, "PUT", src())
			req.Header.Set("X-A", "1")
			was := *req
			headers, u := req.Header.Clone(), *req.URL
			s, _ := answers(503, 503, 200)
			resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(req)
			require.NoError(t, err)
			_ = resp.Body.Close()
			require.Equal(t, headers, req.Header)
			require.Equal(t, u, *req.URL)
			require.Equal(t, was.Context(), req.Context())
			require.True(t, was.Body == req.Body)
			require.Equal(t, reflect.ValueOf(was.GetBody).Pointer(), reflect.ValueOf(req.GetBody).Pointer())
			seen := map[*http.Request]bool{}
			for _, sent := range s.reqs {
				require.NotSame(t, req, sent)
				require.False(t, seen[sent], "each attempt has its own copy")
				seen[sent] = true
				require.Equal(t, "1", sent.Header.Get("X-A"))
			}
		})
	}
}

func TestEachFurtherAttemptHasACopyOfTheRequest(t *testing.T) {
	s, _ := answers(503, 503, 200)
	req := newRequest(t, t.Context(), "GET", nil)
	resp, err := newRetrier(t, eager(func(c *retry.Config) { c.AttemptTimeout = -1 })).Layer(s).RoundTrip(req)
	require.NoError(t, err)
	_ = resp.Body.Close()
	require.Same(t, req, s.reqs[0], "there is nothing to change")
	require.NotSame(t, req, s.reqs[1])
	require.NotSame(t, req, s.reqs[2])
	require.NotSame(t, s.reqs[1], s.reqs[2])
}

func TestOverHTTPOnlyFirstAttemptsDeposit(t *testing.T) {
	b := newBudget(t, &retry.BudgetConfig{Ratio: 2, PerSecond: -1})
	s, _ := answers(503, 503, 503)
	r := newRetrier(t, eager(func(c *retry.Config) { c.Budget = b }))
	resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	_ = resp.Body.Close()
	require.Equal(t, 3, s.attempts())
	require.Zero(t, b.Balance(time.Time{}), "two deposited, two taken")
}

func TestResponseIsNilExactlyIfThereIsAnError(t *testing.T) {
	for name, step := range map[string]func(*http.Request) (*http.Response, error){
		"neither": func(*http.Request) (*http.Response, error) { return nil, nil },
		"both":    func(*http.Request) (*http.Response, error) { return response(503, newBody("x")), errBoom },
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{steps: []func(*http.Request) (*http.Response, error){step}}
			resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
			require.Error(t, err)
			require.Nil(t, resp)
		})
	}
	s, _ := answers(503, 200)
	resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Same(t, s.reqs[1], resp.Request, "the request of the attempt that was answered")
	_ = resp.Body.Close()
}

func TestRequestBodyIsAlwaysClosed(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		name   string
		method string
		ctx    context.Context
		cfg    *retry.Config
		step   func(*http.Request) (*http.Response, error)
	}{
		{"success", "PUT", t.Context(), eager(), replies(200, "ok")},
		{"context ended before", "PUT", ended, eager(), nil},
		{"exhausted", "PUT", t.Context(), eager(), replies(503, "no")},
		{"refused", "PUT", t.Context(), eager(), fails(refusal{})},
		{"reset", "PUT", t.Context(), eager(), fails(errReset)},
		{"not repeatable", "POST", t.Context(), eager(), replies(503, "no")},
		{"retries off", "PUT", t.Context(), &retry.Config{MaxAttempts: -1, AttemptTimeout: -1}, replies(503, "no")},
		{"over the limit", "PUT", t.Context(), eager(func(c *retry.Config) { c.BodyLimit = 3 }), replies(503, "no")},
	} {
		for _, read := range []bool{true, false} {
			t.Run(test.name, func(t *testing.T) {
				b := newBody("some text")
				req := newRequest(t, test.ctx, test.method, b)
				next := roundTripper(func(req *http.Request) (*http.Response, error) {
					if read {
						_, _ = io.Copy(io.Discard, req.Body)
					}
					_ = req.Body.Close()
					_ = req.Body.Close()
					return test.step(req)
				})
				resp, err := newRetrier(t, test.cfg).Layer(next).RoundTrip(req)
				if err == nil {
					_ = resp.Body.Close()
				}
				require.EqualValues(t, 1, b.closes.Load())
			})
		}
	}
}

func TestTransportMayCloseTheRequestBodyAfterItReturned(t *testing.T) {
	b := newBody("some text")
	var kept io.ReadCloser
	next := roundTripper(func(req *http.Request) (*http.Response, error) {
		kept = req.Body
		return response(200, newBody("ok")), nil
	})
	resp, err := newRetrier(t, eager()).Layer(next).RoundTrip(newRequest(t, t.Context(), "PUT", b))
	require.NoError(t, err)
	require.Zero(t, b.closes.Load())
	text, err := io.ReadAll(kept)
	require.NoError(t, err)
	require.Equal(t, "some text", string(text))
	require.NoError(t, kept.Close())
	require.EqualValues(t, 1, b.closes.Load())
	_ = resp.Body.Close()
}

func TestErrorsAreFoundThroughTheClientsURLError(t *testing.T) {
	s := &script{steps: []func(*http.Request) (*http.Response, error){fails(errReset), fails(refusal{})}}
	client := &http.Client{Transport: newRetrier(t, eager()).Layer(s)}
	_, err := client.Get("http://user:secret@orders/items?token=secret")
	var (
		urlErr  *url.Error
		stopped *retry.StoppedError
	)
	require.ErrorAs(t, err, &urlErr)
	require.ErrorAs(t, err, &stopped)
	require.ErrorIs(t, err, errReset)
	require.ErrorIs(t, err, refusal{})
	require.False(t, urlErr.Timeout())

	synctest.Test(t, func(t *testing.T) {
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		})
		client.Transport = newRetrier(t, eager(func(c *retry.Config) { c.AttemptTimeout = time.Second })).Layer(next)
		_, err := client.Get("http://orders/items")
		require.ErrorAs(t, err, &urlErr)
		require.True(t, urlErr.Timeout())
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
	})
}

func TestNothingSecretIsToldInEventsAndErrors(t *testing.T) {
	rec := new(recorder)
	s := &script{steps: []func(*http.Request) (*http.Response, error){fails(errReset), fails(refusal{})}}
	req := newRequest(t, t.Context(), "GET", nil)
	req.URL, _ = url.Parse("http://user:hunter2@Orders/items?token=hunter2")
	_, err := newRetrier(t, eager(func(c *retry.Config) { c.Observer = rec })).Layer(s).RoundTrip(req)
	require.NotContains(t, err.Error(), "hunter2")
	require.Len(t, rec.events, 2)
	for _, e := range rec.events {
		require.NotContains(t, e.LogValue().String(), "hunter2")
		require.Contains(t, e.LogValue().String(), "service=orders")
	}
}

func TestSharedTransportIsLeftAlone(t *testing.T) {
	s := &script{steps: []func(*http.Request) (*http.Response, error){fails(errReset)}}
	layer := newRetrier(t, eager()).Layer(s)
	_, err := layer.RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.Error(t, err)
	require.Zero(t, s.idle)
	(&http.Client{Transport: layer}).CloseIdleConnections()
	require.Equal(t, 1, s.idle, "only when asked to")
	require.Same(t, s, layer.(interface{ Unwrap() http.RoundTripper }).Unwrap())
	require.Same(t, http.DefaultTransport, newRetrier(t, nil).Layer(nil).(interface{ Unwrap() http.RoundTripper }).Unwrap())
}

func TestPostIsTriedAgainOnlyIfNothingOfItWasSent(t *testing.T) {
	dial := &net.OpError{Op: "dial", Net: "tcp", Err: errReset}
	for _, test := range []struct {
		name     string
		err      error
		attempts int
	}{
		{"reset", errReset, 1},
		{"dial failure", dial, 3},
		{"marked never sent", unsent{}, 3},
		{"REFUSED_STREAM", streamError(7), 3},
		{"INTERNAL_ERROR", streamError(2), 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &script{steps: []func(*http.Request) (*http.Response, error){fails(test.err)}}
			_, err := newRetrier(t, eager()).Layer(s).RoundTrip(newRequest(t, t.Context(), "POST", strings.NewReader("x")))
			require.Equal(t, test.err, err)
			require.Equal(t, test.attempts, s.attempts())
		})
	}
}

// streamError is how net/http's HTTP/2 tells a stream's error: only by As.
type streamError uint32

func (e streamError) Error() string { return "stream error" }
func (e streamError) As(target any) bool {
	dst := reflect.ValueOf(target).Elem()
	if dst.Kind() != reflect.Struct || dst.NumField() != 3 || dst.Type().Field(1).Name != "Code" {
		return false
	}
	dst.Field(1).SetUint(uint64(e))
	return true
}

func TestIdempotencyKeyIsTheSameInAllAttempts(t *testing.T) {
	s := &script{steps: []func(*http.Request) (*http.Response, error){fails(errReset), replies(503, "x"), replies(200, "ok")}}
	req := newRequest(t, t.Context(), "POST", strings.NewReader("x"))
	req.Header.Set("Idempotency-Key", "key-1")
	resp, err := newRetrier(t, eager()).Layer(s).RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	_ = resp.Body.Close()
	for _, sent := range s.reqs {
		require.Equal(t, []string{"key-1"}, sent.Header["Idempotency-Key"])
	}
}

func TestDeadHostDoesNotStarveTheRetriesToOthers(t *testing.T) {
	r := newRetrier(t, eager())
	down := &script{steps: []func(*http.Request) (*http.Response, error){fails(errReset)}}
	for range 1000 {
		req := newRequest(t, t.Context(), "GET", nil)
		req.URL.Host = "dead"
		_, err := r.Layer(down).RoundTrip(req)
		require.Error(t, err)
	}
	require.Zero(t, r.Budget("dead").Balance(time.Time{}))
	s, _ := answers(503, 200)
	resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	_ = resp.Body.Close()
}

// endless is a body without an end that counts what is read of it.
// A body that trickles is handed on as it comes, from the part that was read
// ahead to the part that was not.
func TestPanicAndGoexitLeaveNothingOpen(t *testing.T) {
	type hook func()
	for _, h := range []struct {
		name string
		do   hook
	}{{"panic", func() { panic("hook") }}, {"goexit", runtime.Goexit}} {
		t.Run(h.name, func(t *testing.T) {
			s, bodies := answers(503, 503)
			var ctxs []context.Context
			next := roundTripper(func(req *http.Request) (*http.Response, error) {
				req.Context().Done()
				ctxs = append(ctxs, req.Context())
				return s.RoundTrip(req)
			})
			n := 0
			r := newRetrier(t, eager(func(c *retry.Config) {
				c.Classifier = func(req *http.Request, resp *http.Response, err error) outcome.Outcome {
					if n++; n == 2 {
						h.do()
					}
					return outcome.HTTP(req, resp, err)
				}
			}))
			b := newBody("text")
			var wg sync.WaitGroup
			wg.Go(func() {
				defer func() { _ = recover() }()
				resp, err := r.Layer(next).RoundTrip(newRequest(t, t.Context(), "PUT", b))
				_, _ = resp, err
			})
			wg.Wait()
			require.Len(t, ctxs, 2)
			for i := range ctxs {
				require.EqualValues(t, 1, bodies[i].closes.Load())
				require.Error(t, ctxs[i].Err())
			}
			require.EqualValues(t, 1, b.closes.Load())
		})
	}
	t.Run("of the transport", func(t *testing.T) {
		var ctx context.Context
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			ctx = req.Context()
			ctx.Done()
			panic("transport")
		})
		require.PanicsWithValue(t, "transport", func() {
			_, _ = newRetrier(t, nil).Layer(next).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		})
		require.Error(t, ctx.Err())
	})
}

// inner is a layer such as the balancer: it sends attempts to nodes, and says
// what it makes of the answers.
// A transport that answers although the attempt's time is up does not leave an
// open body behind.
// parent counts the contexts that hang on it.
