package backstaygrpc

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/backstay/backstay/retry"
)

// Idempotent returns an option of one call: whether it may be repeated although it may
// have been acted on. It has priority over what [retry.WithIdempotent], the route and
// the method's descriptor say.
func Idempotent(idempotent bool) grpc.CallOption {
	return callOption{change: func(s *callSettings) { s.idempotent, s.said = idempotent, true }}
}

// MaxAttempts returns an option of one call: how often it is tried at most, hedges
// among them. With 1 it is tried once. It does not raise what the settings say, nor is
// there a limit for 0 or less.
func MaxAttempts(n int) grpc.CallOption {
	return callOption{change: func(s *callSettings) { s.attempts = n }}
}

// callOption is an option of ours. For grpc it is one that does nothing.
type callOption struct {
	grpc.EmptyCallOption
	change func(*callSettings)
}

// callSettings is what options of ours say.
type callSettings struct {
	said       bool // whether it is idempotent
	idempotent bool
	attempts   int // 0 is no limit
}

// callOptions are the options of one call, taken apart.
type callOptions struct {
	callSettings
	waits bool              // for ready connections
	down  []grpc.CallOption // for each attempt
	up    []grpc.CallOption // those that tell of the attempt returned, or of the end
}

// take takes the options apart. Waits is whether it is up to us to wait for ready
// connections.
func (o *callOptions) take(opts []grpc.CallOption, waits bool) {
	special := false
	for _, opt := range opts {
		switch opt := opt.(type) {
		case callOption:
			opt.change(&o.callSettings)
		case grpc.HeaderCallOption, grpc.TrailerCallOption, grpc.PeerCallOption, grpc.OnFinishCallOption:
			o.up = append(o.up, opt)
			special = true
		case grpc.FailFastCallOption:
			o.waits = waits && !opt.FailFast
			special = special || waits
		}
	}
	if o.down = opts; !special {
		return
	}
	o.down = slices.DeleteFunc(slices.Clone(opts), func(opt grpc.CallOption) bool {
		switch opt.(type) {
		case grpc.HeaderCallOption, grpc.TrailerCallOption, grpc.PeerCallOption, grpc.OnFinishCallOption:
			return true
		case grpc.FailFastCallOption:
			return waits
		}
		return false
	})
	if o.waits { // we do, for any node, and not grpc for one of them
		o.down = append(o.down, grpc.WaitForReady(false))
	}
}

// tell tells the options of the attempt that the caller gets, if one has reached a
// node.
func (o *callOptions) tell(a *answer) {
	if a == nil || !a.sent() {
		return
	}
	for _, opt := range o.up {
		switch opt := opt.(type) {
		case grpc.HeaderCallOption:
			*opt.HeaderAddr = a.header
		case grpc.TrailerCallOption:
			*opt.TrailerAddr = a.trailer
		case grpc.PeerCallOption:
			*opt.PeerAddr = *a.peer
		}
	}
}

// finish tells the options of the end.
func (o *callOptions) finish(err error) {
	for _, opt := range o.up {
		if opt, ok := opt.(grpc.OnFinishCallOption); ok {
			opt.OnFinish(err)
		}
	}
}

// answer is what an attempt came to, besides its error. It is never used again:
// interceptors of the user's may hold on to its options.
type answer struct {
	reply   any
	trailer metadata.MD // not nil if there was a stream
	header  metadata.MD // and peer, if somebody wants to know
	peer    *peer.Peer

	room [2]grpc.CallOption // for the attempt's options
}

// sent reports whether the attempt had a stream, so that the server may have seen it.
func (a *answer) sent() bool { return a.trailer != nil || a.peer != nil && a.peer.Addr != nil }

// options returns an attempt's options: a call's, and those that fill in the answer.
// Grpc's own connections tell a trailer of each stream, if need be an empty one. What is
// below an interceptor may be something else, in memory, that tells none, but a peer.
func (a *answer) options(x *trials) []grpc.CallOption {
	opts := append(append(a.room[:0], x.opts.down...), grpc.Trailer(&a.trailer))
	wanted := x.conn == nil
	for _, opt := range x.opts.up {
		switch opt.(type) {
		case grpc.HeaderCallOption:
			opts = append(opts, grpc.Header(&a.header))
		case grpc.PeerCallOption:
			wanted = true
		}
	}
	if wanted {
		a.peer = new(peer.Peer)
		opts = append(opts, grpc.Peer(a.peer))
	}
	return opts
}

// repeatable returns whether the call may be repeated: by its options, by ctx, or by
// what is known of its method.
func (o *callOptions) repeatable(ctx context.Context, m *method) bool {
	if o.said {
		return o.idempotent
	}
	if said, ok := retry.Idempotent(ctx); ok {
		return said
	}
	return m.idempotent
}
