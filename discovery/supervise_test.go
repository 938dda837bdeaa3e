package discovery

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var errDown = errors.New("the registry is down")

// failing is a source whose every watch ends with an error at once.
type failing struct {
	began []time.Time
	err   error
}

func (f *failing) Watch(context.Context, string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		f.began = append(f.began, time.Now())
		yield(Set{}, f.err)
	}
}

func TestFirstFailureIsRetriedInASecondAndNotAfterTheTTL(t *testing.T) {
	bubble(t, func(t *testing.T) {
		lookups := 0
		r := ResolverFunc(func(ctx context.Context, service string) iter.Seq2[Set, error] {
			return poll(ctx, service, schedule{least: 5 * time.Minute}, func(context.Context) (Set, error) {
				if lookups++; lookups == 1 {
					return Set{}, errDown
				}
				return Set{TTL: 5 * time.Minute, Endpoints: Addrs("10.0.0.1:80")}, nil
			})
		})
		rec := record(t.Context(), t, Supervise(r, nil), "orders")
		require.Len(t, rec.take(), 1)
		time.Sleep(2 * time.Second)
		got := rec.take()
		require.Len(t, got, 1)
		require.NoError(t, got[0].err)
		require.InDelta(t, time.Second, got[0].at, float64(200*time.Millisecond))
	})
}

func TestBackoffGrowsWithJitterUpToItsBound(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := &failing{err: errDown}
		rec := record(t.Context(), t, Supervise(f, nil), "orders")
		time.Sleep(10 * time.Minute)
		rec.stop()
		require.Greater(t, len(f.began), 20)
		interval, distinct := float64(time.Second), map[time.Duration]bool{}
		for i := 1; i < len(f.began); i++ {
			wait := f.began[i].Sub(f.began[i-1])
			require.InDelta(t, interval, wait, interval*0.2+2, "wait %d", i)
			require.LessOrEqual(t, wait, 30*time.Second)
			distinct[wait] = true
			interval = min(interval*1.6, float64(25*time.Second))
		}
		require.Greater(t, len(distinct), len(f.began)*9/10, "the waits are jittered")
	})
}

func TestBackoffStartsAnewAfterAWatchThatLasted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		for range 6 { // up to some ten seconds
			src.steps <- step{err: errDown, end: true}
		}
		src.push(of("a:1"))
		time.Sleep(6 * time.Second)
		src.steps <- step{err: errDown, end: true}
		ended := time.Now()
		time.Sleep(time.Minute)
		rec.stop()
		began := src.began()
		require.InDelta(t, time.Second, began[len(began)-1].Sub(ended), float64(200*time.Millisecond))
	})
}

func TestBackoffGrowsAlsoWhereEachFailureTakesLong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		failures := 0
		r := ResolverFunc(func(ctx context.Context, _ string) iter.Seq2[Set, error] {
			return func(yield func(Set, error) bool) {
				if failures++; sleep(ctx, 10*time.Second) { // a look-up that times out
					yield(Set{}, errDown)
				}
			}
		})
		rec := record(t.Context(), t, Supervise(r, nil), "orders")
		time.Sleep(10 * time.Minute)
		rec.stop()
		require.Less(t, failures, 25)
	})
}

func TestContextThatEndsBetweenTwoYieldsEndsThem(t *testing.T) {
	wrong := Static(Addrs("a:1", "not an address")...) // a set and a warning
	unwell := Merge(Static(Addrs("a:1")...), &failing{err: errDown})
	for _, r := range []Resolver{Supervise(wrong, nil), unwell} {
		bubble(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			n := 0
			for range r.Watch(ctx, "orders") {
				n++
				cancel()
				time.Sleep(time.Second)
			}
			require.Equal(t, 1, n)
		})
	}
}

func TestSourceThatEndsAfterEachSetIsPolledEverMoreSlowly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		watches := 0
		r := ResolverFunc(func(context.Context, string) iter.Seq2[Set, error] {
			return func(yield func(Set, error) bool) {
				watches++
				yield(of("a:1"), nil)
			}
		})
		rec := record(t.Context(), t, Supervise(r, nil), "orders")
		time.Sleep(10 * time.Minute)
		require.Len(t, rec.take(), 1, "an end without an error is none")
		rec.stop()
		require.InDelta(t, 30, watches, 6)
	})
}

