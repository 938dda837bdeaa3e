package balancer_test

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// addresses is a dialer whose addresses answer after a time, or fail after one.
type addresses struct {
	connects, fails map[string]time.Duration // the others are silent
	heedless        bool                     // of contexts

	mu    sync.Mutex
	began map[string]time.Duration // since start
	start time.Time
	pipes piped
}

func (a *addresses) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	a.mu.Lock()
	if a.began == nil {
		a.began = make(map[string]time.Duration)
	}
	a.began[addr] = time.Since(a.start)
	a.mu.Unlock()
	wait := func(d time.Duration) error {
		if a.heedless {
			time.Sleep(d)
			return nil
		}
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if d, ok := a.connects[addr]; ok {
		if err := wait(d); err != nil {
			return nil, err
		}
		return a.pipes.dial(ctx, network, addr)
	}
	if d, ok := a.fails[addr]; ok {
		_ = wait(d)
		return nil, errDown
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// Whatever is still under way when another dial has won, Close waits for it, unless it
// goes on for too long without heeding its context.
func TestCloseWaitsForDialsThatHaveLost(t *testing.T) {
	for name, c := range map[string]struct{ late, waits time.Duration }{
		"soon over": {900 * time.Millisecond, 600 * time.Millisecond}, "not over for long": {time.Minute, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &addresses{heedless: true, connects: map[string]time.Duration{"a:1": c.late, "b:1": 0}, start: time.Now()}
				list := []discovery.Endpoint{{ID: "n", Addr: "a:1", Fallback: []string{"b:1"}}}
				r := newRig(t, exact(balancer.Config{Dial: a.dial, ConnectTimeout: -1}), list)
				conn, err := r.DialContext(t.Context(), "tcp", "orders:1")
				require.NoError(t, err)
				defer conn.Close()
				before := time.Now()
				require.NoError(t, r.Close())
				require.Equal(t, c.waits, time.Since(before))
				time.Sleep(time.Hour)
				require.Zero(t, a.pipes.of("a:1"))
			})
		})
	}
}

// The dials that the balancer makes for itself are no others: it waited for those for
// ever.
func TestCloseDoesNotWaitForEverForDialsOfItsOwn(t *testing.T) {
	for name, cfg := range map[string]balancer.Config{
		"ahead of calls":             {Conns: balancer.ConnConfig{Min: 2}},
		"ahead of calls, one by one": {Conns: balancer.ConnConfig{Min: 2, ClientConns: balancer.On}},
		"instead of an old one":      {Conns: balancer.ConnConfig{Min: 1, MaxAge: time.Second}},
		"instead of an old client's": {Conns: balancer.ConnConfig{Min: 1, MaxAge: time.Second, ClientConns: balancer.On}},
		"of a check":                 {Health: balancer.HealthConfig{TCP: balancer.On}},
		"of a check elsewhere":       {Health: balancer.HealthConfig{Path: "/", Port: 8080}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg.ConnectTimeout = -1
				var (
					silent          piped
					dials, heedless atomic.Int32
				)
				r := newRig(t, exact(cfg), endpoints(1))
				rt := r.Layer(&http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
					if dials.Add(1) == 1 && cfg.Conns.Min > 0 {
						return silent.dial(ctx, network, addr)
					}
					heedless.Add(1)
					time.Sleep(time.Minute)
					return nil, errDown
				}})
				if cfg.Conns.Min > 0 {
					ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
					defer cancel()
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
					require.NoError(t, err)
					_, err = rt.RoundTrip(req)
					require.ErrorIs(t, err, context.DeadlineExceeded)
				}
				synctest.Wait()
				require.NotZero(t, heedless.Load())
				before := time.Now()
				require.NoError(t, r.Close())
				require.LessOrEqual(t, time.Since(before), time.Second)
				time.Sleep(time.Hour)
			})
		})
	}
}

// A dial that nobody has won yet has no more reason to go on.
func TestCloseEndsDials(t *testing.T) {
	for _, fallback := range [][]string{nil, {"b:1"}} {
		synctest.Test(t, func(t *testing.T) {
			a := &addresses{start: time.Now()}
			list := []discovery.Endpoint{{ID: "n", Addr: "a:1", Fallback: fallback}}
			r := newRig(t, exact(balancer.Config{Dial: a.dial, ConnectTimeout: -1}), list)
			time.AfterFunc(time.Second, func() { _ = r.Close() })
			_, err := r.DialContext(t.Context(), "tcp", "orders:1")
			require.ErrorIs(t, err, balancer.ErrClosed)
			require.Equal(t, time.Second, time.Since(a.start))
		})
	}
}

// TestFallbackAddressesFollowInTurn has one endpoint with the addresses a, b and c.
func TestFallbackAddressesFollowInTurn(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		*addresses
		began map[string]time.Duration
		after time.Duration
		want  string // the one that wins; "" if none
	}{
		"the first is fast enough": {
			&addresses{connects: map[string]time.Duration{"a:1": 299 * ms}},
			map[string]time.Duration{"a:1": 0},
			299 * ms, "a:1",
		},
		"the second wins": {
			&addresses{connects: map[string]time.Duration{"b:1": 10 * ms}},
			map[string]time.Duration{"a:1": 0, "b:1": 300 * ms},
			310 * ms, "b:1",
		},
		"the first wins late": {
			&addresses{connects: map[string]time.Duration{"a:1": 400 * ms}},
			map[string]time.Duration{"a:1": 0, "b:1": 300 * ms},
			400 * ms, "a:1",
		},
		"a failure is followed at once": {
			&addresses{fails: map[string]time.Duration{"a:1": 20 * ms}, connects: map[string]time.Duration{"c:1": 0}},
			map[string]time.Duration{"a:1": 0, "b:1": 20 * ms, "c:1": 320 * ms},
			320 * ms, "c:1",
		},
		"all fail": {
			&addresses{fails: map[string]time.Duration{"a:1": 0, "b:1": 500 * ms, "c:1": 0}},
			map[string]time.Duration{"a:1": 0, "b:1": 0, "c:1": 300 * ms},
			500 * ms, "",
		},
		"none answers": {
			&addresses{},
			map[string]time.Duration{"a:1": 0, "b:1": 300 * ms, "c:1": 600 * ms},
			1600 * ms, "",
		},
		"a late one is closed": {
			&addresses{heedless: true, connects: map[string]time.Duration{"a:1": 900 * ms, "b:1": 0}},
			map[string]time.Duration{"a:1": 0, "b:1": 300 * ms},
			300 * ms, "b:1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				list := []discovery.Endpoint{{ID: "n", Addr: "a:1", Fallback: []string{"b:1", "c:1"}}}
				r := newRig(t, exact(balancer.Config{Dial: c.dial}), list)
				c.start = time.Now()
				conn, err := r.DialContext(t.Context(), "tcp", "orders:1")
				require.Equal(t, c.after, time.Since(c.start))
				require.Equal(t, c.began, c.addresses.began)
				if c.want == "" {
					var ce *balancer.ConnectError
					require.ErrorAs(t, err, &ce)
					require.Equal(t, "n", ce.Node)
					require.Equal(t, int64(1), failuresOf(r.node("n")), "one failure of one node")
					return
				}
				require.NoError(t, err)
				time.Sleep(time.Second)
				for _, a := range []string{"a:1", "b:1", "c:1"} {
					open := 0
					if a == c.want {
						open = 1
					}
					require.Equal(t, open, c.pipes.of(a), a)
				}
				require.Zero(t, failuresOf(r.node("n")))
				require.NoError(t, conn.Close())
			})
		})
	}
}
