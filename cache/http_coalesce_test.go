package cache_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/cache"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

// slowly is a transport whose answers take their time to the header.
func slowly(headers time.Duration, f func() *http.Response) *transport {
	return &transport{do: func(req *http.Request) (*http.Response, error) {
		select {
		case <-time.After(headers):
			return f(), nil
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
	}}
}

// many sends n requests at once, reads their bodies for as long as told, and
// returns what they got and when all have.
func many(t *testing.T, rt http.RoundTripper, n int, reading time.Duration) (bodies map[string]int, took time.Duration) {
	start := time.Now()
	ch := make(chan string)
	for range n {
		go func() {
			resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
			if err != nil {
				ch <- err.Error()
				return
			}
			time.Sleep(reading)
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			ch <- string(body)
		}()
	}
	bodies = make(map[string]int)
	for range n {
		bodies[<-ch]++
	}
	return bodies, time.Since(start)
}

func TestReadsAreNotCoalescedUnlessAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := slowly(time.Second, func() *http.Response { return text("x") })
		many(t, newHTTP(t, nil).Layer(origin), 20, 0)
		require.EqualValues(t, 20, origin.calls.Load())
	})
}

func TestCoalescedReadsMakeOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := slowly(time.Second, func() *http.Response { return text("x") })
		h := newHTTP(t, &cache.HTTPConfig{Coalesce: time.Minute})
		got, took := many(t, h.Layer(origin), 20, time.Second)
		require.Equal(t, map[string]int{"x": 20}, got)
		require.Equal(t, 3*time.Second, took)
		require.EqualValues(t, 1, origin.calls.Load())
		require.Equal(t, cache.HTTPStats{Hits: 19, Misses: 1, Coalesced: 19, Stored: 1}, h.Stats())
	})
}

// TestAnswerThatIsNotStoredIsNotSharedAndHoldsNobodyUp:
// caddyserver/cache-handler#82.
func TestAnswerThatIsNotStoredIsNotSharedAndHoldsNobodyUp(t *testing.T) {
	for name, resp := range map[string]func(n int) *http.Response{
		"private":    func(n int) *http.Response { return text(fmt.Sprint(n), "Cache-Control", "private") },
		"Set-Cookie": func(n int) *http.Response { return text(fmt.Sprint(n), "Set-Cookie", "a=b") },
		"Vary":       func(n int) *http.Response { return text(fmt.Sprint(n), "Vary", "Cookie") },
		"broken": func(n int) *http.Response {
			r := text("")
			r.Body = io.NopCloser(broken(fmt.Sprint(n)))
			return r
		},
		"unavailable": func(n int) *http.Response { r := text(fmt.Sprint(n)); r.StatusCode = 503; return r },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := make(chan int, 1)
				n <- 0
				origin := slowly(time.Second, func() *http.Response {
					i := <-n + 1
					n <- i
					return resp(i)
				})
				h := newHTTP(t, &cache.HTTPConfig{Coalesce: time.Minute})
				got, took := many(t, h.Layer(origin), 10, 0)
				require.Len(t, got, 10, "each has its own")
				require.Equal(t, 2*time.Second, took, "all others go at once, not one after the other")
			})
		})
	}
}

func TestSlowReaderHoldsOthersUpForALimitedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := answers(func() *http.Response { return text("x") })
		h := newHTTP(t, &cache.HTTPConfig{Coalesce: time.Second})
		rt := h.Layer(origin)
		slow, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
		require.NoError(t, err)
		start := time.Now()
		resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
		require.NoError(t, err)
		require.Equal(t, time.Second, time.Since(start))
		require.NoError(t, resp.Body.Close())
		_, _ = get(t, rt, u)
		require.Equal(t, time.Second, time.Since(start), "nobody waits again")
		require.EqualValues(t, 3, origin.calls.Load())
		require.NoError(t, slow.Body.Close())
		_, _ = get(t, rt, u)
		require.EqualValues(t, 3, origin.calls.Load())
	})
}

