package propagate_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/propagate"
)

// serve has one request with the header served in a bubble.
func serve(t *testing.T, cfg *propagate.Config, header http.Header, next http.HandlerFunc) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	synctest.Test(t, func(t *testing.T) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Header = header
		propagate.Handler(next, cfg).ServeHTTP(w, r)
	})
	return w
}

func TestContextEndsWithTheTime(t *testing.T) {
	const none = time.Duration(0)
	for _, test := range []struct {
		name   string
		cfg    *propagate.Config
		header http.Header
		want   time.Duration
	}{
		{"no header", nil, http.Header{}, none},
		{"gRPC's", nil, http.Header{"Grpc-Timeout": {"250m"}}, 250 * time.Millisecond},
		{"Envoy's", nil, http.Header{"X-Envoy-Expected-Rq-Timeout-Ms": {"300"}}, 300 * time.Millisecond},
		{"both", nil, http.Header{"Grpc-Timeout": {"2S"}, "X-Envoy-Expected-Rq-Timeout-Ms": {"300"}}, 300 * time.Millisecond},
		{"both, the other way", nil, http.Header{"Grpc-Timeout": {"2m"}, "X-Envoy-Expected-Rq-Timeout-Ms": {"300"}}, 2 * time.Millisecond},
		{"nonsense", nil, http.Header{"Grpc-Timeout": {"-2S"}, "X-Envoy-Expected-Rq-Timeout-Ms": {"0"}}, none},
		{"twice", nil, http.Header{"Grpc-Timeout": {"2S", "3S"}}, none},
		{"absurd", nil, http.Header{"Grpc-Timeout": {"99999999H"}}, 24 * time.Hour},
		{"capped", &propagate.Config{Max: time.Second}, http.Header{"Grpc-Timeout": {"1M"}}, time.Second},
		{"not capped", &propagate.Config{Max: -1}, http.Header{"Grpc-Timeout": {"1000H"}}, 1000 * time.Hour},
		{"margin", &propagate.Config{Margin: 50 * time.Millisecond}, http.Header{"Grpc-Timeout": {"250m"}}, 200 * time.Millisecond},
		{"margin of half the time", &propagate.Config{Margin: time.Second}, http.Header{"Grpc-Timeout": {"250m"}}, 125 * time.Millisecond},
		{"negative margin", &propagate.Config{Margin: -time.Second}, http.Header{"Grpc-Timeout": {"250m"}}, 250 * time.Millisecond},
		{
			"not trusted", &propagate.Config{Trust: func(*http.Request) bool { return false }},
			http.Header{"Grpc-Timeout": {"250m"}},
			none,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			serve(t, test.cfg, test.header, func(_ http.ResponseWriter, r *http.Request) {
				ctx := r.Context()
				deadline, ok := ctx.Deadline()
				require.Equal(t, test.want > 0, ok)
				if !ok {
					return
				}
				require.Equal(t, test.want, time.Until(deadline))
				require.NoError(t, ctx.Err())
				start := time.Now()
				<-ctx.Done()
				require.Equal(t, test.want, time.Since(start))
				require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)
				var cause *propagate.DeadlineError
				require.ErrorAs(t, context.Cause(ctx), &cause)
				require.Equal(t, test.want, cause.After)
				require.ErrorIs(t, cause, context.DeadlineExceeded)
				var timeout net.Error
				require.ErrorAs(t, error(cause), &timeout)
				require.True(t, timeout.Timeout())
			})
		})
	}
}

func TestDerivedContextsEndInTheSameWay(t *testing.T) {
	serve(t, nil, http.Header{"Grpc-Timeout": {"1S"}}, func(_ http.ResponseWriter, r *http.Request) {
		child, cancel := context.WithCancel(r.Context())
		defer cancel()
		longer, cancel := context.WithTimeout(r.Context(), time.Minute)
		defer cancel()
		called := make(chan struct{})
		context.AfterFunc(r.Context(), func() { close(called) })
		<-child.Done()
		<-longer.Done()
		<-called
		for _, ctx := range []context.Context{child, longer} {
			require.Equal(t, context.DeadlineExceeded, ctx.Err())
			require.ErrorAs(t, context.Cause(ctx), new(*propagate.DeadlineError))
		}
	})
}

func TestContextEndsAsTheRequestsDoes(t *testing.T) {
	errGone := errors.New("gone")
	synctest.Test(t, func(t *testing.T) {
		parent, cancel := context.WithCancelCause(t.Context())
		r := httptest.NewRequestWithContext(parent, http.MethodGet, "/", nil)
		r.Header.Set("Grpc-Timeout", "1M")
		var ctx context.Context
		propagate.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			ctx = r.Context()
			cancel(errGone)
			<-ctx.Done()
			require.Equal(t, context.Canceled, ctx.Err())
			require.Equal(t, errGone, context.Cause(ctx))
		}), nil).ServeHTTP(httptest.NewRecorder(), r)
	})
}

func TestContextIsOverWithTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ctx context.Context
		start := time.Now()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Header.Set("Grpc-Timeout", "1M")
		propagate.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { ctx = r.Context() }), nil).
			ServeHTTP(httptest.NewRecorder(), r)
		<-ctx.Done()
		require.Equal(t, context.Canceled, ctx.Err())
		require.Zero(t, time.Since(start))
	})
}

