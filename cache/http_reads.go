package cache

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/layer"
)

// reads are the requests under way that others of the same may wait for.
type reads struct {
	mu    sync.Mutex
	under map[httpKey]chan struct{}
}

// begin registers req as a read that others may wait for, until release is
// called. If there is one already, it waits for its end instead, but no longer
// than limit, and release is nil: who has waited in vain does not make others
// wait again. The error is why req's call ended while it waited.
func (r *reads) begin(
	req *http.Request, f *call.Frame, key httpKey, limit time.Duration,
) (release func(), waited bool, err error) {
	r.mu.Lock()
	other, ok := r.under[key]
	if !ok {
		own := make(chan struct{})
		r.under[key] = own
		r.mu.Unlock()
		return func() {
			r.forget(key, own)
			close(own)
		}, false, nil
	}
	r.mu.Unlock()

	ctx, cancel := layer.Within(req.Context(), f)
	defer cancel()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case <-other:
	case <-timeout.C:
		r.forget(key, other) // nobody else need wait for a read that slow
	case <-ctx.Done():
		return nil, true, context.Cause(ctx)
	case <-req.Cancel: //nolint:staticcheck // deprecated, but not gone; the transport below says so in its own words
	}
	return nil, true, nil
}

// forget ends that others wait for read, if it is still the one of key.
func (r *reads) forget(key httpKey, read chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.under[key] == read {
		delete(r.under, key)
	}
}
