package balancer_test

import (
	"bufio"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// drip answers with a line each second, as many as the path says; /hang begins
// and never ends.
func drip(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/fast" {
		return
	}
	lines := 10
	_ = http.NewResponseController(w).Flush()
	for range lines {
		if r.URL.Path == "/hang" {
			<-r.Context().Done()
			return
		}
		time.Sleep(time.Second)
		_, _ = io.WriteString(w, "line\n")
		_ = http.NewResponseController(w).Flush()
	}
}

// first is a policy that takes the first node.
func first(cfg balancer.Config) balancer.Config {
	cfg.Policy = policies(1)["first of all"]
	return cfg
}

func TestNodeThatLeavesFinishesWhatItHas(t *testing.T) {
	virtually(t, 2, drip, first(balancer.Config{}), func(t *testing.T, c *caller) {
		gone := c.fleet.Server(0)
		resp := c.get("/")
		idle := c.get("/fast")
		read(t, idle)
		require.Equal(t, 2, gone.Stats().OpenConnections)
		c.fleet.Unlist(gone)
		synctest.Wait()
		time.Sleep(time.Second)
		require.Len(t, c.Nodes(), 1)
		for range 10 {
			c.fetch("/fast")
		}
		require.Equal(t, 2, gone.Stats().Requests, "it gets nothing new")
		require.Equal(t, strings.Repeat("line\n", 10), read(t, resp))
		synctest.Wait()
		require.Zero(t, gone.Stats().OpenConnections, "and with that its connections are closed")
		require.Equal(t, 1, c.fleet.Server(1).Stats().OpenConnections)
	})
}

func TestIdleNodeThatLeavesIsClosedAtOnce(t *testing.T) {
	virtually(t, 2, drip, first(balancer.Config{}), func(t *testing.T, c *caller) {
		c.fetch("/fast")
		require.Equal(t, 1, c.fleet.Server(0).Stats().OpenConnections)
		c.fleet.Unlist(c.fleet.Server(0))
		time.Sleep(mergeWindow)
		synctest.Wait()
		require.Zero(t, c.fleet.Server(0).Stats().OpenConnections)
	})
}

func TestHungNodeThatLeavesIsCutAtTheDrainTimeout(t *testing.T) {
	for name, want := range map[string]struct{ set, took time.Duration }{
		"default": {0, 30 * time.Second}, "configured": {5 * time.Second, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			virtually(t, 2, drip, first(balancer.Config{DrainTimeout: want.set}), func(t *testing.T, c *caller) {
				resp := c.get("/hang")
				node := c.Nodes()[0]
				time.Sleep(time.Second)
				c.fleet.Unlist(c.fleet.Server(0))
				start := time.Now()
				_, err := io.ReadAll(resp.Body)
				require.Error(t, err)
				require.Equal(t, want.took, time.Since(start))
				require.Zero(t, node.InFlight())
				synctest.Wait()
				require.Zero(t, c.fleet.Server(0).Stats().OpenConnections)
			})
		})
	}
}

func TestWithoutDrainTimeoutNothingIsCut(t *testing.T) {
	virtually(t, 2, drip, first(balancer.Config{DrainTimeout: -1}), func(t *testing.T, c *caller) {
		resp := c.get("/hang")
		c.fleet.Unlist(c.fleet.Server(0))
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		require.Equal(t, 1, c.fleet.Server(0).Stats().OpenConnections)
		require.NoError(t, resp.Body.Close())
		synctest.Wait()
		require.Zero(t, c.fleet.Server(0).Stats().OpenConnections)
	})
}

// A call may have been given a node that leaves before the call is sent.
func TestCallSurvivesTheLossOfItsNodeBeforeItIsSent(t *testing.T) {
	for name, known := range map[string]bool{"with connections": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			var leave func()
			policy := balancer.PolicyFunc(func(nodes []*balancer.Node) balancer.Picker {
				return balancer.PickerFunc(func(balancer.Call) *balancer.Node {
					if do := leave; do != nil {
						leave = nil
						do()
					}
					return nodes[0]
				})
			})
			virtually(t, 2, drip, balancer.Config{Policy: policy}, func(t *testing.T, c *caller) {
				time.Sleep(time.Second)
				if known {
					c.fetch("/fast")
				}
				gone := c.Nodes()[0]
				leave = func() {
					c.fleet.Unlist(c.fleet.Server(0))
					time.Sleep(mergeWindow)
					synctest.Wait() // it has left, and is idle: its connections are closed
				}
				c.fetch("/fast")
				require.Equal(t, 1, c.fleet.Server(1).Stats().Requests)
				idle(t, append(c.Nodes(), gone))
				require.Zero(t, c.fleet.Server(0).Stats().OpenConnections)
			})
		})
	}
}

