package backstay_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/retry"
)

func TestReadyWaitsForTheEndpointsOfTheListedServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		late := discovery.Map(fleet.Resolver(), func(e discovery.Endpoint) discovery.Endpoint {
			time.Sleep(3 * time.Second)
			return e
		})
		c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) { s.Resolver = late })
		begin := time.Now()
		require.NoError(t, c.Ready(t.Context()))
		require.Equal(t, 3*time.Second, time.Since(begin))
		require.NoError(t, c.Ready(t.Context(), "orders.test", "orders.test:80"))
		require.Equal(t, 3*time.Second, time.Since(begin), "at once ever after")
	})
}

func TestReadyNamesTheServicesThatAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("registry is down")
		c := newClient(t, &backstay.Config{Base: always(200), Services: map[string]backstay.Service{
			"a": {Resolver: itself}, "b": {Resolver: silent}, "c": {Resolver: failing(down)},
		}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		err := c.Ready(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, down)
		require.ErrorContains(t, err, `service "b"`)
		require.ErrorContains(t, err, `service "c"`)
		require.NotContains(t, err.Error(), `service "a"`)
		require.Equal(t, time.Second, time.Since(begin))

		require.NoError(t, c.Ready(t.Context(), "a"))
		require.NoError(t, c.Ready(ctx, "a"), "known is known")
		require.ErrorIs(t, c.Ready(t.Context(), "c"), down)
		var bad *backstay.RequestError
		require.ErrorAs(t, c.Ready(t.Context(), ""), &bad)
	})
}

func TestReadyOfAServiceNotListedLooksItUp(t *testing.T) {
	resolver := &counted{Resolver: itself}
	c := newClient(t, &backstay.Config{Base: always(200), Default: backstay.Service{Resolver: resolver}})
	require.NoError(t, c.Ready(t.Context(), "orders"))
	get(t, c, "http://orders")
	_, ever := resolver.watches()
	require.Equal(t, 1, ever)
}

// nameServer answers every question of DNS with code, and with address where
// that is a success.
func nameServer(t *testing.T, code dnsmessage.RCode, address [4]byte) (addr string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.RCode, m.Additionals = true, code, nil
			if q := m.Questions[0]; code == dnsmessage.RCodeSuccess && q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60},
					Body:   &dnsmessage.AResource{A: address},
				}}
			}
			if answer, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	})
	t.Cleanup(func() { _ = conn.Close(); serving.Wait() })
	return conn.LocalAddr().String()
}

func TestNamesAreLookedUpInDNS(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	_, port, _ := net.SplitHostPort(fleet.Server(0).Addr)
	c := newClient(t, &backstay.Config{Default: backstay.Service{
		Resolver: discovery.DNS(&discovery.DNSConfig{Server: nameServer(t, dnsmessage.RCodeSuccess, [4]byte{127, 0, 0, 1})}),
	}})
	r := logged(t, c, "http://orders.backstay.test:"+port)
	require.Equal(t, 200, r.Status)
	require.Equal(t, "127.0.0.1:"+port, r.Attempts[0].Addr)
}

func TestNameThatDNSDoesNotKnowIsAnErrorAtOnce(t *testing.T) {
	backstaytest.CheckLeaks(t)
	c := newClient(t, &backstay.Config{
		Default: backstay.Service{
			Resolver: discovery.DNS(&discovery.DNSConfig{Server: nameServer(t, dnsmessage.RCodeNameError, [4]byte{})}),
		},
		Services: map[string]backstay.Service{"orders.backstay.test": {}},
	})
	begin := time.Now()
	for _, err := range []error{
		c.Ready(t.Context()), try(t.Context(), c, "http://orders.backstay.test"),
		c.Ready(t.Context(), "users.backstay.test"), try(t.Context(), c, "http://users.backstay.test"),
	} {
		require.ErrorIs(t, err, discovery.ErrNotFound)
		var unknown *discovery.ResolveError
		require.ErrorAs(t, err, &unknown)
		var dns *net.DNSError
		require.ErrorAs(t, err, &dns)
		require.True(t, backstay.NotSent(err))
		require.False(t, backstay.Refused(err), "it is not we who say no")
	}
	require.Less(t, time.Since(begin), 5*time.Second)
}

