// Package breaker stops sending calls to what fails, and finds out gently when
// it is well again.
//
//	b, err := breaker.New("orders", nil)
//	if err != nil {
//		return err
//	}
//	order, err := breaker.Do(ctx, b, func(ctx context.Context) (Order, error) {
//		return fetch(ctx, id)
//	})
//	if errors.Is(err, breaker.ErrOpen) {
//		return cached(id) // nothing was sent
//	}
//
// Around HTTP it is a layer, for one peer or for each host:
//
//	hc.Transport = b.Layer(hc.Transport)
//	hc.Transport = group.Layer(hc.Transport)
//
// # States
//
// Closed admits every call and counts it in a rolling window. When at least
// MinCalls were counted and FailureRate of them failed (or SlowRate were slow,
// or Consecutive failed in a row) it opens. Thresholds are looked at when a call
// fails or is slow, and compared exactly: 49.5 % is not 50 %.
//
// Open refuses calls with an [*OpenError] for OpenTime, which doubles each time
// the breaker opens again before it was closed for a whole window, up to
// MaxOpenTime. Then the next call makes it half-open: there is no timer.
//
// HalfOpen admits Probes calls. All of them have to succeed for the breaker to
// close; the first that fails, or is slow, opens it again. A probe that ends
// without a verdict is replaced by another, but at ProbeInterval's pace; one
// that is not answered within ProbeTimeout loses its place, so that the breaker
// never waits for ever.
//
// # Leases
//
// [Breaker.Acquire] gives a [Lease], which the caller returns once with what
// came of the call. A lease acts only on the period that gave it: what a call
// admitted before the breaker opened has to say afterwards concerns nobody.
//
// Of outcomes, [outcome.Success] and [outcome.Failure] count.
// [outcome.Throttled] and [outcome.Neutral] say nothing about the peer's health
// and count nowhere, not even as calls; a refusal of another layer of ours and
// the caller's cancel are neutral.
//
// A breaker inside a retry sees each attempt; one outside sees one call and its
// last outcome, and refuses before the retry begins.
//
// # What it does not do
//
// It bounds neither time nor concurrency: put a timeout inside, shorter than
// half the Window, so that a peer that hangs is noticed while its calls still
// count; and a limit outside, so that its queue is not taken for the peer's
// slowness. It does not probe by itself: health checks go past the breaker, and
// whoever learns from one that the peer is well may Reset it. It shares no state
// between processes.
package breaker
