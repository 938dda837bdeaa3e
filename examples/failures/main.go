// Command failures plays what can go wrong with a service, one scene after the
// other, and prints what a caller sees of it, the line in its call log, and
// Backstay's events. docs/failures.md shows its output and explains it.
//
//	go run ./examples/failures            # all scenes
//	go run ./examples/failures throttling # those whose title has the word
//
// Everything happens in this process, on loopback.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
)

func main() {
	word := strings.Join(os.Args[1:], " ")
	for _, s := range scenes() {
		if strings.Contains(strings.ToLower(s.title), strings.ToLower(word)) {
			fmt.Printf("\n== %s\n", s.title)
			if err := s.play(context.Background()); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
}

// stage is a service of two servers, a and b, and a client.
type stage struct {
	a, b   *server
	client *backstay.Client
}

// newStage starts the servers and makes a client with the service's settings;
// change may be nil.
func newStage(change func(st *stage, orders *backstay.Service)) (*stage, error) {
	st := new(stage)
	var err error
	if st.a, err = newServer("a"); err != nil {
		return nil, err
	}
	if st.b, err = newServer("b"); err != nil {
		return nil, err
	}
	orders := backstay.Service{Endpoints: endpoints(st.a, st.b)}
	if change != nil {
		change(st, &orders)
	}
	st.client, err = backstay.New(&backstay.Config{
		Observer: printed(),
		Services: map[string]backstay.Service{"orders": orders},
	})
	return st, err
}

func (st *stage) close() {
	_ = st.client.Close()
	st.a.kill()
	st.b.kill()
}

// get makes one call and prints what came of it.
func (st *stage) get(ctx context.Context) { st.do(ctx, http.MethodGet, nil) }

// do makes one call and prints what came of it.
func (st *stage) do(ctx context.Context, method string, header http.Header) {
	ctx, calls := call.WithLog(ctx)
	var body io.Reader
	if method != http.MethodGet {
		body = strings.NewReader("an order")
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://orders/v1/items", body)
	if err != nil {
		fmt.Println("caller", err)
		return
	}
	if header != nil {
		req.Header = header
	}
	resp, err := st.client.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		fmt.Println("caller", resp.Status)
	}
	if err != nil {
		fmt.Println("caller", err)
	}
	for _, c := range calls.Calls() {
		fmt.Println("log   ", c)
	}
}

// quietly makes n calls without a word, and returns how many attempts went to
// each server and how many calls failed.
func (st *stage) quietly(n int) (sent map[string]int, failed int) {
	ctx, calls := call.WithLog(context.WithValue(context.Background(), quiet{}, true))
	for range n {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/v1/items", nil)
		if err != nil {
			continue
		}
		resp, err := st.client.Do(req)
		if err != nil {
			failed++
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode >= http.StatusInternalServerError {
			failed++
		}
	}
	sent = make(map[string]int)
	for _, c := range calls.Calls() {
		for _, a := range c.Attempts {
			sent[a.Node]++
		}
	}
	return sent, failed
}

// next makes n calls and prints where they went.
func (st *stage) next(n int) {
	sent, failed := st.quietly(n)
	fmt.Printf("then   %d calls: %d attempts to a, %d to b; %d calls failed\n", n, sent["a"], sent["b"], failed)
}

// favourite returns the server that a lone caller's next call goes to: the one
// that has been the faster.
func (st *stage) favourite() *server {
	st.quietly(500)
	if sent, _ := st.quietly(1); sent["a"] > 0 {
		return st.a
	}
	return st.b
}

// quiet marks contexts whose events are not printed.
type quiet struct{}

// printed returns an observer that prints events, but for those that the reader
// can do without: the call's line is printed anyway, and every scene begins with
// a first set of nodes.
func printed() event.Observer {
	handler := slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: forReading})
	printer := event.Log(slog.New(handler))
	return event.ObserverFunc(func(ctx context.Context, e event.Event) {
		switch e := e.(type) {
		case call.Finished:
			return
		case balancer.NodesChanged:
			if len(e.Added) == e.Total {
				return
			}
		}
		if ctx.Value(quiet{}) == nil {
			printer.Observe(ctx, e)
		}
	})
}

// forReading leaves out what differs from run to run.
func forReading(_ []string, a slog.Attr) slog.Attr {
	switch a.Key {
	case slog.TimeKey, "until":
		return slog.Attr{}
	case slog.MessageKey:
		a.Key = "event"
	}
	return a
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
