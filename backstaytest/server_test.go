package backstaytest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/discovery"
)

// body reads an answer to its end.
func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer func() { require.NoError(t, resp.Body.Close()) }()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(data)
}

// get asks for a URL and gives its status, or the error.
func get(ctx context.Context, c *http.Client, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, errors.Join(err, resp.Body.Close())
}

func protocols(t *testing.T, f func(t *testing.T, p backstaytest.Protocol)) {
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.HTTP1TLS, backstaytest.HTTP2, backstaytest.H2C} {
		t.Run(p.String(), func(t *testing.T) { f(t, p) })
	}
}

func TestServerWorksInsideABubble(t *testing.T) {
	protocols(t, func(t *testing.T, p backstaytest.Protocol) {
		synctest.Test(t, func(t *testing.T) {
			s := backstaytest.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(time.Hour)
				data, _ := io.ReadAll(r.Body)
				_, _ = w.Write(data)
			}), &backstaytest.ServerConfig{Protocol: p})
			start := time.Now()
			large := strings.Repeat("x", 1<<20)
			resp, err := s.Client().Post(s.URL()+"/echo", "text/plain", strings.NewReader(large))
			require.NoError(t, err)
			require.True(t, large == body(t, resp), "the body comes back whole")
			require.Equal(t, time.Hour, time.Since(start))
			wantMajor := map[backstaytest.Protocol]int{backstaytest.HTTP1: 1, backstaytest.HTTP1TLS: 1, backstaytest.HTTP2: 2, backstaytest.H2C: 2}
			require.Equal(t, wantMajor[p], resp.ProtoMajor)
			require.Equal(t, s.ID, resp.Header.Get(backstaytest.InstanceHeader))
		})
	})
}

func TestServersShareANetworkByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := backstaytest.NewNetwork()
		for _, name := range []string{"orders.test", "stock.test:8080"} {
			backstaytest.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, name)
			}), &backstaytest.ServerConfig{Network: network, Addr: name})
		}
		tr := network.Transport()
		defer tr.CloseIdleConnections()
		client := &http.Client{Transport: tr}
		for _, name := range []string{"orders.test", "stock.test:8080"} {
			resp, err := client.Get("http://" + name)
			require.NoError(t, err)
			require.Equal(t, name, body(t, resp))
		}
		_, err := client.Get("http://nobody.test")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		var op *net.OpError
		require.ErrorAs(t, err, &op)
		require.Equal(t, "dial", op.Op)
		require.Equal(t, 3, network.Dials())
	})
}

// anywhere runs f against servers on loopback and in memory, in every protocol.
func anywhere(t *testing.T, f func(t *testing.T, fleet *backstaytest.Fleet, client *http.Client)) {
	protocols(t, func(t *testing.T, p backstaytest.Protocol) {
		for _, memory := range []bool{false, true} {
			name := "loopback"
			if memory {
				name = "memory"
			}
			t.Run(name, func(t *testing.T) {
				backstaytest.CheckLeaks(t)
				cfg := &backstaytest.FleetConfig{Protocol: p, Handler: http.HandlerFunc(answer100)}
				if memory {
					cfg.Network = backstaytest.NewNetwork()
				}
				fleet := backstaytest.NewFleet(t, 1, cfg)
				tr := fleet.Transport()
				if tr.TLSClientConfig != nil {
					tr.TLSClientConfig.ServerName = fleet.Service
				}
				f(t, fleet, &http.Client{Transport: tr})
			})
		}
	})
}

func answer100(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	_, _ = io.WriteString(w, strings.Repeat("0123456789", 10))
}

