package retry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/outcome"
	"github.com/backstay/backstay/retry"
)

const hedgeDelay = 50 * time.Millisecond

// hedging retries at once and hedges after hedgeDelay, without limits.
func hedging(t testing.TB, change ...func(*retry.Config)) *retry.Config {
	return eager(append([]func(*retry.Config){func(c *retry.Config) {
		c.Hedge = retry.HedgeConfig{Delay: hedgeDelay, MaxExtra: -1}
		c.Budget = unlimited(t)
	}}, change...)...)
}

// after answers like step, but later, unless the request is canceled.
func after(d time.Duration, step func(*http.Request) (*http.Response, error)) func(*http.Request) (*http.Response, error) {
	return func(req *http.Request) (*http.Response, error) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return step(req)
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
	}
}

func hangs(req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	return nil, context.Cause(req.Context())
}

// stubborn answers with b after d, whether or not the request is canceled.
func stubborn(d time.Duration, b io.ReadCloser) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) {
		time.Sleep(d)
		return response(200, b), nil
	}
}

// sent returns the nth request that s has got, from 0.
func sent(s *script, n int) *http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reqs[n]
}

type valueKey struct{}

type step = func(*http.Request) (*http.Response, error)

func TestHedgeAnswersForAnAttemptThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{hangs, after(10*time.Millisecond, replies(200, "hedge"))}}
		rec := new(recorder)
		r := newRetrier(t, hedging(t, func(c *retry.Config) { c.Observer = rec }))
		ctx := context.WithValue(t.Context(), valueKey{}, "value")
		begin := time.Now()
		resp, err := r.Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
		require.NoError(t, err)
		require.Equal(t, 60*time.Millisecond, time.Since(begin))
		require.Equal(t, 2, s.attempts())

		superseded, winner := sent(s, 0).Context(), sent(s, 1).Context()
		require.ErrorContains(t, context.Cause(superseded), "superseded")
		require.NoError(t, winner.Err(), "not before the body is closed")
		require.Equal(t, "value", winner.Value(valueKey{}))
		require.Equal(t, "hedge", readAll(t, resp))
		<-winner.Done()
		require.Equal(t, []string{"retry.hedged"}, names(rec))
		require.Equal(t, retry.Hedged{Service: "orders", Hedge: 1, Delay: hedgeDelay}, rec.events[0])
	})
}

func TestNoHedgeBeginsForAnAnswerInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{after(hedgeDelay-1, replies(200, "first"))}}
		resp, err := newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.NoError(t, sent(s, 0).Context().Err())
		time.Sleep(time.Minute)
		require.Equal(t, "first", readAll(t, resp))
		require.Equal(t, 1, s.attempts())
	})
}

func TestAttemptThatAnswersFirstHasItsHedgeCanceledAndItsLateResponseClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := newBody("late")
		s := &script{steps: []step{after(60*time.Millisecond, replies(200, "first")), stubborn(time.Second, late)}}
		begin := time.Now()
		resp, err := newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, 60*time.Millisecond, time.Since(begin), "it does not wait for the hedge")
		require.ErrorContains(t, context.Cause(sent(s, 1).Context()), "superseded")
		require.Equal(t, "first", readAll(t, resp))
		time.Sleep(2 * time.Second)
		require.EqualValues(t, 1, late.closes.Load())
	})
}

func TestLateAnswerOfASupersededAttemptIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := newBody("late")
		s := &script{steps: []step{stubborn(70*time.Millisecond, late), replies(200, "hedge")}}
		resp, err := newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, "hedge", readAll(t, resp))
		require.EqualValues(t, 1, late.closes.Load())
	})
}

func TestHedgeThatFailsDoesNotBeatALivingAttempt(t *testing.T) {
	for name, failure := range map[string]step{
		"error": fails(errReset), "status": replies(503, "no"), "status that is final": replies(500, "no"),
		"refusal": fails(refusal{}), "throttled": replies(429, "no"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{steps: []step{after(time.Second, replies(200, "first")), failure}}
				begin := time.Now()
				resp, err := newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
				require.NoError(t, err)
				require.Equal(t, time.Second, time.Since(begin))
				require.Equal(t, "first", readAll(t, resp))
				require.Equal(t, 2, s.attempts())
			})
		})
	}
}

func TestAttemptThatFailsWaitsForItsHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := newBody("bad")
		first := after(60*time.Millisecond, func(*http.Request) (*http.Response, error) { return response(503, bad), nil })
		s := &script{steps: []step{first, after(time.Second, replies(200, "hedge"))}}
		begin := time.Now()
		resp, err := newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, 1050*time.Millisecond, time.Since(begin))
		require.Equal(t, "hedge", readAll(t, resp))
		require.Equal(t, 2, s.attempts())
		require.EqualValues(t, 1, bad.closes.Load())
	})
}

// What comes back when all attempts have failed, with no attempt left.
func TestBestOfWhatFailedIsGivenBack(t *testing.T) {
	slow := func(s step) step { return after(60*time.Millisecond, s) }
	for _, test := range []struct {
		name         string
		first, hedge step
		status       int
		errs         []error
	}{
		{"the attempt's response", slow(replies(503, "")), replies(502, ""), 503, nil},
		{"the attempt's response after a hedge's error", slow(replies(503, "")), fails(errBoom), 503, nil},
		{"a hedge's response rather than an error", slow(fails(errReset)), replies(502, ""), 502, nil},
		{"both errors", slow(fails(errReset)), fails(errBoom), 0, []error{errReset, errBoom}},
		{"an error rather than a refusal", slow(fails(refusal{})), fails(errBoom), 0, []error{errBoom}},
		{"the attempt's error rather than a refusal", slow(fails(errReset)), fails(refusal{}), 0, []error{errReset}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, hedging := range []func(testing.TB, ...func(*retry.Config)) *retry.Config{hedging, graced} {
					s := &script{steps: []step{test.first, test.hedge, fails(refusal{})}}
					r := newRetrier(t, hedging(t, func(c *retry.Config) { c.MaxAttempts = 2 }))
					resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
					if test.status > 0 {
						require.NoError(t, err)
						require.Equal(t, test.status, resp.StatusCode)
						readAll(t, resp)
					}
					for _, want := range test.errs {
						require.ErrorIs(t, err, want)
					}
					if len(test.errs) > 1 {
						var hedged *retry.HedgedError
						require.ErrorAs(t, err, &hedged)
						require.EqualError(t, err, "connection reset (hedged: boom)")
					}
				}
			})
		})
	}
}

// It does not matter whose answer says how long to wait.
func TestHintOfAHedgeHoldsForTheCall(t *testing.T) {
	hint := after(10*time.Millisecond, replies(503, "", "Retry-After", "5"))
	for name, own := range map[string]step{"response": replies(503, ""), "error": fails(errReset)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{steps: []step{after(70*time.Millisecond, own), hint, replies(200, "")}}
				begin := time.Now()
				resp, err := newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
				require.NoError(t, err)
				readAll(t, resp)
				require.Equal(t, 3, s.attempts())
				require.GreaterOrEqual(t, time.Since(begin), 5*time.Second)

				s = &script{steps: s.steps}
				resp, err = newRetrier(t, hedging(t, func(c *retry.Config) { c.MaxRetryAfter = time.Second })).
					Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
				require.NoError(t, err)
				require.Equal(t, 503, resp.StatusCode)
				readAll(t, resp)
				require.Equal(t, 2, s.attempts())
			})
		})
	}
}

func TestCallIsTriedAgainAfterAnAttemptAndItsHedgeFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{after(60*time.Millisecond, fails(errReset)), fails(errReset), replies(200, "third")}}
		resp, err := newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, "third", readAll(t, resp))
		require.Equal(t, 3, s.attempts())
	})
}

