package retry_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

// graced hedges like hedging, and spares what loses for a second.
func graced(t testing.TB, change ...func(*retry.Config)) *retry.Config {
	return hedging(t, append([]func(*retry.Config){func(c *retry.Config) { c.Hedge.LoserGrace = time.Second }}, change...)...)
}

// The first of two requests is answered when the second one has been.
func TestConnectionsOfLosersLiveOnIfTheyHaveAGrace(t *testing.T) {
	const calls = 10
	for _, test := range []struct{ grace time.Duration }{{0}, {time.Minute}} {
		t.Run(test.grace.String(), func(t *testing.T) {
			var connections, requests atomic.Int32
			arrived, answered := make(chan struct{}, 1), make(chan struct{}, 1)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				requests.Add(1)
				loser := req.Header.Get("Attempt") == "1"
				if loser {
					arrived <- struct{}{}
					select {
					case <-answered:
					case <-req.Context().Done():
						<-answered
						return
					}
				}
				_, _ = w.Write([]byte(strings.Repeat("x", 10_000)))
				if !loser {
					answered <- struct{}{}
				}
			}))
			server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					connections.Add(1)
				}
			}
			server.Start()
			defer server.Close()
			r := newRetrier(t, hedging(t, func(c *retry.Config) {
				c.Hedge.Delay, c.Hedge.LoserGrace, c.DrainTime = 5*time.Millisecond, test.grace, time.Minute
			}))
			base := &http.Transport{MaxIdleConnsPerHost: 10}
			defer base.CloseIdleConnections()
			var attempt atomic.Int32
			numbered := roundTripper(func(req *http.Request) (*http.Response, error) {
				n := attempt.Add(1)
				req = req.Clone(req.Context())
				if req.Header.Set("Attempt", fmt.Sprint(n)); n > 1 {
					<-arrived // however slow the machine is
				}
				return base.RoundTrip(req)
			})
			hc := &http.Client{Transport: r.Layer(numbered), Timeout: time.Minute} // which cancels when it has the answer
			for range calls {
				attempt.Store(0)
				idle := make(chan error, 2)
				ctx, cancel := context.WithCancel(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
					PutIdleConn: func(err error) { idle <- err },
				}))
				req, err := http.NewRequestWithContext(ctx, "GET", server.URL, nil)
				require.NoError(t, err)
				resp, err := hc.Do(req)
				require.NoError(t, err)
				require.Len(t, readAll(t, resp), 10_000)
				cancel()
				for range map[bool]int{true: 2, false: 1}[test.grace > 0] {
					select { // net/http may throw one away, and then says nothing
					case <-idle:
					case <-time.After(time.Second):
					}
				}
			}
			require.Equal(t, test.grace > 0, connections.Load() <= calls/2, "%d connections", connections.Load())
		})
	}
}

func TestAttemptThatHasLostIsSparedForItsGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := newBody("late")
		s := &script{steps: []step{
			after(time.Second, func(*http.Request) (*http.Response, error) { return response(200, late), nil }),
			replies(200, "hedge"),
		}}
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		resp, err := newRetrier(t, graced(t)).Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
		require.NoError(t, err)
		require.Equal(t, hedgeDelay, time.Since(begin), "the caller does not wait for it")
		require.Equal(t, "hedge", readAll(t, resp))
		cancel() // as callers do
		synctest.Wait()
		require.NoError(t, sent(s, 0).Context().Err())
		require.Error(t, sent(s, 1).Context().Err(), "its body has been closed")
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, late.closes.Load())
		require.Greater(t, late.reads.Load(), int32(1), "to its end")
	})
}

func TestGraceOfALoserEnds(t *testing.T) {
	for name, steps := range map[string][]step{
		"attempt": {hangs, replies(200, "ok")},
		"hedge":   {after(60*time.Millisecond, replies(200, "ok")), hangs},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{steps: steps}
				resp, err := newRetrier(t, graced(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
				require.NoError(t, err)
				require.Equal(t, "ok", readAll(t, resp))
				lost := sent(s, map[string]int{"attempt": 0, "hedge": 1}[name]).Context()
				time.Sleep(time.Second - time.Millisecond)
				require.NoError(t, lost.Err())
				time.Sleep(2 * time.Millisecond)
				require.ErrorContains(t, context.Cause(lost), "superseded")
			})
		})
	}
}

func TestCallersCancelReachesTheWinnersBodyAndBothAttemptsBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		s := &script{steps: []step{hangs, replies(200, "hedge")}}
		resp, err := newRetrier(t, graced(t)).Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
		require.NoError(t, err)
		cancel(errBoom)
		synctest.Wait()
		require.Equal(t, errBoom, context.Cause(sent(s, 1).Context()), "of the winner")
		require.NoError(t, sent(s, 0).Context().Err())
		_ = resp.Body.Close()
		time.Sleep(time.Minute)
	})
	for name, end := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"cancel": func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Second, cancel)
			return ctx, cancel
		},
		"deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := end(t.Context())
				defer cancel()
				deadline, bounded := ctx.Deadline()
				s := &script{steps: []step{func(req *http.Request) (*http.Response, error) {
					own, is := req.Context().Deadline()
					require.Equal(t, bounded, is)
					require.Equal(t, deadline, own)
					<-req.Context().Done()
					return nil, req.Context().Err()
				}}}
				begin := time.Now()
				_, err := newRetrier(t, graced(t)).Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
				want := context.Canceled
				if bounded {
					want = context.DeadlineExceeded
				}
				require.Equal(t, want, err)
				require.Equal(t, time.Second, time.Since(begin))
				require.Equal(t, 2, s.attempts())
			})
		})
	}
}

