package balancer

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// canCancel reports whether http.Transport.CancelRequest ends a request over HTTP/1.1
// that is under way.
//
// A request that can be ended so needs no context of its own, and so no copy: that is
// two thirds of what an attempt costs, and net/http keeps account of requests for it
// in any case. But it is deprecated, and may do nothing in some release of Go to come.
// So it is tried once, on a connection in memory; where it does nothing, attempts have
// a context.
var canCancel = sync.OnceValue(func() bool { //nolint:gochecknoglobals // constant once it is known
	client, server := net.Pipe()
	asked := make(chan struct{})
	var work sync.WaitGroup
	defer work.Wait()
	defer server.Close()
	defer client.Close()
	work.Go(func() {
		var first [1]byte
		_, _ = server.Read(first[:])
		close(asked)
		_, _ = io.Copy(io.Discard, server)
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	t := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return client, nil },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cancel/", http.NoBody)
	if err != nil {
		return false
	}
	work.Go(func() {
		<-asked
		t.CancelRequest(req) //nolint:staticcheck // as above
	})
	resp, err := t.RoundTrip(req)
	if err == nil {
		_ = resp.Body.Close()
	}
	return err != nil && ctx.Err() == nil
})