func TestCloseCutsWhatIsGoingOn(t *testing.T) {
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		c := newCaller(t, 2, backstaytest.FleetConfig{Protocol: p, Handler: http.HandlerFunc(drip)}, balancer.Config{}, nil)
		nodes := c.Nodes()
		reading := c.get("/hang")
		var wg sync.WaitGroup
		for range 5 {
			resp := c.get("/hang")
			wg.Go(func() {
				_, err := io.ReadAll(resp.Body)
				if err == nil {
					t.Error("the body has ended well")
				}
			})
		}
		start := time.Now()
		require.NoError(t, c.Close())
		require.Less(t, time.Since(start), 20*time.Second)
		wg.Wait()
		_, err := io.ReadAll(reading.Body)
		require.Error(t, err)
		eventually(t, func() bool { return c.fleet.Stats().OpenConnections == 0 }, "connections are left")
		for _, n := range nodes {
			require.Zero(t, n.InFlight())
		}
		_, err = c.rt.RoundTrip(c.request(t.Context(), http.MethodGet, "/fast", nil))
		require.ErrorIs(t, err, balancer.ErrClosed)
		require.True(t, outcome.Refused(err))
		_, err = c.Layer(nil).RoundTrip(c.request(t.Context(), http.MethodGet, "/fast", nil))
		require.ErrorIs(t, err, balancer.ErrClosed)
	})
}

func TestConnectionThatComesAfterCloseIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		release := make(chan struct{})
		b, err := balancer.New("orders", discovery.Static(endpoints(1)...), nil)
		require.NoError(t, err)
		rt := b.Layer(&http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			<-release
			return ours, nil
		}})
		done := make(chan error)
		go func() {
			_, err := getFrom(t, rt, "http://orders/")
			done <- err
		}()
		synctest.Wait()
		require.NoError(t, b.Close())
		close(release)
		require.ErrorIs(t, <-done, balancer.ErrClosed)
		_, err = bufio.NewReader(theirs).ReadByte()
		require.ErrorIs(t, err, io.EOF)
	})
}

func TestCloseIdleConnectionsReachesTheNodes(t *testing.T) {
	virtually(t, 3, drip, balancer.Config{Policy: balancer.RoundRobin{}}, func(t *testing.T, c *caller) {
		for range 3 {
			c.fetch("/fast")
		}
		busy := c.get("/")
		require.Equal(t, 3, c.fleet.Stats().OpenConnections)
		c.rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
		synctest.Wait()
		require.Equal(t, 1, c.fleet.Stats().OpenConnections)
		require.Equal(t, strings.Repeat("line\n", 10), read(t, busy))
		for range 3 {
			c.fetch("/fast")
		}
	})
}

func TestLayersOfOneBalancerShareItsNodes(t *testing.T) {
	virtually(t, 1, drip, balancer.Config{MaxConcurrency: 1}, func(t *testing.T, c *caller) {
		other := c.Layer(c.fleet.Transport())
		held := c.get("/")
		_, err := other.RoundTrip(c.request(t.Context(), http.MethodGet, "/fast", nil))
		require.True(t, outcome.Refused(err))
		read(t, held)
		resp, err := other.RoundTrip(c.request(t.Context(), http.MethodGet, "/fast", nil))
		require.NoError(t, err)
		read(t, resp)
		require.Equal(t, 2, c.fleet.Stats().Connections, "each by connections of its own")
		c.fleet.Unlist(c.fleet.Server(0))
		time.Sleep(mergeWindow + time.Minute)
		synctest.Wait()
		require.Equal(t, 0, c.fleet.Stats().OpenConnections-c.fleet.Stats().InFlight, "and all are closed when it leaves")
	})
}

func TestNewAddressOfANodeIsDialed(t *testing.T) {
	virtually(t, 2, drip, balancer.Config{}, func(t *testing.T, c *caller) {
		f := newFeed(discovery.Endpoint{ID: "a", Addr: c.fleet.Server(0).Addr})
		b, err := balancer.New("orders", f, nil)
		require.NoError(t, err)
		defer b.Close()
		rt := b.Layer(c.fleet.Transport())
		for i := range 2 {
			resp, err := getFrom(t, rt, "http://orders/fast")
			require.NoError(t, err)
			require.Equal(t, c.fleet.Server(i).ID, resp.Header.Get(backstaytest.InstanceHeader))
			read(t, resp)
			rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
			f.yield(discovery.Endpoint{ID: "a", Addr: c.fleet.Server(1).Addr})
			time.Sleep(mergeWindow)
			synctest.Wait()
		}
	})
}

// A server that shuts down in good order says so by a GOAWAY: what it has not
// acted upon may be sent again, and net/http does where it can.
func TestGoAwayLosesNothingThatMustNotBeRepeated(t *testing.T) {
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP2, backstaytest.H2C} {
		t.Run(p.String(), func(t *testing.T) {
			backstaytest.CheckLeaks(t)
			c := newCaller(t, 3, backstaytest.FleetConfig{Protocol: p}, balancer.Config{}, nil)
			var sent atomic.Int64
			stop := make(chan struct{})
			var wg sync.WaitGroup
			crowd(&wg, 8, stop, func(*rand.Rand) {
				req := c.request(t.Context(), http.MethodPost, "/", strings.NewReader("hello"))
				resp, err := c.rt.RoundTrip(req)
				if err != nil {
					if o := outcome.HTTP(req, nil, err); o.Retry != outcome.Always && !outcome.Refused(err) {
						t.Errorf("%v is %v", err, o.Retry)
					}
					return
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Error(err)
				}
				_ = resp.Body.Close()
				sent.Add(1)
			})
			for i := range 2 {
				before := sent.Load()
				eventually(t, func() bool { return sent.Load() > before+50 }, "calls do not go on")
				c.fleet.Leave(c.fleet.Server(i))
			}
			before := sent.Load()
			eventually(t, func() bool { return sent.Load() > before+50 }, "calls do not go on")
			close(stop)
			wg.Wait()
			c.settled()
		})
	}
}