func TestServerFaults(t *testing.T) {
	anywhere(t, func(t *testing.T, fleet *backstaytest.Fleet, client *http.Client) {
		s, ctx := fleet.Server(0), t.Context()
		ok := func() {
			t.Helper()
			status, err := get(ctx, client, s.URL())
			require.NoError(t, err)
			require.Equal(t, 200, status)
		}
		ok()

		s.FailNext(2, 503)
		for _, want := range []int{503, 503, 200} {
			status, err := get(ctx, client, s.URL())
			require.NoError(t, err)
			require.Equal(t, want, status)
		}

		s.Inject(backstaytest.Fault{Status: 429, Header: http.Header{"Retry-After": {"7"}}})
		resp, err := client.Get(s.URL())
		require.NoError(t, err)
		require.Equal(t, 429, resp.StatusCode)
		require.Equal(t, "7", resp.Header.Get("Retry-After"))
		body(t, resp)
		s.Heal()
		ok()

		s.FailFast()
		status, err := get(ctx, client, s.URL())
		require.NoError(t, err)
		require.Equal(t, 500, status)

		s.ResetBeforeHeaders()
		_, err = client.Post(s.URL(), "text/plain", strings.NewReader("hello"))
		require.Error(t, err)
		s.Heal()
		ok()

		s.ResetAfter(40)
		resp, err = client.Get(s.URL())
		require.NoError(t, err)
		data, err := io.ReadAll(resp.Body)
		require.Error(t, err)
		require.LessOrEqual(t, len(data), 40)
		require.NoError(t, resp.Body.Close())
		s.Heal()
		ok()

		s.Truncate(40)
		resp, err = client.Get(s.URL())
		require.NoError(t, err)
		data, err = io.ReadAll(resp.Body)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.Len(t, data, 40)
		require.NoError(t, resp.Body.Close())
		s.Heal()
		ok()
	})
}

// requireReset takes io.ErrUnexpectedEOF as well: when HTTP/2 happens to write
// as a reset arrives, the write gets ECONNRESET and the read after it just EOF.
func requireReset(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		require.ErrorIs(t, err, syscall.ECONNRESET)
	}
}

func TestServerResetGivesTheClientECONNRESET(t *testing.T) {
	anywhere(t, func(t *testing.T, fleet *backstaytest.Fleet, client *http.Client) {
		s := fleet.Server(0)
		s.ResetBeforeHeaders()
		// A request that net/http will not repeat by itself.
		_, err := client.Post(s.URL(), "text/plain", strings.NewReader("hello"))
		requireReset(t, err)
		require.Equal(t, 1, s.Stats().Requests)
	})
}

func TestServerStallsUntilResumed(t *testing.T) {
	anywhere(t, func(t *testing.T, fleet *backstaytest.Fleet, client *http.Client) {
		s := fleet.Server(0)
		s.Stall()
		answered := make(chan error, 2)
		ask := func(ctx context.Context) {
			_, err := get(ctx, client, s.URL())
			answered <- err
		}
		ctx, cancel := context.WithCancel(t.Context())
		go ask(ctx)
		require.Eventually(t, func() bool { return s.Stats().InFlight == 1 }, 5*time.Second, time.Millisecond)
		cancel()
		require.ErrorIs(t, <-answered, context.Canceled)
		require.Eventually(t, func() bool { return s.Stats().InFlight == 0 }, 5*time.Second, time.Millisecond)

		go ask(t.Context())
		require.Eventually(t, func() bool { return s.Stats().InFlight == 1 }, 5*time.Second, time.Millisecond)
		s.Resume()
		require.NoError(t, <-answered)
		require.Eventually(t, func() bool { return s.Stats().InFlight == 0 }, 5*time.Second, time.Millisecond)
	})
}

