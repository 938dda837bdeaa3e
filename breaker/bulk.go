package breaker

import "time"

// Succeeded counts calls that had no lease and ended well, some time before now
// or at it. It is for callers that count successes by themselves and only ask
// for leases when something is wrong. It has no effect while the breaker is not
// closed, and knows nothing of slow calls or of failures in a row.
func (b *Breaker) Succeeded(now time.Time, calls int) {
	if p := b.cur.Load(); p.state == Closed && calls > 0 {
		p.win.at(b.nanos(now)).calls.Add(int64(calls))
	}
}
