package backstay_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

func newUpstream(t *testing.T, cfg *backstay.Config) (*backstay.Client, *backstay.Upstream) {
	t.Helper()
	client, err := backstay.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	u, err := client.Upstream("orders")
	require.NoError(t, err)
	t.Cleanup(u.Close)
	return client, u
}

func begin(t *testing.T, u *backstay.Upstream, c *backstay.Call, path string) {
	t.Helper()
	require.NoError(t, u.Begin(t.Context(), c, u.Settings(path), call.Info{Method: "test", Path: path, Start: time.Now()}))
}

func TestCallOfAnUpstreamHasItsRoutesSettingsAndAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var records []call.Record
		_, u := newUpstream(t, &backstay.Config{
			Default: backstay.Service{Endpoints: discovery.Addrs("10.0.0.1:80", "10.0.0.2:80"), BodyIdleTimeout: time.Minute},
			Routes: map[string]backstay.Route{
				"/orders.v1.Orders/*":   {Timeout: 2 * time.Second},
				"/orders.v1.Orders/Get": {Timeout: 3 * time.Second, AttemptTimeout: time.Second, LatencyNeutral: backstay.On},
			},
			Observer: event.ObserverFunc(func(_ context.Context, e event.Event) {
				if f, ok := e.(call.Finished); ok {
					records = append(records, f.Record)
				}
			}),
		})
		require.Zero(t, u.Settings("/other").Timeout)
		require.Zero(t, u.Settings("/other").AttemptTimeout, "there is no default")
		require.Equal(t, "/orders.v1.Orders/*", u.Settings("/orders.v1.Orders/List").Route)
		get := u.Settings("/orders.v1.Orders/Get")
		require.Same(t, get, u.Settings("/orders.v1.Orders/Get"))
		require.True(t, get.LatencyNeutral)
		require.Equal(t, time.Minute, get.BodyIdleTimeout)

		var c backstay.Call
		start := time.Now()
		begin(t, u, &c, "/orders.v1.Orders/Get")
		require.Equal(t, start.Add(3*time.Second), c.Frame.Deadline())
		require.Equal(t, time.Second, c.Frame.AttemptTimeout())

		errDown := errors.New("down")
		var first *balancer.Node
		for range 2 {
			var a balancer.Attempt
			require.NoError(t, u.Balancer().Begin(t.Context(), c.Frame, &balancer.Call{}, &a))
			require.NotSame(t, first, a.Node(), "not where it has been")
			first = a.Node()
			a.Send(time.Now())
			a.Fail(time.Now(), outcome.Outcome{Class: outcome.Failure, Err: errDown})
		}
		require.False(t, c.Frame.Others())
		c.Finish(t.Context(), 0, errDown)
		require.Len(t, records, 1)
		require.Equal(t, "orders", records[0].Service)
		require.Len(t, records[0].Attempts, 2)
		require.Equal(t, errDown, records[0].Attempts[1].Outcome.Err)
		require.Zero(t, u.Balancer().InFlight())
	})
}

func TestUpstreamHoldsAServiceThatIsNotListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, u := newUpstream(t, &backstay.Config{
			Default: backstay.Service{Endpoints: discovery.Addrs("10.0.0.1:80")}, IdleTimeout: time.Minute, MaxIdleServices: 1,
		})
		other, err := client.Upstream("others")
		require.NoError(t, err)
		time.Sleep(time.Hour)
		require.NotNil(t, client.Balancer("orders"))
		require.NotNil(t, client.Balancer("others"))
		u.Close()
		other.Close()
		other.Close()
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Nil(t, client.Balancer("orders"))
		require.Nil(t, client.Balancer("others"))
		var c backstay.Call
		require.ErrorIs(t, u.Begin(t.Context(), &c, u.Settings("/"), call.Info{Start: time.Now()}), backstay.ErrClosed)
	})
}

func TestUpstreamsCallsKeepToTheLimitsAndAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, u := newUpstream(t, &backstay.Config{Services: map[string]backstay.Service{"orders": {
			Endpoints:   discovery.Addrs("10.0.0.1:80"),
			Concurrency: limit.ConcurrencyConfig{Max: 1, UntilHeaders: backstay.On},
		}}})
		var first, second backstay.Call
		begin(t, u, &first, "/a")
		permit, headers, err := first.Admit(t.Context())
		require.NoError(t, err)
		require.True(t, headers)
		begin(t, u, &second, "/a")
		_, _, err = second.Admit(t.Context())
		require.ErrorIs(t, err, limit.ErrFull)
		second.Finish(t.Context(), 0, err)
		permit.Done()

		down := make(chan error, 1)
		go func() { down <- client.Shutdown(context.Background()) }()
		time.Sleep(time.Hour)
		require.Empty(t, down)
		require.ErrorIs(t, u.Begin(t.Context(), &second, u.Settings("/a"), call.Info{Start: time.Now()}), backstay.ErrClosed)
		first.Finish(t.Context(), 200, nil)
		require.NoError(t, <-down)
	})
}

func TestUpstreamOfNothing(t *testing.T) {
	client, err := backstay.New(nil)
	require.NoError(t, err)
	for _, name := range []string{"", "dns:///orders:8080", "http://orders", "orders/v1", "unix:/run/orders", "user@orders"} {
		_, err = client.Upstream(name)
		require.ErrorContains(t, err, "want the name of a service", name)
	}
	require.NoError(t, client.Close())
	_, err = client.Upstream("orders")
	require.ErrorIs(t, err, backstay.ErrClosed)
}