func TestServerFreezesInTheMiddleOfABody(t *testing.T) {
	anywhere(t, func(t *testing.T, fleet *backstaytest.Fleet, client *http.Client) {
		s := fleet.Server(0)
		_, err := get(t.Context(), client, s.URL())
		require.NoError(t, err)
		s.Freeze()
		answered := make(chan error, 1)
		go func() {
			_, err := get(t.Context(), client, s.URL())
			answered <- err
		}()
		select {
		case err := <-answered:
			t.Fatalf("answered by a frozen server: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		require.Equal(t, 1, s.Stats().Requests)
		s.Thaw()
		require.NoError(t, <-answered)
	})
}

func TestServerKillRefusesUntilRestart(t *testing.T) {
	anywhere(t, func(t *testing.T, fleet *backstaytest.Fleet, client *http.Client) {
		s := fleet.Server(0)
		s.Slow(time.Hour)
		broken := make(chan error, 1)
		go func() {
			_, err := client.Post(s.URL(), "text/plain", nil) // a body's write would fail in a way of its own
			broken <- err
		}()
		require.Eventually(t, func() bool { return s.Stats().InFlight == 1 }, 5*time.Second, time.Millisecond)
		addr := s.Addr
		s.Kill()
		requireReset(t, <-broken)
		for range 3 {
			_, err := get(t.Context(), client, s.URL())
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
		}
		s.Heal()
		require.Equal(t, addr, s.Addr)
		status, err := get(t.Context(), client, s.URL())
		require.NoError(t, err)
		require.Equal(t, 200, status)
	})
}

func TestServerRefuseKeepsStandingConnections(t *testing.T) {
	anywhere(t, func(t *testing.T, fleet *backstaytest.Fleet, client *http.Client) {
		s := fleet.Server(0)
		standing := func() bool { // over h2c a connection may come into the pool after its first answers
			before := s.Stats().Connections
			for range 10 {
				_, err := get(t.Context(), client, s.URL())
				require.NoError(t, err)
			}
			return s.Stats().Connections == before
		}
		require.Eventually(t, standing, 10*time.Second, time.Millisecond)
		connections := s.Stats().Connections
		s.Refuse()
		_, err := get(t.Context(), client, s.URL())
		require.NoError(t, err, "the connection that stands")
		fresh := &http.Client{Transport: fleet.Transport()}
		_, err = get(t.Context(), fresh, s.URL())
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		s.Restart()
		_, err = get(t.Context(), client, s.URL())
		require.NoError(t, err)
		require.Equal(t, connections, s.Stats().Connections)
	})
}

func TestFleetResolverFollowsJoinsAndLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{
			Network: backstaytest.NewNetwork(),
			Endpoint: func(i int, e *discovery.Endpoint) {
				e.Zone = []string{"a", "b", "c"}[i]
				e.Metadata = map[string]string{"version": "1"}
			},
		})
		boom := errors.New("boom")
		var seen []string
		go func() {
			for set, err := range fleet.Resolver().Watch(t.Context(), "orders") {
				line := ""
				for _, e := range set.Endpoints {
					line += e.ID + e.Zone
				}
				if err != nil {
					line = err.Error()
				}
				seen = append(seen, line)
			}
		}()
		synctest.Wait()
		s2 := fleet.Join()
		synctest.Wait()
		fleet.Leave(fleet.Server(0))
		synctest.Wait()
		fleet.FailDiscovery(boom)
		synctest.Wait()
		fleet.FailDiscovery(nil)
		synctest.Wait()
		before := fleet.Endpoints()
		s2.SetEndpoint(func(e *discovery.Endpoint) {
			e.Zone = "z"
			e.Metadata["version"] = "2"
		})
		require.Equal(t, "1", before[1].Metadata["version"], "sets that were given stay as they are")
		synctest.Wait()
		fleet.Unlist(s2)
		synctest.Wait()
		fleet.List(s2)
		synctest.Wait()
		require.Equal(t, []string{"s0as1b", "s0as1bs2c", "s1bs2c", "boom", "s1bs2c", "s1bs2z", "s1b", "s1bs2z"}, seen)
		require.Len(t, fleet.Endpoints(), 2)
		require.Equal(t, "10.0.0.3:80", s2.Addr)
		_, err := get(t.Context(), &http.Client{Transport: fleet.Transport()}, fleet.Server(0).URL())
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	})
}

func TestFleetLeaveFinishesWhatIsUnderWay(t *testing.T) {
	anywhere(t, func(t *testing.T, fleet *backstaytest.Fleet, client *http.Client) {
		s := fleet.Server(0)
		s.Stall()
		answered := make(chan error, 1)
		go func() {
			_, err := get(t.Context(), client, s.URL())
			answered <- err
		}()
		require.Eventually(t, func() bool { return s.Stats().InFlight == 1 }, 5*time.Second, time.Millisecond)
		left := make(chan struct{})
		go func() { fleet.Leave(s); close(left) }()
		require.Eventually(t, func() bool { return len(fleet.Endpoints()) == 0 }, 5*time.Second, time.Millisecond)
		s.Resume()
		require.NoError(t, <-answered)
		<-left
	})
}

