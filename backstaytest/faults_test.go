package backstaytest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
)

func newFaults(t *testing.T, cfg *backstaytest.FaultsConfig) *backstaytest.Faults {
	t.Helper()
	f, err := backstaytest.NewFaults(cfg)
	require.NoError(t, err)
	return f
}

// always is a layer whose every request suffers one fault.
func always(t *testing.T, f backstaytest.Fault) *backstaytest.Faults {
	return newFaults(t, &backstaytest.FaultsConfig{Script: func(int, *http.Request) backstaytest.Fault { return f }})
}

func TestFaultsAreOffByDefault(t *testing.T) {
	s := backstaytest.NewServer(t, nil, nil)
	f := newFaults(t, nil)
	client := &http.Client{Transport: f.Layer(s.Transport())}
	for range 100 {
		resp, err := client.Get(s.URL())
		require.NoError(t, err)
		require.Equal(t, "ok\n", body(t, resp))
	}
	require.Equal(t, 100, f.Requests())
}

func TestFaultsRepeatWithTheirSeed(t *testing.T) {
	draw := func(seed uint64) string {
		f := newFaults(t, &backstaytest.FaultsConfig{Seed: seed, Chances: []backstaytest.Chance{
			{Fault: backstaytest.Fault{Status: 503}, Probability: 0.3},
			{Fault: backstaytest.Fault{Status: 500}, Probability: 0.2},
		}})
		rt := f.Layer(roundTripper(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
		}))
		var all strings.Builder
		for range 2000 {
			resp, err := rt.RoundTrip(&http.Request{})
			require.NoError(t, err)
			all.WriteByte(map[int]byte{200: '.', 500: 'x', 503: 'u'}[resp.StatusCode])
		}
		return all.String()
	}
	first := draw(1)
	require.Equal(t, first, draw(1))
	require.NotEqual(t, first, draw(2))
	require.InDelta(t, 600, strings.Count(first, "u"), 80)
	require.InDelta(t, 400, strings.Count(first, "x"), 80)
}

func TestFaultsRefuseImpossibleChances(t *testing.T) {
	_, err := backstaytest.NewFaults(&backstaytest.FaultsConfig{Chances: []backstaytest.Chance{{Probability: -1}, {Probability: 1.5}}})
	require.EqualError(t, err, "backstaytest: Chances[0].Probability is -1, want 0 to 1\nbackstaytest: Chances[1].Probability is 1.5, want 0 to 1")
	_, err = backstaytest.NewFaults(&backstaytest.FaultsConfig{Chances: []backstaytest.Chance{{Probability: 0.6}, {Probability: 0.6}}})
	require.EqualError(t, err, "backstaytest: the Probabilities of Chances add up to 1.2, want <= 1")
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestFaultsOfEachKind(t *testing.T) {
	boom := errors.New("boom")
	s := backstaytest.NewServer(t, http.HandlerFunc(answer100), nil)
	for _, test := range []struct {
		name       string
		fault      backstaytest.Fault
		err        error
		status     int
		read       int
		readErr    error
		retryAfter string
		sent       int
	}{
		{name: "error", fault: backstaytest.Fault{Err: boom}, err: boom},
		{name: "reset", fault: backstaytest.Fault{Reset: true}, err: syscall.ECONNRESET},
		{name: "status", fault: backstaytest.Fault{Status: 503, Header: http.Header{"retry-after": {"3"}}}, status: 503, read: 24, retryAfter: "3"},
		{name: "header", fault: backstaytest.Fault{Header: http.Header{"Retry-After": {"3"}}}, status: 200, read: 100, retryAfter: "3", sent: 1},
		{name: "truncate", fault: backstaytest.Fault{Truncate: 10}, status: 200, read: 10, readErr: io.ErrUnexpectedEOF, sent: 1},
		{name: "reset after", fault: backstaytest.Fault{ResetAfter: 10}, status: 200, read: 10, readErr: syscall.ECONNRESET, sent: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.ResetStats()
			client := &http.Client{Transport: always(t, test.fault).Layer(s.Transport())}
			resp, err := client.Get(s.URL())
			require.Equal(t, test.sent, s.Stats().Requests)
			if test.err != nil {
				require.ErrorIs(t, err, test.err)
				return
			}
			require.NoError(t, err)
			defer func() { require.NoError(t, resp.Body.Close()) }()
			require.Equal(t, test.status, resp.StatusCode)
			require.Equal(t, test.retryAfter, resp.Header.Get("Retry-After"))
			data, err := io.ReadAll(resp.Body)
			require.ErrorIs(t, err, test.readErr)
			require.Len(t, data, test.read)
		})
	}
}

func TestFaultsEndWithTheContext(t *testing.T) {
	for name, fault := range map[string]backstaytest.Fault{
		"delay": {Delay: time.Hour}, "stall": {Stall: true}, "status after delay": {Delay: time.Hour, Status: 500},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := backstaytest.NewServer(t, nil, nil)
				rt := always(t, fault).Layer(s.Transport())
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				closed := false
				body := struct {
					io.Reader
					io.Closer
				}{strings.NewReader("hello"), closer(func() { closed = true })}
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL(), body)
				require.NoError(t, err)
				start := time.Now()
				resp, err := rt.RoundTrip(req)
				require.Nil(t, resp)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Equal(t, time.Second, time.Since(start))
				require.True(t, closed, "the request's body is closed")
				require.Zero(t, s.Stats().Requests)
			})
		})
	}
}

type closer func()

func (f closer) Close() error { f(); return nil }

func TestFaultsDelayAndThenSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := backstaytest.NewServer(t, nil, nil)
		f := always(t, backstaytest.Fault{Delay: time.Minute})
		client := &http.Client{Transport: f.Layer(s.Transport())}
		start := time.Now()
		_, err := get(t.Context(), client, s.URL())
		require.NoError(t, err)
		require.Equal(t, time.Minute, time.Since(start))
		f.Disable(true)
		_, err = get(t.Context(), client, s.URL())
		require.NoError(t, err)
		require.Equal(t, time.Minute, time.Since(start))
	})
}

func TestFaultsScriptSeesEachRequestOnce(t *testing.T) {
	s := backstaytest.NewServer(t, nil, nil)
	var mu sync.Mutex
	seen := map[int]int{}
	f := newFaults(t, &backstaytest.FaultsConfig{Script: func(n int, _ *http.Request) backstaytest.Fault {
		mu.Lock()
		defer mu.Unlock()
		seen[n]++
		return backstaytest.Fault{}
	}})
	client := &http.Client{Transport: f.Layer(s.Transport())}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				_, err := get(t.Context(), client, s.URL())
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, seen, 80)
	for n, times := range seen {
		require.Equal(t, 1, times, n)
	}
}
