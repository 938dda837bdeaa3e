package discovery

import (
	"context"
	"iter"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// polled is a polling source with a fake look-up that counts.
type polled struct {
	schedule

	ttl     time.Duration
	lookups []time.Time
	fail    func(n int) error
}

func (p *polled) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return poll(ctx, service, p.schedule, func(context.Context) (Set, error) {
		p.lookups = append(p.lookups, time.Now())
		set := Set{TTL: p.ttl, Endpoints: Addrs("10.0.0.1:80")}
		if p.fail != nil {
			return set, p.fail(len(p.lookups))
		}
		return set, nil
	})
}

func (p *polled) gaps() []time.Duration {
	var gaps []time.Duration
	for i := 1; i < len(p.lookups); i++ {
		gaps = append(gaps, p.lookups[i].Sub(p.lookups[i-1]))
	}
	return gaps
}

var dnsSchedule = (&dnsResolver{DNSConfig{}.withDefaults()}).schedule()

func TestRefreshFollowsTheTTLWithinBoundsAndJitter(t *testing.T) {
	for name, test := range map[string]struct{ ttl, least, greatest time.Duration }{
		"no TTL":           {0, 5 * time.Second, 5500 * time.Millisecond},
		"below the floor":  {time.Second, 5 * time.Second, 5500 * time.Millisecond},
		"between":          {10 * time.Second, 10 * time.Second, 11 * time.Second},
		"just below":       {29 * time.Second, 26 * time.Second, 30 * time.Second},
		"above the bound":  {time.Hour, 27 * time.Second, 30 * time.Second},
		"a negative one":   {-time.Hour, 5 * time.Second, 5500 * time.Millisecond},
		"the greatest one": {never, 27 * time.Second, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := &polled{schedule: dnsSchedule, ttl: test.ttl}
				rec := record(t.Context(), t, p, "orders")
				time.Sleep(time.Hour)
				rec.stop()
				distinct := map[time.Duration]bool{}
				for _, gap := range p.gaps() {
					require.GreaterOrEqual(t, gap, test.least)
					require.LessOrEqual(t, gap, test.greatest)
					distinct[gap] = true
				}
				require.Greater(t, len(p.lookups), 100)
				require.Greater(t, len(distinct), len(p.lookups)*9/10, "jittered")
				require.GreaterOrEqual(t, rec.fresh()[0].set.TTL, 5*time.Second)
			})
		})
	}
}

func TestRefreshWithoutABoundFollowsALongTTL(t *testing.T) {
	s := schedule{least: time.Second, greatest: -1}
	require.Equal(t, time.Hour, s.after(time.Hour, 0))
	require.InDelta(t, 66*time.Minute, s.after(time.Hour, 0.999999), float64(time.Second))
}

func TestStormOfHintsMakesOneLookupPerFloor(t *testing.T) {
	for name, supervised := range map[string]bool{"alone": false, "supervised": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				hints := make(chan struct{}, 1)
				p := &polled{schedule: dnsSchedule, ttl: time.Hour}
				r := Resolver(p)
				if supervised {
					r = Supervise(p, nil)
				}
				rec := record(WithHints(t.Context(), hints), t, r, "orders")
				rec.take()
				time.Sleep(time.Second)
				for range 1000 { // connections fail for a second
					select {
					case hints <- struct{}{}:
					default:
					}
					time.Sleep(time.Millisecond)
				}
				time.Sleep(7 * time.Second)
				rec.stop()
				require.Len(t, p.lookups, 2)
				require.Equal(t, []time.Duration{5 * time.Second}, p.gaps())
			})
		})
	}
}

func TestHintAfterTheFloorLooksUpAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hints := make(chan struct{})
		p := &polled{schedule: dnsSchedule, ttl: time.Hour}
		rec := record(WithHints(t.Context(), hints), t, p, "orders")
		time.Sleep(20 * time.Second)
		hints <- struct{}{}
		rec.take() // waits for what the hint does
		require.Equal(t, []time.Duration{20 * time.Second}, p.gaps())
		close(hints)
		time.Sleep(20 * time.Second)
		rec.stop()
		require.Len(t, p.lookups, 2, "a closed channel is not a hint")
	})
}

func TestFailedLookupEndsTheWatchAndBackoffTakesOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &polled{schedule: dnsSchedule, ttl: 30 * time.Second, fail: func(n int) error {
			if n == 2 {
				return errDown
			}
			return nil
		}}
		rec := record(t.Context(), t, Supervise(p, nil), "orders")
		time.Sleep(40 * time.Second)
		got := rec.take()
		require.Len(t, got, 3)
		require.ErrorIs(t, got[1].err, errDown)
		rec.stop()
		require.Less(t, p.gaps()[1], 1300*time.Millisecond, "a second, not the TTL")
	})
}

func TestWarningBesideASetFollowsItAndTheWatchGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &polled{schedule: dnsSchedule, fail: func(int) error { return &Warning{Service: "orders", Err: errDown} }}
		rec := record(t.Context(), t, p, "orders")
		time.Sleep(6 * time.Second)
		got := rec.take()
		require.Len(t, got, 4)
		require.NoError(t, got[0].err)
		require.ErrorIs(t, got[1].err, errDown)
	})
}
