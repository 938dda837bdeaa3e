package balancer_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// onDemand is a balancer without a goroutine of its own, and the times at which
// its resolver was asked.
type onDemand struct {
	*rig
	start time.Time
	asked []time.Duration
	under int
}

// demands runs the test in a bubble. The resolver takes a second for its n-th
// answer, counted from 1, and then waits as resolvers do.
func demands(t *testing.T, answer func(n int) (discovery.Set, error), test func(t *testing.T, d *onDemand)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := &onDemand{start: time.Now()}
		b, err := balancer.New("orders", discovery.ResolverFunc(func(ctx context.Context, service string) iter.Seq2[discovery.Set, error] {
			return func(yield func(discovery.Set, error) bool) {
				require.Equal(t, "orders", service)
				d.asked = append(d.asked, time.Since(d.start))
				d.under++
				defer func() { d.under-- }()
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
					return
				}
				if yield(answer(len(d.asked))) {
					<-ctx.Done()
				}
			}
		}), &balancer.Config{OnDemand: true})
		require.NoError(t, err)
		d.rig = &rig{Balancer: b, t: t}
		defer func() { require.NoError(t, b.Close()) }()
		test(t, d)
	})
}

func always(set discovery.Set) func(int) (discovery.Set, error) {
	return func(int) (discovery.Set, error) { return set, nil }
}

func TestOnDemandAsksOnlyWhenItIsUsed(t *testing.T) {
	demands(t, always(discovery.Set{Endpoints: endpoints(2), TTL: 10 * time.Second}), func(t *testing.T, d *onDemand) {
		time.Sleep(time.Hour)
		require.Empty(t, d.asked)
		for _, err := range d.waiters(t.Context(), 100)() {
			require.NoError(t, err)
		}
		require.Equal(t, []time.Duration{time.Hour}, d.asked, "once for all who wait")
		synctest.Wait()
		require.Zero(t, d.under, "and nothing goes on")
		d.counts(100)
		require.Len(t, d.asked, 1)
		time.Sleep(10*time.Second - 1)
		d.counts(100)
		require.Len(t, d.asked, 1)
		time.Sleep(time.Hour)
		require.Len(t, d.asked, 1, "it has expired, and nobody cares")

		before := time.Now()
		d.counts(100)
		require.Zero(t, time.Since(before), "what is known serves meanwhile")
		synctest.Wait()
		require.Len(t, d.asked, 2)
		time.Sleep(time.Second)
		synctest.Wait()
		d.counts(100)
		require.Len(t, d.asked, 2, "an equal set is current again")
		require.Zero(t, d.under)
	})
}

func TestOnDemandTakesNewSets(t *testing.T) {
	demands(t, func(n int) (discovery.Set, error) {
		return discovery.Set{Endpoints: endpoints(n), TTL: time.Second}, nil
	}, func(t *testing.T, d *onDemand) {
		for n := 1; n < 5; n++ {
			require.NoError(t, d.Ready(t.Context()))
			d.counts(1)
			time.Sleep(time.Second)
			synctest.Wait()
			require.Len(t, d.Nodes(), len(d.asked))
			time.Sleep(5 * time.Second)
		}
		require.Len(t, d.asked, 4)
	})
}

func TestOnDemandAsksAfterHalfAMinuteAtTheLatest(t *testing.T) {
	for _, ttl := range []time.Duration{0, time.Hour} {
		demands(t, always(discovery.Set{Endpoints: endpoints(1), TTL: ttl}), func(t *testing.T, d *onDemand) {
			for range 100 {
				d.counts(1)
				time.Sleep(time.Second)
			}
			require.Equal(t, []time.Duration{0, 31 * time.Second, 62 * time.Second, 93 * time.Second}, d.asked, "TTL %v", ttl)
		})
	}
}

func TestOnDemandEligibilityChangesDoNotProlongASet(t *testing.T) {
	demands(t, always(discovery.Set{Endpoints: endpoints(3), TTL: 10 * time.Second}), func(t *testing.T, d *onDemand) {
		d.counts(1)
		for range 12 {
			time.Sleep(time.Second)
			require.NoError(t, d.Eject(addr(0), time.Second))
		}
		d.counts(1)
		synctest.Wait()
		require.Len(t, d.asked, 2)
	})
}

func TestOnDemandFirstFailureFailsThoseWhoWait(t *testing.T) {
	demands(t, func(n int) (discovery.Set, error) {
		if n == 1 {
			return discovery.Set{}, errDown
		}
		return discovery.Set{Endpoints: endpoints(1)}, nil
	}, func(t *testing.T, d *onDemand) {
		for _, err := range d.waiters(t.Context(), 10)() {
			require.ErrorIs(t, err, errDown)
		}
		require.Equal(t, time.Second, time.Since(d.start))
		_, err := d.Acquire(t.Context(), balancer.Call{})
		require.ErrorIs(t, err, errDown)
		require.Equal(t, time.Second, time.Since(d.start), "at once, for it has just failed")
		time.Sleep(time.Second)
		d.counts(1) // waits for the second answer
		require.Equal(t, []time.Duration{0, 2 * time.Second}, d.asked)
		require.Equal(t, 3*time.Second, time.Since(d.start))
	})
}