func TestFleetSeesRepeatedRequests(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, nil)
	client := &http.Client{Transport: fleet.Transport()}
	post := func(s *backstaytest.Server, key, text string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL(), strings.NewReader(text))
		require.NoError(t, err)
		if key != "" {
			req.Header.Set("Idempotency-Key", key)
		}
		resp, err := client.Do(req)
		require.NoError(t, err)
		body(t, resp)
	}
	post(fleet.Server(0), "k1", "one")
	post(fleet.Server(1), "k2", "two")
	require.Empty(t, fleet.Repeated())
	fleet.Server(1).FailNext(1, 500) // reads the body all the same
	post(fleet.Server(1), "k1", "one")
	post(fleet.Server(1), "", "two")
	require.Equal(t, map[string]int{"k1": 2}, fleet.Repeated())
	require.Equal(t, 2, fleet.Seen("k1"))
	require.Equal(t, 1, fleet.Seen("k2"))
	require.Equal(t, 2, fleet.SeenBody([]byte("one")))
	require.Equal(t, 2, fleet.SeenBody([]byte("two")))
	require.Zero(t, fleet.SeenBody([]byte("three")))
	stats := fleet.Stats()
	require.Equal(t, 4, stats.Requests)
	require.Equal(t, map[string]int{"POST": 4}, stats.ByMethod)
	require.Equal(t, 2, stats.Connections)
	fleet.ResetStats()
	require.Zero(t, fleet.Stats().Requests)
	require.Empty(t, fleet.Repeated())
}

func TestServerHealLeavesThoseThatLeft(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, nil)
	client := &http.Client{Transport: fleet.Transport()}
	gone, killed := fleet.Server(0), fleet.Server(1)
	fleet.Leave(gone)
	killed.Kill()
	fleet.Heal()
	_, err := get(t.Context(), client, gone.URL())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	_, err = get(t.Context(), client, killed.URL())
	require.NoError(t, err)
}

func TestServerReportsAHandlersPanic(t *testing.T) {
	failed := make(chan string, 1)
	s := backstaytest.NewServer(&watchedT{TB: t, failed: failed}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		panic("a bug in the handler")
	}), nil)
	_, err := get(t.Context(), s.Client(), s.URL())
	require.ErrorIs(t, err, io.EOF)
	require.Contains(t, <-failed, "the handler panicked: a bug in the handler")
}

// watchedT is a test that takes a failure.
type watchedT struct {
	testing.TB
	failed chan string
}

func (w *watchedT) Errorf(format string, a ...any) { w.failed <- fmt.Sprintf(format, a...) }

func TestServerCloseComplainsOfAHandlerThatStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed, stay := make(chan string, 1), make(chan struct{})
		s := backstaytest.NewServer(&watchedT{TB: t, failed: failed}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-stay }), nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := get(ctx, s.Client(), s.URL())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		s.Kill() // also the handlers of an earlier life count
		s.Close()
		require.Contains(t, <-failed, "a handler did not return within 5s")
		close(stay)
	})
}

func TestServerSurvivesFaultsUnderLoad(t *testing.T) {
	backstaytest.CheckLeaks(t)
	fleet := backstaytest.NewFleet(t, 3, nil)
	tr := fleet.Transport()
	client := &http.Client{Transport: tr, Timeout: 5 * time.Second}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = get(t.Context(), client, fleet.Server(i%3).URL())
				}
			}
		})
	}
	for i := range 20 {
		s := fleet.Server(i % 3)
		s.Kill()
		s.Restart()
		s.Refuse()
		s.Stall()
		s.Freeze()
		s.Heal()
		_ = fleet.Stats()
	}
	close(stop)
	wg.Wait()
	for _, s := range fleet.Servers() {
		_, err := get(t.Context(), client, s.URL())
		require.NoError(t, err)
	}
}

func TestServerResumeIsNotMissed(t *testing.T) {
	s := backstaytest.NewServer(t, nil, nil)
	client := s.Client()
	for range 200 {
		s.Stall()
		answered := make(chan error, 1)
		go func() {
			_, err := get(t.Context(), client, s.URL())
			answered <- err
		}()
		for s.Stats().InFlight == 0 {
			runtime.Gosched()
		}
		s.Resume() // perhaps before the request has looked for its fault, or between that and its wait
		require.NoError(t, <-answered)
	}
}