func TestPanicOfAnAttemptWithAGraceReachesTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		panics := func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			panic(errBoom)
		}
		s := &script{steps: []step{panics, hangs}}
		layer := newRetrier(t, graced(t)).Layer(s)
		require.PanicsWithValue(t, errBoom, func() { _, _ = layer.RoundTrip(newRequest(t, t.Context(), "GET", nil)) })

		s = &script{steps: []step{panics, replies(200, "hedge")}}
		resp, err := newRetrier(t, graced(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		readAll(t, resp)
		time.Sleep(time.Minute) // too late, it is nobody's

		s = &script{steps: []step{func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil }}}
		_, err = newRetrier(t, graced(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.ErrorContains(t, err, "runtime.Goexit")
		time.Sleep(time.Minute)
	})
}

// Under -race: what goes on for an attempt that has lost looks at a copy.
func TestCallerMayChangeTheRequestWhileALoserHasItsGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read := func(req *http.Request) (*http.Response, error) {
			for range 100 {
				time.Sleep(time.Millisecond)
				_, _ = req.Header.Get("X"), req.URL.String()
			}
			return replies(200, "late")(req)
		}
		s := &script{steps: []step{read, replies(200, "hedge")}}
		req := newRequest(t, t.Context(), "GET", nil)
		req.Header.Set("X", "1")
		resp, err := newRetrier(t, graced(t)).Layer(s).RoundTrip(req)
		require.NoError(t, err)
		readAll(t, resp)
		for i := range 100 {
			req.Header.Set("X", fmt.Sprint(i))
			req.URL.Path = "/" + fmt.Sprint(i)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Minute)
	})
}

func TestCallLogTellsTheAttemptWithAGraceFromItsHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, log := call.WithLog(t.Context())
		s := &script{steps: []step{
			fails(errReset), after(100*time.Millisecond, replies(200, "")), after(10*time.Millisecond, replies(200, "")),
		}}
		r := newRetrier(t, graced(t, func(c *retry.Config) { c.Backoff = retry.Backoff{New: constant(time.Second)} }))
		resp, err := r.Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
		require.NoError(t, err)
		readAll(t, resp)
		require.Equal(t, "GET orders /items: 200 in 1.06s; sent connection reset in 0s; hedge sent 200 in 10ms", log.String())
		time.Sleep(time.Minute)
		require.Equal(t, "GET orders /items: 200 in 1.06s; sent connection reset in 0s; hedge sent 200 in 10ms; slept 1s; sent 200 in 100ms", log.String())
		require.Equal(t, call.Backoff, log.Calls()[0].Attempts[2].Why)
	})
}

func TestRefusalOfAnAttemptWithAGraceIsTheCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, log := call.WithLog(t.Context())
		s := &script{steps: []step{replies(503, "first"), fails(refusal{})}}
		l := &struct{ *inner }{&inner{next: s}}
		refusing := roundTripper(func(req *http.Request) (*http.Response, error) {
			resp, err := s.RoundTrip(req)
			if err != nil {
				call.Join(req.Context(), l).Refused("a", "breaker", err)
			}
			return resp, err
		})
		l.next = refusing
		layer := newRetrier(t, graced(t)).Layer(&chained{refusing, l})
		resp, err := layer.RoundTrip(newRequest(t, ctx, "GET", nil))
		require.NoError(t, err)
		require.Equal(t, "first", readAll(t, resp))
		record := log.Calls()[0]
		require.Len(t, record.Attempts, 1)
		require.Len(t, record.Refusals, 1)
		require.Equal(t, "a", record.Refusals[0].Node)
	})
}

// chained is a stranger who says what he wraps: one whom next knows the frame by.
type chained struct {
	roundTripper
	next http.RoundTripper
}

func (c *chained) Unwrap() http.RoundTripper { return c.next }

func TestLosingFunctionIsSparedForItsGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tries{steps: []try{in(time.Second/2, returns("late", nil)), returns("hedge", nil)}}
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		v, err := retry.Do(ctx, newRetrier(t, graced(t)), s.fn)
		require.NoError(t, err)
		require.Equal(t, "hedge", v)
		require.Equal(t, hedgeDelay, time.Since(begin))
		cancel()
		synctest.Wait()
		require.NoError(t, s.ctxs[0].Err())
		time.Sleep(time.Minute)

		// And closed.
		var closed [2]atomic.Int32
		var n atomic.Int32
		w, err := retry.Do(t.Context(), newRetrier(t, graced(t)), func(context.Context) (closer, error) {
			i := n.Add(1) - 1
			time.Sleep([]time.Duration{time.Second, 0}[i])
			return closer{&closed[i]}, nil
		})
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.Zero(t, w.closed.Load())
		require.EqualValues(t, 1, closed[0].Load())

		// Nor is it let go before it has lost.
		_, err = retry.Do(t.Context(), newRetrier(t, graced(t, func(c *retry.Config) { c.Timeout = time.Second })), waitForEnd)
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
	})
}

// A response of a hedge that has failed is given to the caller whole if it is the
// best there is.
func TestBadResponseOfAHedgeCanBeRead(t *testing.T) {
	for _, grace := range []time.Duration{-1, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			s := &script{steps: []step{after(60*time.Millisecond, fails(errReset)), replies(502, "bad"), fails(refusal{})}}
			r := newRetrier(t, hedging(t, func(c *retry.Config) { c.MaxAttempts, c.Hedge.LoserGrace = 2, grace }))
			resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
			require.NoError(t, err)
			require.NoError(t, sent(s, 1).Context().Err())
			require.Equal(t, "bad", readAll(t, resp))
			time.Sleep(time.Minute)
		})
	}
}
