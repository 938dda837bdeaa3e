package main

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
)

const (
	callers = 32                    // of each client
	pace    = 50 * time.Millisecond // from one call of a caller to its next
)

// side is one of the two clients.
type side struct {
	name   string
	client *http.Client
	counts *counts
}

// result is what the callers of one side saw in a phase.
type result struct {
	name     string
	calls    int
	failures int // an error, a status of 500 or more, or half a body
	lost     int // those of them that failed before a response began
	times    []time.Duration
	tally
}

// load sets the callers of all sides to work. The function that it returns ends
// them, and fills in the results.
func load(ctx context.Context, sides []*side, results []result) (wait func()) {
	ctx, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	parts := make([][]result, len(sides))
	for i, s := range sides {
		parts[i] = make([]result, callers)
		for n := range callers {
			all.Go(func() {
				// One caller begins after the other, so that they don't march in step.
				pause(ctx, pace*time.Duration(n)/callers)
				parts[i][n].work(ctx, s.client, n)
			})
		}
	}
	return func() {
		stop()
		all.Wait()
		for i, s := range sides {
			results[i] = result{name: s.name, tally: s.counts.take()}
			for _, part := range parts[i] {
				results[i].calls += part.calls
				results[i].failures += part.failures
				results[i].lost += part.lost
				results[i].times = append(results[i].times, part.times...)
			}
			slices.Sort(results[i].times)
		}
	}
}

// work makes one call after the other until ctx ends: three GETs, then a PUT.
func (r *result) work(ctx context.Context, client *http.Client, caller int) {
	for n := caller; ctx.Err() == nil; n++ {
		begin := time.Now()
		r.call(client, n)
		r.times = append(r.times, time.Since(begin))
		pause(ctx, pace-time.Since(begin))
	}
}

func (r *result) call(client *http.Client, n int) {
	method, body := http.MethodGet, io.Reader(nil)
	if n%4 == 3 {
		method, body = http.MethodPut, strings.NewReader(`{"state": "paid"}`)
	}
	r.calls++
	// Calls are not made under the callers' context: those that are under way
	// at a phase's end shall end well.
	req, err := http.NewRequestWithContext(context.Background(), method, "http://orders/v1/orders/"+strconv.Itoa(n), body)
	if err == nil {
		var resp *http.Response
		if resp, err = client.Do(req); err == nil {
			if resp.StatusCode >= http.StatusInternalServerError {
				r.lost++
				r.failures++
			} else if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				r.failures++
			}
			_ = resp.Body.Close()
			return
		}
	}
	r.lost++
	r.failures++
}

// tally is what a client did in a phase.
type tally struct {
	retries int
	sent    map[string]int // attempts by server, since something happened
	changes []string       // of the list of servers, and of their states
}

// counts is the tally of the present phase. It is an event.Observer.
type counts struct {
	mu    sync.Mutex
	tally tally
}

// Observe counts the attempts of each call, and notes what became of servers.
func (c *counts) Observe(_ context.Context, e event.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch e := e.(type) {
	case call.Finished:
		c.tally.retries += max(len(e.Record.Attempts)-1, 0)
		for _, a := range e.Record.Attempts {
			c.tally.count(a.Node)
		}
	case balancer.NodeChanged: // its breaker opens or closes, it drains, it is gone
		c.tally.changes = append(c.tally.changes, e.Node+" "+e.From.String()+" → "+e.To.String())
	case balancer.NodesChanged:
		if n := len(e.Added); n > 0 && n < e.Total { // and not the first set
			c.tally.changes = append(c.tally.changes, strings.Join(e.Added, ", ")+" joined")
		}
	}
}

// take returns the tally and begins another.
func (c *counts) take() tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.tally
	c.tally = tally{}
	return taken
}

// forget has the attempts counted by server from now on.
func (c *counts) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tally.sent = nil
}

func (t *tally) count(server string) {
	if t.sent == nil {
		t.sent = make(map[string]int)
	}
	t.sent[server]++
}

// inTurn is what many begin with: the next request goes to the next server.
type inTurn struct {
	servers *fleet
	next    http.RoundTripper
	turn    atomic.Uint64
	counts  counts
}

// RoundTrip sends req to the server whose turn it is.
func (t *inTurn) RoundTrip(req *http.Request) (*http.Response, error) {
	servers, _ := t.servers.list()
	s := servers[t.turn.Add(1)%uint64(len(servers))]
	t.counts.mu.Lock()
	t.counts.tally.count(s.name)
	t.counts.mu.Unlock()
	req = req.Clone(req.Context())
	req.URL.Host = s.addr
	return t.next.RoundTrip(req)
}
