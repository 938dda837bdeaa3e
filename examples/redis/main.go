// Command redis gives a client of Redis, go-redis, the nodes of a balancer: it
// starts two servers, kills one and starts it again, while callers with a pool of
// connections keep reading.
//
//	cd examples/redis && go run .
//
// All there is to it is Dialer: b.DialContext; the same goes for any client that
// lets its connections be dialed for it. It needs a redis-server that is installed,
// takes about five seconds, and ends with status 1 if a read was lost. main.go has
// the client, servers.go what it reads from.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/discovery"
)

func main() {
	err := run(context.Background(), os.Stdout)
	if errors.Is(err, exec.ErrNotFound) {
		fmt.Println("redis-server is not installed, and this example shows nothing without.")
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// newClient returns a client whose connections are b's. The address stands for the
// service: b knows where its nodes are.
func newClient(b *balancer.Balancer) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr:     "greetings:6379",
		Dialer:   b.DialContext,
		PoolSize: callers,
		// A connection stays with its node. Without a bound on its life, a server
		// that comes back would wait for new ones for ever.
		ConnMaxLifetime: 300 * time.Millisecond,
		// Of a managed service that moves its servers; these do not.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

const (
	callers = 8
	shortly = 200 * time.Millisecond
	length  = time.Second // of a phase, after the change
)

func run(ctx context.Context, out io.Writer) error {
	servers, err := startServers(ctx, "A", "B")
	defer func() {
		for _, s := range servers {
			s.kill()
		}
	}()
	if err != nil {
		return err
	}
	var endpoints []discovery.Endpoint
	for _, s := range servers {
		endpoints = append(endpoints, discovery.Endpoint{ID: s.name, Addr: s.addr})
	}
	b, err := balancer.New("greetings", discovery.Static(endpoints...), &balancer.Config{
		// As many connections to one as to the other.
		Policy: balancer.P2C{Cost: balancer.Connections{}},
		// A node that cannot be connected to is left alone, for 30 s and more if
		// nothing else is said. That is too long to watch.
		Outliers: balancer.OutlierConfig{BaseEjection: shortly, MaxEjection: shortly},
		Breaker:  breaker.Config{OpenTime: shortly, MaxOpenTime: shortly},
	})
	if err != nil {
		return err
	}
	defer b.Close()
	client := newClient(b)
	defer client.Close()

	a := servers[0]
	lost := 0
	for _, phase := range []struct {
		title  string
		change func() error
	}{
		{"both are well", func() error { return nil }},
		{"A is killed", func() error { a.kill(); return nil }},
		{"A is still gone", func() error { return nil }},
		{"A is back", func() error { return a.start(ctx) }},
	} {
		seen, failed, err := read(ctx, client, phase.change)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%-16s %6d reads from A, %6d from B, %d lost\n", phase.title, seen["A"], seen["B"], failed)
		lost += failed
	}
	for _, n := range b.Nodes() {
		fmt.Fprintf(out, "%s has %d open connections\n", n, n.InFlight())
	}
	if lost > 0 {
		return fmt.Errorf("%d reads were lost", lost)
	}
	return nil
}

// read has all callers read for a phase, soon after whose beginning something
// changes. It returns how often which server answered.
func read(ctx context.Context, client *redis.Client, change func() error) (seen map[string]int, failed int, err error) {
	var (
		mu   sync.Mutex
		work sync.WaitGroup
	)
	seen = make(map[string]int)
	var over atomic.Bool
	for range callers {
		work.Go(func() {
			for !over.Load() {
				// Where a connection breaks, go-redis repeats the command, over
				// another one: to a node that is well.
				name, err := client.Get(ctx, "name").Result()
				mu.Lock()
				switch {
				case err == nil:
					seen[name]++
				case !errors.Is(err, redis.Nil): // of one that has started, but is yet to be told its name
					failed++
				}
				mu.Unlock()
			}
		})
	}
	pause(ctx, length/10)
	err = change()
	pause(ctx, length)
	over.Store(true)
	work.Wait()
	return seen, failed, err
}

func pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}
