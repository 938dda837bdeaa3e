package jsonconf_test

import (
	"fmt"
	"time"

	"github.com/backstay/backstay/internal/jsonconf"
)

type timeouts struct {
	Connect time.Duration `json:"connect,omitempty"`
	Attempt time.Duration `json:"attempt,omitempty"`
}

func ExampleUnmarshal() {
	var t timeouts
	fmt.Println(jsonconf.Unmarshal([]byte(`{"connect": "250ms"}`), &t), t.Connect)
	fmt.Println(jsonconf.Unmarshal([]byte(`{"connect": 250}`), &t))
	// Output:
	// <nil> 250ms
	// config: connect is 250, want a duration such as "250ms"
}

func ExampleMarshal() {
	data, err := jsonconf.Marshal(timeouts{Attempt: 90 * time.Second})
	fmt.Println(string(data), err)
	// Output: {"attempt":"1m30s"} <nil>
}
