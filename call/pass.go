package call

import "context"

// Pass is [Carry] for a context that goes to one function, on the caller's own
// goroutine, which finds f in it ([Join]) and hands the context on to nobody. So f
// stays the call's own, without locks, and [Frame.Free] can have it used again. If the
// context turns out to be derived from, [Frame.Share] makes up for it.
func Pass(ctx context.Context, f *Frame) context.Context {
	if f == nil {
		return ctx
	}
	return &frameContext{ctx, f}
}

// Share says that others may look at f from now on, as Carry does.
func (f *Frame) Share() {
	if f == nil || f.shared && !f.lent {
		return
	}
	f.shared, f.lent = true, false
}