func TestOnDemandBacksOffAfterFailures(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprintf("with nodes known %v", known), func(t *testing.T) {
			demands(t, func(n int) (discovery.Set, error) {
				if n == 1 && known {
					return discovery.Set{Endpoints: endpoints(1), TTL: time.Second}, nil
				}
				return discovery.Set{}, errDown
			}, func(t *testing.T, d *onDemand) {
				for time.Since(d.start) < 3*time.Minute {
					_, err := d.Acquire(t.Context(), balancer.Call{})
					if !known {
						require.ErrorIs(t, err, errDown)
					} else {
						require.NoError(t, err, "the last good set is kept")
					}
					time.Sleep(100 * time.Millisecond)
				}
				var waits []time.Duration
				for i := 1; i < len(d.asked); i++ {
					waits = append(waits, (d.asked[i] - d.asked[i-1] - time.Second).Truncate(time.Second))
				}
				want := []int{1, 2, 4, 8, 16, 30, 30, 30}
				if known {
					want = append([]int{1}, want...)
				}
				for i, w := range waits {
					require.EqualValues(t, want[min(i, len(want)-1)], w.Seconds(), "after failure %d", i+1)
				}
				require.Greater(t, len(waits), 7)
			})
		})
	}
}

func TestOnDemandBackoffBeginsAnewAfterASet(t *testing.T) {
	demands(t, func(n int) (discovery.Set, error) {
		if n == 5 {
			return discovery.Set{Endpoints: endpoints(1), TTL: time.Second}, nil
		}
		return discovery.Set{}, errDown
	}, func(t *testing.T, d *onDemand) {
		for len(d.asked) < 7 {
			_, _ = d.Acquire(t.Context(), balancer.Call{})
			time.Sleep(100 * time.Millisecond)
			synctest.Wait() // a refresh that nobody waits for may have just begun
		}
		require.InDelta(t, 2.0, (d.asked[6] - d.asked[5]).Seconds(), 0.2, "a second to fail, and one of backoff")
	})
}

// A warning is no set and no failure: those who wait for a set wait on.
func TestOnDemandWaitsForTheSetBehindAWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := balancer.New("orders", discovery.ResolverFunc(func(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
			return func(yield func(discovery.Set, error) bool) {
				if yield(discovery.Set{}, &discovery.Warning{Service: "orders", Err: errDown}) {
					time.Sleep(time.Second)
					if yield(discovery.Set{Endpoints: endpoints(1)}, nil) {
						<-ctx.Done()
					}
				}
			}
		}), &balancer.Config{OnDemand: true})
		require.NoError(t, err)
		defer b.Close()
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, b.Ready(ctx))
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestOnDemandResolverThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed() // says nothing
		b, err := balancer.New("orders", f, &balancer.Config{OnDemand: true})
		require.NoError(t, err)
		defer b.Close()
		start := time.Now()
		err = b.Ready(t.Context())
		var e *balancer.Error
		require.ErrorAs(t, err, &e)
		require.NotErrorIs(t, err, context.DeadlineExceeded, "the caller set none")
		require.Equal(t, 30*time.Second, time.Since(start))
		synctest.Wait()
		require.Zero(t, f.under.Load())
	})
}

func TestOnDemandCloseWhileAsking(t *testing.T) {
	demands(t, always(discovery.Set{Endpoints: endpoints(1)}), func(t *testing.T, d *onDemand) {
		wait := d.waiters(t.Context(), 10)
		require.Equal(t, 1, d.under)
		require.NoError(t, d.Close())
		require.Zero(t, d.under)
		for _, err := range wait() {
			require.ErrorIs(t, err, balancer.ErrClosed)
		}
		_, err := d.Acquire(t.Context(), balancer.Call{})
		require.ErrorIs(t, err, balancer.ErrClosed)
		require.Len(t, d.asked, 1)
		require.Zero(t, time.Since(d.start))
	})
}

func TestOnDemandWaitingObeysTheContext(t *testing.T) {
	demands(t, always(discovery.Set{Endpoints: endpoints(1)}), func(t *testing.T, d *onDemand) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := d.Acquire(ctx, balancer.Call{})
		require.True(t, errors.Is(err, context.DeadlineExceeded))
		require.Equal(t, time.Millisecond, time.Since(d.start))
		d.counts(1)
		require.Len(t, d.asked, 1, "the look-up went on for the others")
	})
}

// The balancers are not closed: a bubble does not end while a goroutine is left.
func TestOnDemandHoldsNothingWhileIdle(t *testing.T) {
	opaque := new(http.Transport)
	opaque.RegisterProtocol("http", roundTrip(func(req *http.Request) (*http.Response, error) { return answer(req, 200, text("ok")), nil }))
	for name, next := range map[string]http.RoundTripper{
		"rewritten": roundTrip(func(req *http.Request) (*http.Response, error) { return answer(req, 200, text("ok")), nil }),
		"opaque":    opaque,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, err := balancer.New("orders", discovery.Static(endpoints(2)...), &balancer.Config{OnDemand: true})
				require.NoError(t, err)
				rt := b.Layer(next)
				for range 5 {
					resp, err := getFrom(t, rt, "http://orders/")
					require.NoError(t, err)
					read(t, resp)
					time.Sleep(time.Minute)
				}
			})
		})
	}
}
