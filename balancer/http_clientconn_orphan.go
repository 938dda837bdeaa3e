package balancer

import (
	"context"
	"sync"
	"sync/atomic"
)

// orphans are contexts of callers under which net/http has left one of its own. Over
// HTTP/1.1 a ClientConn of Go 1.26 derives a context from each request's, and ends it
// only if there is an answer: under a context that lives long, such as a worker's, there
// would be one more with each failure. So requests under a context that has one already
// get their attempt's.
type orphans struct {
	some atomic.Int64
	of   sync.Map // by the channel that ends them
}

// left takes note that a request under ctx has failed.
func (o *orphans) left(ctx context.Context) {
	done := ctx.Done()
	if done == nil {
		return // nothing hangs on what never ends
	}
	if _, known := o.of.LoadOrStore(done, struct{}{}); known {
		return
	}
	o.some.Add(1)
	context.AfterFunc(ctx, func() {
		o.of.Delete(done)
		o.some.Add(-1)
	})
}

// under reports whether there is one under ctx.
func (o *orphans) under(ctx context.Context) bool {
	if o.some.Load() == 0 {
		return false
	}
	done := ctx.Done()
	if done == nil {
		return false
	}
	_, known := o.of.Load(done)
	return known
}