func TestHedgesCountAsAttempts(t *testing.T) {
	for attempts, want := range map[int]int{-1: 1, 2: 2, 3: 3, 6: 6} {
		t.Run(fmt.Sprint(attempts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{steps: []step{after(time.Second, fails(errReset))}}
				for _, hedging := range []func(testing.TB, ...func(*retry.Config)) *retry.Config{hedging, graced} {
					s.reqs = nil
					r := newRetrier(t, hedging(t, func(c *retry.Config) { c.MaxAttempts, c.Hedge.MaxHedges = attempts, 2 }))
					_, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
					require.ErrorIs(t, err, errReset)
					require.Equal(t, want, s.attempts())
				}
			})
		})
	}
}

func TestEachFurtherHedgeBeginsAfterAnotherDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{hangs, hangs, replies(200, "third")}}
		r := newRetrier(t, hedging(t, func(c *retry.Config) { c.Hedge.MaxHedges = 2 }))
		begin := time.Now()
		resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, 2*hedgeDelay, time.Since(begin))
		require.Equal(t, "third", readAll(t, resp))
	})
}

func TestHedgeAfterOneThatHasFailedBeginsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{hangs, replies(503, ""), after(10*time.Millisecond, replies(200, "third")), hangs}}
		r := newRetrier(t, hedging(t, func(c *retry.Config) { c.MaxAttempts, c.Hedge.MaxHedges = 10, 2 }))
		begin := time.Now()
		resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, hedgeDelay+10*time.Millisecond, time.Since(begin))
		require.Equal(t, "third", readAll(t, resp))

		// But not after what is final, nor more than there may be.
		s = &script{steps: []step{after(time.Second, replies(200, "first")), replies(500, ""), replies(503, "")}}
		resp, err = r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, "first", readAll(t, resp))
		require.Equal(t, 3, s.attempts())
	})
}

func TestHedgeThatIsAskedForLessLoadIsTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{after(time.Second, replies(200, "first")), replies(429, ""), replies(200, "third")}}
		r := newRetrier(t, hedging(t, func(c *retry.Config) { c.Hedge.MaxHedges = 2 }))
		resp, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, "first", readAll(t, resp))
		require.Equal(t, 2, s.attempts())
	})
}

func TestOnlyCallsThatMayBeRepeatedAreHedged(t *testing.T) {
	for _, test := range []struct {
		name   string
		method string
		body   io.Reader
		change func(*http.Request) *http.Request
		want   int
	}{
		{"GET", "GET", nil, nil, 2},
		{"POST", "POST", nil, nil, 1},
		{"POST with a key", "POST", strings.NewReader("x"), func(r *http.Request) *http.Request {
			r.Header.Set("Idempotency-Key", "1")
			return r
		}, 2},
		{"marked POST", "POST", strings.NewReader("x"), func(r *http.Request) *http.Request {
			return r.WithContext(retry.WithIdempotent(r.Context(), true))
		}, 2},
		{"marked GET", "GET", nil, func(r *http.Request) *http.Request {
			return r.WithContext(retry.WithIdempotent(r.Context(), false))
		}, 1},
		{"PUT with a body", "PUT", strings.NewReader("x"), nil, 2},
		{"PUT with a body that cannot be had again", "PUT", io.MultiReader(strings.NewReader("x")), nil, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{steps: []step{after(time.Second, replies(200, "ok"))}}
				req := newRequest(t, t.Context(), test.method, test.body)
				if test.change != nil {
					req = test.change(req)
				}
				resp, err := newRetrier(t, hedging(t)).Layer(s).RoundTrip(req)
				require.NoError(t, err)
				readAll(t, resp)
				require.Equal(t, test.want, s.attempts())
				for _, text := range s.bodies {
					require.Equal(t, s.bodies[0], text)
				}
			})
		})
	}
}