func TestSourceThatEndsWithoutAnAnswerIsAFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := ResolverFunc(func(context.Context, string) iter.Seq2[Set, error] {
			return func(func(Set, error) bool) {}
		})
		rec := record(t.Context(), t, Supervise(r, nil), "orders")
		got := rec.take()
		require.Len(t, got, 1)
		require.ErrorIs(t, got[0].err, errEnded)
	})
}

func TestFirstErrorIsPassedOnAtOnceTypedAndNotSent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rec := record(t.Context(), t, Supervise(&failing{err: errDown}, nil), "orders")
		got := rec.take()
		require.Len(t, got, 1)
		require.Zero(t, got[0].at)
		var re *ResolveError
		require.ErrorAs(t, got[0].err, &re)
		require.Equal(t, "orders", re.Service)
		require.True(t, re.NotSent())
		require.ErrorIs(t, got[0].err, errDown)
		require.EqualError(t, got[0].err, "discovery: orders: the registry is down")
	})
}

func TestFailureNeverEmptiesTheSet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		src.push(of("a:1", "b:1"))
		require.Len(t, rec.take(), 1)
		for range 20 {
			src.steps <- step{err: fmt.Errorf("%w: NXDOMAIN", ErrNotFound), end: true}
		}
		time.Sleep(time.Hour)
		for _, y := range rec.take() {
			require.ErrorIs(t, y.err, ErrNotFound)
		}
	})
}

func TestEmptySetIsHeldBackForItsGrace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		src.push(of("a:1"))
		time.Sleep(time.Second)
		rec.take()
		src.push(Set{})
		got := rec.take()
		require.Len(t, got, 1)
		require.ErrorIs(t, got[0].err, ErrNoEndpoints)
		time.Sleep(20 * time.Second)
		src.push(Set{}) // again: no new grace
		time.Sleep(10*time.Second - 1)
		require.Empty(t, rec.take())
		time.Sleep(time.Second)
		got = rec.take()
		require.Len(t, got, 1)
		require.NoError(t, got[0].err)
		require.Empty(t, got[0].set.Endpoints)
		require.Equal(t, 31*time.Second, got[0].at)
		src.push(Set{}) // known
		time.Sleep(time.Hour)
		require.Empty(t, rec.take())
		src.push(of("b:1"))
		require.Equal(t, []string{"b:1"}, addrsOf(rec.take()[0].set))
	})
}

func TestEmptySetThatFillsUpAgainWithinItsGraceChangesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		src.push(of("a:1"), Set{})
		time.Sleep(29 * time.Second)
		rec.take()
		src.push(of("a:1"))
		time.Sleep(time.Hour)
		got := rec.take()
		require.Len(t, got, 1, "it says that the set is current again")
		require.Equal(t, []string{"a:1"}, addrsOf(got[0].set))
	})
}

func TestFailureBeginsTheGraceOfAnEmptySetAnew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		src.push(of("a:1"), Set{})
		time.Sleep(20 * time.Second)
		src.fail(errDown)
		time.Sleep(time.Hour)
		for _, y := range rec.take()[1:] {
			require.Error(t, y.err, "a source that is down does not say that nobody is there")
		}
		src.push(Set{})
		time.Sleep(30 * time.Second)
		got := rec.take()
		require.Len(t, got, 2)
		require.ErrorIs(t, got[0].err, ErrNoEndpoints)
		require.NoError(t, got[1].err)
	})
}

func TestEmptySetIsNeverPassedOnWithNegativeGrace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, &SuperviseConfig{EmptyGrace: -1}), "orders")
		src.push(of("a:1"))
		for range 10 {
			src.push(Set{})
			time.Sleep(time.Hour)
		}
		got := rec.take()
		require.Len(t, got, 2)
		require.ErrorIs(t, got[1].err, ErrNoEndpoints)
		src.push(Set{Authoritative: true})
		require.Len(t, rec.take(), 1)
	})
}

