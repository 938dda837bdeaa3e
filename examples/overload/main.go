// Command overload calls a service for more than it can do, for a while, and
// shows who still gets answers, and who does when it is over. Three kinds of
// callers do so at the same time, each with servers of their own:
//
//   - naive: an http.Client with a timeout, and a loop of three attempts;
//   - defaults: Backstay as it comes;
//   - bounded: Backstay that gives a server no more calls at a time than it can
//     answer before the callers lose patience.
//
// The answers that come too late are what makes an overload stay: a server that
// is busy with calls whose callers have left does nothing for those who wait.
//
//	go run ./examples/overload               # 33 seconds
//	go run ./examples/overload -overload 30s
//
// Everything happens in this process, on loopback. The test plays the second one
// with the same code in virtual time. main.go says what happens, callers.go has
// the callers, server.go the servers.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	nodes    = 4
	capacity = nodes * slots * float64(time.Second/work) // calls a second, of all nodes

	patience = time.Second // what an attempt may take
)

// phase is a time in which callers begin so many calls a second.
type phase struct {
	name   string
	load   float64 // of the capacity
	length time.Duration
}

// script is what happens.
func script(overload time.Duration) []phase {
	return []phase{
		{"before", 0.7, 3 * time.Second},
		{"overload", 1.5, overload},
		{"0-5 s after", 0.7, 5 * time.Second},
		{"5-10 s after", 0.7, 5 * time.Second},
		{"10-15 s after", 0.7, 5 * time.Second},
		{"15-20 s after", 0.7, 5 * time.Second},
	}
}

// result is what became of the calls that began in a phase.
type result struct {
	calls    int
	good     int // answered
	attempts int // requests that arrived at the servers
}

// network is what everything happens on: loopback, or a test's own.
type network struct {
	listen func() (net.Listener, error)
	base   *http.Transport
}

func main() {
	overload := flag.Duration("overload", 10*time.Second, "how long the overload lasts")
	flag.Parse()
	if err := run(context.Background(), script(*overload)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run plays the phases with all kinds of callers and prints what came of it.
func run(ctx context.Context, phases []phase) error {
	loopback := network{
		listen: func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
		base:   &http.Transport{MaxIdleConnsPerHost: 100},
	}
	var (
		all     sync.WaitGroup
		kinds   = kinds()
		results = make([][]result, len(kinds))
		errs    = make([]error, len(kinds))
	)
	for i, k := range kinds {
		all.Go(func() { results[i], errs[i] = play(ctx, loopback, k, phases) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	report(kinds, phases, results)
	return nil
}

func report(kinds []kind, phases []phase, results [][]result) {
	fmt.Printf(`%d servers can answer %.0f calls a second, each %d at a time in %v; what comes beyond that waits at
them. An attempt may take %v. The table has, per second, the calls that began, how many of them were
answered, and how many attempts the servers got.

`, nodes, capacity, slots, work, patience)
	fmt.Printf("%21s", "")
	for _, k := range kinds {
		fmt.Printf("   %18s", k.name)
	}
	fmt.Printf("\n%21s", "calls")
	for range kinds {
		fmt.Printf("   %8s %9s", "answered", "attempts")
	}
	fmt.Println()
	for i, p := range phases {
		fmt.Printf("%-14s %6.0f", p.name, p.load*capacity)
		for k := range kinds {
			r := results[k][i]
			fmt.Printf("   %8.0f %9.0f", perSecond(r.good, p), perSecond(r.attempts, p))
		}
		fmt.Println()
	}
}

func perSecond(n int, p phase) float64 { return float64(n) / p.length.Seconds() }

// play has callers of one kind call servers of their own through all phases.
func play(ctx context.Context, on network, k kind, phases []phase) ([]result, error) {
	arrived := new(atomic.Int64)
	addrs, closeServers, err := startServers(on.listen, arrived)
	defer closeServers()
	if err != nil {
		return nil, err
	}
	call, closeClient, err := k.client(on.base.Clone(), addrs)
	if err != nil {
		return nil, err
	}
	defer closeClient()

	results := make([]result, len(phases))
	var mu sync.Mutex
	var all sync.WaitGroup
	defer all.Wait()
	for i, p := range phases {
		r := &results[i]
		begin := time.Now()
		step := time.Duration(float64(time.Second) / p.load / capacity)
		for r.calls = 0; time.Duration(r.calls)*step < p.length; r.calls++ {
			// A caller begins when his time has come, however the others fare.
			pause(ctx, time.Until(begin.Add(time.Duration(r.calls)*step)))
			all.Go(func() {
				ok := call(ctx)
				mu.Lock()
				defer mu.Unlock()
				if ok {
					r.good++
				}
			})
		}
		r.attempts = int(arrived.Swap(0))
	}
	all.Wait()
	return results, nil
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