func TestHedgesHaveTheirOwnShareAndTakeFromTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{after(time.Second, replies(200, "ok"))}}
		calls := func(r *retry.Retrier, n int) int {
			before, layer := s.attempts(), r.Layer(s)
			for range n {
				resp, err := layer.RoundTrip(newRequest(t, t.Context(), "GET", nil))
				require.NoError(t, err)
				readAll(t, resp)
			}
			return s.attempts() - before - n
		}
		share := newRetrier(t, hedging(t, func(c *retry.Config) { c.Hedge.MaxExtra = 0.5 }))
		require.Equal(t, 6, calls(share, 10), "one, and half of the calls")

		none := newBudget(t, &retry.BudgetConfig{Ratio: 1e-6, PerSecond: -1})
		poor := newRetrier(t, hedging(t, func(c *retry.Config) { c.Budget = none }))
		require.Zero(t, calls(poor, 10))
	})
}

func TestHedgesOfConcurrentCallsNeverExceedTheirShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{after(time.Second, replies(200, "ok"))}}
		layer := newRetrier(t, hedging(t, func(c *retry.Config) { c.Hedge.MaxExtra = 0 })).Layer(s)
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				resp, err := layer.RoundTrip(newRequest(t, t.Context(), "GET", nil))
				require.NoError(t, err)
				_ = resp.Body.Close()
			})
		}
		all.Wait()
		require.Equal(t, 1051, s.attempts())
	})
}

func TestServiceWithoutAnotherNodeIsNotHedgedForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{after(time.Second/2, replies(200, "")), fails(refusal{}), after(time.Second/4, replies(200, ""))}}
		layer := newRetrier(t, hedging(t)).Layer(s)
		for range 5 {
			resp, err := layer.RoundTrip(newRequest(t, t.Context(), "GET", nil))
			require.NoError(t, err)
			readAll(t, resp)
		}
		require.Equal(t, 7, s.attempts(), "the first and the fifth")
	})
}

func TestPanicOfAHedgeReachesTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{hangs, func(*http.Request) (*http.Response, error) { panic(errBoom) }}}
		layer := newRetrier(t, hedging(t)).Layer(s)
		require.PanicsWithValue(t, errBoom, func() { _, _ = layer.RoundTrip(newRequest(t, t.Context(), "GET", nil)) })
	})
}

func TestPanicOfAHedgeThatCameTooLateIsNobodys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{after(60*time.Millisecond, replies(200, "")), func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			panic(errBoom)
		}}}
		resp, err := newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		readAll(t, resp)
		time.Sleep(time.Minute)
	})
}

func TestGoexitOfAHedgeIsAFailureOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil }
		s := &script{steps: []step{after(time.Second, replies(200, "first")), exits}}
		resp, err := newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, "first", readAll(t, resp))

		s = &script{steps: []step{after(time.Second, fails(errReset)), exits, replies(200, "third")}}
		resp, err = newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.NoError(t, err)
		require.Equal(t, "third", readAll(t, resp))
	})
}

func TestPanicOrGoexitOfAnAttemptEndsItsHedge(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(errBoom) }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{steps: []step{func(*http.Request) (*http.Response, error) {
					time.Sleep(time.Second)
					end()
					return nil, nil
				}, hangs}}
				done := make(chan any)
				go func() {
					defer func() { done <- recover() }()
					_, _ = newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
				}()
				got := <-done
				require.Equal(t, name == "panic", got != nil)
				<-sent(s, 1).Context().Done()
			})
		})
	}
}

// The caller goes away at every moment of calls that go every way. The bubble
// sees what is left behind.
func TestCallerMayGoAwayAtAnyMoment(t *testing.T) {
	for name, steps := range map[string][]step{
		"both hang":         {hangs, hangs},
		"hedge answers":     {hangs, after(20*time.Millisecond, replies(200, "")), hangs},
		"attempt answers":   {after(70*time.Millisecond, replies(200, "")), hangs},
		"attempt fails":     {after(60*time.Millisecond, fails(errReset)), after(30*time.Millisecond, replies(200, ""))},
		"both fail":         {after(60*time.Millisecond, fails(errReset)), after(10*time.Millisecond, fails(errBoom)), hangs},
		"attempt is turned": {after(60*time.Millisecond, replies(503, "")), after(30*time.Millisecond, replies(503, "")), hangs},
	} {
		t.Run(name, func(t *testing.T) {
			for ms := 0; ms <= 120; ms += 5 {
				synctest.Test(t, func(t *testing.T) {
					cfg, after := hedging(t), time.Duration(ms)*time.Millisecond
					if ms%10 > 0 {
						cfg, after = graced(t), after-5*time.Millisecond
					}
					ctx, cancel := context.WithTimeoutCause(t.Context(), after, errBoom)
					defer cancel()
					s := &script{steps: steps}
					begin := time.Now()
					resp, err := newRetrier(t, cfg).Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
					require.LessOrEqual(t, time.Since(begin), after)
					if err == nil {
						_ = resp.Body.Close()
					} else {
						require.Nil(t, resp)
					}
					time.Sleep(time.Minute) // who has a grace comes to his end
				})
			}
		})
	}
}