func TestOnlyTheWholeCallsTimeBoundsTheBody(t *testing.T) {
	header := http.Header{"Grpc-Timeout": {"10S"}, "X-Envoy-Expected-Rq-Timeout-Ms": {"1000"}}
	for name, begin := range map[string]func(http.ResponseWriter){
		"WriteHeader": func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) },
		"Write":       func(w http.ResponseWriter) { _, _ = w.Write([]byte("x")) },
		"WriteString": func(w http.ResponseWriter) { _, _ = io.WriteString(w, "x") },
		"ReadFrom":    func(w http.ResponseWriter) { _, _ = io.Copy(w, io.LimitReader(strings.NewReader("x"), 1)) },
		"Flush":       func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
	} {
		t.Run(name, func(t *testing.T) {
			serve(t, nil, header, func(w http.ResponseWriter, r *http.Request) {
				ctx, start := r.Context(), time.Now()
				w.WriteHeader(http.StatusEarlyHints) // is no answer yet
				deadline, _ := ctx.Deadline()
				require.Equal(t, time.Second, deadline.Sub(start))
				time.Sleep(900 * time.Millisecond) // in the bubble
				begin(w)
				deadline, _ = ctx.Deadline()
				require.Equal(t, 10*time.Second, deadline.Sub(start))
				<-ctx.Done()
				require.Equal(t, 10*time.Second, time.Since(start))
			})
		})
	}
	t.Run("no bound at all", func(t *testing.T) {
		serve(t, nil, http.Header{"X-Envoy-Expected-Rq-Timeout-Ms": {"1000"}}, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			time.Sleep(time.Hour) // in the bubble
			require.NoError(t, r.Context().Err())
			_, bounded := r.Context().Deadline()
			require.False(t, bounded)
		})
	})
}

func TestConnectionThatIsTakenOverIsNotBounded(t *testing.T) {
	ctxs := make(chan context.Context, 1)
	server := httptest.NewServer(propagate.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			ctxs <- nil
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		ctxs <- r.Context()
		_, _ = rw.ReadByte()
		ctxs <- r.Context()
	}), nil))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\nGrpc-Timeout: 500m\r\n\r\n")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	ctx := <-ctxs
	require.NotNil(t, ctx)
	_, bounded := ctx.Deadline()
	require.False(t, bounded)
	select {
	case <-ctx.Done():
		t.Fatal("the context has ended")
	case <-time.After(600 * time.Millisecond):
	}
	_, err = conn.Write([]byte("x"))
	require.NoError(t, err)
	<-ctxs
}

func TestInboundSaysWhatTheCallerDoes(t *testing.T) {
	for _, test := range []struct {
		header  http.Header
		attempt int
		noRetry bool
	}{
		{http.Header{}, 0, false},
		{http.Header{"X-Envoy-Attempt-Count": {"1"}}, 1, false},
		{http.Header{"X-Envoy-Attempt-Count": {"2"}}, 2, false},
		{http.Header{"X-Envoy-Attempt-Count": {"-2"}}, 0, false},
		{http.Header{"X-Envoy-Attempt-Count": {"two"}}, 0, false},
		{http.Header{"X-Envoy-Attempt-Count": {"2", "3"}}, 0, false},
		{http.Header{"X-Envoy-Attempt-Count": {"18446744073709551615"}}, 1 << 30, false},
		{http.Header{"Backstay-Retry": {"no"}}, 0, true},
		{http.Header{"Backstay-Retry": {"NO"}}, 0, true},
		{http.Header{"Backstay-Retry": {"yes"}}, 0, false},
	} {
		serve(t, nil, test.header, func(_ http.ResponseWriter, r *http.Request) {
			in := call.InboundOf(r.Context())
			require.Equal(t, test.attempt, in.Attempt, "%v", test.header)
			require.Equal(t, test.noRetry, in.NoRetry, "%v", test.header)
			require.Equal(t, test.noRetry || test.attempt > 1, in.Final())
		})
	}
	distrust := &propagate.Config{Trust: func(*http.Request) bool { return false }}
	serve(t, distrust, http.Header{"Backstay-Retry": {"no"}}, func(_ http.ResponseWriter, r *http.Request) {
		require.Nil(t, call.InboundOf(r.Context()))
	})
}

func TestOnlyFailuresAfterAnExhaustedCallAreMarked(t *testing.T) {
	for _, test := range []struct {
		status    int
		exhausted bool
		want      string
	}{
		{http.StatusBadGateway, true, "no"},
		{http.StatusInternalServerError, true, "no"},
		{http.StatusBadGateway, false, ""},
		{http.StatusOK, true, ""},
		{http.StatusNotFound, true, ""},
	} {
		w := serve(t, nil, http.Header{}, func(w http.ResponseWriter, r *http.Request) {
			if test.exhausted {
				call.InboundOf(r.Context()).SetExhausted()
			}
			w.WriteHeader(test.status)
		})
		require.Equal(t, test.want, w.Header().Get(propagate.RetryHeader), "%+v", test)
	}
}

func TestServerIsToldAndEndsInTime(t *testing.T) {
	ended := make(chan error, 1)
	server := httptest.NewServer(propagate.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		ended <- context.Cause(r.Context())
		w.WriteHeader(http.StatusGatewayTimeout)
	}), &propagate.Config{Margin: 5 * time.Second})) // so that the server is first by far
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second+50*time.Millisecond)
	defer cancel()
	req := get(t, ctx, server.URL)
	req.Header.Set(propagate.TimeoutHeader, "40m")
	resp, err := propagate.Layer(nil).RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusGatewayTimeout, resp.StatusCode)
	var cause *propagate.DeadlineError
	require.ErrorAs(t, <-ended, &cause)
	require.Equal(t, 20*time.Millisecond, cause.After)
}
