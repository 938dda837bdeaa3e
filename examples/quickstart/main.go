// Command quickstart lets servers misbehave and compares what the callers of two
// clients see of it: one of Backstay, with every default, and a plain
// http.Client that takes the servers in turn.
//
//	go run ./examples/quickstart
//
// Everything happens in this process, on loopback. It takes about 14 seconds and
// ends with status 1 if Backstay has lost a call. main.go says what happens,
// server.go has the servers, load.go the callers, report.go the tables.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/backstay/backstay"
)

const (
	length = 2200 * time.Millisecond // of a phase
	quiet  = 300 * time.Millisecond  // into a phase before something happens
)

// phase is what happens to the servers at one time, while callers are at work.
type phase struct {
	title  string
	change func(*fleet) error
}

func phases() []phase {
	return []phase{
		{"all four servers are well", nil},
		{"B takes 200 ms longer than usual", func(f *fleet) error {
			f.server("B").slow.Store(true)
			return nil
		}},
		{"B is well again, C answers 503 at once", func(f *fleet) error {
			f.server("B").slow.Store(false)
			f.server("C").failing.Store(true)
			return nil
		}},
		{"C is well again, D dies with all its connections", func(f *fleet) error {
			f.server("C").failing.Store(false)
			return f.server("D").kill()
		}},
		{"D is back on its old port, E joins", func(f *fleet) error {
			return errors.Join(f.server("D").start(), f.join("E"))
		}},
		{"A drains, leaves the list and stops", func(f *fleet) error {
			a := f.server("A")
			f.drain(a)
			pause(context.Background(), 2*quiet)
			f.leave(a)
			return a.kill()
		}},
	}
}

func main() {
	lost, err := run(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil || lost > 0 {
		os.Exit(1)
	}
}

// run goes through the phases and returns how many calls Backstay has lost.
func run(ctx context.Context) (lost int, err error) {
	servers, err := newFleet("A", "B", "C", "D")
	if err != nil {
		return 0, err
	}
	defer servers.close()

	seen := new(counts)
	client, err := backstay.New(&backstay.Config{
		Observer: seen, // sees every event, and counts
		Services: map[string]backstay.Service{"orders": {Resolver: servers}},
	})
	if err != nil {
		return 0, err
	}
	defer client.Close()

	// The other one may keep as many connections as it likes.
	transport := &http.Transport{MaxIdleConnsPerHost: callers}
	defer transport.CloseIdleConnections()
	turns := &inTurn{servers: servers, next: transport}

	sides := []*side{
		{name: "Backstay", client: client.Client, counts: seen},
		{name: "in turn", client: &http.Client{Transport: turns}, counts: &turns.counts},
	}
	total := []result{{name: sides[0].name}, {name: sides[1].name}}
	printIntroduction()
	for i, p := range phases() {
		results := make([]result, len(sides))
		wait := load(ctx, sides, results)
		pause(ctx, quiet)
		names := servers.names()
		if p.change != nil {
			for _, s := range sides {
				s.counts.forget()
			}
			if err := p.change(servers); err != nil {
				return lost, err
			}
		}
		pause(ctx, length-quiet)
		wait()
		printPhase(i+1, p.title, union(names, servers.names()), results)
		for i, r := range results {
			total[i].calls += r.calls
			total[i].failures += r.failures
		}
		lost += results[0].lost
	}
	printEnd(total, lost)
	return lost, nil
}

// union returns what is in a or b.
func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
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
