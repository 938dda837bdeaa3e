package balancer

import (
	"context"
	"errors"
	"net"
	"net/http"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// If this fails, net/http has changed, and requests that a server has declined by
// GOAWAY are not known as such any more.
func TestNetHTTPSaysWhatWasNotSent(t *testing.T) {
	unusable, goAway := hearPhrases()
	require.NotEqual(t, errUnheard, unusable)
	require.NotEqual(t, errUnheard, goAway)
	require.NotSame(t, unusable, goAway)
	again, goAwayAgain := hearPhrases()
	require.Same(t, unusable, again)
	require.Same(t, goAway, goAwayAgain)
	var p phrases
	require.True(t, p.sayUnsent(goAway))
	require.True(t, p.sayUnsent(unusable))
	require.False(t, p.sayUnsent(errors.New(goAway.Error())), "it is not the text that counts")
	require.False(t, p.sayUnsent(errUnheard))
}

// pipes is a listener for connections in memory.
type pipes struct{ c chan net.Conn }

func (p pipes) Accept() (net.Conn, error) {
	if nc := <-p.c; nc != nil {
		return nc, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { close(p.c); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// Whom net/http has reserved a connection for is the one that it carries, whoever it was
// picked for: a hook that comes late may offer one that has been picked.
func TestConnectionIsCutForTheCallThatItCarriesAndForNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := pipes{make(chan net.Conn, 8)}
		server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hang" {
				<-r.Context().Done()
			}
		})}
		go func() { _ = server.Serve(in) }()
		defer server.Close()
		dials := 0
		template := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			dials++
			in.c <- far
			return near, nil
		}}
		b, err := New("orders", discovery.Static(discovery.Endpoint{Addr: "10.0.0.1:80"}), &Config{Conns: ConnConfig{Max: 1}})
		require.NoError(t, err)
		defer b.Close()
		l := b.Layer(template).(*transport)
		get := func(path string) (*http.Response, error) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://orders"+path, nil)
			require.NoError(t, err)
			return l.RoundTrip(req)
		}
		_, err = get("/")
		require.NoError(t, err)
		synctest.Wait()
		p := l.conn(b.Nodes()[0]).own.last.Load()
		m := p.free[0]
		over := m.turn.Load()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://orders/hang", nil)
		require.NoError(t, err)

		m.cut(over)
		require.NoError(t, m.cc.Err(), "it is idle")

		picked, err := p.acquire(req, nil)
		require.NoError(t, err)
		require.Same(t, m, picked)
		m.cut(over)
		require.NoError(t, m.cc.Err(), "it is another's")
		m.unsent()
		require.Len(t, p.free, 1)

		start := time.Now()
		time.AfterFunc(time.Second, func() {
			p.offer(m, false) // as a late hook does
			go func() { _, _ = get("/") }()
		})
		_, err = get("/hang")
		require.ErrorIs(t, err, outcome.ErrAttemptTimeout)
		require.Equal(t, 10*time.Second, time.Since(start))
		synctest.Wait()
		require.Error(t, m.cc.Err())
		require.Equal(t, 2, dials, "the other call went over a new one")

		_, err = get("/")
		require.NoError(t, err)
		synctest.Wait()
		m = p.free[0]
		p.mu.Lock()
		p.remove(0)
		p.pick(m)
		p.mu.Unlock()
		require.NoError(t, m.cc.Reserve()) // as the next call does,
		m.cut(m.turn.Load())               // and the last is cut before it comes to ask
		require.False(t, m.begin())
		require.Error(t, m.cc.Err())
		_, err = get("/")
		require.NoError(t, err)
		require.Equal(t, 3, dials)
	})
}

// They are made for the first call that needs them, which may be when the node's name
// changes.
func TestLanesThatAreMadeDuringARenewalAreRenewed(t *testing.T) {
	b, err := New("orders", discovery.Static(discovery.Endpoint{Addr: "10.0.0.1:80"}), nil)
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, b.Ready(t.Context()))
	c := b.Layer(&http.Transport{}).(*transport).conn(b.Nodes()[0])
	c.first.Lock() // as startLanes does
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		c.renew()
	}()
	for range 1000 {
		runtime.Gosched()
	}
	lanes := make([]lane, 1)
	before := c.newGeneration(0)
	lanes[0].Store(before)
	c.lanes.Store(&lanes)
	c.first.Unlock()
	<-renewed
	require.NotSame(t, before, c.startLanes()[0].Load())
	require.True(t, before.retired)
}
