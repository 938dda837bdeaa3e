package call_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/outcome"
)

// transport is a layer in the manner of the real ones: it enters, notes its
// attempt if it is the innermost, and tells the test which frame it got.
type transport struct {
	name  string
	next  http.RoundTripper
	chain *call.Chain
	// before runs ahead of next, with the frame's context.
	before func(*http.Request)
	frames *[]*call.Frame
	send   bool
}

func wrap(name string, next http.RoundTripper, frames *[]*call.Frame) *transport {
	l := &transport{name: name, next: next, frames: frames}
	_, above := next.(*transport)
	l.send = !above
	l.chain = call.ChainOf(l)
	return l
}

func (l *transport) Unwrap() http.RoundTripper { return l.next }

func (l *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	f, _ := call.Enter(req, l, l.chain)
	req = req.WithContext(call.Carry(req.Context(), f))
	*l.frames = append(*l.frames, f)
	if l.before != nil {
		l.before(req)
	}
	if l.send {
		f.Send(time.Now(), nil, "", req.URL.Host)
	}
	resp, err := l.next.RoundTrip(req)
	status := 0
	if err == nil {
		status = resp.StatusCode
	}
	if l.send {
		f.Answered(time.Now(), f.Attempts()-1, resp, status, outcome.HTTP(req, resp, err))
	}
	if f != nil && l.chain.Len() > 1 {
		f.Finish(time.Now(), status, err)
	}
	return resp, err
}

func get(t *testing.T, client *http.Client, req *http.Request) {
	t.Helper()
	resp, err := client.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
}

func newRequest(t *testing.T, url string) (*http.Request, *call.Log) {
	t.Helper()
	ctx, log := call.WithLog(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	require.NoError(t, err)
	return req, log
}

func TestLayersOfOneChainShareAFrame(t *testing.T) {
	var frames []*call.Frame
	s := backstaytest.NewServer(t, nil, nil)
	client := &http.Client{Transport: wrap("a", wrap("b", wrap("c", s.Transport(), &frames), &frames), &frames)}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL(), nil)
	require.NoError(t, err)
	get(t, client, req)
	require.Len(t, frames, 3)
	require.NotNil(t, frames[0])
	require.Same(t, frames[0], frames[1])
	require.Same(t, frames[0], frames[2])
	get(t, client, req) // the same request again
	require.Len(t, frames, 6)
	require.NotSame(t, frames[0], frames[3])
	require.Same(t, frames[3], frames[5])
}

func TestLayerAloneNeedsNoFrameUnlessItIsLogged(t *testing.T) {
	var frames []*call.Frame
	s := backstaytest.NewServer(t, nil, nil)
	client := &http.Client{Transport: wrap("a", s.Transport(), &frames)}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL(), nil)
	require.NoError(t, err)
	get(t, client, req)
	require.Equal(t, []*call.Frame{nil}, frames)
	logged, log := newRequest(t, s.URL())
	get(t, client, logged)
	require.NotNil(t, frames[1])
	require.Len(t, log.Calls(), 1)
}

func TestRedirectIsACallOfItsOwn(t *testing.T) {
	var frames []*call.Frame
	s := backstaytest.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/old" {
			http.Redirect(w, r, "/new", http.StatusFound)
		}
	}), nil)
	client := &http.Client{Transport: wrap("a", wrap("b", s.Transport(), &frames), &frames)}
	req, log := newRequest(t, s.URL()+"/old")
	get(t, client, req)
	require.Len(t, frames, 4)
	require.NotSame(t, frames[0], frames[2])
	calls := log.Calls()
	require.Len(t, calls, 2)
	require.Equal(t, []string{"/old", "/new"}, []string{calls[0].Path, calls[1].Path})
	require.Equal(t, []int{302, 200}, []int{calls[0].Status, calls[1].Status})
	for _, c := range calls {
		require.Len(t, c.Attempts, 1)
	}
}

