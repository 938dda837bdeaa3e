package call

import (
	"context"
	"sync/atomic"
)

// Inbound is what is known of the request that this process is serving while it
// makes calls of its own. Layers that repeat attempts heed it: of the tiers that
// a request passes, only the one next to the failure tries again, or a failure at
// the bottom is multiplied by the attempts of every tier above it.
//
// The two fields are set before the Inbound is put into a context, and then left
// alone. All methods may be called concurrently and on nil.
type Inbound struct {
	// Attempt is the number of this attempt as the caller counts, from 1; 0 if
	// it did not say.
	Attempt int
	// NoRetry is whether the caller asks that nothing be repeated on its behalf.
	NoRetry bool

	exhausted atomic.Bool
}

type inboundKey struct{}

// WithInbound returns a context for serving a request: what is called under it
// is called on the request's behalf.
func WithInbound(ctx context.Context, in *Inbound) context.Context {
	return context.WithValue(ctx, inboundKey{}, in)
}

// InboundOf returns the request that is served under ctx, or nil.
func InboundOf(ctx context.Context) *Inbound {
	in, _ := ctx.Value(inboundKey{}).(*Inbound)
	return in
}

// Final reports whether calls on the request's behalf are not to be repeated:
// the caller says so, or it is repeating the request itself.
func (in *Inbound) Final() bool { return in != nil && (in.NoRetry || in.Attempt > 1) }

// SetExhausted notes that a call on the request's behalf has failed, and that to
// repeat the whole request would not help: it has been tried again in vain, or
// there is no budget to do so.
func (in *Inbound) SetExhausted() {
	if in != nil {
		in.exhausted.Store(true)
	}
}

// Exhausted reports whether SetExhausted has been called.
func (in *Inbound) Exhausted() bool { return in != nil && in.exhausted.Load() }