func TestReadThatWasGivenUpDoesNotEndTheWaitForANewerOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := answers(func() *http.Response { return text("x") })
		rt := newHTTP(t, &cache.HTTPConfig{Coalesce: time.Second}).Layer(origin)
		send := func() *http.Response {
			resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
			require.NoError(t, err)
			return resp
		}
		oldest := send()
		require.NoError(t, send().Body.Close()) // has waited, in vain
		newer := send()
		require.NoError(t, oldest.Body.Close())
		waited := make(chan time.Duration)
		go func() {
			start := time.Now()
			get(t, rt, u)
			waited <- time.Since(start)
		}()
		time.Sleep(time.Second / 2)
		_, err := io.ReadAll(newer.Body)
		require.NoError(t, err)
		require.Equal(t, time.Second/2, <-waited)
		require.EqualValues(t, 3, origin.calls.Load())
	})
}

func TestWaiterWhoseURLIsInvalidatedAsksAgainAndItsAnswerIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		origin := answers(func() *http.Response { n++; return text(fmt.Sprint(n)) })
		h := newHTTP(t, &cache.HTTPConfig{Coalesce: time.Second})
		rt := h.Layer(origin)
		first, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
		require.NoError(t, err)
		second := make(chan string)
		go func() {
			_, body := get(t, rt, u)
			second <- body
		}()
		synctest.Wait()
		h.Invalidate(first.Request.URL)
		_, err = io.ReadAll(first.Body)
		require.NoError(t, err)
		require.Equal(t, "2", <-second)
		_, body := get(t, rt, u)
		require.Equal(t, "2", body)
	})
}

func TestWaiterHonoursItsOwnContextAndCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := slowly(time.Hour, func() *http.Response { return text("x") })
		rt := newHTTP(t, &cache.HTTPConfig{Coalesce: 10 * time.Hour}).Layer(origin)
		leader := make(chan error)
		go func() {
			resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
			if err == nil {
				err = resp.Body.Close()
			}
			leader <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := rt.RoundTrip(newRequest(t, http.MethodGet, u).WithContext(ctx))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(start))

		req := newRequest(t, http.MethodGet, u)
		stop := make(chan struct{})
		close(stop)
		req.Cancel = stop //nolint:staticcheck // part of the contract still
		resp, err := rt.RoundTrip(req)
		require.NoError(t, err)
		require.Equal(t, time.Second+time.Hour, time.Since(start), "it went itself, at once")
		require.NoError(t, resp.Body.Close())
		require.NoError(t, <-leader)
	})
}

func TestWaiterKeepsToItsCallsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := slowly(time.Hour, func() *http.Response { return text("x") })
		rt := newHTTP(t, &cache.HTTPConfig{Coalesce: 10 * time.Hour}).Layer(origin)
		leader := make(chan error)
		go func() {
			resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
			if err == nil {
				err = resp.Body.Close()
			}
			leader <- err
		}()
		synctest.Wait()
		start := time.Now()
		ctx, f := call.Push(t.Context(), call.NewChain(rt), call.Info{Start: start})
		f.SetDeadline(start.Add(200 * time.Millisecond))
		resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u).WithContext(ctx))
		require.Nil(t, resp)
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
		require.Equal(t, 200*time.Millisecond, time.Since(start))
		require.EqualValues(t, 1, origin.calls.Load(), "nothing was sent for it")
		require.NoError(t, <-leader)
	})
}

func TestPanicOfTheTransportHoldsNobodyUp(t *testing.T) {
	calls := 0
	rt := newHTTP(t, &cache.HTTPConfig{Coalesce: time.Hour}).Layer(&transport{
		do: func(*http.Request) (*http.Response, error) {
			if calls++; calls == 1 {
				panic(errDown)
			}
			return text("x"), nil
		},
	})
	require.PanicsWithValue(t, errDown, func() { _, _ = rt.RoundTrip(newRequest(t, http.MethodGet, u)) })
	_, body := get(t, rt, u)
	require.Equal(t, "x", body)
}