func TestNestedCallsAreNotMixed(t *testing.T) {
	for _, same := range []bool{false, true} {
		name := "through other layers"
		if same {
			name = "through the same layers"
		}
		t.Run(name, func(t *testing.T) {
			var frames []*call.Frame
			s := backstaytest.NewServer(t, nil, nil)
			inner := wrap("b", s.Transport(), &frames)
			outer := wrap("a", inner, &frames)
			client := &http.Client{Transport: outer}
			tokens := client
			if !same {
				tokens = &http.Client{Transport: wrap("c", wrap("d", s.Transport(), &frames), &frames)}
			}
			// b fetches a token with the context of the call that needs it.
			inner.before = func(req *http.Request) {
				if strings.HasPrefix(req.URL.Path, "/token") {
					return
				}
				token, err := http.NewRequestWithContext(req.Context(), http.MethodGet, s.URL()+"/token", nil)
				require.NoError(t, err)
				get(t, tokens, token)
			}
			req, log := newRequest(t, s.URL()+"/items")
			get(t, client, req)
			require.Len(t, frames, 4)
			require.Same(t, frames[0], frames[1])
			require.Same(t, frames[2], frames[3])
			require.NotSame(t, frames[0], frames[2])
			calls := log.Calls()
			require.Len(t, calls, 2)
			require.Equal(t, []string{"/items", "/token"}, []string{calls[0].Path, calls[1].Path})
			for _, c := range calls {
				require.Len(t, c.Attempts, 1, c.String())
			}
		})
	}
}

func TestContextOfAnAnsweredCallMayBeUsedAgain(t *testing.T) {
	var frames []*call.Frame
	s := backstaytest.NewServer(t, nil, nil)
	client := &http.Client{Transport: wrap("a", wrap("b", s.Transport(), &frames), &frames)}
	req, log := newRequest(t, s.URL())
	resp, err := client.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	again, err := http.NewRequestWithContext(resp.Request.Context(), http.MethodGet, s.URL()+"/again", nil)
	require.NoError(t, err)
	get(t, client, again)
	require.NotSame(t, frames[0], frames[2])
	calls := log.Calls()
	require.Len(t, calls, 2)
	require.Len(t, calls[0].Attempts, 1)
	require.Len(t, calls[1].Attempts, 1)
}

func TestEnterLeavesTheCallersRequestAlone(t *testing.T) {
	var frames []*call.Frame
	l := wrap("a", wrap("b", http.DefaultTransport, &frames), &frames)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://Orders:80/v1?secret=1", nil)
	require.NoError(t, err)
	before := *req
	f, fresh := call.Enter(req, l, l.chain)
	require.True(t, fresh)
	require.Equal(t, before, *req)
	require.Equal(t, "orders:80", f.Service())
	carried := req.WithContext(call.Carry(req.Context(), f))
	g, fresh := call.Enter(carried, l.next.(*transport), l.next.(*transport).chain)
	require.False(t, fresh)
	require.Same(t, f, g)
}

func TestEnterAllocatesNothingWhenNobodyWouldSeeTheFrame(t *testing.T) {
	var frames []*call.Frame
	alone := wrap("a", http.DefaultTransport, &frames)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://orders", nil)
	require.NoError(t, err)
	require.Zero(t, testing.AllocsPerRun(100, func() { call.Enter(req, alone, alone.chain) }))
}

// struct{ f func() } as a layer: == on it panics.
type uncomparable struct {
	http.RoundTripper
	_ func()
}

func (u uncomparable) Unwrap() http.RoundTripper { return u.RoundTripper }

type opaque struct{ http.RoundTripper }

func TestChainOfFollowsUnwrap(t *testing.T) {
	var frames []*call.Frame
	c := wrap("c", http.DefaultTransport, &frames)
	b := uncomparable{RoundTripper: c}
	a := wrap("a", b, &frames)
	require.Equal(t, 2, a.chain.Len(), "what cannot be compared is left out, what it wraps is not")
	ctx, f := call.Push(t.Context(), a.chain, call.Info{})
	require.Same(t, f, call.Join(ctx, a))
	require.Same(t, f, call.Join(ctx, c))

	hidden := wrap("d", opaque{c}, &frames)
	require.Equal(t, 1, hidden.chain.Len(), "what does not say what it wraps ends the chain")
	require.Zero(t, call.ChainOf(http.DefaultTransport).Len())
	require.Zero(t, (*call.Chain)(nil).Len())
}

func TestInfoOfARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://user:secret@Orders:8080/v1/items?token=secret", nil)
		require.NoError(t, err)
		require.Equal(t, call.Info{Service: "orders:8080", Method: "POST", Path: "/v1/items", Start: time.Now()}, ignoreMonotonic(call.InfoOf(req)))
		require.Equal(t, call.Info{Method: "GET", Start: time.Now()}, ignoreMonotonic(call.InfoOf(&http.Request{})))
	})
}

// ignoreMonotonic makes the time one that require.Equal finds equal to
// time.Now's, if it is.
func ignoreMonotonic(i call.Info) call.Info {
	if now := time.Now(); i.Start.Equal(now) {
		i.Start = now
	}
	return i
}
