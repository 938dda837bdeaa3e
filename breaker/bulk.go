package breaker

import "time"

// Succeeded counts calls that had no lease and ended well at the given time. That
// may be a while ago: they leave the window with what else is of that time, and
// those that have left it already do not count. It is for callers that count
// successes by themselves and only ask for leases when something is wrong. It has
// no effect while the breaker is not closed, and knows nothing of slow calls or
// of failures in a row.
func (b *Breaker) Succeeded(now time.Time, calls int) {
	if p := b.cur.Load(); p.state == Closed && calls > 0 {
		p.win.succeeded(b.nanos(now), int64(calls))
	}
}
