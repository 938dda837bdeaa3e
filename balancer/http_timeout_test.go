package balancer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// virtually runs the test over a fleet of n servers in memory, in a bubble.
func virtually(t *testing.T, n int, h http.HandlerFunc, cfg balancer.Config, test func(t *testing.T, c *caller)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.FleetConfig{Network: backstaytest.NewNetwork()}
		if h != nil {
			fleet.Handler = h
		}
		test(t, newCaller(t, n, fleet, *exact(cfg), nil))
	})
}

func TestConnectTimeoutIsTypedAndSentNothing(t *testing.T) {
	for _, fallbacks := range []int{0, 2} {
		synctest.Test(t, func(t *testing.T) {
			network := backstaytest.NewNetwork()
			network.Blackhole("10.0.0.1:80", true)
			network.Blackhole("10.0.0.2:80", true)
			network.Blackhole("10.0.0.3:80", true)
			e := discovery.Endpoint{ID: "a", Addr: "10.0.0.1:80", Fallback: []string{"10.0.0.2:80", "10.0.0.3:80"}[:fallbacks]}
			b, err := balancer.New("orders", discovery.Static(e), exact(balancer.Config{}))
			require.NoError(t, err)
			defer b.Close()
			start := time.Now()
			body := &watchedBody{Reader: strings.NewReader("hello")}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://orders/", body)
			require.NoError(t, err)
			_, err = b.Layer(network.Transport()).RoundTrip(req)
			require.Equal(t, time.Second+time.Duration(fallbacks)*300*time.Millisecond, time.Since(start), "a second for each address, each begun a little later")
			var connect *balancer.ConnectError
			require.ErrorAs(t, err, &connect)
			require.Equal(t, "a", connect.Node)
			require.Equal(t, fmt.Sprintf("10.0.0.%d:80", 1+fallbacks), connect.Addr)
			require.EqualError(t, err, fmt.Sprintf("balancer: connecting to node a: dial tcp: 10.0.0.%d:80: i/o timeout after 1s", 1+fallbacks))
			require.True(t, connect.Timeout())
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.NotErrorIs(t, err, context.DeadlineExceeded, "that would be the caller's")
			require.True(t, outcome.NotSent(err))
			o := outcome.HTTP(req, nil, err)
			require.Equal(t, outcome.Failure, o.Class)
			require.Equal(t, outcome.Always, o.Retry)
			require.Equal(t, 1, body.closed)
			idle(t, b.Nodes())
			require.EqualValues(t, 1, b.Nodes()[0].Breaker().Snapshot(time.Now()).Failures)
		})
	}
}

// Whatever a dialer of one's own returns when its context ends.
func TestConnectTimeoutDoesNotPassForTheCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := balancer.New("orders", discovery.Static(endpoints(1)...), &balancer.Config{ConnectTimeout: 3 * time.Second})
		require.NoError(t, err)
		defer b.Close()
		rt := b.Layer(&http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		start := time.Now()
		_, err = getFrom(t, rt, "http://orders/")
		require.Equal(t, 3*time.Second, time.Since(start))
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, outcome.Failure, outcome.HTTP(nil, nil, err).Class)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
		require.NoError(t, err)
		_, err = rt.RoundTrip(req)
		require.ErrorIs(t, err, context.DeadlineExceeded, "and here it was the caller's")
		require.Equal(t, outcome.Neutral, outcome.HTTP(req, nil, err).Class)
		time.Sleep(time.Minute) // the transport dials on by itself
		idle(t, b.Nodes())
	})
}

func TestFallbackAddressesAreTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := backstaytest.NewNetwork()
		s := backstaytest.NewServer(t, nil, &backstaytest.ServerConfig{Network: network, Addr: "10.0.0.3:80"})
		network.Blackhole("10.0.0.2:80", true)
		b, err := balancer.New("orders", discovery.Static(discovery.Endpoint{
			Addr: "10.0.0.1:80", Fallback: []string{"10.0.0.2:80", "10.0.0.3:80"},
		}), nil)
		require.NoError(t, err)
		defer b.Close()
		start := time.Now()
		resp, err := getFrom(t, b.Layer(network.Transport()), "http://orders/")
		require.NoError(t, err)
		read(t, resp)
		require.Equal(t, 300*time.Millisecond, time.Since(start), "a refusal costs no time")
		require.Equal(t, 1, s.Stats().Requests)
		require.EqualValues(t, 0, b.Nodes()[0].Breaker().Snapshot(time.Now()).Failures)
	})
}