func TestAuthoritativeEmptySetIsPassedOnAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		src.push(of("a:1"))
		time.Sleep(time.Second)
		src.push(Set{Authoritative: true})
		got := rec.take()
		require.Len(t, got, 2)
		require.NoError(t, got[1].err)
		require.Empty(t, got[1].set.Endpoints)
		require.Equal(t, time.Second, got[1].at)
	})
}

func TestFirstSetThatIsEmptyFailsTheWaitersAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		src.push(Set{})
		got := rec.take()
		require.Len(t, got, 1)
		require.Zero(t, got[0].at)
		require.ErrorIs(t, got[0].err, ErrNoEndpoints)
	})
}

func TestWrongEndpointsAreLeftOutAndReportedOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		set := of("a:1", "http://b:1", "a:1", "c:1")
		for _, w := range []float64{math.NaN(), math.Inf(1), -1} {
			set.Endpoints = append(set.Endpoints, Endpoint{ID: fmt.Sprint(w), Addr: "d:1", Weight: w})
		}
		set.Endpoints = append(set.Endpoints, Endpoint{Addr: "e:1", Fallback: []string{"e:0"}}, Endpoint{Addr: "f:1", Priority: -1})
		src.push(set)
		got := rec.take()
		require.Len(t, got, 2)
		require.Equal(t, []string{"a:1", "c:1"}, addrsOf(got[0].set))
		var w *Warning
		require.ErrorAs(t, got[1].err, &w)
		for _, want := range []string{
			`endpoint "http://b:1": Addr is "http://b:1", want host:port, host or unix:/path`,
			`endpoint "a:1" is listed twice`,
			`endpoint "NaN": Weight is NaN, want a finite number >= 0`,
			`endpoint "+Inf": Weight is +Inf`,
			`endpoint "-1": Weight is -1`,
			`endpoint "e:1": Fallback[0] is "e:0"`,
			`endpoint "f:1": Priority is -1`,
		} {
			require.ErrorContains(t, w, want)
		}
		for range 3 {
			time.Sleep(time.Second)
			src.push(set)
		}
		require.Empty(t, rec.take())
		time.Sleep(time.Second)
		src.push(of("a:1", "c:1")) // mended: the set is the same
		require.Empty(t, rec.take())
		time.Sleep(time.Second)
		src.push(set) // a new problem
		got = rec.take()
		require.Len(t, got, 1)
		require.ErrorAs(t, got[0].err, &w)
	})
}

func TestWarningNamesAFewOfManyWrongEndpoints(t *testing.T) {
	endpoints := Addrs("good:1")
	for i := range 1000 {
		endpoints = append(endpoints, Endpoint{Addr: fmt.Sprint("bad ", i)})
	}
	valid, err := validEndpoints(endpoints)
	require.Len(t, valid, 1)
	require.ErrorContains(t, err, "and 990 endpoints more")
	require.Less(t, len(err.Error()), 2000)
}

func TestSetWithoutAValidEndpointIsAFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		src.push(of("a:1"))
		wrong := of("not an address")
		wrong.Authoritative = true
		src.push(wrong)
		time.Sleep(time.Hour)
		got := rec.take()
		require.Len(t, got, 2)
		var re *ResolveError
		require.ErrorAs(t, got[1].err, &re)
	})
}

func TestEqualSetsAreNotPassedOnAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		for _, set := range []Set{of("a:1", "b:1"), of("a:1", "b:1"), of("b:1", "a:1"), {TTL: 5, Endpoints: Addrs("a:1", "b:1")}} {
			src.push(set)
			time.Sleep(time.Second)
		}
		require.Len(t, rec.take(), 1)
		changed := of("a:1", "b:1")
		changed.Endpoints[1].Metadata = map[string]string{"version": "2"}
		src.push(changed)
		require.Len(t, rec.take(), 1)
	})
}

func TestEqualSetAfterAnErrorSaysThatItIsCurrentAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		src.push(of("a:1"))
		time.Sleep(time.Second)
		src.fail(errDown)
		src.push(of("a:1"))
		got := rec.take()
		require.Len(t, got, 3)
		require.NoError(t, got[2].err)
		require.True(t, got[2].set.Equal(of("a:1")))
	})
}

