package retry

import "context"

// WithIdempotent returns a context under which calls may be repeated (true), or
// must not be once they may have reached the server (false): whatever their
// method, their headers and the retrier's Config say. It holds for retries and
// hedges, over HTTP and in Do and Run, and for all calls that are made with the
// context or one derived from it.
//
// What net/http repeats by itself, when a kept connection turns out to be dead
// before anything was answered, is out of its reach.
func WithIdempotent(ctx context.Context, idempotent bool) context.Context {
	return context.WithValue(ctx, idempotentKey{}, idempotent)
}

// Idempotent returns what [WithIdempotent] says of calls under ctx, and whether it
// says anything.
func Idempotent(ctx context.Context) (idempotent, said bool) {
	idempotent, said = ctx.Value(idempotentKey{}).(bool)
	return idempotent, said
}

type idempotentKey struct{}

// idempotent returns what WithIdempotent says of ctx, or else the value given.
func idempotent(ctx context.Context, or bool) bool {
	if is, said := Idempotent(ctx); said {
		return is
	}
	return or
}
