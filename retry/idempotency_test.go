package retry_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// What the context says of a call wins over its method, its headers and the
// configuration, each way.
func TestWhatTheContextSaysOfACallWinsOverAll(t *testing.T) {
	yes := func(ctx context.Context) context.Context { return retry.WithIdempotent(ctx, true) }
	no := func(ctx context.Context) context.Context { return retry.WithIdempotent(ctx, false) }
	key := []string{"Idempotency-Key", "1"}
	for _, test := range []struct {
		name     string
		method   string
		header   []string
		mark     func(context.Context) context.Context
		change   func(*retry.Config)
		attempts int
	}{
		{name: "POST", method: "POST", attempts: 1},
		{name: "POST that may", method: "POST", mark: yes, attempts: 3},
		{name: "PATCH that may", method: "PATCH", mark: yes, attempts: 3},
		{name: "GET", method: "GET", attempts: 3},
		{name: "GET that must not", method: "GET", mark: no, attempts: 1},
		{name: "with a key, must not", method: "POST", header: key, mark: no, attempts: 1},
		{
			name: "where all are repeated, must not", method: "POST", mark: no, attempts: 1,
			change: func(c *retry.Config) { c.RetryNonIdempotent = retry.On },
		},
		{
			name: "where keys are made, must not", method: "POST", mark: no, attempts: 1,
			change: func(c *retry.Config) { c.GenerateKey = retry.On },
		},
		{
			name: "the innermost mark counts", method: "POST", attempts: 3,
			mark: func(ctx context.Context) context.Context { return yes(no(ctx)) },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := t.Context()
			if test.mark != nil {
				ctx = test.mark(ctx)
			}
			change := test.change
			if change == nil {
				change = func(*retry.Config) {}
			}
			rec := new(recorder)
			s := &script{steps: []func(*http.Request) (*http.Response, error){replies(503, "x")}}
			// The body has no GetBody: whether it is kept hangs on the mark, too.
			req := newRequest(t, ctx, test.method, io.MultiReader(strings.NewReader("text")))
			for i := 0; i < len(test.header); i += 2 {
				req.Header.Set(test.header[i], test.header[i+1])
			}
			r := newRetrier(t, eager(change, func(c *retry.Config) { c.Observer = rec }))
			resp, err := r.Layer(s).RoundTrip(req)
			require.NoError(t, err)
			require.Equal(t, 503, resp.StatusCode)
			_ = resp.Body.Close()
			require.Equal(t, test.attempts, s.attempts())
			for _, text := range s.bodies {
				require.Equal(t, "text", text)
			}
			want := retry.ReasonAttempts
			if test.attempts == 1 {
				want = retry.ReasonNotIdempotent
			}
			require.Equal(t, []retry.Reason{want}, rec.reasons())
		})
	}
}

func TestCallThatMustNotBeRepeatedIsTriedAgainIfNothingOfItWasSent(t *testing.T) {
	s := &script{steps: []func(*http.Request) (*http.Response, error){fails(unsent{}), fails(errReset)}}
	_, err := newRetrier(t, eager()).Layer(s).
		RoundTrip(newRequest(t, retry.WithIdempotent(t.Context(), false), "GET", nil))
	require.ErrorIs(t, err, errReset)
	require.Equal(t, 2, s.attempts())
}

func TestFunctionsThatMustNotBeRepeatedAreNot(t *testing.T) {
	ctx := retry.WithIdempotent(t.Context(), false)
	for err, want := range map[error]int{errBoom: 1, unsent{}: 3} {
		calls := 0
		_, got := retry.Do(ctx, newRetrier(t, eager()), failing(100, err, &calls))
		require.ErrorIs(t, got, err)
		require.Equal(t, want, calls)
	}
}

func TestBufferedBodyOfACallThatMustNotBeRepeatedIsLeftAlone(t *testing.T) {
	b := newBody("whatever")
	r := newRetrier(t, eager(func(c *retry.Config) { c.BufferBody = retry.On }))
	resp, err := r.Layer(roundTripper(func(*http.Request) (*http.Response, error) { return response(200, b), nil })).
		RoundTrip(newRequest(t, retry.WithIdempotent(t.Context(), false), "GET", nil))
	require.NoError(t, err)
	require.Zero(t, b.reads.Load())
	require.Equal(t, "whatever", readAll(t, resp))
}

var uuid4 = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func generating(change ...func(*retry.Config)) *retry.Config {
	return eager(append(change, func(c *retry.Config) { c.GenerateKey = retry.On })...)
}