func TestWarningOfTheSourcePutsNoSetInDoubt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		src.push(of("a:1"))
		time.Sleep(time.Second)
		src.fail(&Warning{Service: "orders", Err: errDown})
		src.push(of("a:1"))
		got := rec.take()
		require.Len(t, got, 2)
		require.EqualError(t, got[1].err, "discovery: orders: warning: the registry is down")
	})
}

func TestFiftyUpdatesInAMergeWindowMakeTwoSets(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		for i := range 50 {
			src.push(of(fmt.Sprintf("10.0.0.%d:80", i)))
			time.Sleep(2 * time.Millisecond)
		}
		time.Sleep(time.Second)
		got := rec.take()
		require.Len(t, got, 2)
		require.Zero(t, got[0].at, "the first set is never delayed")
		require.Equal(t, 100*time.Millisecond, got[1].at)
		require.Equal(t, []string{"10.0.0.49:80"}, addrsOf(got[1].set), "the last one counts")
		src.push(of("a:1"))
		require.Equal(t, 1100*time.Millisecond, rec.take()[0].at, "nor is one after a quiet time")
	})
}

func TestErrorBehindAMergedSetComesAfterIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, nil), "orders")
		src.push(of("a:1"), of("b:1"))
		src.fail(errDown)
		time.Sleep(time.Second)
		got := rec.take()
		require.Len(t, got, 3)
		require.Equal(t, []string{"b:1"}, addrsOf(got[1].set))
		require.ErrorIs(t, got[2].err, errDown)
		src.push(of("c:1"), of("d:1"))
		src.fail(errDown)
		src.push(of("e:1"))
		time.Sleep(time.Second)
		got = rec.take()
		require.Len(t, got, 2, "a set takes back the error before it")
		require.Equal(t, []string{"e:1"}, addrsOf(got[1].set))
	})
}

func TestNoMergeWindowPassesEverySetOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		src := newSource()
		rec := record(t.Context(), t, Supervise(src, &SuperviseConfig{MergeWindow: -1}), "orders")
		src.push(of("a:1"), of("b:1"), of("c:1"))
		require.Len(t, rec.take(), 3)
	})
}

func TestStormOfHintsReachesTheSourceOncePerInterval(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hints := make(chan struct{}, 1)
		src := newSource()
		rec := record(WithHints(t.Context(), hints), t, Supervise(src, nil), "orders")
		src.push(of("a:1"))
		rec.take()
		for range 1000 { // in a second and a half
			hints <- struct{}{}
			time.Sleep(1500 * time.Microsecond)
		}
		require.Equal(t, 2, src.hinted())
		time.Sleep(time.Minute)
		require.Equal(t, 3, src.hinted(), "one that came too early is not lost")
		close(hints)
		time.Sleep(time.Minute)
		require.Equal(t, 3, src.hinted())
	})
}

func TestHintsDoNotShortenTheBackoff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hints := make(chan struct{}, 1)
		f := &failing{err: errDown}
		rec := record(WithHints(t.Context(), hints), t, Supervise(f, nil), "orders")
		for range 100 {
			hints <- struct{}{}
			time.Sleep(time.Second)
		}
		rec.stop()
		require.Less(t, len(f.began), 12)
	})
}