func TestAttemptTimeoutIsTheNodesFailure(t *testing.T) {
	for name, cfg := range map[string]balancer.Config{"by default": {}, "configured": {AttemptTimeout: 10 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			virtually(t, 1, nil, cfg, func(t *testing.T, c *caller) {
				c.fleet.Server(0).Stall()
				start := time.Now()
				_, err := c.rt.RoundTrip(c.request(t.Context(), http.MethodGet, "/", nil))
				require.Equal(t, 10*time.Second, time.Since(start))
				var timeout *outcome.TimeoutError
				require.ErrorAs(t, err, &timeout)
				require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
				require.Equal(t, 10*time.Second, timeout.After)
				require.EqualValues(t, 1, c.failures())
				c.settled()
			})
		})
	}
}

func TestNoAttemptTimeout(t *testing.T) {
	virtually(t, 1, func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(time.Hour)
		fmt.Fprint(w, "at last")
	}, balancer.Config{AttemptTimeout: -1}, func(t *testing.T, c *caller) {
		require.Equal(t, "at last", c.fetch("/"))
	})
}

func TestCallersShortDeadlineIsNotTheNodesFailure(t *testing.T) {
	virtually(t, 1, nil, balancer.Config{}, func(t *testing.T, c *caller) {
		c.fetch("/")
		c.fleet.Server(0).Stall()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := c.rt.RoundTrip(c.request(ctx, http.MethodGet, "/", nil))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.Zero(t, c.failures())

		longer, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err = c.rt.RoundTrip(c.request(longer, http.MethodGet, "/", nil))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualValues(t, 1, c.failures(), "now it had time enough")
		c.settled()
	})
}

// slowly is a body that comes one byte at a time.
type slowly struct {
	bytes int
	pause time.Duration
}

func (s *slowly) Read(p []byte) (int, error) {
	if s.bytes == 0 {
		return 0, io.EOF
	}
	time.Sleep(s.pause)
	s.bytes--
	p[0] = 'x'
	return 1, nil
}

func TestUploadThatMakesProgressOutlivesTheAttemptTimeout(t *testing.T) {
	virtually(t, 1, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		time.Sleep(time.Second)
		fmt.Fprint(w, n)
	}, balancer.Config{AttemptTimeout: 2 * time.Second}, func(t *testing.T, c *caller) {
		start := time.Now()
		upload := &slowly{60, 1900 * time.Millisecond}
		resp, err := c.rt.RoundTrip(c.request(t.Context(), http.MethodPut, "/", upload))
		require.NoError(t, err)
		require.Equal(t, "60", read(t, resp))
		require.Greater(t, time.Since(start), 100*time.Second)
		require.Zero(t, c.failures())
	})
}

// A download of an hour is not cut, says nothing of the node's latency, and
// holds no half-open probe.
func TestLongDownloadIsJustADownload(t *testing.T) {
	virtually(t, 1, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/long" {
			return
		}
		w.Header().Set("Content-Length", "60")
		for range 60 {
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Minute)
			_, _ = w.Write([]byte("x"))
		}
	}, balancer.Config{}, func(t *testing.T, c *caller) {
		node := c.Nodes()[0]
		halfOpen(t, node)
		c.fetch("/")
		require.Equal(t, breaker.HalfOpen, node.Breaker().State())
		start := time.Now()
		long := []*http.Response{c.get("/long"), c.get("/long")}
		require.Less(t, time.Since(start), time.Millisecond)
		require.Equal(t, breaker.Closed, node.Breaker().State())
		time.Sleep(30 * time.Minute)
		latency, known := node.Latency(time.Now())
		require.True(t, known)
		require.Less(t, latency, time.Millisecond)
		require.Less(t, balancer.PeakEWMA{}.Cost(node, time.Now()), float64(time.Millisecond), "nobody waits")
		require.Equal(t, 2, node.InFlight())
		for _, resp := range long {
			require.Equal(t, strings.Repeat("x", 60), read(t, resp))
		}
		require.GreaterOrEqual(t, time.Since(start), time.Hour)
		latency, _ = node.Latency(time.Now())
		require.Less(t, latency, time.Millisecond)
		c.settled()
	})
}