// Over a real server that fails twice: one key for all attempts of a call,
// another for the next call, and the caller's request as it was.
func TestGeneratedKeyIsTheSameInAllAttemptsAndTheCallersRequestUnchanged(t *testing.T) {
	var (
		mu   sync.Mutex
		keys []string
		sent []string
	)
	overHTTP(t, func(w http.ResponseWriter, req *http.Request) {
		text, _ := io.ReadAll(req.Body)
		mu.Lock()
		defer mu.Unlock()
		keys = append(keys, req.Header.Values("Idempotency-Key")...)
		sent = append(sent, string(text))
		if len(sent) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}, func(t *testing.T, server *httptest.Server, base *http.Transport) {
		rt := newRetrier(t, generating()).Layer(base)
		seen := map[string]bool{}
		for _, method := range []string{"POST", "PATCH"} {
			for _, headers := range []http.Header{{"X-A": {"1"}}, {}, nil} {
				keys, sent = nil, nil
				req, err := http.NewRequestWithContext(t.Context(), method, server.URL, strings.NewReader("text"))
				require.NoError(t, err)
				req.Header = headers
				was := headers.Clone()
				resp, err := rt.RoundTrip(req)
				require.NoError(t, err)
				require.Equal(t, 200, resp.StatusCode)
				_ = resp.Body.Close()
				require.Equal(t, []string{"text", "text", "text"}, sent)
				require.Len(t, keys, 3)
				require.Regexp(t, uuid4, keys[0])
				require.Len(t, slices.Compact(keys), 1)
				require.False(t, seen[keys[0]], "each call has its own")
				seen[keys[0]] = true
				require.Equal(t, was, req.Header)
			}
		}
		base.CloseIdleConnections()
	})
}

func TestKeysAreGeneratedOnlyWhereTheyAreWanted(t *testing.T) {
	may, mustNot := retry.WithIdempotent(t.Context(), true), retry.WithIdempotent(t.Context(), false)
	for _, test := range []struct {
		name   string
		cfg    *retry.Config
		ctx    context.Context
		method string
		header http.Header
		want   []string // nil: none; "": a new one
	}{
		{name: "POST", cfg: generating(), method: "POST", want: []string{""}},
		{name: "PATCH", cfg: generating(), method: "PATCH", want: []string{""}},
		{name: "may be repeated", cfg: generating(), ctx: may, method: "POST", want: []string{""}},
		{name: "must not be repeated", cfg: generating(), ctx: mustNot, method: "POST"},
		{name: "off", cfg: eager(), method: "POST"},
		{name: "GET", cfg: generating(), method: "GET"},
		{name: "no method", cfg: generating(), method: ""},
		{name: "PUT", cfg: generating(), method: "PUT"},
		{name: "another method", cfg: generating(), method: "REPORT"},
		{
			name: "the caller's own", cfg: generating(), method: "POST",
			header: http.Header{"Idempotency-Key": {"mine"}}, want: []string{"mine"},
		},
		{name: "under its other name", cfg: generating(), method: "POST", header: http.Header{"X-Idempotency-Key": {"mine"}}},
		{name: "net/http's mark", cfg: generating(), method: "POST", header: http.Header{"Idempotency-Key": {}}, want: []string{}},
		{name: "one attempt", cfg: generating(func(c *retry.Config) { c.MaxAttempts = -1 }), method: "POST"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _ := answers(200)
			ctx := test.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			req := newRequest(t, ctx, "GET", nil)
			req.Method = test.method
			if test.header != nil {
				req.Header = test.header
			}
			resp, err := newRetrier(t, test.cfg).Layer(s).RoundTrip(req)
			require.NoError(t, err)
			_ = resp.Body.Close()
			have := s.reqs[0].Header["Idempotency-Key"]
			if len(test.want) == 1 && test.want[0] == "" {
				require.Len(t, have, 1)
				require.Regexp(t, uuid4, have[0])
				return
			}
			require.Equal(t, test.want, have)
		})
	}
}

// The outer of two retry layers makes the key, and the inner one finds it.
func TestNestedLayersSendOneKey(t *testing.T) {
	s, _ := answers(503, 200)
	r := newRetrier(t, generating())
	ctx, _ := call.WithLog(t.Context())
	resp, err := r.Layer(r.Layer(s)).RoundTrip(newRequest(t, ctx, "POST", nil))
	require.NoError(t, err)
	_ = resp.Body.Close()
	require.Len(t, s.reqs, 2)
	require.Regexp(t, uuid4, s.reqs[0].Header.Get("Idempotency-Key"))
	require.Equal(t, s.reqs[0].Header, s.reqs[1].Header)
	require.True(t, outcome.Idempotent(s.reqs[0]))
}

// A mark costs one allocation where it is set, a key what it is made of; who uses
// neither pays for neither.
func TestCallsWithoutMarkOrKeyPayNothingForThem(t *testing.T) {
	layer := newRetrier(t, &retry.Config{AttemptTimeout: -1, GenerateKey: retry.On}).Layer(newNoop())
	get := newRequest(t, t.Context(), "GET", nil)
	require.Zero(t, testing.AllocsPerRun(1000, func() { roundTrip(layer, get) }))
	post := newRequest(t, t.Context(), "POST", nil)
	without := newRetrier(t, &retry.Config{AttemptTimeout: -1}).Layer(newNoop())
	require.Zero(t, testing.AllocsPerRun(1000, func() { roundTrip(without, post) }))
}
