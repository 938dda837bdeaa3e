// Package limit refuses or holds back calls before any work is done for them:
// [Rate] by how many begin in a second, [Concurrency] by how many are under way.
//
//	c, err := limit.NewConcurrency(&limit.ConcurrencyConfig{Max: 100, Queue: 50})
//	if err != nil {
//		return err
//	}
//	lease, err := c.Acquire(ctx)
//	if errors.Is(err, limit.ErrFull) {
//		return err // nothing was sent
//	}
//	defer lease.Done()
//
// Around HTTP they are layers:
//
//	hc.Transport = r.Layer(c.Layer(hc.Transport))
//
// A refusal is a [*RateError] or a [*FullError], which say that nothing was
// sent: outcome.Refused, outcome.NotSent. A caller whose context ends while it
// waits gets the context's cause, and has taken nothing.
//
// # Order
//
// Who waits is served first come, first served, and nobody who comes later goes
// ahead of those who wait. Only Concurrency knows priorities: see [WithPriority].
//
// # Where to put them
//
// Outside retries they limit calls, inside they limit attempts. Queues belong
// outside breakers, so that waiting here is not taken for a slow peer; at a
// single node of several there should be no queue, for another node may be free.
//
// # What it does not do
//
// Limits are of one process: a fleet of n has n of them.
package limit