func TestAttemptTimeoutBoundsEachOfBoth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{hangs}}
		r := newRetrier(t, hedging(t, func(c *retry.Config) { c.AttemptTimeout, c.MaxAttempts = time.Second, 2 }))
		begin := time.Now()
		_, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.Equal(t, time.Second+hedgeDelay, time.Since(begin))
	})
}

func TestCallTimeoutEndsBothAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{hangs}}
		r := newRetrier(t, hedging(t, func(c *retry.Config) { c.Timeout = 200 * time.Millisecond }))
		begin := time.Now()
		_, err := r.Layer(s).RoundTrip(newRequest(t, t.Context(), "GET", nil))
		require.ErrorIs(t, err, outcome.ErrCallTimeout)
		require.Equal(t, 200*time.Millisecond, time.Since(begin))
		require.Equal(t, 2, s.attempts())
	})
}

func TestNoHedgeBeginsThatTheDeadlineWouldForestall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), hedgeDelay)
		defer cancel()
		s := &script{steps: []step{hangs}}
		_, err := newRetrier(t, hedging(t)).Layer(s).RoundTrip(newRequest(t, ctx, "GET", nil))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 1, s.attempts())
	})
}

func TestCallLogShowsHedgesAndWhichAnswerTheCallerGot(t *testing.T) {
	for _, test := range []struct {
		name  string
		steps []step
		want  string
	}{
		{
			"hedge",
			[]step{hangs, after(10*time.Millisecond, replies(200, ""))},
			"GET orders /items: 200 in 60ms; sent superseded by another attempt in 60ms; hedge sent 200 in 10ms",
		},
		{
			"attempt",
			[]step{after(80*time.Millisecond, replies(200, "")), hangs},
			"GET orders /items: 200 in 80ms; sent 200 in 80ms; hedge sent superseded by another attempt in 30ms",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, log := call.WithLog(t.Context())
				resp, err := newRetrier(t, hedging(t)).Layer(&script{steps: test.steps}).RoundTrip(newRequest(t, ctx, "GET", nil))
				require.NoError(t, err)
				readAll(t, resp)
				synctest.Wait()
				a := log.Calls()[0].Attempts
				require.Len(t, a, 2)
				require.NotEqual(t, a[0].Hedge, a[1].Hedge)
				for _, a := range a {
					if a.Hedge {
						require.Equal(t, math.MaxInt, a.Budget, "the budget is off")
					}
					require.True(t, a.Status == 200 || a.Outcome.Class == outcome.Neutral && errors.Is(a.Outcome.Err, context.Canceled))
				}
				require.Contains(t, []string{test.want, swapped(test.want)}, log.String(), "who comes to its end first is logged first")
			})
		})
	}
}

// swapped is a call's line with its two attempts the other way round.
func swapped(line string) string {
	parts := strings.Split(line, "; ")
	return strings.Join([]string{parts[0], parts[2], parts[1]}, "; ")
}

func names(r *recorder) (names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		names = append(names, e.EventName())
	}
	return names
}

// observeHedged calls f with each Hedged.
func observeHedged(f func()) event.Observer {
	return event.ObserverFunc(func(_ context.Context, e event.Event) {
		if _, ok := e.(retry.Hedged); ok {
			f()
		}
	})
}