func TestSupervisingASupervisedResolverDoesNotDouble(t *testing.T) {
	inner := Supervise(newSource(), &SuperviseConfig{EmptyGrace: time.Second})
	require.Same(t, inner, Supervise(inner, nil))

	// Nor does it where something stands between the two.
	bubble(t, func(t *testing.T) {
		hints := make(chan struct{}, 1)
		src := newSource()
		all := func(Endpoint) bool { return true }
		rec := record(WithHints(t.Context(), hints), t, Supervise(Filter(Supervise(src, nil), all), nil), "orders")
		src.push(of("a:1"), of("b:1"))
		time.Sleep(time.Second)
		got := rec.take()
		require.Len(t, got, 2)
		require.Equal(t, 100*time.Millisecond, got[1].at, "one window")
		src.fail(errDown)
		require.Len(t, rec.take(), 1, "one error")
		src.push(Set{})
		time.Sleep(31 * time.Second)
		got = rec.take()
		require.Len(t, got, 2)
		require.NoError(t, got[1].err)
		require.Equal(t, 31*time.Second, got[1].at, "one grace")
		hints <- struct{}{}
		synctest.Wait()
		require.Equal(t, 1, src.hinted())
	})
	bubble(t, func(t *testing.T) {
		f := &failing{err: errDown}
		all := func(Endpoint) bool { return true }
		rec := record(t.Context(), t, Supervise(Filter(Supervise(f, nil), all), nil), "orders")
		time.Sleep(1200 * time.Millisecond)
		require.Len(t, rec.take(), 2, "one backoff")
	})
}

func TestLeavingTheLoopEndsTheSource(t *testing.T) {
	bubble(t, func(t *testing.T) { // a goroutine that stayed would fail the bubble
		ended := false
		r := ResolverFunc(func(ctx context.Context, _ string) iter.Seq2[Set, error] {
			return func(yield func(Set, error) bool) {
				defer func() { ended = true }()
				for i := 0; yield(of(fmt.Sprintf("10.0.0.%d:80", i)), nil); i++ {
					time.Sleep(time.Second)
				}
			}
		})
		for range Supervise(r, nil).Watch(t.Context(), "orders") {
			break
		}
		require.True(t, ended, "the loop's end waits for it")
	})
}

func TestLeavingTheLoopDuringBackoffOrByPanicEndsTheSource(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for range Supervise(&failing{err: errDown}, nil).Watch(t.Context(), "orders") {
			break
		}
		require.PanicsWithValue(t, "the caller's own", func() {
			for range Supervise(Static(Addrs("a:1")...), nil).Watch(t.Context(), "orders") {
				panic("the caller's own")
			}
		})
	})
}

func TestNothingIsYieldedAfterTheContextHasEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for name, r := range map[string]Resolver{
			"supervise": Supervise(Static(Addrs("a:1")...), nil),
			"static":    Static(Addrs("a:1")...),
			"dns":       DNS(nil),
			"srv":       SRV(nil),
			"file":      File("no such file", nil),
			"merge":     Merge(Static(Addrs("a:1")...)),
			"failover":  Failover(Static(Addrs("a:1")...)),
			"broken":    DNS(&DNSConfig{Family: "ipx"}),
		} {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			for set, err := range r.Watch(ctx, "127.0.0.1:80") {
				t.Errorf("%s yielded %v, %v", name, set, err)
			}
		}
	})
}

func TestSuperviseConfigIsValidated(t *testing.T) {
	require.NoError(t, (*SuperviseConfig)(nil).Validate())
	require.NoError(t, (&SuperviseConfig{EmptyGrace: -1, MergeWindow: -1, HintInterval: -1, BackoffBase: time.Minute}).Validate())
	cfg := &SuperviseConfig{BackoffBase: -1, BackoffMax: -2}
	require.EqualError(t, cfg.Validate(), "discovery: BackoffBase is -1ns, want > 0\n"+
		"discovery: BackoffMax is -2ns, want >= BackoffBase (-1ns)")
	bubble(t, func(t *testing.T) {
		rec := record(t.Context(), t, Supervise(newSource(), &SuperviseConfig{BackoffMax: 1}), "orders")
		time.Sleep(time.Hour)
		got := rec.take()
		require.Len(t, got, 1)
		require.EqualError(t, got[0].err, "discovery: orders: discovery: BackoffMax is 1ns, want >= BackoffBase (1s)")
	})
}

func TestSuperviseCopiesItsConfig(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := &SuperviseConfig{EmptyGrace: time.Second}
		src := newSource()
		r := Supervise(src, cfg)
		cfg.EmptyGrace = time.Hour
		require.Zero(t, cfg.BackoffBase, "and does not write to it")
		rec := record(t.Context(), t, r, "orders")
		src.push(of("a:1"), Set{})
		time.Sleep(2 * time.Second)
		require.Len(t, rec.take(), 3)
	})
}
