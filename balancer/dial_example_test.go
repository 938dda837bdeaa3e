package balancer_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"time"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// A client of any protocol goes on when one of its servers is gone.
func ExampleBalancer_DialContext() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "greetings from B")
			c.Close()
		}
	}()
	b, err := balancer.New("greetings", discovery.Static(
		discovery.Endpoint{ID: "A", Addr: "127.0.0.1:1"}, // nobody is there
		discovery.Endpoint{ID: "B", Addr: l.Addr().String()},
	), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for range 3 {
		// The name stands for the service. A driver would be given b.DialContext.
		c, err := b.DialContext(ctx, "tcp", "greetings:4000")
		if err != nil {
			fmt.Println(err)
			return
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			fmt.Println(err)
		}
		fmt.Print(line)
		c.Close()
	}
	// Output:
	// greetings from B
	// greetings from B
	// greetings from B
}