func TestFrameSetsTheAttemptsBounds(t *testing.T) {
	virtually(t, 1, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			<-r.Context().Done()
		case "/body":
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}, balancer.Config{}, func(t *testing.T, c *caller) {
		send := func(path string, set func(*call.Frame)) (took time.Duration, err error) {
			start := time.Now()
			ctx, frame := call.Push(t.Context(), call.ChainOf(c.rt), call.Info{Service: "orders", Start: start})
			set(frame)
			resp, err := c.rt.RoundTrip(c.request(ctx, http.MethodGet, path, nil))
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			return time.Since(start), err
		}
		took, err := send("/hang", func(f *call.Frame) { f.SetAttemptTimeout(time.Second) })
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.Equal(t, time.Second, took)
		require.EqualValues(t, 1, c.failures())

		for _, path := range []string{"/hang", "/body"} {
			took, err = send(path, func(f *call.Frame) { f.SetDeadline(time.Now().Add(700 * time.Millisecond)) })
			var timeout *outcome.TimeoutError
			require.ErrorAs(t, err, &timeout)
			require.ErrorIs(t, err, outcome.ErrCallTimeout, path)
			require.Equal(t, 700*time.Millisecond, timeout.After)
			require.Equal(t, 700*time.Millisecond, took)
			require.EqualValues(t, 1, c.failures(), "that says nothing of the node")
		}

		before, _ := c.Nodes()[0].Latency(time.Now())
		_, err = send("/hang", func(f *call.Frame) {
			f.SetLatencyNeutral(true)
			f.SetAttemptTimeout(time.Minute)
		})
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		after, _ := c.Nodes()[0].Latency(time.Now())
		require.Less(t, after, before, "a long poll")
		c.settled()
	})
}

// Many hang at once, all without an answer: they must not stay unnoticed until
// the last has given up.
func TestManyHangingCallsAreNoticed(t *testing.T) {
	virtually(t, 2, nil, balancer.Config{}, func(t *testing.T, c *caller) {
		for range 10 {
			c.fetch("/")
		}
		c.fleet.Server(0).Stall()
		errs := make(chan error, 1000)
		for range 1000 {
			go func() {
				resp, err := c.rt.RoundTrip(c.request(t.Context(), http.MethodGet, "/", nil))
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				errs <- err
			}()
			time.Sleep(time.Millisecond)
		}
		failed := 0
		for range 1000 {
			if err := <-errs; err != nil {
				require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
				failed++
			}
		}
		require.Less(t, failed, 50, "the silence shows at once")
		c.settled()
	})
}

func TestDialErrorsKeepTheirCause(t *testing.T) {
	b, err := balancer.New("orders", discovery.Static(endpoints(1)...), nil)
	require.NoError(t, err)
	defer b.Close()
	_, err = getFrom(t, b.Layer(&http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, errReset
	}}), "http://orders/")
	var connect *balancer.ConnectError
	require.ErrorAs(t, err, &connect)
	require.True(t, errors.Is(err, errReset))
	require.False(t, connect.Timeout())
	require.EqualError(t, err, "balancer: connecting to node 10.0.0.0:80: reset")
}

// A transport may answer although its context has ended. By then the answer is
// of no use, and is closed.
func TestAnswerThatComesTooLateIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := &watchedBody{Reader: strings.NewReader("hello")}
		b, rt := over(t, 1, nil, func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			require.ErrorIs(t, context.Cause(req.Context()), outcome.ErrAttemptTimeout)
			time.Sleep(time.Second)
			return answer(req, 200, body), nil
		})
		resp, err := getFrom(t, rt, "http://orders/")
		require.Nil(t, resp)
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.Equal(t, 1, body.closed)
		idle(t, b.Nodes())
	})
}

// A node that cannot be reached is news for the resolver.
func TestNodeThatCannotBeReachedHintsTheResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hinted := make(chan time.Time, 1)
		b, err := balancer.New("orders", discovery.ResolverFunc(func(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
			return func(yield func(discovery.Set, error) bool) {
				if !yield(discovery.Set{Endpoints: endpoints(1)}, nil) {
					return
				}
				select {
				case <-discovery.Hints(ctx):
					hinted <- time.Now()
				case <-ctx.Done():
				}
				<-ctx.Done()
			}
		}), nil)
		require.NoError(t, err)
		defer b.Close()
		_, err = getFrom(t, b.Layer(backstaytest.NewNetwork().Transport()), "http://orders/")
		require.Error(t, err)
		<-hinted
	})
}