// A POST may have been acted on once it was sent. It was not.
func TestCallsOfAServiceThatBecomesKnownAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		fleet.FailDiscovery(errors.New("not yet"))
		c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
			s.Retry = retry.Config{MaxAttempts: 10, Backoff: retry.Backoff{Kind: retry.Constant, Base: time.Second}}
		})
		time.AfterFunc(2*time.Second, func() { fleet.FailDiscovery(nil) })
		resp, err := send(t, t.Context(), c, http.MethodPost, fleet.URL(), "content")
		require.NoError(t, err)
		status, _ := read(t, resp)
		require.Equal(t, 200, status)
		require.Equal(t, 1, fleet.SeenBody([]byte("content")))
	})
}

// slowBody returns a response under way whose body ends at end().
func slowBody(t *testing.T, c *backstay.Client, url string) *http.Response {
	t.Helper()
	resp, err := c.Get(url)
	require.NoError(t, err)
	first := make([]byte, len("begin "))
	_, err = io.ReadFull(resp.Body, first)
	require.NoError(t, err)
	return resp
}

// restOf reads what is left of a body meanwhile, up to what breaks it.
func restOf(resp *http.Response) <-chan string {
	rest := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		rest <- string(text)
	}()
	return rest
}

func TestShutdownWaitsForBodiesAndTakesNoMoreCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, end := streaming()
		fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork(), Handler: h})
		c := fleetClient(t, fleet, nil)
		resp := slowBody(t, c, fleet.URL())
		done := make(chan error, 1)
		go func() { done <- c.Shutdown(t.Context()) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Empty(t, done)
		for _, url := range []string{fleet.URL(), "http://stranger"} {
			require.ErrorIs(t, try(t.Context(), c, url), backstay.ErrClosed)
		}
		end()
		rest, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "end", string(rest))
		require.NoError(t, <-done)
		synctest.Wait()
		require.Zero(t, fleet.Stats().OpenConnections)
	})
}

func TestShutdownWaitsForCallsThatWaitForTheirNextAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork()})
		fleet.Server(0).InjectNext(1, backstaytest.Fault{Status: 503, Header: http.Header{"Retry-After": {"10"}}})
		c := fleetClient(t, fleet, nil)
		call := make(chan error, 1)
		go func() { call <- try(t.Context(), c, fleet.URL()) }()
		time.Sleep(time.Second)
		require.NoError(t, c.Shutdown(t.Context()))
		require.NoError(t, <-call)
		require.Equal(t, 2, fleet.Stats().Requests)
	})
}

func TestShutdownWaitsForTheBodyOfANodeThatHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, end := streaming()
		fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork(), Handler: h})
		c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) { s.Policy = first{} })
		resp := slowBody(t, c, fleet.URL())
		fleet.Unlist(fleet.Server(0))
		time.Sleep(time.Second) // and less than DrainTimeout
		time.AfterFunc(10*time.Second, end)
		rest := restOf(resp)
		begin := time.Now()
		require.NoError(t, c.Shutdown(t.Context()))
		require.InDelta(t, 10, time.Since(begin).Seconds(), 1)
		require.Equal(t, "end", <-rest)
	})
}

func TestShutdownCutsWhatIsLeftWhenItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := streaming()
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Network: backstaytest.NewNetwork(), Handler: h})
		c := fleetClient(t, fleet, nil)
		resp := slowBody(t, c, fleet.URL())
		enough := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, enough)
		defer cancel()
		begin := time.Now()
		require.ErrorIs(t, c.Shutdown(ctx), enough)
		require.Equal(t, time.Minute, time.Since(begin))
		_, err := io.ReadAll(resp.Body)
		require.Error(t, err)
		require.NoError(t, resp.Body.Close())
		require.NoError(t, c.Shutdown(t.Context()), "again")
	})
}

func TestShutdownOfAnIdleClientDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, &backstay.Config{Base: always(200), Default: backstay.Service{Resolver: itself}})
		get(t, c, "http://orders")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin := time.Now()
		require.NoError(t, c.Shutdown(ctx))
		require.Zero(t, time.Since(begin))
	})
}

func TestCloseCutsBodiesAndCallsAndComesBackSoon(t *testing.T) {
	for _, protocol := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.HTTP1TLS, backstaytest.HTTP2, backstaytest.H2C} {
		t.Run(protocol.String(), func(t *testing.T) {
			backstaytest.CheckLeaks(t)
			h, end := streaming()
			fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Protocol: protocol, Handler: h})
			defer end()
			c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
				s.Policy = first{}
				if protocol == backstaytest.H2C {
					s.H2C = backstay.On
				}
			})
			resp := slowBody(t, c, fleet.URL())
			fleet.Server(0).Stall()
			waiting := make(chan error, 1)
			go func() { waiting <- try(t.Context(), c, fleet.URL()) }()
			eventually(t, func() bool { return fleet.Stats().InFlight == 2 }, "the second call waits")

			begin := time.Now()
			var all sync.WaitGroup
			for range 3 { // at once, and again
				all.Go(func() { require.NoError(t, c.Close()) })
			}
			all.Wait()
			require.NoError(t, c.Close())
			require.Less(t, time.Since(begin), 10*time.Second)
			_, err := io.ReadAll(resp.Body)
			require.Error(t, err)
			require.NoError(t, resp.Body.Close())
			require.Error(t, <-waiting)
			require.ErrorIs(t, try(t.Context(), c, fleet.URL()), backstay.ErrClosed)
		})
	}
}

func TestCallsThroughAClosedClientFailAndSaySo(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	c := fleetClient(t, fleet, nil)
	get(t, c, fleet.URL())
	require.NoError(t, c.Close())
	body := &closeable{Reader: strings.NewReader("content")}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, fleet.URL()+"/x?secret=1", body)
	require.NoError(t, err)
	resp, err := c.RoundTrip(req)
	require.Nil(t, resp)
	require.ErrorIs(t, err, backstay.ErrClosed)
	require.EqualError(t, err, `backstay: request to "http://orders.test/x": client closed`)
	require.True(t, backstay.Refused(err))
	require.True(t, backstay.NotSent(err))
	require.Equal(t, 1, body.closed)
	require.ErrorIs(t, c.Ready(t.Context()), backstay.ErrClosed)
	require.ErrorIs(t, c.Ready(t.Context(), "other"), backstay.ErrClosed)
	require.NoError(t, c.Shutdown(t.Context()))
	c.CloseIdleConnections()
}

// closeable is a request body that counts its closes.
type closeable struct {
	io.Reader
	closed int
}

func (c *closeable) Close() error { c.closed++; return nil }

func TestCallsThatAwaitTheFirstEndpointsEndWithTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, &backstay.Config{Base: always(200), Services: map[string]backstay.Service{"orders": {Resolver: silent}}})
		waiting := make(chan error, 1)
		go func() { waiting <- try(t.Context(), c, "http://orders") }()
		time.Sleep(time.Minute)
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-waiting, balancer.ErrClosed)
	})
}

func TestCloseLeavesTheTemplateAlone(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 1, nil)
	template := fleet.Transport()
	before := template.Clone()
	c := newClient(t, &backstay.Config{Base: template, Default: backstay.Service{Resolver: fleet.Resolver()}})
	get(t, c, fleet.URL())
	own := &http.Client{Transport: template}
	resp, err := own.Get(fleet.Server(0).URL())
	require.NoError(t, err)
	read(t, resp)
	require.NoError(t, c.Close())
	eventually(t, func() bool { return fleet.Stats().OpenConnections == 1 }, "the template's own connection stays")
	require.Equal(t, before.MaxIdleConnsPerHost, template.MaxIdleConnsPerHost)
	require.Nil(t, template.DialContext)
}
