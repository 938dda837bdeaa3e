package inherit_test

import (
	"fmt"
	"time"

	"github.com/backstay/backstay/internal/inherit"
)

func ExampleOf() {
	type retry struct {
		Attempts int
		Timeout  time.Duration
	}
	defaults := retry{Attempts: 3, Timeout: 10 * time.Second}
	service := retry{Timeout: time.Second}
	fmt.Printf("%+v\n", inherit.Of(service, defaults))
	// Output: {Attempts:3 Timeout:1s}
}
