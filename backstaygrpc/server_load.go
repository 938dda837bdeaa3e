package backstaygrpc

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/backstay/backstay/balancer/loadreport"
)

// ServerLoad tells clients with each call's trailer how busy the server is, as
// loadreport's Handler does in the headers of HTTP: in endpoint-load-metrics-bin, where
// gRPC's own clients look for it as well. One loadreport.Server may be behind both. Calls
// that end as failures of the server's count for EPS only.
//
// A stream is in flight until its end; how long it took is the time to its first message,
// or to its headers if they are sent before.
//
// Do not use grpc's orca.CallMetricsServerOption beside it: of two reports clients read
// neither.
func ServerLoad(load *loadreport.Server) ServerInterceptor {
	return around(func(c *serverCall, next func(context.Context) error) error {
		request := load.Begin(time.Time{})
		var mu sync.Mutex // a stream's handler may have several goroutines
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			request.Done(time.Time{})
		}()
		c.answer = func() {
			mu.Lock()
			defer mu.Unlock()
			request.Answered(time.Time{}, false)
		}
		err := next(c.ctx)
		mu.Lock()
		report := request.Answered(time.Time{}, failed(err))
		mu.Unlock()
		data, _ := report.AppendBinary(make([]byte, 0, 128)) // never fails
		c.setTrailer(metadata.MD{loadKey: {string(data)}})
		return err
	})
}
